//! The flow tables in map memory, and the functions of the program that search them and insert into them.

use core::{ops::Deref, ptr::NonNull};

use aya_ebpf::Global;
use lb_common::{
    Family, FlowEntry, FlowKey, Hop, Reason, Seen, Side, Tick, Tuple, V4, V6,
    flow::Shared,
    table::{self, AtHome, Found, Geometry, Home, NotInserted, Occupancy, Slot, SlotAccess, Slots},
};
use lb_ebpf::{connect, icmp::Icmp, pair, parse::Packet, tables::Flow};

use crate::{
    atomic,
    maps::{Entering, FLOW_SLOTS, FlowMaps, Maps},
};

/// One less than the number of slots; userspace sets it at load.
#[unsafe(no_mangle)]
static FLOW_MASK: Global<u32> = Global::new(FLOW_SLOTS - 1);
/// What hashes begin with; userspace sets it at load.
#[unsafe(no_mangle)]
static FLOW_SECRET: Global<u64> = Global::new(0);

/// The functions of the program for a family's flow table: verified once, however often they are called.
pub(crate) trait FlowTable: FlowMaps {
    /// Looks up.
    fn find(key: &FlowKey<Self>) -> u64;
    /// Inserts what is entering.
    fn insert() -> u64;
    /// Makes the pair of flows of a packet.
    fn connect(packet: &Packet<Self>) -> u64;
    /// Finds a source port.
    fn find_port(service: u32, cursor: u32, key: &mut FlowKey<Self>) -> u64;
    /// Removes a pair that gives way.
    fn make_room(number: u32) -> u64;
    /// Whether a look at a flow's home is worth its place on the stack.
    const IN_LINE: bool;
}

impl FlowTable for V4 {
    const IN_LINE: bool = true;

    #[inline(always)]
    fn find(key: &FlowKey<Self>) -> u64 {
        find_v4(key)
    }

    #[inline(always)]
    fn insert() -> u64 {
        insert_v4()
    }

    #[inline(always)]
    fn connect(packet: &Packet<Self>) -> u64 {
        connect_v4(packet)
    }

    #[inline(always)]
    fn find_port(service: u32, cursor: u32, key: &mut FlowKey<Self>) -> u64 {
        find_port_v4(service, cursor, key)
    }

    #[inline(always)]
    fn make_room(number: u32) -> u64 {
        make_room_v4(number)
    }
}

impl FlowTable for V6 {
    const IN_LINE: bool = false;

    #[inline(always)]
    fn find(key: &FlowKey<Self>) -> u64 {
        find_v6(key)
    }

    #[inline(always)]
    fn insert() -> u64 {
        insert_v6()
    }

    #[inline(always)]
    fn connect(packet: &Packet<Self>) -> u64 {
        connect_v6(packet)
    }

    #[inline(always)]
    fn find_port(service: u32, cursor: u32, key: &mut FlowKey<Self>) -> u64 {
        find_port_v6(service, cursor, key)
    }

    #[inline(always)]
    fn make_room(number: u32) -> u64 {
        make_room_v6(number)
    }
}

/// Looks up a flow; see [`Found::pack`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_v4(key: *const FlowKey<V4>) -> u64 {
    find_for_caller(key)
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_v6(key: *const FlowKey<V6>) -> u64 {
    find_for_caller(key)
}

#[inline(always)]
fn find_for_caller<F: FlowTable>(key: *const FlowKey<F>) -> u64 {
    // SAFETY: null, or a caller's reference: the verifier compares what it points to with the type in the program's BTF.
    let key = unsafe { key.as_ref() };
    Found::pack(key.and_then(|key| table::find(FlowSlots, key)))
}

/// Inserts what is entering; returns one of the numbers below.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn insert_v4() -> u64 {
    insert_entering::<V4>()
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn insert_v6() -> u64 {
    insert_entering::<V6>()
}

/// Makes the pair of flows of a packet; returns the code of the reason why not, or of none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn connect_v4(packet: *const Packet<V4>) -> u64 {
    connect_for_caller(packet)
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn connect_v6(packet: *const Packet<V6>) -> u64 {
    connect_for_caller(packet)
}

#[inline(always)]
fn connect_for_caller<F: FlowTable + Icmp>(packet: *const Packet<F>) -> u64 {
    // SAFETY: as in `find_for_caller`.
    let packet = unsafe { packet.as_ref() };
    Reason::code(packet.and_then(|packet| connect::connect(Maps, packet).err()))
}

/// Finds a source port; see [`pair::find_port`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_port_v4(service: u32, cursor: u32, key: *mut FlowKey<V4>) -> u64 {
    find_port_for_caller(service, cursor, key)
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_port_v6(service: u32, cursor: u32, key: *mut FlowKey<V6>) -> u64 {
    find_port_for_caller(service, cursor, key)
}

#[inline(always)]
fn find_port_for_caller<F: FlowTable>(service: u32, cursor: u32, key: *mut FlowKey<F>) -> u64 {
    // SAFETY: as in `find_for_caller`.
    let Some(key) = (unsafe { key.as_mut() }) else { return pair::Found::Nothing as u64 };
    pair::find_port(Maps, service, cursor, key) as u64
}

/// Finds a source port.
#[inline(always)]
pub(crate) fn find_port<F: FlowTable>(service: u32, cursor: u32, key: &mut FlowKey<F>) -> pair::Found {
    pair::Found::from_number(F::find_port(service, cursor, key))
}

/// Removes a pair that gives way; see [`pair::make_room`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make_room_v4(number: u32) -> u64 {
    pair::make_room::<V4, _>(Maps, number).into()
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make_room_v6(number: u32) -> u64 {
    pair::make_room::<V6, _>(Maps, number).into()
}

/// The key of the flow in some place of the table.
#[inline(always)]
pub(crate) fn sample<F: FlowTable>(number: u32) -> Option<FlowKey<F>> {
    table::sample(FlowSlots, number)
}

/// Makes the pair of flows of a packet.
#[inline(always)]
pub(crate) fn connect<F: FlowTable>(packet: &Packet<F>) -> Result<(), Reason> {
    match Reason::from_code(F::connect(packet)) {
        Some(reason) => Err(reason),
        None => Ok(()),
    }
}

const INSERTED: u64 = 0;
const EXISTS: u64 = 1;
const FULL: u64 = 2;

#[inline(always)]
fn insert_entering<F: FlowTable>() -> u64 {
    let Some(entering) = F::entering().get_ptr_mut(0) else { return FULL };
    // SAFETY: this CPU's own copy, not null, which nobody writes before the function returns.
    let Entering { key, entry } = unsafe { &*entering };
    match table::insert(FlowSlots, key, entry) {
        Ok(()) => INSERTED,
        Err(NotInserted::Exists) => EXISTS,
        Err(NotInserted::Full) => FULL,
    }
}

/// Adds an entry.
#[inline(never)]
pub(crate) fn insert<F: FlowTable>(
    key: &FlowKey<F>,
    partner: &Tuple<F>,
    side: Side,
    shared: &Shared,
) -> Result<(), NotInserted> {
    let entering = F::entering().get_ptr_mut(0).ok_or(NotInserted::Full)?;
    // SAFETY: this CPU's own copy, not null.
    let entering = unsafe { &mut *entering };
    entering.key = *key;
    entering.entry.begin(&key.tuple, partner, side, shared);
    match F::insert() {
        INSERTED => Ok(()),
        EXISTS => Err(NotInserted::Exists),
        _ => Err(NotInserted::Full),
    }
}

/// All slots of the flow tables.
#[derive(Clone, Copy)]
struct FlowSlots;

impl<F: FlowTable> Slots<F> for FlowSlots {
    type Slot = InSlot<F>;

    #[inline(always)]
    fn geometry(self) -> Geometry {
        Geometry { mask: FLOW_MASK.load(), secret: FLOW_SECRET.load() }
    }

    #[inline(always)]
    fn slot(self, index: u32) -> Option<InSlot<F>> {
        F::slots().get_ptr_mut(index).and_then(NonNull::new).map(InSlot)
    }

    #[inline(always)]
    fn find(self, key: &FlowKey<F>) -> Option<Found> {
        Found::unpack(F::find(key))
    }

    #[inline(always)]
    fn take_room(self) -> bool {
        let Some(room) = F::room() else { return false };
        // SAFETY: not null, an aligned 64-bit word in a map.
        let left = unsafe { atomic::fetch_add(room.cast(), u64::MAX) };
        let taken = left.cast_signed() > 0;
        if !taken {
            Slots::<F>::give_room(self);
        }
        taken
    }

    #[inline(always)]
    fn give_room(self) {
        if let Some(room) = F::room() {
            // SAFETY: not null, an aligned 64-bit word in a map.
            unsafe { atomic::fetch_add(room.cast(), 1) };
        }
    }
}

/// A slot in map memory, alive until the program returns.
pub(crate) struct InSlot<F: Family>(NonNull<Slot<F>>);

impl<F: Family> Deref for InSlot<F> {
    type Target = Slot<F>;

    #[inline(always)]
    fn deref(&self) -> &Slot<F> {
        // SAFETY: made from a lookup that was compared with null; an array lives on until the program returns, and a slot is
        // valid for any bit pattern, whoever writes it meanwhile.
        unsafe { self.0.as_ref() }
    }
}

impl<F: Family> SlotAccess<F> for InSlot<F> {
    #[inline(always)]
    fn exchange_home(&self, old: Home, new: Home) -> bool {
        // SAFETY: live map memory (see `Deref`), an aligned 32-bit word.
        unsafe { atomic::compare_exchange((&raw mut (*self.0.as_ptr()).home).cast(), old.word(), new.word()) }
    }

    #[inline(always)]
    fn exchange_occupancy(&self, old: Occupancy, new: Occupancy) -> bool {
        // SAFETY: as above.
        unsafe {
            let word = &raw mut (*self.0.as_ptr()).occupancy;
            atomic::compare_exchange(word.cast(), old.word(), new.word())
        }
    }

    #[inline(always)]
    fn fill(&self, entry: &FlowEntry<F>) {
        // SAFETY: live map memory (see `Deref`).
        unsafe { (&raw mut (*self.0.as_ptr()).entry).write(*entry) }
    }
}

/// A flow that was found.
pub(crate) struct InTable<F: Family> {
    slot: InSlot<F>,
    occupancy: Occupancy,
}

/// Looks a flow up.
#[inline(always)]
pub(crate) fn find<F: FlowTable>(key: &FlowKey<F>) -> Option<InTable<F>> {
    let found = Slots::<F>::find(FlowSlots, key)?;
    let slot = Slots::<F>::slot(FlowSlots, found.index)?;
    Some(InTable { slot, occupancy: found.occupancy })
}

/// Looks a flow up, in line as far as most look-ups go, where there is room for it on the stack.
#[inline(always)]
pub(crate) fn find_likely<F: FlowTable>(key: &FlowKey<F>) -> Option<InTable<F>> {
    // A copy goes to the function, for what it reads has to be in memory: all that the key is a part of, else.
    if !F::IN_LINE {
        let key = *key;
        return find(&key);
    }
    match table::find_at_home(FlowSlots, key) {
        AtHome::Here(slot, occupancy) => Some(InTable { slot, occupancy }),
        AtHome::Nowhere => None,
        AtHome::Elsewhere => {
            let key = *key;
            find(&key)
        }
    }
}

impl<F: Family> Deref for InTable<F> {
    type Target = FlowEntry<F>;

    #[inline(always)]
    fn deref(&self) -> &FlowEntry<F> {
        &self.slot.entry
    }
}

impl<F: FlowTable> Flow<F> for InTable<F> {
    #[inline(always)]
    fn record(&self, seen: Seen, now: Tick) {
        // SAFETY: live map memory (see `InSlot`); each is one aligned scalar store.
        unsafe {
            let entry = &raw mut (*self.slot.0.as_ptr()).entry;
            (&raw mut (*entry).seen).write_volatile(seen);
            (&raw mut (*entry).last).write_volatile(now);
        }
    }

    #[inline(always)]
    fn set_client(&self, client: Hop) {
        // SAFETY: live map memory (see `InSlot`).
        unsafe { (&raw mut (*self.slot.0.as_ptr()).entry.client).write(client) }
    }

    #[inline(always)]
    fn set_partner_end(&self, end: Seen) {
        // SAFETY: live map memory (see `InSlot`); one byte, which only the other direction writes.
        unsafe { (&raw mut (*self.slot.0.as_ptr()).entry.partner_end).write_volatile(end) }
    }

    #[inline(always)]
    fn remove(&self) -> bool {
        table::remove(FlowSlots, &self.slot, self.occupancy)
    }
}
