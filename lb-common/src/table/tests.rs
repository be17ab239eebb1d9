//! A table in ordinary memory, in which another CPU may act between any two accesses to a slot.

extern crate std;

use core::{
    cell::{Cell, RefCell},
    net::{Ipv4Addr, Ipv6Addr},
};
use std::{boxed::Box, collections::HashMap, vec, vec::Vec};

use super::*;
use crate::{
    Protocol, Side, Tick, V4, V6,
    backend::Hop,
    checksum::Delta,
    family::{Address4, Address6},
    flow::{Port, Ports, Shared, Tuple},
};

type OtherCpu<F> = Box<dyn FnOnce(&Memory<F>)>;

struct Memory<F: Family> {
    slots: Vec<Cell<Slot<F>>>,
    room: Cell<i64>,
    geometry: Geometry,
    accesses: Cell<u64>,
    interruption: RefCell<Option<(u64, OtherCpu<F>)>>,
}

impl<F: Family> Memory<F> {
    fn new(slots: u32, room: i64) -> Self {
        let empty = Slot {
            home: Home::default(),
            occupancy: Occupancy::default(),
            entry: FlowEntry::EMPTY,
            reserve: F::RESERVE,
        };
        Self {
            slots: vec![Cell::new(empty); usize::try_from(slots).unwrap()],
            room: Cell::new(room),
            geometry: Geometry { mask: slots - 1, secret: 0x5eed },
            accesses: Cell::new(0),
            interruption: RefCell::new(None),
        }
    }

    /// Lets another CPU act before the access after so many.
    fn interrupt(&self, accesses: u64, other: impl FnOnce(&Self) + 'static) {
        *self.interruption.borrow_mut() = Some((self.accesses.get() + accesses, Box::new(other)));
    }

    fn access(&self) {
        self.accesses.set(self.accesses.get() + 1);
        let is_due = self.interruption.borrow().as_ref().is_some_and(|(when, _)| self.accesses.get() > *when);
        if is_due && let Some((_, other)) = self.interruption.take() {
            other(self);
        }
    }

    fn insert(&self, key: &FlowKey<F>) -> Result<(), NotInserted> {
        insert(self, key, &entry(key))
    }

    fn remove(&self, key: &FlowKey<F>) -> bool {
        find(self, key).is_some_and(|found| {
            let slot = Slots::slot(self, found.index).unwrap();
            remove(self, &slot, found.occupancy)
        })
    }

    fn shorten_all(&self) {
        (0..=self.geometry.mask).for_each(|index| shorten(self, index));
    }

    fn reaches(&self) -> u64 {
        self.slots.iter().map(|slot| slot.get().home.reach()).sum()
    }

    /// Every flow that is in a slot, and how often.
    fn flows(&self) -> HashMap<FlowKey<F>, u32> {
        let mut flows = HashMap::new();
        for slot in self.slots.iter().map(Cell::get) {
            assert!(!slot.home.is_locked(), "nobody is at work");
            assert_ne!(slot.occupancy.protocol(), Occupancy::BUSY, "nobody is at work");
            if let Some(protocol) = slot.occupancy.flow() {
                *flows.entry(FlowKey { tuple: slot.entry.arrives, protocol }).or_default() += 1;
            }
        }
        flows
    }
}

struct InMemory<'a, F: Family> {
    memory: &'a Memory<F>,
    cell: &'a Cell<Slot<F>>,
    read: Slot<F>,
}

impl<F: Family> Deref for InMemory<'_, F> {
    type Target = Slot<F>;

    fn deref(&self) -> &Slot<F> {
        &self.read
    }
}

impl<F: Family> InMemory<'_, F> {
    fn edit(&self, edit: impl FnOnce(&mut Slot<F>) -> bool) -> bool {
        self.memory.access();
        let mut slot = self.cell.get();
        let done = edit(&mut slot);
        self.cell.set(slot);
        done
    }
}

impl<F: Family> SlotAccess<F> for InMemory<'_, F> {
    fn exchange_home(&self, old: Home, new: Home) -> bool {
        self.edit(|slot| slot.home == old && std::mem::replace(&mut slot.home, new) == old)
    }

    fn exchange_occupancy(&self, old: Occupancy, new: Occupancy) -> bool {
        self.edit(|slot| slot.occupancy == old && std::mem::replace(&mut slot.occupancy, new) == old)
    }

    fn fill(&self, entry: &FlowEntry<F>) {
        self.edit(|slot| {
            slot.entry = *entry;
            true
        });
    }
}

impl<'a, F: Family> Slots<F> for &'a Memory<F> {
    type Slot = InMemory<'a, F>;

    fn geometry(self) -> Geometry {
        self.geometry
    }

    fn slot(self, index: u32) -> Option<InMemory<'a, F>> {
        self.access();
        let cell = self.slots.get(usize::try_from(index).unwrap())?;
        Some(InMemory { memory: self, cell, read: cell.get() })
    }

    fn take_room(self) -> bool {
        let is_there = self.room.get() > 0;
        if is_there {
            self.room.set(self.room.get() - 1);
        }
        is_there
    }

    fn give_room(self) {
        self.room.set(self.room.get() + 1);
    }
}

fn entry<F: Family>(key: &FlowKey<F>) -> FlowEntry<F> {
    let none = Delta::NONE;
    let shared =
        Shared { addresses: none, ports: none, client: Hop::default(), backend: 0, now: Tick::default() };
    FlowEntry::new(&key.tuple, &key.tuple.reversed(), Side::Request, &shared)
}

trait Numbered: Family {
    fn address(number: u32) -> Self::Address;
}

impl Numbered for V4 {
    fn address(number: u32) -> Address4 {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }
}

impl Numbered for V6 {
    fn address(number: u32) -> Address6 {
        Ipv6Addr::from((0x2001_0db8 << 96) + u128::from(number)).into()
    }
}

fn key<F: Numbered>(client: u32, port: u16) -> FlowKey<F> {
    let ports = Ports::new(Port::new(port), Port::new(80));
    FlowKey::new(Tuple { src: F::address(client), dst: F::address(0), ports }, Protocol::Tcp)
}

#[test]
fn slots_are_whole_cache_lines() {
    assert_eq!((size_of::<Slot<V4>>(), align_of::<Slot<V4>>()), (64, 64));
    assert_eq!((size_of::<Slot<V6>>(), align_of::<Slot<V6>>()), (128, 64));
}

#[test]
fn a_table_has_slots_for_its_entries_and_more() {
    for (entries, slots) in [(1, 32), (20, 32), (21, 64), (524_288, 1 << 20), (1 << 28, 1 << 29)] {
        assert_eq!(slots_for(entries), slots, "{entries}");
    }
}

/// Marsaglia's xorshift64.
fn random(state: &mut u64) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    u32::try_from(*state >> 32).unwrap()
}

fn follows_a_hash_map<F: Numbered>() {
    const ENTRIES: u32 = 160;
    let memory = Memory::<F>::new(slots_for(ENTRIES), ENTRIES.into());
    let mut expected = HashMap::new();
    let mut state = 4711;
    for _ in 0..50_000 {
        let number = random(&mut state);
        // Ports side by side, as they are handed out.
        let key = key::<F>(number >> 8 & 3, 1024 + u16::try_from(number & 0x3f).unwrap());
        if number >> 16 & 1 == 0 {
            let result = memory.insert(&key);
            let full = expected.len() >= usize::try_from(ENTRIES).unwrap();
            match result {
                Ok(()) => assert!(!full && expected.insert(key, 1).is_none()),
                Err(NotInserted::Exists) => assert!(expected.contains_key(&key)),
                Err(NotInserted::Full) => assert!(full),
            }
        } else {
            assert_eq!(memory.remove(&key), expected.remove(&key).is_some());
        }
        if number >> 17 & 0xff == 0 {
            memory.shorten_all();
        }
        assert_eq!(memory.room.get(), i64::from(ENTRIES) - i64::try_from(expected.len()).unwrap());
    }
    assert_eq!(memory.flows(), expected);
    for key in expected.keys() {
        assert!(find(&memory, key).is_some(), "{key:?}");
    }
}

#[test]
fn a_table_holds_what_a_hash_map_holds() {
    follows_a_hash_map::<V4>();
    follows_a_hash_map::<V6>();
}

#[test]
fn a_table_takes_all_that_it_is_made_for() {
    const ENTRIES: u32 = 20_000;
    // Runs of ports fill whole groups; single ones fill them unevenly.
    for run in [1, 4, 32, 1_000] {
        let memory = Memory::<V4>::new(slots_for(ENTRIES), ENTRIES.into());
        for number in 0..ENTRIES {
            let key = key(number / run, 1024 + u16::try_from(number % run).unwrap());
            assert_eq!(memory.insert(&key), Ok(()), "entry {number} in runs of {run}");
        }
        assert_eq!(memory.insert(&key(ENTRIES, 1)), Err(NotInserted::Full));
    }
}

#[test]
fn neighbouring_ports_are_neighbours_in_memory() {
    let memory = Memory::<V4>::new(1 << 16, 1 << 16);
    for first in (1024..2048).step_by(32) {
        let mut homes: Vec<u32> =
            (first..first + 32).map(|port| memory.geometry.home(&key::<V4>(1, port))).collect();
        homes.sort_unstable();
        assert!(homes.windows(2).all(|pair| pair[1] == pair[0] + 1), "{first}: {homes:?}");
        assert_eq!(homes[0] % GROUP, 0);
    }
}

#[test]
fn a_sequence_comes_to_every_slot_of_a_small_table() {
    for slots in [32, 64] {
        let geometry = Geometry { mask: slots - 1, secret: 0 };
        for home in 0..slots {
            let sequence: Vec<u32> = (0..PROBES).map(|distance| geometry.at(home, distance)).collect();
            assert_eq!(sequence[0], home);
            assert!((0..slots).all(|index| sequence.contains(&index)), "{slots} slots, home {home}");
        }
    }
}

/// Of how many slots a search for a flow that is there reads on average.
fn slots_read(memory: &Memory<V4>, keys: &[FlowKey<V4>]) -> f64 {
    let before = memory.accesses.get();
    keys.iter().for_each(|key| assert!(find(memory, key).is_some()));
    f64::from(u32::try_from(memory.accesses.get() - before).unwrap())
        / f64::from(u32::try_from(keys.len()).unwrap())
}

#[test]
fn a_search_reads_few_slots_however_groups_fill() {
    const ENTRIES: u32 = 20_000;
    // Random probing of a table with that share of slots taken (Knuth, The Art of Computer Programming 6.4, uniform hashing)
    // takes ln(1 / (1 - share)) / share probes; near by and by groups it may take half as many more.
    let slots = slots_for(ENTRIES);
    let share = f64::from(ENTRIES) / f64::from(slots);
    let at_random = (1.0 / (1.0 - share)).ln() / share;
    for (name, key) in [
        ("single ports", (|number| key(number, 1024)) as fn(u32) -> FlowKey<V4>),
        ("runs of a group", |number| key(number / 32, 1024 + u16::try_from(number % 32).unwrap())),
        ("runs of a thousand", |number| key(number / 1000, 1024 + u16::try_from(number % 1000).unwrap())),
        ("even ports", |number| key(number / 1000, 1024 + u16::try_from(2 * (number % 1000)).unwrap())),
    ] {
        let memory = Memory::<V4>::new(slots, ENTRIES.into());
        let keys: Vec<_> = (0..ENTRIES).map(key).collect();
        keys.iter().for_each(|key| memory.insert(key).unwrap());
        let read = slots_read(&memory, &keys);
        assert!(read < 1.5 * at_random, "{name}: {read:.2} slots, at random {at_random:.2}");
    }
}

#[test]
fn searches_end_early_again_when_far_flows_are_gone() {
    let memory = Memory::<V4>::new(128, 128);
    let keys: Vec<_> = (0..100).map(|client| key::<V4>(client, 1024)).collect();
    keys.iter().for_each(|key| memory.insert(key).unwrap());
    assert!(memory.reaches() > 0);
    let (gone, left) = keys.split_at(90);
    gone.iter().for_each(|key| assert!(memory.remove(key)));
    memory.shorten_all();
    assert!(left.iter().all(|key| find(&memory, key).is_some()));
    left.iter().for_each(|key| assert!(memory.remove(key)));
    memory.shorten_all();
    assert_eq!(memory.reaches(), 0);
}

/// Lets one CPU do `this` and another one `other`, whole, before every single access of `this`, each time in a new table.
fn race(
    this: impl Fn(&Memory<V4>),
    other: impl Fn(&Memory<V4>) + Copy + 'static,
    judge: impl Fn(&Memory<V4>),
) {
    for accesses in 0.. {
        let memory = Memory::new(8, 8);
        // Neighbours, some of whose homes are taken by others.
        (0..3).for_each(|client| memory.insert(&key(client, 7)).unwrap());
        memory.interrupt(accesses, other);
        this(&memory);
        if memory.interruption.take().is_some() {
            assert!(accesses > 3);
            return;
        }
        judge(&memory);
    }
}

#[test]
fn a_key_is_inserted_by_one_of_two_cpus() {
    let insert = |memory: &Memory<V4>| {
        let _one_of_them = memory.insert(&key(50, 80));
    };
    race(insert, insert, |memory| {
        assert!(memory.flows().values().all(|times| *times == 1), "{:?}", memory.flows());
        assert!(find(memory, &key(50, 80)).is_some());
        assert_eq!(memory.room.get(), 4);
    });
}

#[test]
fn what_one_cpu_inserts_the_other_does_not_lose() {
    let one = |memory: &Memory<V4>| memory.insert(&key(50, 80)).unwrap();
    let other = |memory: &Memory<V4>| {
        // Locked out, when it has the same home, it may fail.
        let _ = memory.insert(&key(51, 81));
        assert!(memory.remove(&key(1, 7)));
        memory.shorten_all();
    };
    race(one, other, |memory| {
        let flows = memory.flows();
        assert!(flows.values().all(|times| *times == 1));
        assert!(flows.keys().all(|key| find(memory, key).is_some()), "every flow is found");
        assert!(flows.contains_key(&key(50, 80)) && !flows.contains_key(&key(1, 7)));
        assert_eq!(memory.room.get(), 8 - i64::try_from(flows.len()).unwrap());
    });
}

#[test]
fn shortening_gives_way_to_insertions() {
    let shorten = |memory: &Memory<V4>| memory.shorten_all();
    let insert = |memory: &Memory<V4>| {
        assert!(memory.remove(&key(0, 7)));
        (10..14).for_each(|client| memory.insert(&key(client, 7)).unwrap());
    };
    race(shorten, insert, |memory| {
        assert!(memory.flows().keys().all(|key| find(memory, key).is_some()), "every flow is found");
    });
}

#[test]
fn a_flow_is_removed_once_and_its_successor_is_spared() {
    let memory = Memory::<V4>::new(8, 8);
    let key = key(1, 7);
    memory.insert(&key).unwrap();
    let found = find(&memory, &key).unwrap();
    let slot = Slots::slot(&memory, found.index).unwrap();
    assert!(remove(&memory, &slot, found.occupancy));
    assert!(!remove(&memory, &slot, found.occupancy), "it is gone");
    memory.insert(&key).unwrap();
    assert!(!remove(&memory, &slot, found.occupancy), "another one is in its place");
    assert!(find(&memory, &key).is_some());
}

#[test]
fn what_was_found_survives_the_way_through_a_register() {
    let found = Found { index: 7, occupancy: Occupancy(0x1234_5606) };
    assert_eq!(Found::unpack(Found::pack(Some(found))), Some(found));
    assert_eq!(Found::unpack(Found::pack(None)), None);
}
