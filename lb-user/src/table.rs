//! Flow tables as userspace reads them: the kernel's own memory, mapped into the process. Decides nothing.

use std::{
    io,
    ops::{Deref, Range},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicI64, AtomicU32, Ordering},
};

use anyhow::{Context as _, ensure};
use aya::maps::MapData;
use lb_common::{
    Family, FlowEntry, FlowKey,
    table::{self, Found, Geometry, Home, Occupancy, Slot, SlotAccess, Slots},
};
use memmap2::{MmapOptions, MmapRaw};

/// A family's flow table.
pub struct Table<F: Family> {
    slots: Memory<Slot<F>>,
    room: Memory<i64>,
    /// Which word of `room` is this family's.
    number: usize,
    geometry: Geometry,
}

/// A flow in a table, as it was read.
#[derive(Clone, Copy, Debug)]
pub struct Located<F: Family> {
    /// The key of its packets.
    pub key: FlowKey<F>,
    /// What they become.
    pub entry: FlowEntry<F>,
    place: Found,
}

impl<F: Family> Table<F> {
    /// The table in a map of slots; `room` is the map of counters, the `number`-th of which is this table's. Hashes begin
    /// with `secret`.
    ///
    /// # Errors
    ///
    /// The maps have another layout, or cannot be mapped.
    pub fn open(slots: &MapData, room: &MapData, number: usize, secret: u64) -> anyhow::Result<Self> {
        let slots = Memory::map(slots)?;
        let count = u32::try_from(slots.len).context("the flow table is too large")?;
        ensure!(count.is_power_of_two(), "the flow table has {count} slots, which is no power of two");
        let room = Memory::map(room)?;
        ensure!(number < room.len, "there is no counter {number}");
        Ok(Self { slots, room, number, geometry: Geometry { mask: count - 1, secret } })
    }

    /// How many slots there are.
    pub const fn slots(&self) -> u32 {
        self.geometry.mask + 1
    }

    /// How many more entries the table takes; less than none while attempts fail.
    pub fn room(&self) -> i64 {
        self.room_word().load(Ordering::Relaxed)
    }

    /// Says how many entries the table takes.
    pub fn set_room(&self, entries: u32) {
        self.room_word().store(entries.into(), Ordering::SeqCst);
    }

    /// The flows in these slots, in their order.
    pub fn flows(&self, slots: Range<u32>) -> impl Iterator<Item = Located<F>> {
        slots.filter_map(|index| self.flow_in(index))
    }

    /// The flow of packets with that key.
    pub fn find(&self, key: &FlowKey<F>) -> Option<Located<F>> {
        let place = table::find(self, key)?;
        self.flow_in(place.index).filter(|flow| flow.key == *key)
    }

    /// Removes a flow, and none that has come in its place; says whether it did.
    pub fn remove(&self, flow: &Located<F>) -> bool {
        let slot = Slots::slot(self, flow.place.index);
        slot.is_some_and(|slot| table::remove(self, &slot, flow.place.occupancy))
    }

    /// Lets searches that begin in these slots end earlier, where flows far from them are gone.
    pub fn shorten(&self, slots: Range<u32>) {
        slots.for_each(|index| table::shorten(self, index));
    }

    /// Removes all flows.
    pub fn clear(&self) {
        self.flows(0..self.slots()).for_each(|flow| {
            self.remove(&flow);
        });
        self.shorten(0..self.slots());
    }

    fn flow_in(&self, index: u32) -> Option<Located<F>> {
        let slot = Slots::slot(self, index)?;
        let protocol = slot.occupancy.flow()?;
        let key = FlowKey { tuple: slot.entry.arrives, protocol };
        Some(Located { key, entry: slot.entry, place: Found { index, occupancy: slot.occupancy } })
    }

    fn room_word(&self) -> &AtomicI64 {
        let word = self.room.at(self.number).expect("compared when the table was opened");
        // SAFETY: aligned, mapped as long as `self` lives; the kernel's program changes it by atomic operations.
        unsafe { AtomicI64::from_ptr(word) }
    }
}

impl<F: Family> Slots<F> for &Table<F> {
    type Slot = Copied<F>;

    fn geometry(self) -> Geometry {
        self.geometry
    }

    fn slot(self, index: u32) -> Option<Copied<F>> {
        let place = self.slots.at(usize::try_from(index).ok()?)?;
        Some(Copied::read(place))
    }

    fn take_room(self) -> bool {
        let taken = self.room_word().fetch_sub(1, Ordering::SeqCst) > 0;
        if !taken {
            self.give_room();
        }
        taken
    }

    fn give_room(self) {
        self.room_word().fetch_add(1, Ordering::SeqCst);
    }
}

/// A slot as it was read, and where it is.
pub struct Copied<F: Family> {
    slot: Slot<F>,
    place: *mut Slot<F>,
}

impl<F: Family> Copied<F> {
    /// Reads a slot that the kernel may be writing: again, if meanwhile another flow has come into it.
    fn read(place: *mut Slot<F>) -> Self {
        /// A slot that changes hands so often in so short a time is not worth reading.
        const ATTEMPTS: u32 = 8;

        let mut copied = Self::copy(place);
        for _ in 0..ATTEMPTS {
            if copied.occupancy_word().load(Ordering::SeqCst) == copied.slot.occupancy.word() {
                break;
            }
            copied = Self::copy(place);
        }
        copied
    }

    fn copy(place: *mut Slot<F>) -> Self {
        // SAFETY: `Memory::at` gave the place, which is aligned, and mapped as long as the table lives; a slot is valid for any
        // bit pattern.
        Self { slot: unsafe { place.read_volatile() }, place }
    }

    const fn occupancy_word(&self) -> &AtomicU32 {
        // SAFETY: as above, and the kernel's program changes the word by atomic operations.
        unsafe { AtomicU32::from_ptr((&raw mut (*self.place).occupancy).cast()) }
    }

    const fn home_word(&self) -> &AtomicU32 {
        // SAFETY: as for the occupancy.
        unsafe { AtomicU32::from_ptr((&raw mut (*self.place).home).cast()) }
    }
}

impl<F: Family> Deref for Copied<F> {
    type Target = Slot<F>;

    fn deref(&self) -> &Slot<F> {
        &self.slot
    }
}

impl<F: Family> SlotAccess<F> for Copied<F> {
    fn exchange_home(&self, old: Home, new: Home) -> bool {
        exchange(self.home_word(), old.word(), new.word())
    }

    fn exchange_occupancy(&self, old: Occupancy, new: Occupancy) -> bool {
        exchange(self.occupancy_word(), old.word(), new.word())
    }

    fn fill(&self, entry: &FlowEntry<F>) {
        // SAFETY: as in `copy`; who fills a slot has made it busy, and nobody reads what is busy.
        unsafe { (&raw mut (*self.place).entry).write_volatile(*entry) }
    }
}

fn exchange(word: &AtomicU32, old: u32, new: u32) -> bool {
    word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}

/// The elements of an array map, mapped.
struct Memory<T> {
    mapping: MmapRaw,
    len: usize,
    element: std::marker::PhantomData<*mut T>,
}

// SAFETY: the memory is the kernel's, shared by all threads and CPUs anyhow; access is by copies and atomic operations.
unsafe impl<T: Send> Send for Memory<T> {}

impl<T> Memory<T> {
    fn map(map: &MapData) -> anyhow::Result<Self> {
        let info = map.info().context("cannot read the layout of a flow table")?;
        let len = usize::try_from(info.max_entries())?;
        let size = usize::try_from(info.value_size())?;
        ensure!(size == size_of::<T>(), "a flow table has elements of {size} bytes, not {}", size_of::<T>());
        let bytes = len.checked_mul(size).context("a flow table is larger than memory")?;
        let mapping = MmapOptions::new()
            .len(bytes)
            .map_raw(map.fd().as_fd().as_raw_fd())
            .map_err(explain)
            .context("cannot map a flow table into memory")?;
        Ok(Self { mapping, len, element: std::marker::PhantomData })
    }

    /// The element with that index, if there is one; aligned, as the mapping begins with a page.
    fn at(&self, index: usize) -> Option<*mut T> {
        let first = self.mapping.as_mut_ptr().cast::<T>();
        (index < self.len).then(|| first.wrapping_add(index))
    }
}

fn explain(error: io::Error) -> anyhow::Error {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM | libc::EINVAL) => ": another lb has made it, end that one with `lb detach`",
        _ => "",
    };
    anyhow::anyhow!("{error}{hint}")
}
