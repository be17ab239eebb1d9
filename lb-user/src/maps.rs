//! The pinned maps: their names, opening them, and typed access. Decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, RandomState},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use aya::{
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, PerfEventArray, ProgramArray},
    programs::ProgramFd,
};
use lb_common::{
    Backend, BackendCounters, Datagram, DatagramKey, Family, Hop, Interface, LAYOUT_VERSION, Meta, Program,
    Reason, Service, ServiceKey, V4, V6, Vlan, control::OwnAddress, verdict::ReasonCounters,
};

use crate::{batch, plan::State, table::Table};

/// The names, as the XDP program declares them, and as they are pinned.
pub(crate) mod name {
    pub(crate) const FLOWS_V4: &str = "FLOWS_V4";
    pub(crate) const FLOWS_V6: &str = "FLOWS_V6";
    pub(crate) const ROOM: &str = "ROOM";
    pub(crate) const SERVICES: &str = "SERVICES";
    pub(crate) const SERVICE: &str = "SERVICE";
    pub(crate) const SLOTS: &str = "SLOTS";
    pub(crate) const TURNS: &str = "TURNS";
    pub(crate) const BACKENDS: &str = "BACKENDS";
    pub(crate) const NEXT_HOPS: &str = "NEXT_HOPS";
    pub(crate) const PATH_MTUS: &str = "PATH_MTUS";
    pub(crate) const SMALLEST_MTU: &str = "SMALLEST_MTU";
    pub(crate) const CURSORS: &str = "CURSORS";
    pub(crate) const BACKEND_COUNTERS: &str = "BACKEND_COUNTERS";
    pub(crate) const REASONS: &str = "REASONS";
    pub(crate) const META: &str = "META";
    pub(crate) const INTERFACES: &str = "INTERFACES";
    pub(crate) const OWN_ADDRESSES: &str = "OWN_ADDRESSES";
    pub(crate) const VLANS: &str = "VLANS";
    pub(crate) const DATAGRAMS: &str = "DATAGRAMS";
    pub(crate) const EARLY: &str = "EARLY";
    pub(crate) const PROGRAMS: &str = "PROGRAMS";
}

/// The maps of one balancer.
pub(crate) struct Maps {
    pub(crate) flows_v4: Table<V4>,
    pub(crate) flows_v6: Table<V6>,
    services: HashMap<MapData, ServiceKey, u32>,
    service: Array<MapData, Service>,
    slots: Array<MapData, u32>,
    turns: Array<MapData, u64>,
    cursors: Array<MapData, u64>,
    backends: Array<MapData, Backend>,
    next_hops: Array<MapData, Hop>,
    path_mtus: Array<MapData, u32>,
    smallest_mtu: Array<MapData, u32>,
    backend_counters: PerCpuArray<MapData, BackendCounters>,
    reasons: PerCpuArray<MapData, ReasonCounters>,
    meta: Array<MapData, Meta>,
    interfaces: HashMap<MapData, u32, Interface>,
    own_addresses: HashMap<MapData, OwnAddress, u8>,
    vlans: HashMap<MapData, Vlan, u32>,
    programs: ProgramArray<MapData>,
}

/// The maps of datagrams that come in fragments.
pub(crate) struct DatagramMaps {
    datagrams: HashMap<MapData, DatagramKey, Datagram>,
    /// Where the program gives early fragments to, a buffer for each CPU.
    pub(crate) early: PerfEventArray<MapData>,
}

impl DatagramMaps {
    /// Opens those pinned in `dir`.
    ///
    /// # Errors
    ///
    /// As for [`Maps::open`].
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let pins = Pins(dir);
        Ok(Self { datagrams: pins.open(name::DATAGRAMS)?, early: pins.open(name::EARLY)? })
    }

    /// What became of the datagram's first fragment, if it has come.
    pub(crate) fn datagram(&self, key: &DatagramKey) -> anyhow::Result<Option<Datagram>> {
        match self.datagrams.get(key, 0) {
            Ok(datagram) => Ok(Some(datagram)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("cannot look a datagram up"),
        }
    }
}

impl Maps {
    /// Opens the maps just made and pinned in `dir`, of a balancer with that record; it is not complete yet.
    ///
    /// # Errors
    ///
    /// As for [`Maps::open`].
    pub(crate) fn begin(dir: &Path, meta: Meta) -> anyhow::Result<Self> {
        let mut record: Array<_, Meta> = Pins(dir).open(name::META)?;
        record.set(0, Meta { layout_version: 0, ..meta }, 0).context("cannot write the balancer's record")?;
        let maps = Self::open(dir)?;
        maps.flows_v4.set_room(meta.flow_entries);
        maps.flows_v6.set_room(meta.flow_entries);
        Ok(maps)
    }

    /// Opens the maps pinned in `dir`.
    ///
    /// # Errors
    ///
    /// One cannot be opened, or has another layout.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let pins = Pins(dir);
        let meta: Array<_, Meta> = pins.open(name::META)?;
        let Meta { layout_version: version, secret, .. } = meta.get(&0, 0)?;
        // Zero: made, but not yet filled in by `lb run`, which holds the lock meanwhile.
        if version != LAYOUT_VERSION && version != 0 {
            bail!(
                "the maps in {} are of layout version {version}, and this lb knows version {LAYOUT_VERSION}: use the \
                 lb that made them, or remove them with `lb detach`",
                dir.display()
            );
        }
        let room = pins.data(name::ROOM)?;
        Ok(Self {
            flows_v4: Table::open(&pins.data(name::FLOWS_V4)?, &room, 0, secret)?,
            flows_v6: Table::open(&pins.data(name::FLOWS_V6)?, &room, 1, secret)?,
            services: pins.open(name::SERVICES)?,
            service: pins.open(name::SERVICE)?,
            slots: pins.open(name::SLOTS)?,
            turns: pins.open(name::TURNS)?,
            cursors: pins.open(name::CURSORS)?,
            backends: pins.open(name::BACKENDS)?,
            next_hops: pins.open(name::NEXT_HOPS)?,
            path_mtus: pins.open(name::PATH_MTUS)?,
            smallest_mtu: pins.open(name::SMALLEST_MTU)?,
            backend_counters: pins.open(name::BACKEND_COUNTERS)?,
            reasons: pins.open(name::REASONS)?,
            meta,
            interfaces: pins.open(name::INTERFACES)?,
            own_addresses: pins.open(name::OWN_ADDRESSES)?,
            vlans: pins.open(name::VLANS)?,
            programs: pins.open(name::PROGRAMS)?,
        })
    }

    /// The balancer's own record.
    pub(crate) fn meta(&self) -> anyhow::Result<Meta> {
        self.meta.get(&0, 0).context("cannot read the balancer's record")
    }

    /// Writes the balancer's own record.
    pub(crate) fn set_meta(&mut self, meta: Meta) -> anyhow::Result<()> {
        self.meta.set(0, meta, 0).context("cannot write the balancer's record")
    }

    /// Services and backends as they are.
    pub(crate) fn state(&self) -> anyhow::Result<State> {
        let mut state = State::new(self.meta()?);
        let services = batch::read_all(&self.service).context("cannot read the services")?;
        state.services = services.into_iter().filter(|(_, service)| service.in_use != 0).collect();
        let backends = batch::read_all(&self.backends).context("cannot read the backends")?;
        state.backends = backends.into_iter().filter(|(_, backend)| backend.state != 0).collect();
        Ok(state)
    }

    pub(crate) fn set_service(&mut self, index: u32, service: &Service) -> anyhow::Result<()> {
        self.service.set(index, service, 0).with_context(|| format!("cannot write service {index}"))
    }

    pub(crate) fn open_service(&mut self, key: &ServiceKey, index: u32) -> anyhow::Result<()> {
        self.services.insert(key, index, 0).with_context(|| format!("cannot open service {index}"))
    }

    /// The service that packets with that address find.
    pub(crate) fn service_index(&self, key: &ServiceKey) -> anyhow::Result<Option<u32>> {
        match self.services.get(key, 0) {
            Ok(index) => Ok(Some(index)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("cannot look a service up"),
        }
    }

    /// A service that is closed already is as good.
    pub(crate) fn close_service(&mut self, key: &ServiceKey) -> anyhow::Result<()> {
        ignore_missing(self.services.remove(key)).context("cannot close the service")
    }

    pub(crate) fn set_slot(&mut self, slot: u32, backend: u32) -> anyhow::Result<()> {
        self.slots.set(slot, backend, 0).with_context(|| format!("cannot write slot {slot}"))
    }

    /// Lets the search for source ports begin anywhere. A new balancer that began at the first port again would meet what
    /// backends still hold of the connections of the one before, in TIME-WAIT or open, and those SYNs would fail.
    pub(crate) fn scatter_cursors(&mut self) -> anyhow::Result<()> {
        let random = RandomState::new();
        for index in 0..self.cursors.len() {
            let start = random.hash_one(index) % u64::from(u32::MAX);
            self.cursors.set(index, start, 0).context("cannot write a port cursor")?;
        }
        Ok(())
    }

    pub(crate) fn reset_turns(&mut self, service: u32) -> anyhow::Result<()> {
        self.turns.set(service, 0, 0).with_context(|| format!("cannot reset the turns of service {service}"))
    }

    pub(crate) fn set_backend(&mut self, index: u32, backend: Backend) -> anyhow::Result<()> {
        self.backends.set(index, backend, 0).with_context(|| format!("cannot write backend {index}"))
    }

    pub(crate) fn hop(&self, backend: u32) -> anyhow::Result<Hop> {
        self.next_hops
            .get(&backend, 0)
            .with_context(|| format!("cannot read the next hop of backend {backend}"))
    }

    pub(crate) fn set_hop(&mut self, backend: u32, hop: Hop) -> anyhow::Result<()> {
        self.next_hops
            .set(backend, hop, 0)
            .with_context(|| format!("cannot write the next hop of backend {backend}"))
    }

    /// The MTU on the way to a backend; 0 while unknown.
    pub(crate) fn path_mtu(&self, backend: u32) -> anyhow::Result<u32> {
        self.path_mtus
            .get(&backend, 0)
            .with_context(|| format!("cannot read the MTU on the way to backend {backend}"))
    }

    pub(crate) fn set_path_mtu(&mut self, backend: u32, mtu: u32) -> anyhow::Result<()> {
        self.path_mtus
            .set(backend, mtu, 0)
            .with_context(|| format!("cannot write the MTU on the way to backend {backend}"))
    }

    pub(crate) fn smallest_mtu(&self) -> anyhow::Result<u32> {
        self.smallest_mtu.get(&0, 0).context("cannot read the smallest MTU")
    }

    pub(crate) fn set_smallest_mtu(&mut self, mtu: u32) -> anyhow::Result<()> {
        self.smallest_mtu.set(0, mtu, 0).context("cannot write the smallest MTU")
    }

    /// What passed to and from a backend, on all CPUs together.
    pub(crate) fn backend_counters(&self, backend: u32) -> anyhow::Result<BackendCounters> {
        let per_cpu = self
            .backend_counters
            .get(&backend, 0)
            .with_context(|| format!("cannot read the counters of backend {backend}"))?;
        Ok(per_cpu.iter().fold(BackendCounters::default(), |mut sum, cpu| {
            sum.requests.packets += cpu.requests.packets;
            sum.requests.bytes += cpu.requests.bytes;
            sum.replies.packets += cpu.replies.packets;
            sum.replies.bytes += cpu.replies.bytes;
            sum.connections += cpu.connections;
            sum
        }))
    }

    pub(crate) fn reset_backend_counters(&mut self, backend: u32) -> anyhow::Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| error_at(path, error))?;
        let zero = PerCpuValues::try_from(vec![BackendCounters::default(); cpus])?;
        self.backend_counters
            .set(backend, zero, 0)
            .with_context(|| format!("cannot reset the counters of backend {backend}"))
    }

    /// Every reason with its count on all CPUs together.
    pub(crate) fn reasons(&self) -> anyhow::Result<Vec<(Reason, u64)>> {
        let per_cpu = self.reasons.get(&0, 0).context("cannot read the counters of reasons")?;
        let sum = |reason: Reason| per_cpu.iter().filter_map(|cpu| cpu.packets.get(reason as usize)).sum();
        Ok(Reason::ALL.iter().map(|reason| (*reason, sum(*reason))).collect())
    }

    /// Interfaces that the program is attached to, by index.
    pub(crate) fn interfaces(&self) -> anyhow::Result<Vec<(u32, Interface)>> {
        let mut interfaces =
            self.interfaces.iter().collect::<Result<Vec<_>, _>>().context("cannot read the interfaces")?;
        interfaces.sort_unstable_by_key(|(index, _)| *index);
        Ok(interfaces)
    }

    pub(crate) fn add_interface(&mut self, index: u32, interface: Interface) -> anyhow::Result<()> {
        self.interfaces.insert(index, interface, 0).with_context(|| format!("cannot note interface {index}"))
    }

    pub(crate) fn remove_interface(&mut self, index: u32) -> anyhow::Result<()> {
        ignore_missing(self.interfaces.remove(&index))
            .with_context(|| format!("cannot forget interface {index}"))
    }

    /// The addresses of services and those for SNAT, as the data path knows them.
    pub(crate) fn own_addresses(&self) -> anyhow::Result<BTreeSet<OwnAddress>> {
        self.own_addresses.keys().collect::<Result<_, _>>().context("cannot read the own addresses")
    }

    pub(crate) fn add_own_address(&mut self, address: OwnAddress) -> anyhow::Result<()> {
        self.own_addresses.insert(address, 0, 0).context("cannot write an own address")
    }

    pub(crate) fn remove_own_address(&mut self, address: OwnAddress) -> anyhow::Result<()> {
        ignore_missing(self.own_addresses.remove(&address)).context("cannot remove an own address")
    }

    /// The VLANs that the data path takes frames of, and their devices' MTUs.
    pub(crate) fn vlans(&self) -> anyhow::Result<BTreeMap<Vlan, u32>> {
        self.vlans.iter().collect::<Result<_, _>>().context("cannot read the VLANs")
    }

    pub(crate) fn add_vlan(&mut self, vlan: Vlan, mtu: u32) -> anyhow::Result<()> {
        self.vlans.insert(vlan, mtu, 0).context("cannot write a VLAN")
    }

    pub(crate) fn remove_vlan(&mut self, vlan: Vlan) -> anyhow::Result<()> {
        ignore_missing(self.vlans.remove(&vlan)).context("cannot remove a VLAN")
    }

    /// Has the other programs go on in that one from now on.
    pub(crate) fn set_program(&mut self, program: Program, fd: &ProgramFd) -> anyhow::Result<()> {
        self.programs
            .set(program.index(), fd, 0)
            .with_context(|| format!("cannot enter the program {} into the map of programs", program.name()))
    }
}

/// A family's flow table among the maps.
pub(crate) trait FlowTable: Family {
    fn flows(maps: &Maps) -> &Table<Self>;
}

impl FlowTable for V4 {
    fn flows(maps: &Maps) -> &Table<Self> {
        &maps.flows_v4
    }
}

impl FlowTable for V6 {
    fn flows(maps: &Maps) -> &Table<Self> {
        &maps.flows_v6
    }
}

fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        result => result,
    }
}

fn error_at(path: &str, error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("cannot read {path}"))
}

struct Pins<'a>(&'a Path);

impl Pins<'_> {
    fn data(&self, name: &str) -> anyhow::Result<MapData> {
        let path = self.0.join(name);
        MapData::from_pin(&path).with_context(|| format!("cannot open the map {}", path.display()))
    }

    fn open<T: TryFrom<Map, Error = MapError>>(&self, name: &str) -> anyhow::Result<T> {
        let path: PathBuf = self.0.join(name);
        let open = || T::try_from(Map::from_map_data(MapData::from_pin(&path)?)?);
        open().map_err(|error| match error {
            MapError::InvalidKeySize { .. } | MapError::InvalidValueSize { .. } | MapError::InvalidMapType { .. } => {
                anyhow::anyhow!(
                    "{} has another layout than this lb expects: use the lb that made it, or remove it with `lb detach`",
                    path.display()
                )
            }
            MapError::SyscallError(error) if error.io_error.kind() == ErrorKind::NotFound => anyhow::anyhow!(
                "{} is missing, for an lb was killed that was making or removing what is there: remove the rest with \
                 `lb detach`, and begin anew",
                path.display()
            ),
            error => anyhow::Error::new(error).context(format!("cannot open the map {}", path.display())),
        })
    }
}
