//! Map memory as [`Tables`]. The kernel side's map names stand here and nowhere else.

use core::{ops::Deref, ptr::NonNull};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::bpf_jiffies64,
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use lb_common::{
    Answers, Backend, BackendCounters, Family, FlowEntry, FlowKey, Hop, Interface, Meta, Reason, Seen,
    Service, ServiceKey, Side, Tick, V4, V6,
    backend::MAX_BACKENDS,
    service::{MAX_SERVICES, MAX_SLOTS},
    verdict::{REASON_COUNTERS, ReasonCounters},
};
use lb_ebpf::tables::{Flow, Flows, NotInserted, Tables};

/// Replaced at load by what `--max-flows` asks for: two entries a connection.
const FLOW_ENTRIES: u32 = 2 * 262_144;

#[map]
static FLOWS_V4: HashMap<FlowKey<V4>, FlowEntry<V4>> = HashMap::pinned(FLOW_ENTRIES, 0);
#[map]
static FLOWS_V6: HashMap<FlowKey<V6>, FlowEntry<V6>> = HashMap::pinned(FLOW_ENTRIES, 0);
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

/// The flow table of a family.
pub(crate) trait FlowMap: Family {
    /// Which map.
    fn map() -> &'static HashMap<FlowKey<Self>, FlowEntry<Self>>;
}

impl FlowMap for V4 {
    #[inline(always)]
    fn map() -> &'static HashMap<FlowKey<Self>, FlowEntry<Self>> {
        &FLOWS_V4
    }
}

impl FlowMap for V6 {
    #[inline(always)]
    fn map() -> &'static HashMap<FlowKey<Self>, FlowEntry<Self>> {
        &FLOWS_V6
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

impl<F: Family> Flow<F> for InMap<FlowEntry<F>> {
    #[inline(always)]
    fn record(&self, seen: Seen, now: Tick) {
        let entry = self.0.as_ptr();
        // SAFETY: live map memory (see `Deref`); each is one aligned scalar store.
        unsafe {
            (&raw mut (*entry).seen).write_volatile(seen);
            (&raw mut (*entry).last).write_volatile(now);
        }
    }

    #[inline(always)]
    fn set_client(&self, client: Hop) {
        // SAFETY: live map memory (see `Deref`).
        unsafe { (&raw mut (*self.0.as_ptr()).client).write(client) }
    }

    #[inline(always)]
    fn set_partner_end(&self, end: Seen) {
        // SAFETY: live map memory (see `Deref`); one byte, which only the other direction writes.
        unsafe { (&raw mut (*self.0.as_ptr()).partner_end).write_volatile(end) }
    }

    #[inline(always)]
    fn claim(&self) -> bool {
        // SAFETY: live map memory (see `Deref`), an aligned u64.
        unsafe { crate::atomic::fetch_increment(&raw mut (*self.0.as_ptr()).claim) == 0 }
    }

    #[inline(always)]
    fn release(&self) {
        // SAFETY: live map memory (see `Deref`); one aligned scalar store.
        unsafe { (&raw mut (*self.0.as_ptr()).claim).write_volatile(0) }
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

impl<F: FlowMap> Flows<F> for Maps {
    type Flow = InMap<FlowEntry<F>>;

    #[inline(always)]
    fn flow(self, key: &FlowKey<F>) -> Option<Self::Flow> {
        F::map().get_ptr_mut(key).and_then(InMap::new)
    }

    #[inline(always)]
    fn insert(self, key: &FlowKey<F>, entry: &FlowEntry<F>) -> Result<(), NotInserted> {
        const EEXIST: i32 = -17;
        F::map().insert(key, entry, u64::from(BPF_NOEXIST)).map_err(|error| match error {
            EEXIST => NotInserted::Exists,
            // E2BIG: no element left. ENOMEM and EBUSY: no way to take one now, which is the same to a client.
            _ => NotInserted::Full,
        })
    }

    #[inline(always)]
    fn remove(self, key: &FlowKey<F>) {
        // Gone already is as good.
        let _gone = F::map().remove(key);
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
        Some(counter) => unsafe { crate::atomic::fetch_increment(counter) },
        None => 0,
    }
}

const _: () = assert!(REASON_COUNTERS.is_power_of_two(), "a mask bounds the index");
