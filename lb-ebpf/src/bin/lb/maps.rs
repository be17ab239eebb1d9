//! Map memory as [`Tables`]. The kernel side's map names stand here and nowhere else.

use core::{ops::Deref, ptr::NonNull};

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_CPU, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    helpers::{bpf_jiffies64, generated::bpf_perf_event_output},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, PerfEventByteArray, ProgramArray},
    programs::XdpContext,
};
use lb_common::{
    Addr, Answers, Backend, BackendCounters, Datagram, DatagramKey, Family, FlowEntry, FlowKey, Hop,
    Interface, Meta, Program, Reason, Service, ServiceKey, Side, Tick, Tuple, V4, V6, Vlan,
    backend::MAX_BACKENDS,
    control::{GENERIC, MAX_OWN_ADDRESSES, OwnAddress},
    datagram::{Early, MAX_DATAGRAMS, Piece},
    flow::Shared,
    service::{MAX_SERVICES, MAX_SLOTS},
    table::{NotInserted, Slot, slots_for},
    verdict::{REASON_COUNTERS, ReasonCounters},
    vlan::MAX_VLANS,
};
use lb_ebpf::{
    pair::Found,
    parse::{Networks, Packet},
    tables::{Flows, Tables},
};

use crate::flows::{self, FlowTable, InTable};

/// Slots of a flow table; replaced at load by what `--max-flows` asks for.
pub(crate) const FLOW_SLOTS: u32 = slots_for(2 * 262_144);

#[map]
static FLOWS_V4: Array<Slot<V4>> = Array::pinned(FLOW_SLOTS, BPF_F_MMAPABLE);
#[map]
static FLOWS_V6: Array<Slot<V6>> = Array::pinned(FLOW_SLOTS, BPF_F_MMAPABLE);
/// How many more entries each family's table takes.
#[map]
static ROOM: Array<i64> = Array::pinned(2, BPF_F_MMAPABLE);
/// An entry on its way into a table: the stack has no room for it.
#[map]
static ENTERING_V4: PerCpuArray<Entering<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static ENTERING_V6: PerCpuArray<Entering<V6>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SERVICES: HashMap<ServiceKey, u32> = HashMap::pinned(MAX_SERVICES, 0);
#[map]
static SERVICE: Array<Service> = Array::pinned(MAX_SERVICES, 0);
#[map]
static SLOTS: Array<u32> = Array::pinned(MAX_SLOTS, 0);
#[map]
static TURNS: Array<u64> = Array::pinned(MAX_SERVICES, 0);
#[map]
static BACKENDS: Array<Backend> = Array::pinned(MAX_BACKENDS, 0);
#[map]
static NEXT_HOPS: Array<Hop> = Array::pinned(MAX_BACKENDS, 0);
/// The MTU on the way to each backend; 0 while unknown.
#[map]
static PATH_MTUS: Array<u32> = Array::pinned(MAX_BACKENDS, 0);
/// The smallest of all MTUs of ways out.
#[map]
static SMALLEST_MTU: Array<u32> = Array::pinned(1, 0);
#[map]
static CURSORS: Array<u64> = Array::pinned(MAX_BACKENDS, 0);
#[map]
static BACKEND_COUNTERS: PerCpuArray<BackendCounters> = PerCpuArray::pinned(MAX_BACKENDS, 0);
#[map]
static ANSWERS: PerCpuArray<Answers> = PerCpuArray::pinned(1, 0);
#[map]
static REASONS: PerCpuArray<ReasonCounters> = PerCpuArray::pinned(1, 0);
/// Not read here: the control path keeps it with the rest.
#[map]
static META: Array<Meta> = Array::pinned(1, 0);
/// By index. The control path keeps it with the rest; here, for the MTU.
#[map]
static INTERFACES: HashMap<u32, Interface> = HashMap::pinned(64, 0);

/// Addresses of services and those for SNAT.
#[map]
static OWN_ADDRESSES: HashMap<OwnAddress, u8> = HashMap::pinned(MAX_OWN_ADDRESSES, 0);
/// VLANs that the host has devices for, and those devices' MTUs.
#[map]
static VLANS: HashMap<Vlan, u32> = HashMap::pinned(MAX_VLANS, BPF_F_NO_PREALLOC);
/// What became of first fragments.
#[map]
static DATAGRAMS: LruHashMap<DatagramKey, Datagram> = LruHashMap::pinned(MAX_DATAGRAMS, 0);
/// To the daemon: fragments that have come before their datagram's first.
#[map]
static EARLY: PerfEventByteArray = PerfEventByteArray::pinned(0);
/// The programs that the path is divided among.
#[map]
static PROGRAMS: ProgramArray = ProgramArray::pinned(PROGRAMS_LENGTH, 0);

/// Room for more programs, so that a new one does not change the layout.
const PROGRAMS_LENGTH: u32 = 16;

/// Goes on in another program, and returns only if it is not there.
#[inline(always)]
pub(crate) fn go_on_in(context: &XdpContext, program: Program) {
    // SAFETY: nothing is left to be dropped.
    unsafe { PROGRAMS.tail_call(context, program.index()) }
}

/// Gives the frame to the daemon; says whether that will get it.
#[inline(always)]
pub(crate) fn keep_back(context: &XdpContext, early: &Early) -> bool {
    let flags = u64::from(early.length) << 32 | BPF_F_CURRENT_CPU;
    let map = (&raw const EARLY).cast_mut().cast();
    let data = (&raw const *early).cast_mut().cast();
    // SAFETY: a map of that kind, the context, and as many bytes as are given.
    unsafe { bpf_perf_event_output(context.ctx.cast(), map, flags, data, size_of::<Early>() as u64) == 0 }
}

/// Whose network a VLAN is; see [`Networks::of`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn networks_of(vlan: *const Vlan) -> u64 {
    // SAFETY: null, or a caller's reference: the verifier compares what it points to with the type in the program's BTF.
    let Some(vlan) = (unsafe { vlan.as_ref() }) else { return Networks::OF_OTHERS.0 };
    // Linux 6.1 takes keys from the function's own stack only.
    let vlan = *vlan;
    Networks::of(Maps, &vlan).0
}

/// An entry and its packets' key.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Entering<F: Family> {
    pub(crate) key: FlowKey<F>,
    pub(crate) entry: FlowEntry<F>,
}

/// The maps of a family's flow table.
pub(crate) trait FlowMaps: Family {
    fn slots() -> &'static Array<Slot<Self>>;
    fn entering() -> &'static PerCpuArray<Entering<Self>>;
    /// How many more entries it takes.
    fn room() -> Option<*mut i64>;
}

impl FlowMaps for V4 {
    #[inline(always)]
    fn slots() -> &'static Array<Slot<Self>> {
        &FLOWS_V4
    }

    #[inline(always)]
    fn entering() -> &'static PerCpuArray<Entering<Self>> {
        &ENTERING_V4
    }

    #[inline(always)]
    fn room() -> Option<*mut i64> {
        ROOM.get_ptr_mut(0)
    }
}

impl FlowMaps for V6 {
    #[inline(always)]
    fn slots() -> &'static Array<Slot<Self>> {
        &FLOWS_V6
    }

    #[inline(always)]
    fn entering() -> &'static PerCpuArray<Entering<Self>> {
        &ENTERING_V6
    }

    #[inline(always)]
    fn room() -> Option<*mut i64> {
        ROOM.get_ptr_mut(1)
    }
}

/// All maps together.
#[derive(Clone, Copy)]
pub(crate) struct Maps;

/// A value in map memory, alive until the program returns.
pub(crate) struct InMap<T>(NonNull<T>);

impl<T> InMap<T> {
    #[inline(always)]
    fn new(pointer: *mut T) -> Option<Self> {
        NonNull::new(pointer).map(Self)
    }
}

impl<T> Deref for InMap<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: made by `new` from a lookup that the verifier saw compared with null; elements live on until the
        // program returns, and every value type is valid for any bit pattern, whoever writes it meanwhile.
        unsafe { self.0.as_ref() }
    }
}

impl Tables for Maps {
    type Ref<T: Copy + 'static> = InMap<T>;

    #[inline(always)]
    fn now(self) -> Tick {
        // SAFETY: a helper without arguments.
        Tick::from_jiffies(unsafe { bpf_jiffies64() })
    }

    #[inline(always)]
    fn service_index(self, key: &ServiceKey) -> Option<u32> {
        SERVICES.get_ptr_mut(key).and_then(InMap::new).map(|index| *index)
    }

    #[inline(always)]
    fn service(self, index: u32) -> Option<InMap<Service>> {
        SERVICE.get_ptr_mut(index).and_then(InMap::new)
    }

    #[inline(always)]
    fn slot(self, index: u32) -> Option<u32> {
        SLOTS.get_ptr_mut(index).and_then(InMap::new).map(|backend| *backend)
    }

    #[inline(always)]
    fn backend(self, index: u32) -> Option<InMap<Backend>> {
        BACKENDS.get_ptr_mut(index).and_then(InMap::new)
    }

    #[inline(always)]
    fn next_hop(self, backend: u32) -> Option<InMap<Hop>> {
        NEXT_HOPS.get_ptr_mut(backend).and_then(InMap::new)
    }

    #[inline(always)]
    fn smallest_mtu(self) -> u32 {
        SMALLEST_MTU.get_ptr_mut(0).and_then(InMap::new).map_or(0, |mtu| *mtu)
    }

    #[inline(always)]
    fn path_mtu(self, backend: u32) -> u32 {
        PATH_MTUS.get_ptr_mut(backend).and_then(InMap::new).map_or(0, |mtu| *mtu)
    }

    #[inline(always)]
    fn interface_mtu(self, ifindex: u32) -> u32 {
        INTERFACES.get_ptr_mut(ifindex).and_then(InMap::new).map_or(0, |interface| interface.mtu)
    }

    #[inline(always)]
    fn is_generic(self, ifindex: u32) -> bool {
        INTERFACES
            .get_ptr_mut(ifindex)
            .and_then(InMap::new)
            .is_some_and(|interface| interface.mode == GENERIC)
    }

    #[inline(always)]
    fn vlan_mtu(self, vlan: &Vlan) -> Option<u32> {
        VLANS.get_ptr_mut(vlan).and_then(InMap::new).map(|mtu| *mtu)
    }

    #[inline(always)]
    fn networks_of(self, vlan: &Vlan) -> Networks {
        Networks(networks_of(vlan))
    }

    #[inline(always)]
    fn take_turn(self, service: u32) -> u64 {
        take(&TURNS, service)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a sequence that goes round")]
    fn take_port(self, cursor: u32) -> u32 {
        take(&CURSORS, cursor) as u32
    }

    #[inline(always)]
    fn take_answer(self, now: Tick) -> u32 {
        // Without counting, no answer is free.
        let Some(answers) = ANSWERS.get_ptr_mut(0) else { return u32::MAX };
        // SAFETY: this CPU's own copy, not null.
        let answers = unsafe { &mut *answers };
        if answers.tick != now {
            *answers = Answers { tick: now, number: 0 };
        }
        answers.number = answers.number.saturating_add(1);
        answers.number - 1
    }

    #[inline(always)]
    fn datagram(self, key: &DatagramKey, piece: Piece) -> Option<Datagram> {
        let datagram = DATAGRAMS.get_ptr_mut(key)?;
        // SAFETY: not null, a value in a map that is valid for any bit pattern; only a last fragment writes the length, before it adds
        // itself, so that whoever completes the sum sees it.
        unsafe {
            if !piece.more {
                (&raw mut (*datagram).length).write_volatile(piece.end());
            }
            let before = crate::atomic::fetch_add(&raw mut (*datagram).seen, piece.length.into());
            Some(Datagram { seen: before.wrapping_add(piece.length.into()), ..datagram.read_volatile() })
        }
    }

    #[inline(always)]
    fn note_datagram(self, key: &DatagramKey, datagram: &Datagram) {
        // Where there is no room, the rest of it is early for good.
        let _result = DATAGRAMS.insert(key, datagram, 0);
    }

    #[inline(always)]
    fn forget_datagram(self, key: &DatagramKey) {
        // Another CPU may have been faster.
        let _result = DATAGRAMS.remove(key);
    }

    #[inline(always)]
    fn is_own(self, addr: &Addr, family: u16) -> bool {
        OWN_ADDRESSES.get_ptr_mut(OwnAddress { addr: *addr, family: family.into() }).is_some()
    }

    #[inline(always)]
    fn count(self, reason: Reason) {
        if let Some(counters) = REASONS.get_ptr_mut(0) {
            let index = in_verifiers_sight(reason as usize);
            // SAFETY: this CPU's own copy, not null; the index is below the array's length (tested with `Reason::ALL`).
            unsafe { *(*counters).packets.as_mut_ptr().add(index) += 1 }
        }
    }

    #[inline(always)]
    fn count_traffic(self, backend: u32, side: Side, bytes: usize) {
        if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(backend) {
            // SAFETY: this CPU's own copy, not null.
            let counters = unsafe { &mut *counters };
            let traffic = if side == Side::Request { &mut counters.requests } else { &mut counters.replies };
            traffic.packets += 1;
            traffic.bytes += bytes as u64;
        }
    }

    #[inline(always)]
    fn count_connection(self, backend: u32) {
        if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(backend) {
            // SAFETY: this CPU's own copy, not null.
            unsafe { (*counters).connections += 1 }
        }
    }
}

impl<F: FlowTable> Flows<F> for Maps {
    type Flow = InTable<F>;

    #[inline(always)]
    fn flow(self, key: &FlowKey<F>) -> Option<InTable<F>> {
        flows::find(key)
    }

    #[inline(always)]
    fn likely_flow(self, key: &FlowKey<F>) -> Option<InTable<F>> {
        flows::find_likely(key)
    }

    #[inline(always)]
    fn has_room(self) -> bool {
        // SAFETY: not null, an aligned word in a map.
        F::room().is_some_and(|room| unsafe { room.read_volatile() } >= 2)
    }

    #[inline(always)]
    fn find_port(self, service: u32, cursor: u32, key: &mut FlowKey<F>) -> Found {
        flows::find_port(service, cursor, key)
    }

    #[inline(always)]
    fn sample(self, number: u32) -> Option<FlowKey<F>> {
        flows::sample(number)
    }

    #[inline(always)]
    fn make_room(self, number: u32) -> bool {
        F::make_room(number) != 0
    }

    #[inline(always)]
    fn connect(self, packet: &Packet<F>) -> Result<(), Reason> {
        flows::connect(packet)
    }

    #[inline(always)]
    fn insert(
        self,
        key: &FlowKey<F>,
        partner: &Tuple<F>,
        side: Side,
        shared: &Shared,
    ) -> Result<(), NotInserted> {
        flows::insert(key, partner, side, shared)
    }
}

/// The index of a reason, as it is. The compiler packs a reason together with other things and takes it out again, and
/// spares a mask that changes nothing; verifiers, that of Linux 6.1 more than later ones, lose its bound on the way.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn in_verifiers_sight(reason: usize) -> usize {
    let mut index = reason;
    // SAFETY: arithmetic in one register.
    unsafe {
        core::arch::asm!(
            "{n} &= {mask}",
            n = inout(reg) index,
            mask = const REASON_COUNTERS - 1,
            options(pure, nomem, nostack),
        );
    }
    index
}

/// For clippy, which reads the program on the host.
#[cfg(not(target_arch = "bpf"))]
const fn in_verifiers_sight(reason: usize) -> usize {
    reason
}

/// The counter's value, and one more for the next caller on whatever CPU.
#[inline(always)]
fn take(counters: &Array<u64>, index: u32) -> u64 {
    match counters.get_ptr_mut(index) {
        // SAFETY: not null, an aligned u64 in a map.
        Some(counter) => unsafe { crate::atomic::fetch_add(counter, 1) },
        None => 0,
    }
}

const _: () = assert!(REASON_COUNTERS.is_power_of_two(), "a mask bounds the index");
