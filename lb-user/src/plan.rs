//! From an edit and the tables as they are to the ordered steps that make it so. Pure: nothing here does I/O.
//!
//! Make before break: what the data path is going to find is complete before anything points to it, and what it found
//! before is taken away only when no program can be on its way there any more. So every step leaves the data path with
//! a consistent view. An edit first notes which service it is about, and last that it is done: from what is between,
//! [`State::repair`] completes it, or undoes it where nothing of it has been seen yet.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    iter,
    net::IpAddr,
};

use lb_common::{
    Addr, Backend, BackendState, Hop, Meta, Port, Service, ServiceKey, SlotTable,
    backend::MAX_BACKENDS,
    service::{MAX_SERVICES, MAX_SLOTS, MAX_SNAT},
};

use crate::model::{self, Endpoint, Invalid, NewService, ServiceAddress, SnatPool, Weight};

/// One write to the maps.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Makes a backend's place ready for a new one: counters at zero, next hop unknown.
    ResetBackend {
        /// Its place.
        index: u32,
    },
    /// Writes how a backend is reached.
    WriteHop {
        /// The backend's place.
        index: u32,
        /// The way.
        hop: Hop,
    },
    /// Writes a backend, or with the default value frees its place.
    WriteBackend {
        /// Its place.
        index: u32,
        /// The value.
        backend: Backend,
    },
    /// Fills slots that no table covers.
    WriteSlots {
        /// The first slot.
        offset: u32,
        /// Indices of backends.
        backends: Vec<u32>,
    },
    /// Begins a service's turns at its first slot.
    ResetTurns {
        /// The service's place.
        index: u32,
    },
    /// Writes a service; its slot table changes in one 64-bit word.
    WriteService {
        /// Its place.
        index: u32,
        /// The value.
        service: Service,
    },
    /// From here on packets find the service.
    Open {
        /// What they are addressed to.
        key: ServiceKey,
        /// The service's place.
        index: u32,
    },
    /// From here on packets do not find the service.
    Close {
        /// What they are addressed to.
        key: ServiceKey,
    },
    /// Waits until programs that saw the tables as they were are through.
    Settle,
    /// Removes the connections of backends.
    EndFlows {
        /// The backends' places.
        backends: Vec<u32>,
    },
    /// Writes the balancer's own record, with a new generation.
    WriteMeta(Meta),
}

/// The tables as they are, and as the steps planned so far will leave them.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The balancer's own record.
    pub meta: Meta,
    /// Services by place.
    pub services: BTreeMap<u32, Service>,
    /// Backends by place.
    pub backends: BTreeMap<u32, Backend>,
}

impl State {
    /// The empty tables of a new balancer.
    pub const fn new(meta: Meta) -> Self {
        Self { meta, services: BTreeMap::new(), backends: BTreeMap::new() }
    }

    /// The place of a service.
    ///
    /// # Errors
    ///
    /// There is no such service.
    pub fn service(&self, address: &ServiceAddress) -> Result<u32, Invalid> {
        self.find_service(&address.key()).ok_or_else(|| {
            let known = self.addresses();
            let remedy = if known.is_empty() {
                format!("there is none at all, add it with `lb service add {address}`")
            } else {
                format!("there is {}", known.join(", "))
            };
            Invalid::new(format!("there is no service {address}: {remedy}"))
        })
    }

    fn find_service(&self, key: &ServiceKey) -> Option<u32> {
        self.services.iter().find(|(_, service)| service.key == *key).map(|(index, _)| *index)
    }

    /// The first few services, for a message.
    fn addresses(&self) -> Vec<String> {
        const MANY: usize = 5;
        let name = |key| ServiceAddress::of(key).map(|address| address.to_string());
        let mut names: Vec<_> =
            self.services.values().take(MANY).filter_map(|service| name(&service.key)).collect();
        if self.services.len() > MANY {
            names.push(format!("and {} more", self.services.len() - MANY));
        }
        names
    }

    /// Backends of a service with their places, in the order of their addition.
    pub fn backends_of(&self, service: u32) -> Vec<(u32, &Backend)> {
        let mut backends: Vec<_> = self
            .backends
            .iter()
            .filter(|(_, backend)| backend.service == service)
            .map(|(index, backend)| (*index, backend))
            .collect();
        backends.sort_by_key(|(_, backend)| backend.sequence);
        backends
    }

    /// Services with their places, in the order of their addition.
    pub fn services_in_order(&self) -> Vec<(u32, &Service)> {
        let mut services: Vec<_> = self.services.iter().map(|(index, service)| (*index, service)).collect();
        services.sort_by_key(|(_, service)| service.sequence);
        services
    }

    /// The place of a backend of a service.
    ///
    /// # Errors
    ///
    /// The service has no such backend.
    pub fn backend(
        &self,
        service: u32,
        address: &ServiceAddress,
        endpoint: Endpoint,
    ) -> Result<u32, Invalid> {
        self.find_backend(service, endpoint).ok_or_else(|| {
            Invalid::new(format!(
                "service {address} has no backend {endpoint}: `lb backend list {address}` shows those it has"
            ))
        })
    }

    fn find_backend(&self, service: u32, endpoint: Endpoint) -> Option<u32> {
        self.backends
            .iter()
            .find(|(_, backend)| backend.service == service && Endpoint::of(backend) == Some(endpoint))
            .map(|(index, _)| *index)
    }

    /// Adds a service with its first backends; `hops` are the ways that are known already.
    ///
    /// # Errors
    ///
    /// The service exists, or there is no room.
    pub fn add_service(
        &mut self,
        new: &NewService,
        hops: &HashMap<IpAddr, Hop>,
    ) -> Result<Vec<Step>, Invalid> {
        let address = new.address();
        let key = address.key();
        if self.find_service(&key).is_some() {
            return Err(Invalid::new(format!(
                "service {address} exists already: change its backends with `lb backend`, or remove it first with \
                 `lb service rm {address}`"
            )));
        }
        let index =
            next_fit(self.meta.next_service, MAX_SERVICES, |index| self.services.contains_key(&index))
                .ok_or_else(|| {
                    Invalid::new(format!("{MAX_SERVICES} services are the most that fit: remove one first"))
                })?;
        let mut steps = vec![self.note_edit(index)];
        self.meta.next_service = index + 1;
        let service = self.new_service(new);
        self.services.insert(index, service);

        for backend in new.backends() {
            steps.extend(self.new_backend(index, address, *backend, hops)?);
        }
        steps.push(Step::ResetTurns { index });
        steps.extend(self.deal(index)?);
        steps.push(Step::Open { key, index });
        steps.push(self.write_meta());
        Ok(steps)
    }

    fn new_service(&mut self, new: &NewService) -> Service {
        let addresses = match new.snat() {
            Some(own) => own.addresses().to_vec(),
            None => default_pool(&self.meta).for_service(new.address().ip()),
        };
        let mut snat = [Addr::default(); MAX_SNAT];
        let mut snat_len = 0;
        for (place, ip) in iter::zip(&mut snat, addresses) {
            *place = Addr::new(ip).0;
            snat_len += 1;
        }
        Service {
            table: SlotTable::default(),
            key: new.address().key(),
            first_port: self.meta.first_port,
            ports: self.meta.ports,
            snat_len,
            in_use: 1,
            snat,
            sequence: self.next_sequence(),
        }
    }

    /// Adds a backend to a service.
    ///
    /// # Errors
    ///
    /// The service does not exist, cannot have that backend or has it already, or there is no room.
    pub fn add_backend(
        &mut self,
        address: ServiceAddress,
        endpoint: Endpoint,
        hops: &HashMap<IpAddr, Hop>,
    ) -> Result<Vec<Step>, Invalid> {
        let service = self.service(&address)?;
        model::fits(&address, endpoint)?;
        if let Some(index) = self.find_backend(service, endpoint) {
            let remedy = match self
                .backends
                .get(&index)
                .and_then(|backend| BackendState::from_number(backend.state))
            {
                Some(BackendState::Draining) => {
                    format!(
                        "it is draining, take it back with `lb backend set {address} {endpoint} --weight 1`"
                    )
                }
                Some(BackendState::Leaving) => {
                    format!(
                        "its removal was interrupted, finish it with `lb backend rm {address} {endpoint}`"
                    )
                }
                _ => format!("`lb backend list {address}` shows it"),
            };
            return Err(Invalid::new(format!("service {address} has backend {endpoint} already: {remedy}")));
        }
        let mut steps = vec![self.note_edit(service)];
        steps.extend(self.new_backend(service, address, endpoint, hops)?);
        steps.extend(self.deal(service)?);
        steps.push(self.write_meta());
        Ok(steps)
    }

    fn new_backend(
        &mut self,
        service: u32,
        address: ServiceAddress,
        endpoint: Endpoint,
        hops: &HashMap<IpAddr, Hop>,
    ) -> Result<Vec<Step>, Invalid> {
        let index =
            next_fit(self.meta.next_backend, MAX_BACKENDS, |index| self.backends.contains_key(&index))
                .ok_or_else(|| {
                    Invalid::new(format!("{MAX_BACKENDS} backends are the most that fit: remove one first"))
                })?;
        self.meta.next_backend = index + 1;
        let (addr, family) = Addr::new(endpoint.ip());
        let backend = Backend {
            addr,
            port: Port::new(endpoint.port()),
            family,
            state: BackendState::Up as u8,
            service,
            cursor: self.cursor(index, address, endpoint),
            weight: Weight::ONE.get(),
            sequence: self.next_sequence(),
        };
        self.backends.insert(index, backend);
        let mut steps = vec![Step::ResetBackend { index }];
        steps.extend(hops.get(&endpoint.ip()).map(|hop| Step::WriteHop { index, hop: *hop }));
        steps.push(Step::WriteBackend { index, backend });
        Ok(steps)
    }

    /// The port cursor for a new backend: that of a backend with the same address, port and protocol, for they share
    /// the space of source ports; else one that nobody has, its own if possible. It is not set back: ports that a
    /// removed backend may hold in TIME-WAIT come last.
    fn cursor(&self, index: u32, address: ServiceAddress, endpoint: Endpoint) -> u32 {
        let protocol = address.protocol().number();
        let same = |backend: &&Backend| {
            Endpoint::of(backend) == Some(endpoint)
                && self.services.get(&backend.service).is_some_and(|service| service.key.protocol == protocol)
        };
        if let Some(twin) = self.backends.values().find(same) {
            return twin.cursor;
        }
        // Its own is almost always free; only then is the set of all worth its while.
        if self.backends.values().all(|backend| backend.cursor != index) {
            return index;
        }
        let taken: HashSet<u32> = self.backends.values().map(|backend| backend.cursor).collect();
        next_fit(index, MAX_BACKENDS, |cursor| taken.contains(&cursor)).unwrap_or(index)
    }

    /// Lets a backend take new connections, also one that was draining.
    ///
    /// # Errors
    ///
    /// There is no such service or backend, or the backend is being removed.
    pub fn set_weight(
        &mut self,
        address: ServiceAddress,
        endpoint: Endpoint,
        weight: Weight,
    ) -> Result<Vec<Step>, Invalid> {
        self.change(address, endpoint, |backend| {
            backend.weight = weight.get();
            backend.state = BackendState::Up as u8;
        })
    }

    /// Sends a backend no more new connections.
    ///
    /// # Errors
    ///
    /// There is no such service or backend, or the backend is being removed.
    pub fn drain_backend(
        &mut self,
        address: ServiceAddress,
        endpoint: Endpoint,
    ) -> Result<Vec<Step>, Invalid> {
        self.change(address, endpoint, |backend| backend.state = BackendState::Draining as u8)
    }

    fn change(
        &mut self,
        address: ServiceAddress,
        endpoint: Endpoint,
        edit: impl FnOnce(&mut Backend),
    ) -> Result<Vec<Step>, Invalid> {
        let service = self.service(&address)?;
        let index = self.backend(service, &address, endpoint)?;
        let mut backend = self.backends.get(&index).copied().unwrap_or_default();
        if is(&backend, BackendState::Leaving) {
            return Err(Invalid::new(format!(
                "backend {endpoint} is being removed: finish it with `lb backend rm {address} {endpoint}`"
            )));
        }
        let mut steps = vec![self.note_edit(service)];
        edit(&mut backend);
        self.backends.insert(index, backend);
        steps.push(Step::WriteBackend { index, backend });
        steps.extend(self.deal(service)?);
        steps.push(self.write_meta());
        Ok(steps)
    }

    /// Removes a backend: first its slots, then its connections, then itself.
    ///
    /// # Errors
    ///
    /// There is no such service or backend.
    pub fn remove_backend(
        &mut self,
        address: ServiceAddress,
        endpoint: Endpoint,
    ) -> Result<Vec<Step>, Invalid> {
        let service = self.service(&address)?;
        let index = self.backend(service, &address, endpoint)?;
        let mut steps = vec![self.note_edit(service)];
        if let Some(backend) = self.backends.get_mut(&index) {
            backend.state = BackendState::Leaving as u8;
            steps.push(Step::WriteBackend { index, backend: *backend });
        }
        steps.extend(self.deal(service)?);
        steps.extend(self.take_away_backends(vec![index]));
        steps.push(self.write_meta());
        Ok(steps)
    }

    /// Ends the connections of backends that no slot leads to any more, and frees their places.
    fn take_away_backends(&mut self, backends: Vec<u32>) -> Vec<Step> {
        let mut steps = vec![Step::Settle];
        if !backends.is_empty() {
            steps.push(Step::EndFlows { backends: backends.clone() });
        }
        for index in backends {
            self.backends.remove(&index);
            steps.push(Step::WriteBackend { index, backend: Backend::default() });
        }
        steps
    }

    /// Removes a service: first the way to it, then its connections, then its backends and itself.
    ///
    /// # Errors
    ///
    /// There is no such service.
    pub fn remove_service(&mut self, address: ServiceAddress) -> Result<Vec<Step>, Invalid> {
        let index = self.service(&address)?;
        let mut steps = vec![self.note_edit(index), Step::Close { key: address.key() }];
        steps.extend(self.take_away_service(index));
        steps.push(self.write_meta());
        Ok(steps)
    }

    /// Takes a service away that packets do not find any more, with its backends.
    fn take_away_service(&mut self, index: u32) -> Vec<Step> {
        let backends = self.backends_of(index).into_iter().map(|(index, _)| index).collect();
        let mut steps = self.take_away_backends(backends);
        self.services.remove(&index);
        steps.push(Step::WriteService { index, service: no_service() });
        steps
    }

    /// Completes an edit that was interrupted, or undoes it where packets have not met anything of it: no steps if none
    /// was. `open` is the place that packets for a service find. May be interrupted, too.
    ///
    /// # Errors
    ///
    /// There is no room for the service's slots.
    pub fn repair(&mut self, open: impl Fn(&ServiceKey) -> Option<u32>) -> Result<Vec<Step>, Invalid> {
        let Some(index) = self.meta.edited.checked_sub(1) else { return Ok(Vec::new()) };
        // What was written then is not in the record yet.
        let sequences = self.services.values().map(|service| service.sequence);
        let sequences = sequences.chain(self.backends.values().map(|backend| backend.sequence));
        self.meta.next_sequence = sequences.max().unwrap_or(0).max(self.meta.next_sequence);

        let is_open = self.services.get(&index).is_some_and(|service| open(&service.key) == Some(index));
        let mut steps = if is_open {
            let leaving =
                self.backends_of(index).into_iter().filter(|(_, backend)| is(backend, BackendState::Leaving));
            let leaving = leaving.map(|(index, _)| index).collect();
            let mut steps = self.deal(index)?;
            steps.extend(self.take_away_backends(leaving));
            steps
        } else {
            // Its addition had not come to its last step, or its removal had made the first.
            self.take_away_service(index)
        };
        steps.push(self.write_meta());
        Ok(steps)
    }

    /// Fills a new slot table with the service's backends in their order, and then points the service to it.
    fn deal(&mut self, index: u32) -> Result<Vec<Step>, Invalid> {
        let backends: Vec<u32> = self
            .backends_of(index)
            .into_iter()
            .filter(|(_, backend)| is(backend, BackendState::Up))
            .map(|(index, _)| index)
            .collect();
        let table = self.free_slots(backends.len())?;
        let mut steps = Vec::new();
        if !table.is_empty() {
            self.meta.next_slot = end(table) % MAX_SLOTS;
            steps.push(Step::WriteSlots { offset: table.offset(), backends });
        }
        if let Some(service) = self.services.get_mut(&index) {
            service.table = table;
            steps.push(Step::WriteService { index, service: *service });
        }
        Ok(steps)
    }

    /// Slots that no service's table covers, if possible behind those that were found last: what a table has just
    /// left may still be read.
    fn free_slots(&self, count: usize) -> Result<SlotTable, Invalid> {
        let len = u32::try_from(count).ok().filter(|len| *len <= MAX_SLOTS).ok_or_else(no_slots)?;
        if len == 0 {
            return Ok(SlotTable::default());
        }
        let tables = || self.services.values().map(|service| service.table).filter(|table| !table.is_empty());
        let is_free = |offset: u32| {
            offset <= MAX_SLOTS - len
                && tables().all(|table| end(table) <= offset || offset + len <= table.offset())
        };
        let start = self.meta.next_slot;
        if is_free(start) {
            return Ok(SlotTable::new(start, len));
        }
        // A free region that is large enough begins at the first slot, or where a table ends.
        let mut candidates: Vec<u32> = iter::once(0).chain(tables().map(end)).collect();
        candidates.sort_unstable_by_key(|offset| (*offset < start, *offset));
        let offset = candidates.into_iter().find(|offset| is_free(*offset)).ok_or_else(no_slots)?;
        Ok(SlotTable::new(offset, len))
    }

    fn next_sequence(&mut self) -> u64 {
        self.meta.next_sequence += 1;
        self.meta.next_sequence
    }

    fn note_edit(&mut self, service: u32) -> Step {
        self.meta.edited = service + 1;
        Step::WriteMeta(self.meta)
    }

    fn write_meta(&mut self) -> Step {
        self.meta.edited = 0;
        self.meta.generation += 1;
        Step::WriteMeta(self.meta)
    }
}

fn is(backend: &Backend, state: BackendState) -> bool {
    BackendState::from_number(backend.state) == Some(state)
}

/// The SNAT addresses of services that name none of their own.
pub(crate) fn default_pool(meta: &Meta) -> SnatPool {
    let addresses: Vec<IpAddr> = iter::zip(&meta.snat, meta.snat_family)
        .filter(|(_, family)| *family != 0)
        .map(|(addr, family)| addr.ip(family))
        .collect();
    SnatPool::new(&addresses).unwrap_or_default()
}

/// The value of a place that holds no service.
fn no_service() -> Service {
    let addr = Addr::default();
    Service {
        table: SlotTable::new(0, 0),
        key: ServiceKey { addr, port: Port::new(0), protocol: 0, family: 0 },
        first_port: 0,
        ports: 0,
        snat_len: 0,
        in_use: 0,
        snat: [addr; MAX_SNAT],
        sequence: 0,
    }
}

fn no_slots() -> Invalid {
    Invalid::new(format!("all {MAX_SLOTS} slots are taken: remove services or backends first"))
}

const fn end(table: SlotTable) -> u32 {
    table.offset() + table.len()
}

/// The first free place at or behind `start`, going round.
fn next_fit(start: u32, places: u32, is_taken: impl Fn(u32) -> bool) -> Option<u32> {
    let start = start % places;
    (start..places).chain(0..start).find(|place| !is_taken(*place))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: &str = "10.10.10.1:80/tcp";

    fn state() -> State {
        State::new(Meta { first_port: 1024, ports: 31_744, ..Meta::default() })
    }

    fn address(text: &str) -> ServiceAddress {
        text.parse().unwrap()
    }

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    fn new_service(text: &str, backends: &[&str]) -> NewService {
        let mut new = NewService::new(address(text), None).unwrap();
        for backend in backends {
            new.add_backend(endpoint(backend)).unwrap();
        }
        new
    }

    fn none() -> HashMap<IpAddr, Hop> {
        HashMap::new()
    }

    /// What the data path finds in the maps: plays the steps and checks, after each, that what is reachable is whole.
    #[derive(Default)]
    struct Kernel {
        keys: HashMap<ServiceKey, u32>,
        services: BTreeMap<u32, Service>,
        backends: BTreeMap<u32, Backend>,
        slots: HashMap<u32, u32>,
        /// Slots that a program may still read: those of tables replaced since the last time that it settled.
        read: Vec<SlotTable>,
        ended: Vec<u32>,
        meta: Meta,
    }

    impl Kernel {
        fn play(&mut self, steps: &[Step]) {
            for step in steps {
                self.apply(step);
                self.check(step);
            }
        }

        fn apply(&mut self, step: &Step) {
            match step {
                Step::WriteBackend { index, backend } => {
                    if backend.state == 0 {
                        assert!(self.ended.contains(index), "a place is freed only when its flows are gone");
                    }
                    self.backends.insert(*index, *backend);
                }
                Step::WriteSlots { offset, backends } => {
                    for (slot, backend) in (*offset..).zip(backends) {
                        assert!(
                            self.read.iter().all(|table| slot < table.offset() || slot >= end(*table)),
                            "slots that a program may be reading stay as they are"
                        );
                        self.slots.insert(slot, *backend);
                    }
                }
                Step::WriteService { index, service } => {
                    if let Some(old) = self.services.insert(*index, *service) {
                        self.read.retain(|table| *table != old.table);
                    }
                    self.read.push(service.table);
                }
                Step::Open { key, index } => {
                    self.keys.insert(*key, *index);
                }
                Step::Close { key } => {
                    self.keys.remove(key);
                }
                Step::EndFlows { backends } => self.ended.extend(backends),
                Step::ResetBackend { index } => self.ended.retain(|ended| ended != index),
                Step::WriteMeta(meta) => self.meta = *meta,
                Step::WriteHop { .. } | Step::ResetTurns { .. } | Step::Settle => {}
            }
        }

        fn check(&self, step: &Step) {
            for index in self.keys.values() {
                let service = self.services[index];
                assert_eq!(service.in_use, 1, "after {step:?}");
                for slot in service.table.offset()..end(service.table) {
                    let backend = self.backends[&self.slots[&slot]];
                    assert_ne!(backend.state, 0, "after {step:?} a slot leads nowhere");
                    assert_eq!(
                        backend.service, *index,
                        "after {step:?} a slot leads to another service's backend"
                    );
                }
            }
        }

        /// Who gets the next connections, from turn 0 on.
        fn deals(&self, service: &str, connections: u64) -> Vec<String> {
            let service = self.services[&self.keys[&address(service).key()]];
            (0..connections)
                .map(|turn| self.backends[&self.slots[&service.table.slot(turn)]])
                .map(|backend| Endpoint::of(&backend).unwrap().to_string())
                .collect()
        }
    }

    #[test]
    fn connections_go_round_in_the_order_in_which_backends_were_added() {
        let (mut state, mut kernel) = (state(), Kernel::default());
        let backends = ["192.168.1.1:80", "192.168.1.2:80", "192.168.1.3:80", "192.168.1.4:80"];
        kernel.play(&state.add_service(&new_service(VIP, &backends), &none()).unwrap());
        assert_eq!(kernel.deals(VIP, 8), [backends, backends].concat());
    }

    #[test]
    fn a_backend_that_goes_and_comes_back_is_the_last_in_turn() {
        let (mut state, mut kernel) = (state(), Kernel::default());
        let new = new_service(VIP, &["192.168.1.1:80", "192.168.1.2:80"]);
        kernel.play(&state.add_service(&new, &none()).unwrap());
        let first = endpoint("192.168.1.1:80");
        kernel.play(&state.remove_backend(address(VIP), first).unwrap());
        assert_eq!(kernel.deals(VIP, 2), ["192.168.1.2:80", "192.168.1.2:80"]);
        kernel.play(&state.add_backend(address(VIP), first, &none()).unwrap());
        assert_eq!(kernel.deals(VIP, 3), ["192.168.1.2:80", "192.168.1.1:80", "192.168.1.2:80"]);
    }

    #[test]
    fn a_draining_backend_gets_no_new_connections_until_it_is_taken_back() {
        let (mut state, mut kernel) = (state(), Kernel::default());
        let new = new_service(VIP, &["192.168.1.1:80", "192.168.1.2:80"]);
        kernel.play(&state.add_service(&new, &none()).unwrap());
        let first = endpoint("192.168.1.1:80");
        kernel.play(&state.drain_backend(address(VIP), first).unwrap());
        assert_eq!(kernel.deals(VIP, 1), ["192.168.1.2:80"]);
        assert!(kernel.ended.is_empty(), "its connections go on");
        kernel.play(&state.set_weight(address(VIP), first, Weight::ONE).unwrap());
        assert_eq!(kernel.deals(VIP, 2), ["192.168.1.1:80", "192.168.1.2:80"]);
    }

    #[test]
    fn a_removed_backend_loses_its_slots_first_then_its_flows_then_its_place() {
        let mut state = state();
        state.add_service(&new_service(VIP, &["192.168.1.1:80", "192.168.1.2:80"]), &none()).unwrap();
        let steps = state.remove_backend(address(VIP), endpoint("192.168.1.1:80")).unwrap();
        let order: Vec<_> = steps
            .iter()
            .map(|step| match step {
                Step::WriteBackend { backend, .. } if backend.state == BackendState::Leaving as u8 => {
                    "leaving"
                }
                Step::WriteBackend { .. } => "free",
                Step::WriteSlots { .. } => "slots",
                Step::WriteService { .. } => "table",
                Step::Settle => "settle",
                Step::EndFlows { .. } => "flows",
                Step::WriteMeta(_) => "meta",
                _ => "other",
            })
            .collect();
        assert_eq!(order, ["meta", "leaving", "slots", "table", "settle", "flows", "free", "meta"]);
    }

    #[test]
    fn a_removed_service_is_closed_first_and_leaves_nothing() {
        let (mut state, mut kernel) = (state(), Kernel::default());
        kernel.play(&state.add_service(&new_service(VIP, &["192.168.1.1:80"]), &none()).unwrap());
        let steps = state.remove_service(address(VIP)).unwrap();
        assert!(matches!(steps[..3], [Step::WriteMeta(_), Step::Close { .. }, Step::Settle]));
        kernel.play(&steps);
        assert!(state.services.is_empty() && state.backends.is_empty());
        assert!(kernel.services.values().all(|service| service.in_use == 0));
        assert!(kernel.backends.values().all(|backend| backend.state == 0));
    }

    #[test]
    fn the_last_backend_leaves_an_empty_table() {
        let (mut state, mut kernel) = (state(), Kernel::default());
        kernel.play(&state.add_service(&new_service(VIP, &["192.168.1.1:80"]), &none()).unwrap());
        kernel.play(&state.remove_backend(address(VIP), endpoint("192.168.1.1:80")).unwrap());
        assert!(kernel.services[&0].table.is_empty());
    }

    #[test]
    fn what_has_just_been_given_up_is_not_given_out_at_once() {
        let mut state = state();
        state.add_service(&new_service(VIP, &["192.168.1.1:80"]), &none()).unwrap();
        state.remove_backend(address(VIP), endpoint("192.168.1.1:80")).unwrap();
        state.add_backend(address(VIP), endpoint("192.168.1.2:80"), &none()).unwrap();
        assert_eq!(state.backends.keys().copied().collect::<Vec<_>>(), [1]);
        state.remove_service(address(VIP)).unwrap();
        state.add_service(&new_service("10.10.10.2:80", &[]), &none()).unwrap();
        assert_eq!(state.services.keys().copied().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_new_table_never_covers_a_table_in_use_however_often_it_changes() {
        let (mut state, mut kernel) = (state(), Kernel::default());
        for (service, vip) in ["10.10.10.1:80", "10.10.10.2:80", "10.10.10.3:80"].into_iter().enumerate() {
            let first = format!("192.168.{service}.1:80");
            kernel.play(&state.add_service(&new_service(vip, &[&first]), &none()).unwrap());
        }
        // Near the end of the slots, so that the search goes round.
        state.meta.next_slot = MAX_SLOTS - 40;
        for round in 2..60 {
            for (service, vip) in ["10.10.10.1:80", "10.10.10.2:80", "10.10.10.3:80"].into_iter().enumerate()
            {
                let backend = endpoint(&format!("192.168.{service}.{round}:80"));
                kernel.play(&state.add_backend(address(vip), backend, &none()).unwrap());
                if round % 3 == 0 {
                    kernel.play(&state.remove_backend(address(vip), backend).unwrap());
                }
            }
        }
        assert_eq!(kernel.deals("10.10.10.1:80", 3), ["192.168.0.1:80", "192.168.0.2:80", "192.168.0.4:80"]);
    }

    #[test]
    fn a_full_slot_array_is_refused() {
        let mut state = state();
        state.add_service(&new_service(VIP, &["192.168.1.1:80"]), &none()).unwrap();
        state.services.get_mut(&0).unwrap().table = SlotTable::new(0, MAX_SLOTS);
        let error = state.add_backend(address(VIP), endpoint("192.168.1.2:80"), &none()).unwrap_err();
        assert!(error.to_string().contains("slots are taken"), "{error}");
    }

    #[test]
    fn twins_share_a_port_cursor_and_others_do_not() {
        let mut state = state();
        let twin = "192.168.1.1:80";
        state.add_service(&new_service("10.10.10.1:80", &[twin, "192.168.1.1:81"]), &none()).unwrap();
        state.add_service(&new_service("10.10.10.2:80", &[twin]), &none()).unwrap();
        state.add_service(&new_service("10.10.10.3:80/udp", &[twin]), &none()).unwrap();
        let cursors: Vec<u32> = state.backends.values().map(|backend| backend.cursor).collect();
        assert_eq!(cursors, [0, 1, 0, 3]);

        // The first twin goes; the second keeps cursor 0, and who comes to place 0 gets another one.
        state.remove_backend(address("10.10.10.1:80"), endpoint(twin)).unwrap();
        state.meta.next_backend = 0;
        state.add_backend(address("10.10.10.1:80"), endpoint("192.168.1.9:80"), &none()).unwrap();
        assert_eq!(state.backends[&0].cursor, 2);
    }

    #[test]
    fn a_known_way_is_written_before_the_slots_lead_there() {
        let mut state = state();
        let hop = Hop::new([2; 6], [4; 6], 7);
        let hops = HashMap::from([(IpAddr::from([192, 168, 1, 1]), hop)]);
        let steps = state.add_service(&new_service(VIP, &["192.168.1.1:80"]), &hops).unwrap();
        let place = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
        let hop_at = place(&|step| *step == Step::WriteHop { index: 0, hop });
        assert!(place(&|step| matches!(step, Step::ResetBackend { .. })) < hop_at);
        assert!(hop_at < place(&|step| matches!(step, Step::WriteSlots { .. })));
    }

    #[test]
    fn services_take_the_balancers_snat_unless_they_name_their_own() {
        let mut state = state();
        let pool: IpAddr = [10, 0, 0, 9].into();
        (state.meta.snat[0], state.meta.snat_family[0]) = Addr::new(pool);
        state.add_service(&new_service(VIP, &[]), &none()).unwrap();
        state.add_service(&new_service("[2001:db8::1]:80", &[]), &none()).unwrap();
        let own = SnatPool::new(&[[10, 0, 0, 7].into(), [10, 0, 0, 8].into()]).unwrap();
        let new = NewService::new(address("10.10.10.2:80"), Some(own)).unwrap();
        state.add_service(&new, &none()).unwrap();
        let snat: Vec<Vec<String>> = state
            .services
            .values()
            .map(|s| {
                s.snat.iter().take(s.snat_len as usize).map(|a| a.ip(s.key.family).to_string()).collect()
            })
            .collect();
        assert_eq!(snat, [vec!["10.0.0.9"], vec!["2001:db8::1"], vec!["10.0.0.7", "10.0.0.8"]]);
    }

    #[test]
    fn refusals_change_nothing_and_name_the_remedy() {
        let mut state = state();
        state.add_service(&new_service(VIP, &["192.168.1.1:80", "192.168.1.2:80"]), &none()).unwrap();
        state.drain_backend(address(VIP), endpoint("192.168.1.2:80")).unwrap();
        let before = state.clone();
        let cases: [(Result<Vec<Step>, Invalid>, &str); 8] = [
            (state.add_service(&new_service(VIP, &[]), &none()), "lb service rm 10.10.10.1:80/tcp"),
            (state.remove_service(address("10.10.10.1:80/udp")), "there is 10.10.10.1:80/tcp"),
            (state.add_backend(address("10.10.10.2:80"), endpoint("192.168.1.1:80"), &none()), "no service"),
            (state.add_backend(address(VIP), endpoint("192.168.1.1:80"), &none()), "already"),
            (state.add_backend(address(VIP), endpoint("192.168.1.2:80"), &none()), "draining"),
            (state.add_backend(address(VIP), endpoint("[2001:db8::2]:80"), &none()), "one family"),
            (state.remove_backend(address(VIP), endpoint("192.168.1.3:80")), "lb backend list"),
            (state.drain_backend(address(VIP), endpoint("192.168.1.3:80")), "no backend"),
        ];
        for (result, says) in cases {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(state, before);
    }

    /// What a command finds in the maps.
    fn found(kernel: &Kernel) -> State {
        let mut state = State::new(kernel.meta);
        state.services = kernel.services.iter().map(|(index, service)| (*index, *service)).collect();
        state.services.retain(|_, service| service.in_use != 0);
        state.backends = kernel.backends.iter().map(|(index, backend)| (*index, *backend)).collect();
        state.backends.retain(|_, backend| backend.state != 0);
        state
    }

    fn repair(kernel: &Kernel) -> Vec<Step> {
        found(kernel).repair(|key| kernel.keys.get(key).copied()).unwrap()
    }

    /// What users see: each service, who is dealt its connections, and its backends with their states.
    fn seen(kernel: &Kernel) -> Vec<String> {
        let state = found(kernel);
        let service = |(index, service): (u32, &Service)| {
            assert_eq!(kernel.keys.get(&service.key), Some(&index), "a service that no packet finds");
            let address = ServiceAddress::of(&service.key).unwrap().to_string();
            let dealt = kernel.deals(&address, service.table.len().into());
            let backends: Vec<_> = state
                .backends_of(index)
                .into_iter()
                .map(|(_, backend)| format!("{} {}", Endpoint::of(backend).unwrap(), backend.state))
                .collect();
            format!("{address} deals {dealt:?} has {backends:?}")
        };
        let known: Vec<_> = state.services_in_order().into_iter().map(service).collect();
        let lost = state.backends.values().find(|backend| !state.services.contains_key(&backend.service));
        assert_eq!(lost, None, "a backend of no service");
        let mut sequences: Vec<_> = state.services.values().map(|service| service.sequence).collect();
        sequences.extend(state.backends.values().map(|backend| backend.sequence));
        assert!(
            sequences.iter().all(|sequence| *sequence <= kernel.meta.next_sequence),
            "a number is given twice"
        );
        known
    }

    fn played(sequences: &[&[Step]]) -> Kernel {
        let mut kernel = Kernel { meta: state().meta, ..Kernel::default() };
        sequences.iter().for_each(|steps| kernel.play(steps));
        kernel
    }

    #[test]
    fn an_edit_that_is_killed_at_any_step_is_completed_or_undone_also_if_its_repair_is_killed() {
        type Make = fn(&mut State) -> Result<Vec<Step>, Invalid>;
        const OTHER: &str = "10.10.10.2:80/tcp";
        let edits: [(&str, Make); 6] = [
            ("add service", |state| {
                state.add_service(
                    &new_service("10.10.10.3:80", &["192.168.1.1:80", "192.168.1.9:80"]),
                    &none(),
                )
            }),
            ("remove service", |state| state.remove_service(address(VIP))),
            ("add backend", |state| state.add_backend(address(VIP), endpoint("192.168.1.9:80"), &none())),
            ("remove backend", |state| state.remove_backend(address(VIP), endpoint("192.168.1.1:80"))),
            ("drain", |state| state.drain_backend(address(VIP), endpoint("192.168.1.1:80"))),
            ("take back", |state| state.set_weight(address(VIP), endpoint("192.168.1.3:80"), Weight::ONE)),
        ];
        let mut first = state();
        let mut base = Vec::new();
        let backends = ["192.168.1.1:80", "192.168.1.2:80", "192.168.1.3:80"];
        for vip in [VIP, OTHER] {
            base.extend(first.add_service(&new_service(vip, &backends), &none()).unwrap());
        }
        base.extend(first.drain_backend(address(VIP), endpoint("192.168.1.3:80")).unwrap());
        let before = seen(&played(&[&base]));
        for (name, edit) in edits {
            let steps = edit(&mut first.clone()).unwrap();
            let after = seen(&played(&[&base, &steps]));
            assert_ne!(before, after, "{name}");
            for killed in 0..=steps.len() {
                let kernel = played(&[&base, &steps[..killed]]);
                let repairs = repair(&kernel);
                assert_eq!(repairs.is_empty(), kernel.meta.edited == 0, "{name} killed after {killed} steps");
                for again in 0..=repairs.len() {
                    let mut kernel = played(&[&base, &steps[..killed], &repairs[..again]]);
                    kernel.play(&repair(&kernel));
                    let seen = seen(&kernel);
                    let what = format!("{name} killed after {killed} steps, its repair after {again}");
                    assert!(seen == before || seen == after, "{what}: {seen:#?}");
                    assert!(killed < steps.len() || seen == after, "{what}: {seen:#?}");
                    assert!(repair(&kernel).is_empty(), "{what}");
                    // Work goes on.
                    let mut state = found(&kernel);
                    let added = state.add_backend(address(OTHER), endpoint("192.168.1.8:80"), &none());
                    kernel.play(&added.unwrap());
                    assert_eq!(kernel.deals(OTHER, 4).last().unwrap(), "192.168.1.8:80", "{what}");
                }
            }
        }
    }

    #[test]
    fn every_edit_is_a_new_generation() {
        let mut state = state();
        state.add_service(&new_service(VIP, &[]), &none()).unwrap();
        state.add_backend(address(VIP), endpoint("192.168.1.1:80"), &none()).unwrap();
        state.remove_service(address(VIP)).unwrap();
        assert_eq!(state.meta.generation, 3);
    }
}
