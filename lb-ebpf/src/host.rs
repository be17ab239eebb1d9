//! The packet path on the host: frames over plain bytes, tables over plain collections, and what tests need to judge
//! the path by: [`packet`] writes and checks packets independently of it, [`cases`] are what any carrier of the path
//! has to fulfil, this library as well as the program that the kernel runs, and [`fuzz`] makes of their frames what nobody
//! thought of.

pub mod cases;
pub mod fuzz;
pub mod packet;
pub mod random;

use core::{
    cell::{Cell, RefCell},
    fmt,
    net::SocketAddr,
    ops::Deref,
    time::Duration,
};
use std::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
    vec::Vec,
};

use lb_common::{
    Addr, Backend, BackendCounters, BackendState, Datagram, DatagramKey, Family, FlowEntry, FlowKey, Hop,
    Port, Program, Protocol, Reason, Seen, Service, ServiceKey, Side, SlotTable, Tick, Tuple, V4, V6, Vlan,
    control::OwnAddress, datagram::Piece, flow::Shared, service::MAX_SNAT, table::NotInserted,
};

use crate::{
    Verdict,
    frame::{Frame, Wire},
    process,
    tables::{Flow, Flows, Tables},
};

/// A frame in ordinary memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFrame {
    bytes: Vec<u8>,
    kept_back: bool,
}

impl HostFrame {
    /// A frame of these bytes, from the Ethernet header on.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), kept_back: false }
    }

    /// Whether it has been kept back, for its datagram's first fragment has not come yet.
    pub const fn is_kept_back(&self) -> bool {
        self.kept_back
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The bytes that a `T` at `offset` covers.
    fn range<T>(offset: usize) -> Option<core::ops::Range<usize>> {
        Some(offset..offset.checked_add(size_of::<T>())?)
    }

    /// # Panics
    ///
    /// If the path asks for an alignment that headers do not have.
    fn check_alignment<T>(pointer: *const T) {
        assert!(pointer.is_aligned(), "headers start at even offsets, and no header asks for more");
    }
}

impl Frame for HostFrame {
    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        let pointer = self.bytes.get(Self::range::<T>(offset)?)?.as_ptr().cast::<T>();
        Self::check_alignment(pointer);
        // SAFETY: `get` compared the end of the `T` with the frame's, `check_alignment` looked at its start; `Wire`
        // allows any bytes.
        Some(unsafe { &*pointer })
    }

    fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        let pointer = self.bytes.get_mut(Self::range::<T>(offset)?)?.as_mut_ptr().cast::<T>();
        Self::check_alignment(pointer);
        // SAFETY: as in `at`; `&mut self` keeps other references to the frame away.
        Some(unsafe { &mut *pointer })
    }

    fn extend_front(&mut self, bytes: usize) -> Option<()> {
        self.bytes.splice(..0, std::iter::repeat_n(0xa5, bytes));
        Some(())
    }

    fn shorten_front(&mut self, bytes: usize) -> Option<()> {
        let enough = bytes <= self.bytes.len();
        self.bytes.drain(..bytes.min(self.bytes.len()));
        enough.then_some(())
    }

    fn truncate(&mut self, length: usize) -> Option<()> {
        let enough = length <= self.bytes.len();
        self.bytes.truncate(length);
        enough.then_some(())
    }

    fn keep_back(&mut self, _key: &DatagramKey, _ingress: u32, _now: Tick) -> bool {
        self.kept_back = true;
        true
    }
}

/// What another CPU does between two operations of this one.
type Interruption = Box<dyn FnOnce(&HostTables)>;

/// The tables, on the heap. Not threads but [`HostTables::interrupt`] stands for other CPUs.
#[derive(Default)]
pub struct HostTables {
    now: Cell<Duration>,
    services: RefCell<Vec<Service>>,
    backends: RefCell<Vec<Backend>>,
    hops: RefCell<Vec<Hop>>,
    slots: RefCell<Vec<u32>>,
    turns: RefCell<BTreeMap<u32, u64>>,
    cursors: RefCell<BTreeMap<u32, u32>>,
    flows_v4: FlowTable<V4>,
    flows_v6: FlowTable<V6>,
    reasons: RefCell<HashMap<Reason, u64>>,
    counters: RefCell<BTreeMap<u32, BackendCounters>>,
    answers: Cell<(Tick, u32)>,
    path_mtus: RefCell<BTreeMap<u32, u32>>,
    interface_mtus: RefCell<BTreeMap<u32, u32>>,
    datagrams: RefCell<HashMap<DatagramKey, Datagram>>,
    generic: RefCell<BTreeSet<u32>>,
    vlans: RefCell<BTreeMap<Vlan, u32>>,
    interruption: RefCell<Option<(usize, Interruption)>>,
}

impl fmt::Debug for HostTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostTables")
            .field("services", &self.services.borrow().len())
            .field("backends", &self.backends.borrow().len())
            .field("flows_v4", &self.flows_v4.entries.borrow().len())
            .field("flows_v6", &self.flows_v6.entries.borrow().len())
            .finish_non_exhaustive()
    }
}

/// First port for SNAT, and how many, of services that are added (the command line's default).
pub const PORTS: (u16, u16) = (1024, 31_744);

impl HostTables {
    /// Empty tables with room for half a million flow entries of each family.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a frame that came in through interface `ingress` down the packet path.
    pub fn process(&self, frame: &mut HostFrame, ingress: u32) -> Verdict {
        process(Program::Plain, frame, self, ingress)
    }

    /// Adds a service with backends of weight 1 that are reached by those hops; returns its index. Its SNAT address
    /// is its own, its SNAT ports are [`PORTS`].
    pub fn add_service(&self, protocol: Protocol, vip: SocketAddr, backends: &[(SocketAddr, Hop)]) -> u32 {
        let (addr, family) = Addr::new(vip.ip());
        let key = ServiceKey { addr, port: Port::new(vip.port()), protocol: protocol.number(), family };
        let mut snat = [Addr::default(); MAX_SNAT];
        snat[0] = addr;
        let (first_port, ports) = PORTS;
        let service = push(&self.services, |index| Service {
            table: SlotTable::default(),
            key,
            first_port,
            ports,
            snat_len: 1,
            in_use: 1,
            snat,
            sequence: index.into(),
        });
        let backends: Vec<u32> =
            backends.iter().map(|(addr, hop)| self.add_backend(service, *addr, *hop)).collect();
        self.publish(service, &backends);
        service
    }

    /// Adds a backend that gets no connections before it is published; returns its index.
    pub fn add_backend(&self, service: u32, backend: SocketAddr, hop: Hop) -> u32 {
        let (addr, family) = Addr::new(backend.ip());
        let port = Port::new(backend.port());
        let shares_ports = |other: &Backend| {
            let protocol = |service: u32| self.service_at(service).key.protocol;
            (other.addr, other.family, other.port, protocol(other.service))
                == (addr, family, port, protocol(service))
        };
        let sharer =
            self.backends.borrow().iter().find(|other| shares_ports(other)).map(|other| other.cursor);
        let index = push(&self.backends, |index| Backend {
            addr,
            port,
            family,
            state: BackendState::Up as u8,
            service,
            cursor: sharer.unwrap_or(index),
            weight: 1,
            sequence: index.into(),
        });
        self.hops.borrow_mut().push(hop);
        index
    }

    /// Deals the service's next connections to these backends, in this order, as one step.
    pub fn publish(&self, service: u32, backends: &[u32]) {
        let mut slots = self.slots.borrow_mut();
        let table = SlotTable::new(number(slots.len()), number(backends.len()));
        slots.extend(backends);
        self.edit_service(service, |service| service.table = table);
    }

    /// Changes a service.
    ///
    /// # Panics
    ///
    /// If there is none with that index.
    pub fn edit_service(&self, service: u32, edit: impl FnOnce(&mut Service)) {
        edit(&mut self.services.borrow_mut()[service as usize]);
    }

    /// Changes the way to a backend; `Hop::default()` is an unknown one.
    ///
    /// # Panics
    ///
    /// If there is no backend with that index.
    pub fn set_next_hop(&self, backend: u32, hop: Hop) {
        self.hops.borrow_mut()[backend as usize] = hop;
    }

    /// Sets the MTU on the way to a backend; 0 is an unknown one.
    pub fn set_path_mtu(&self, backend: u32, mtu: u32) {
        self.path_mtus.borrow_mut().insert(backend, mtu);
    }

    /// Sets an interface's MTU; 0 is an unknown one.
    pub fn set_interface_mtu(&self, ifindex: u32, mtu: u32) {
        self.interface_mtus.borrow_mut().insert(ifindex, mtu);
    }

    /// Has the program of an interface run in the network stack.
    pub fn set_generic(&self, ifindex: u32) {
        self.generic.borrow_mut().insert(ifindex);
    }

    /// Adds a device for a VLAN, with that MTU.
    pub fn add_vlan(&self, vlan: Vlan, mtu: u32) {
        self.vlans.borrow_mut().insert(vlan, mtu);
    }

    /// VLANs that there are devices for, and their MTUs.
    pub fn vlans(&self) -> BTreeMap<Vlan, u32> {
        self.vlans.borrow().clone()
    }

    /// Interfaces whose program runs in the network stack.
    pub fn generic(&self) -> BTreeSet<u32> {
        self.generic.borrow().clone()
    }

    /// The MTUs that are known on the ways to backends, by their index, and of interfaces, by theirs.
    pub fn mtus(&self) -> (BTreeMap<u32, u32>, BTreeMap<u32, u32>) {
        (self.path_mtus.borrow().clone(), self.interface_mtus.borrow().clone())
    }

    /// Sets how many flow entries there is room for, for each family; a connection takes two.
    pub fn set_capacity(&self, entries: usize) {
        self.flows_v4.capacity.set(entries);
        self.flows_v6.capacity.set(entries);
    }

    /// How many flow entries there is room for, for each family.
    pub fn capacity(&self) -> usize {
        self.flows_v4.capacity.get()
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        self.now.set(self.now.get() + time);
    }

    /// Forgets all datagrams of which fragments may still come.
    pub fn forget_datagrams(&self) {
        self.datagrams.borrow_mut().clear();
    }

    /// Lets another CPU act once, before this one's next operation but `operations` on the flow tables.
    pub fn interrupt(&self, operations: usize, other_cpu: impl FnOnce(&Self) + 'static) {
        *self.interruption.borrow_mut() = Some((operations, Box::new(other_cpu)));
    }

    /// Whether an interruption is still to come; it is called off.
    pub fn call_off_interruption(&self) -> bool {
        self.interruption.borrow_mut().take().is_some()
    }

    /// All services, by index.
    pub fn services(&self) -> Vec<Service> {
        self.services.borrow().clone()
    }

    /// Addresses of services and those for SNAT.
    pub fn own_addresses(&self) -> BTreeSet<OwnAddress> {
        self.services.borrow().iter().flat_map(Service::own_addresses).collect()
    }

    /// All backends, by index.
    pub fn backends(&self) -> Vec<Backend> {
        self.backends.borrow().clone()
    }

    /// The ways to all backends, by their index.
    pub fn next_hops(&self) -> Vec<Hop> {
        self.hops.borrow().clone()
    }

    /// All slots, by index.
    pub fn slots(&self) -> Vec<u32> {
        self.slots.borrow().clone()
    }

    /// The flows of a family, as they are now, in no order.
    pub fn flows<F: HostFamily>(&self) -> Vec<(FlowKey<F>, FlowEntry<F>)> {
        F::table(self).entries.borrow().iter().map(|(key, entry)| (*key, entry.get())).collect()
    }

    /// How many flow entries there are, of both families.
    pub fn flow_count(&self) -> usize {
        self.flows_v4.entries.borrow().len() + self.flows_v6.entries.borrow().len()
    }

    /// How many frames had that reason.
    pub fn count_of(&self, reason: Reason) -> u64 {
        self.reasons.borrow().get(&reason).copied().unwrap_or_default()
    }

    /// How many frames there were.
    pub fn count_of_all(&self) -> u64 {
        self.reasons.borrow().values().sum()
    }

    /// What passed between a backend and its clients.
    pub fn counters(&self, backend: u32) -> BackendCounters {
        self.counters.borrow().get(&backend).copied().unwrap_or_default()
    }

    fn service_at(&self, index: u32) -> Service {
        self.services.borrow()[index as usize]
    }

    /// Counts an operation on the flow tables.
    fn operation(&self) {
        let due = match &mut *self.interruption.borrow_mut() {
            Some((0, _)) => true,
            Some((operations, _)) => {
                *operations -= 1;
                false
            }
            None => false,
        };
        // Taken out first: the other CPU's own operations are not interrupted.
        let interruption = if due { self.interruption.take() } else { None };
        if let Some((_, other_cpu)) = interruption {
            other_cpu(self);
        }
    }
}

/// That time as the packet path sees it, of a kernel with 250 jiffies a second.
///
/// # Panics
///
/// After centuries.
pub fn tick(time: Duration) -> Tick {
    const JIFFY: u128 = 4;
    Tick::from_jiffies(u64::try_from(time.as_millis() / JIFFY).expect("tests take no centuries"))
}

/// Appends what `value` makes of its index, and returns that.
fn push<T>(list: &RefCell<Vec<T>>, value: impl FnOnce(u32) -> T) -> u32 {
    let index = number(list.borrow().len());
    let value = value(index);
    list.borrow_mut().push(value);
    index
}

fn number(length: usize) -> u32 {
    u32::try_from(length).expect("tests have few of everything")
}

/// A copy of what a table holds.
pub type Copied<T> = Box<T>;

impl Tables for &HostTables {
    type Ref<T: Copy + 'static> = Copied<T>;

    fn now(self) -> Tick {
        tick(self.now.get())
    }

    fn service_index(self, key: &ServiceKey) -> Option<u32> {
        let is_it = |service: &Service| service.in_use != 0 && service.key == *key;
        self.services.borrow().iter().position(is_it).map(number)
    }

    fn service(self, index: u32) -> Option<Copied<Service>> {
        get(&self.services, index)
    }

    fn slot(self, index: u32) -> Option<u32> {
        get(&self.slots, index).map(|backend| *backend)
    }

    fn backend(self, index: u32) -> Option<Copied<Backend>> {
        get(&self.backends, index)
    }

    fn next_hop(self, backend: u32) -> Option<Copied<Hop>> {
        get(&self.hops, backend)
    }

    fn smallest_mtu(self) -> u32 {
        self.path_mtus
            .borrow()
            .values()
            .chain(self.interface_mtus.borrow().values())
            .chain(self.vlans.borrow().values())
            .copied()
            .min()
            .unwrap_or(0)
    }

    fn path_mtu(self, backend: u32) -> u32 {
        self.path_mtus.borrow().get(&backend).copied().unwrap_or(0)
    }

    fn interface_mtu(self, ifindex: u32) -> u32 {
        self.interface_mtus.borrow().get(&ifindex).copied().unwrap_or(0)
    }

    fn is_generic(self, ifindex: u32) -> bool {
        self.generic.borrow().contains(&ifindex)
    }

    fn vlan_mtu(self, vlan: &Vlan) -> Option<u32> {
        self.vlans.borrow().get(vlan).copied()
    }

    fn take_turn(self, service: u32) -> u64 {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.entry(service).or_default();
        *turn += 1;
        *turn - 1
    }

    fn take_port(self, cursor: u32) -> u32 {
        let mut cursors = self.cursors.borrow_mut();
        let next = cursors.entry(cursor).or_default();
        let port = *next;
        *next = next.wrapping_add(1);
        port
    }

    fn take_answer(self, now: Tick) -> u32 {
        let (tick, number) = self.answers.get();
        let number = if tick == now { number } else { 0 };
        self.answers.set((now, number + 1));
        number
    }

    fn datagram(self, key: &DatagramKey, piece: Piece) -> Option<Datagram> {
        let mut datagrams = self.datagrams.borrow_mut();
        let datagram = datagrams.get_mut(key)?;
        *datagram = datagram.with(piece);
        Some(*datagram)
    }

    fn note_datagram(self, key: &DatagramKey, datagram: &Datagram) {
        self.datagrams.borrow_mut().insert(*key, *datagram);
    }

    fn forget_datagram(self, key: &DatagramKey) {
        self.datagrams.borrow_mut().remove(key);
    }

    fn is_own(self, addr: &Addr, family: u16) -> bool {
        self.own_addresses().contains(&OwnAddress { addr: *addr, family: family.into() })
    }

    fn count(self, reason: Reason) {
        *self.reasons.borrow_mut().entry(reason).or_default() += 1;
    }

    fn count_traffic(self, backend: u32, side: Side, bytes: usize) {
        let mut counters = self.counters.borrow_mut();
        let counters = counters.entry(backend).or_default();
        let traffic = if side == Side::Request { &mut counters.requests } else { &mut counters.replies };
        traffic.packets += 1;
        traffic.bytes += bytes as u64;
    }

    fn count_connection(self, backend: u32) {
        self.counters.borrow_mut().entry(backend).or_default().connections += 1;
    }
}

fn get<T: Copy>(list: &RefCell<Vec<T>>, index: u32) -> Option<Copied<T>> {
    list.borrow().get(index as usize).copied().map(Box::new)
}

/// An entry, shared by the table and whoever has looked it up.
type Entry<F> = Rc<Cell<FlowEntry<F>>>;

/// A family's flow table.
#[derive(Debug)]
pub struct FlowTable<F: Family> {
    entries: RefCell<HashMap<FlowKey<F>, Entry<F>>>,
    capacity: Cell<usize>,
}

impl<F: Family> Default for FlowTable<F> {
    fn default() -> Self {
        const CONNECTIONS: usize = 262_144;
        Self { entries: RefCell::default(), capacity: Cell::new(2 * CONNECTIONS) }
    }
}

/// A family that there is a flow table of.
pub trait HostFamily: Family {
    /// Its table.
    fn table(tables: &HostTables) -> &FlowTable<Self>;
}

impl HostFamily for V4 {
    fn table(tables: &HostTables) -> &FlowTable<Self> {
        &tables.flows_v4
    }
}

impl HostFamily for V6 {
    fn table(tables: &HostTables) -> &FlowTable<Self> {
        &tables.flows_v6
    }
}

impl<'a, F: HostFamily> Flows<F> for &'a HostTables {
    type Flow = HostFlow<'a, F>;

    fn flow(self, key: &FlowKey<F>) -> Option<HostFlow<'a, F>> {
        self.operation();
        let entry = Rc::clone(F::table(self).entries.borrow().get(key)?);
        Some(HostFlow { found: entry.get(), protocol: key.protocol, entry, tables: self })
    }

    fn sample(self, number: u32) -> Option<FlowKey<F>> {
        let entries = F::table(self).entries.borrow();
        entries.keys().nth((number as usize).checked_rem(entries.len())?).copied()
    }

    fn has_room(self) -> bool {
        let table = F::table(self);
        table.entries.borrow().len() + 2 <= table.capacity.get()
    }

    fn insert(
        self,
        key: &FlowKey<F>,
        partner: &Tuple<F>,
        side: Side,
        shared: &Shared,
    ) -> Result<(), NotInserted> {
        self.operation();
        let table = F::table(self);
        let mut entries = table.entries.borrow_mut();
        if entries.contains_key(key) {
            return Err(NotInserted::Exists);
        }
        if entries.len() >= table.capacity.get() {
            return Err(NotInserted::Full);
        }
        let entry = FlowEntry::new(&key.tuple, partner, side, shared);
        entries.insert(*key, Rc::new(Cell::new(entry)));
        Ok(())
    }
}

/// An entry in a flow table: reads as it was found, writes to the table.
#[derive(Debug)]
pub struct HostFlow<'a, F: Family> {
    found: FlowEntry<F>,
    protocol: u32,
    entry: Entry<F>,
    tables: &'a HostTables,
}

impl<F: Family> HostFlow<'_, F> {
    fn edit(&self, edit: impl FnOnce(&mut FlowEntry<F>)) {
        let mut entry = self.entry.get();
        edit(&mut entry);
        self.entry.set(entry);
    }
}

impl<F: Family> Deref for HostFlow<'_, F> {
    type Target = FlowEntry<F>;

    fn deref(&self) -> &FlowEntry<F> {
        &self.found
    }
}

impl<F: HostFamily> Flow<F> for HostFlow<'_, F> {
    fn record(&self, seen: Seen, now: Tick) {
        self.edit(|entry| {
            entry.seen = seen;
            entry.last = now;
        });
    }

    fn set_client(&self, client: Hop) {
        self.edit(|entry| entry.client = client);
    }

    fn set_partner_end(&self, end: Seen) {
        self.edit(|entry| entry.partner_end = end);
    }

    fn remove(&self) -> bool {
        self.tables.operation();
        let key = FlowKey { tuple: self.found.arrives, protocol: self.protocol };
        let mut entries = F::table(self.tables).entries.borrow_mut();
        let is_there = entries.get(&key).is_some_and(|entry| Rc::ptr_eq(entry, &self.entry));
        if is_there {
            entries.remove(&key);
        }
        is_there
    }
}
