//! The flow table: open addressing in an array of slots, for whoever has access to one: the packet path, the sweeper, tests.
//!
//! A flow's *home* is the slot that its key hashes to. It lives there or further along a sequence of slots, which depends on
//! the home alone; the home notes how far that goes (its *reach*), so that a search ends there. Flows that differ only in the
//! low bits of their ports have neighbouring homes: source ports are handed out in sequence, and one packet's cache miss brings
//! its neighbours' lines along.
//!
//! Insertion holds a lock in the home, so that no two CPUs insert one key; nobody else waits for it. Removal exchanges one
//! word, which counts how often the slot has been taken: it removes the flow that was found, and never one that has
//! come in its place.

use core::ops::Deref;

use crate::{
    family::Family,
    flow::{FlowEntry, FlowKey},
};

/// Slots in a sequence. With five eighths of all slots taken, one insertion in millions finds none of them free.
///
/// Counted in 64 bits, for the verifier keeps track of whole words on the stack only.
const PROBES: u64 = 128;

/// Slots of neighbouring flows, side by side.
const GROUP: u32 = 32;

/// Groups that a sequence begins with, all in two pages.
const NEAR: u32 = 4;

/// How often a lock is tried; it is held for less than a microsecond.
const ATTEMPTS: u32 = 100;

/// How many slots a table has that is to hold so many entries: a power of two, no more than five eighths of it taken.
pub const fn slots_for(entries: u32) -> u32 {
    let slots = (entries as u64 * 8).div_ceil(5).next_power_of_two();
    #[expect(clippy::cast_possible_truncation, reason = "just compared")]
    if slots > MOST as u64 {
        MOST
    } else if slots < GROUP as u64 {
        GROUP
    } else {
        slots as u32
    }
}

/// Slots at the most.
const MOST: u32 = 1 << 31;

/// Takes a word into a hash.
#[inline(always)]
pub(crate) const fn mix(hash: u64, word: u64) -> u64 {
    /// The fractional part of the golden ratio: odd, bits without a pattern.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

    let product = (hash ^ word).wrapping_mul(FACTOR);
    product ^ product >> 32
}

/// One slot: one cache line for IPv4, two for IPv6.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Slot<F: Family> {
    /// For the flows whose home this is.
    pub home: Home,
    /// For the flow that is in it.
    pub occupancy: Occupancy,
    /// The flow, while there is one.
    pub entry: FlowEntry<F>,
    reserve: F::Reserve,
}

impl<F: Family> Slot<F> {
    /// Whether it holds the flow with that key. By words: derived, this would call `bcmp`, byte by byte on BPF.
    #[inline(always)]
    fn holds(&self, occupancy: Occupancy, key: &FlowKey<F>) -> bool {
        occupancy.protocol() == key.protocol
            && self.entry.arrives.ports == key.tuple.ports
            && F::is_same(&self.entry.arrives.src, &key.tuple.src)
            && F::is_same(&self.entry.arrives.dst, &key.tuple.dst)
    }
}

/// A lock, how far flows with this home go, and how many have been inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Home(u32);

impl Home {
    const LOCK: u32 = 1;
    /// From this bit on.
    const INSERTED: u32 = 1;
    /// From this bit on; eight bits, though there are fewer probes. A search has both limits, and the compiler must not find
    /// that one is enough: Linux 6.1's verifier needs the one that is a constant.
    const REACH: u32 = 24;

    /// As it stands in memory.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    #[inline(always)]
    const fn is_locked(self) -> bool {
        self.0 & Self::LOCK != 0
    }

    #[inline(always)]
    const fn reach(self) -> u64 {
        (self.0 >> Self::REACH) as u64
    }

    #[inline(always)]
    const fn unlocked(self) -> Self {
        Self(self.0 & !Self::LOCK)
    }

    #[inline(always)]
    const fn locked(self) -> Self {
        Self(self.0 | Self::LOCK)
    }

    /// With that reach, unlocked.
    #[inline(always)]
    const fn reaching(self, reach: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "less than the number of probes")]
        let reach = reach as u32;
        Self(reach << Self::REACH | self.unlocked().0 & ((1 << Self::REACH) - 1))
    }

    /// After an insertion at that distance, unlocked.
    #[inline(always)]
    const fn inserted(self, distance: u64) -> Self {
        let reach = if distance > self.reach() { distance } else { self.reach() };
        Self(self.0.wrapping_add(1 << Self::INSERTED)).reaching(reach)
    }
}

/// What is in a slot: the protocol of the flow, and how often the slot has been taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Occupancy(u32);

impl Occupancy {
    const PROTOCOL: u32 = 0xff;
    /// Taken, but not yet filled; the number of no protocol (RFC 5237).
    const BUSY: u32 = 0xff;

    /// As it stands in memory.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    #[inline(always)]
    const fn protocol(self) -> u32 {
        self.0 & Self::PROTOCOL
    }

    #[inline(always)]
    const fn is_free(self) -> bool {
        self.protocol() == 0
    }

    /// The protocol's number of a flow that is in the slot.
    #[inline(always)]
    pub const fn flow(self) -> Option<u32> {
        match self.protocol() {
            0 | Self::BUSY => None,
            protocol => Some(protocol),
        }
    }

    #[inline(always)]
    const fn freed(self) -> Self {
        Self(self.0 & !Self::PROTOCOL)
    }

    #[inline(always)]
    const fn busy(self) -> Self {
        Self(self.0 | Self::BUSY)
    }

    /// Taken once more, by a flow of that protocol.
    #[inline(always)]
    const fn taken(self, protocol: u32) -> Self {
        Self(self.freed().0.wrapping_add(Self::PROTOCOL + 1) | protocol)
    }
}

/// What places in a table depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// One less than the number of slots, which is a power of two.
    pub mask: u32,
    /// Begins every hash, so that nobody can choose keys with one home.
    pub secret: u64,
}

impl Geometry {
    /// Index of the home of flows with that key.
    #[inline(always)]
    pub fn home<F: Family>(self, key: &FlowKey<F>) -> u32 {
        /// The low bits of both ports, as they stand on the wire.
        const LOW: u32 = u32::from_ne_bytes([0, 1, 0, 1]) * (GROUP - 1);

        let FlowKey { tuple, protocol } = key;
        let ports = tuple.ports.wire();
        let low = (ports & LOW).to_le();
        let neighbour = (low >> 8 ^ low >> 24) & (GROUP - 1);
        let rest = u64::from(*protocol) << 32 | u64::from(ports & !LOW);
        let hash = mix(F::digest(&tuple.src, &tuple.dst, self.secret), rest);
        // Which of a group's places a port has differs from group to group: all clients may have ports of one pattern.
        #[expect(clippy::cast_possible_truncation, reason = "as many bits as are needed")]
        let place = hash as u32 ^ neighbour;
        place & self.mask
    }

    /// Index of the slot at that distance in the sequence of a home: first the same place in the groups near by, for where one
    /// flow of a group is taken its neighbours often are too, and memory of the same page is translated already; then likewise
    /// elsewhere, at steps that no two homes are likely to share, so that sequences do not run together.
    #[inline(always)]
    pub const fn at(self, home: u32, distance: u64) -> u32 {
        const FACTOR: u32 = 0x9e37_79b1;

        // Odd, so that a sequence comes to every group.
        let step = home.wrapping_mul(FACTOR) >> 8 & !(GROUP - 1) | GROUP;
        #[expect(clippy::cast_possible_truncation, reason = "less than the number of probes")]
        let distance = distance as u32;
        let (turn, near) = (distance / NEAR, distance % NEAR);
        (home ^ (near * GROUP) ^ (turn % GROUP)).wrapping_add(turn.wrapping_mul(step)) & self.mask
    }
}

/// Access to a family's slots. A handle: copying it copies no slot.
pub trait Slots<F: Family>: Copy {
    /// A slot in the table.
    type Slot: SlotAccess<F>;

    /// What places depend on.
    fn geometry(self) -> Geometry;
    /// The slot with that index.
    fn slot(self, index: u32) -> Option<Self::Slot>;
    /// Calls [`find`]; there may be a cheaper way to do that than once more in line.
    fn find(self, key: &FlowKey<F>) -> Option<Found> {
        find(self, key)
    }
    /// Takes room for one more entry; says whether there was any.
    fn take_room(self) -> bool;
    /// Gives it back.
    fn give_room(self);
}

/// A slot in the table, which other CPUs may write at any time.
pub trait SlotAccess<F: Family>: Deref<Target = Slot<F>> {
    /// Writes `new` if there is still `old`; says whether it was. Ordered with all else.
    fn exchange_home(&self, old: Home, new: Home) -> bool;
    /// Likewise.
    fn exchange_occupancy(&self, old: Occupancy, new: Occupancy) -> bool;
    /// Fills a slot that the caller has made busy.
    fn fill(&self, entry: &FlowEntry<F>);
}

/// Where a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Index of the slot.
    pub index: u32,
    /// What was in it: with this, [`remove`] removes this flow and no other.
    pub occupancy: Occupancy,
}

impl Found {
    /// No slot has that index.
    const NOWHERE: u32 = u32::MAX;

    /// In one word, as functions of the XDP program return it.
    #[inline(always)]
    pub const fn pack(found: Option<Self>) -> u64 {
        match found {
            Some(Self { index, occupancy }) => (occupancy.0 as u64) << 32 | index as u64,
            None => Self::NOWHERE as u64,
        }
    }

    /// From that word.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half of a word")]
        let index = word as u32;
        if index == Self::NOWHERE {
            None
        } else {
            Some(Self { index, occupancy: Occupancy((word >> 32) as u32) })
        }
    }
}

/// What is to be said of a flow after a look at its home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtHome<S> {
    /// It is there, in this slot.
    Here(S, Occupancy),
    /// It is nowhere.
    Nowhere,
    /// It may be in another slot.
    Elsewhere,
}

/// Looks for a flow in its home, where most are.
#[inline(always)]
pub fn find_at_home<F: Family, S: Slots<F>>(slots: S, key: &FlowKey<F>) -> AtHome<S::Slot> {
    let Some(slot) = slots.slot(slots.geometry().home(key)) else { return AtHome::Nowhere };
    let occupancy = slot.occupancy;
    if slot.holds(occupancy, key) {
        AtHome::Here(slot, occupancy)
    } else if slot.home.reach() == 0 {
        AtHome::Nowhere
    } else {
        AtHome::Elsewhere
    }
}

/// Looks a flow up.
#[inline(always)]
pub fn find<F: Family, S: Slots<F>>(slots: S, key: &FlowKey<F>) -> Option<Found> {
    let home = slots.geometry().home(key);
    let mut reach = 0;
    for distance in 0..PROBES {
        let index = slots.geometry().at(home, distance);
        let slot = slots.slot(index)?;
        if distance == 0 {
            reach = slot.home.reach();
        }
        let occupancy = slot.occupancy;
        if slot.holds(occupancy, key) {
            return Some(Found { index, occupancy });
        }
        if distance >= reach {
            return None;
        }
    }
    None
}

/// Why a flow was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotInserted {
    /// The key is taken.
    Exists,
    /// The table is full.
    Full,
}

/// Adds the entry of packets with that key, never over an existing one.
///
/// # Errors
///
/// Says which of the two reasons there is for not adding it.
#[inline(always)]
pub fn insert<F: Family, S: Slots<F>>(
    slots: S,
    key: &FlowKey<F>,
    entry: &FlowEntry<F>,
) -> Result<(), NotInserted> {
    let index = slots.geometry().home(key);
    let home = slots.slot(index).ok_or(NotInserted::Full)?;
    if !slots.take_room() {
        return Err(NotInserted::Full);
    }
    let before = lock::<F, S>(&home).ok_or(NotInserted::Full);
    let result = before.and_then(|before| {
        let result = insert_locked(slots, index, key, entry);
        let after = result.map_or(before.reaching(before.reach()), |distance| before.inserted(distance));
        // Nobody else changes it.
        home.exchange_home(before.locked(), after);
        result
    });
    match result {
        Ok(_) => Ok(()),
        Err(why) => {
            slots.give_room();
            Err(why)
        }
    }
}

/// Locks a home; returns what it was before. `None` if somebody else does not let go of it.
#[inline(always)]
fn lock<F: Family, S: Slots<F>>(home: &S::Slot) -> Option<Home> {
    for _ in 0..ATTEMPTS {
        let before = home.home.unlocked();
        if home.exchange_home(before, before.locked()) {
            return Some(before);
        }
    }
    None
}

/// Returns how far from its home the entry is now.
#[inline(always)]
fn insert_locked<F: Family, S: Slots<F>>(
    slots: S,
    home: u32,
    key: &FlowKey<F>,
    entry: &FlowEntry<F>,
) -> Result<u64, NotInserted> {
    if slots.find(key).is_some() {
        return Err(NotInserted::Exists);
    }
    for distance in 0..PROBES {
        let slot = slots.slot(slots.geometry().at(home, distance)).ok_or(NotInserted::Full)?;
        let before = slot.occupancy;
        if before.is_free() && slot.exchange_occupancy(before, before.busy()) {
            slot.fill(entry);
            slot.exchange_occupancy(before.busy(), before.taken(key.protocol));
            return Ok(distance);
        }
    }
    Err(NotInserted::Full)
}

/// Removes the flow that was found in a slot, if it is still there; says whether it was.
#[inline(always)]
pub fn remove<F: Family, S: Slots<F>>(slots: S, slot: &S::Slot, occupancy: Occupancy) -> bool {
    let removed = slot.exchange_occupancy(occupancy, occupancy.freed());
    if removed {
        slots.give_room();
    }
    removed
}

/// The key of the flow in some slot, if there is one; numbers that follow each other lead to slots far apart.
#[inline(always)]
pub fn sample<F: Family, S: Slots<F>>(slots: S, number: u32) -> Option<FlowKey<F>> {
    /// Odd, so that so many numbers as there are slots lead to all of them.
    const FACTOR: u32 = 0x9e37_79b1;

    let slot = slots.slot(number.wrapping_mul(FACTOR) & slots.geometry().mask)?;
    let protocol = slot.occupancy.flow()?;
    Some(FlowKey { tuple: slot.entry.arrives, protocol })
}

/// Lets searches that begin in that slot end earlier, if flows that were far from it are gone. For userspace: it takes no lock,
/// and gives way to insertions.
pub fn shorten<F: Family, S: Slots<F>>(slots: S, index: u32) {
    let Some(home) = slots.slot(index) else { return };
    let before = home.home;
    if before.is_locked() || before.reach() == 0 {
        return;
    }
    let geometry = slots.geometry();
    let is_far = |distance: &u64| {
        let slot = slots.slot(geometry.at(index, *distance));
        slot.is_some_and(|slot| match slot.occupancy.flow() {
            Some(protocol) => geometry.home(&FlowKey { tuple: slot.entry.arrives, protocol }) == index,
            None => !slot.occupancy.is_free(),
        })
    };
    let reach = (0..=before.reach()).rev().find(is_far).unwrap_or(0);
    if reach < before.reach() {
        // An insertion meanwhile has changed the word.
        home.exchange_home(before, before.reaching(reach));
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), `Copy`, no padding (`reserve` fills the last line), valid for any bit pattern.
    unsafe impl<F: super::Family> aya::Pod for super::Slot<F> {}
}

#[cfg(test)]
mod tests;
