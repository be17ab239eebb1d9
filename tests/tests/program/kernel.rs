//! The program in the kernel, following what the library does on the host.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::maps::perf::PerfEventArrayBuffer;
use aya::maps::{
    Array, HashMap as BpfHashMap, Map, MapData, PerCpuArray, PerCpuValues, PerfEventArray, ProgramArray,
};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::util::{nr_cpus, online_cpus};
use aya::{Ebpf, EbpfLoader, Pod};
use lb_common::control::{GENERIC, NATIVE, OwnAddress};
use lb_common::table::slots_for;
use lb_common::verdict::{REASON_COUNTERS, ReasonCounters};
use lb_common::{
    Action, Answers, Backend, BackendCounters, Datagram, DatagramKey, Family as _, FlowEntry, FlowKey, Hop,
    Interface, Program, Reason, Service, ServiceKey, Tick, V4, V6, Vlan,
};
use lb_ebpf::host::cases::{CLIENTS, ELSEWHERE, Event, Outcome, SERVERS};
use lb_ebpf::host::{HostFamily, HostTables};
use lb_ebpf::tables::Tables as _;
use lb_tests::leftovers::Tag;
use lb_tests::namespace::{Entered, enter_nameless};
use lb_tests::process::output;
use lb_user::table::Table;

/// What hashes of flows begin with.
pub(crate) const SECRET: u64 = 0x6c62_2d74_6573_7473;

use crate::interpreter::Interpreter;

/// More than any case has of services or backends.
const INDICES: u32 = 16;

/// Moves the thread to where there are the interfaces that the cases speak of: the kernel wants to know where a frame
/// came in.
pub(crate) fn enter_network() -> Result<Entered> {
    let inside = enter_nameless()?;
    for index in [CLIENTS, SERVERS, ELSEWHERE] {
        let peer = index + 100;
        let link = format!("link add port{index} index {index} type veth peer name port{peer} index {peer}");
        output(Command::new("ip").args(link.split(' ')))?;
    }
    Ok(inside)
}

/// What is constant to the program once it is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Constants {
    /// aya-log's level: 0 is off, 5 trace.
    pub(crate) log_level: u8,
    /// Frames leave by a redirect also where they came in, as veth wants it.
    pub(crate) send_back_by_redirect: bool,
}

/// The loaded program with maps of its own.
pub(crate) struct Kernel {
    ebpf: Ebpf,
    /// The kernel empties it when nobody has it any more.
    _programs: ProgramArray<MapData>,
    /// Where early fragments go: they are dropped for another reason where nobody takes them.
    early: Vec<PerfEventArrayBuffer<MapData>>,
    flow_entries: usize,
    constants: Constants,
}

/// Programs that no test uses at present. Verifying one takes most of a test's time, on an emulated machine a second.
static IDLE: Mutex<Vec<Kernel>> = Mutex::new(Vec::new());

impl Kernel {
    /// A program with empty tables of that size: one that another test is done with, or a new one.
    pub(crate) fn borrow(flow_entries: usize, constants: Constants) -> Result<Self> {
        let fits = |kernel: &Self| kernel.flow_entries == flow_entries && kernel.constants == constants;
        let idle = {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            idle.iter().position(fits).map(|index| idle.swap_remove(index))
        };
        match idle {
            Some(mut kernel) => kernel.reset().map(|()| kernel),
            None => Self::load(flow_entries, constants),
        }
    }

    /// Leaves the program to other tests. After a failure it is better dropped.
    pub(crate) fn give_back(self) {
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }

    fn load(flow_entries: usize, constants: Constants) -> Result<Self> {
        // The maps want to be pinned, but only these tests use them: the pins go with the tag, now.
        let tag = Tag::new()?;
        let pins = tag.pin_dir();
        fs::create_dir(&pins)
            .with_context(|| format!("cannot make {}: is the bpf file system mounted?", pins.display()))?;
        let slots = slots_for(u32::try_from(flow_entries)?);
        let mask = slots - 1;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(&pins)
            .map_max_entries("FLOWS_V4", slots)
            .map_max_entries("FLOWS_V6", slots)
            .override_global("FLOW_MASK", &mask, true)
            .override_global("FLOW_SECRET", &SECRET, true)
            .override_global(aya_log::LEVEL, &constants.log_level, true)
            .override_global("SEND_BACK_BY_REDIRECT", &u8::from(constants.send_back_by_redirect), true)
            .load(lb_user::program::LB)
            .context("cannot load the maps")?;
        for program in Program::ALL {
            lb_user::program::load_undisturbed(named(&mut ebpf, program.name())?)
                .with_context(|| format!("the kernel does not take the program {}", program.name()))?;
        }
        let mut programs = ProgramArray::try_from(ebpf.take_map("PROGRAMS").context("no map PROGRAMS")?)?;
        for program in Program::ALL {
            programs.set(program.index(), named(&mut ebpf, program.name())?.fd()?, 0)?;
        }
        let mut early = PerfEventArray::try_from(ebpf.take_map("EARLY").context("no map EARLY")?)?;
        let cpus = online_cpus().map_err(|(path, error)| anyhow!("cannot read {path}: {error}"))?;
        let early = cpus.into_iter().map(|cpu| early.open(cpu, Some(4))).collect::<Result<_, _>>()?;
        let kernel = Self { ebpf, _programs: programs, early, flow_entries, constants };
        kernel.reset_flows()?;
        Ok(kernel)
    }

    /// Empties what a case has left behind.
    fn reset(&mut self) -> Result<()> {
        self.reset_flows()?;
        self.clear::<ServiceKey, u32>("SERVICES")?;
        self.clear::<u32, Interface>("INTERFACES")?;
        self.clear::<OwnAddress, u8>("OWN_ADDRESSES")?;
        self.clear::<Vlan, u32>("VLANS")?;
        let cpus = cpus()?;
        for index in 0..INDICES {
            self.array("TURNS")?.set(index, 0_u64, 0)?;
            self.array("CURSORS")?.set(index, 0_u64, 0)?;
            self.array("PATH_MTUS")?.set(index, 0_u32, 0)?;
            let zeros = PerCpuValues::try_from(vec![BackendCounters::default(); cpus])?;
            PerCpuArray::try_from(self.map_mut("BACKEND_COUNTERS")?)?.set(index, zeros, 0)?;
        }
        self.forget_answers()?;
        let zeros = PerCpuValues::try_from(vec![ReasonCounters { packets: [0; REASON_COUNTERS] }; cpus])?;
        Ok(PerCpuArray::try_from(self.map_mut("REASONS")?)?.set(0, zeros, 0)?)
    }

    fn reset_flows(&self) -> Result<()> {
        let entries = u32::try_from(self.flow_entries)?;
        let (v4, v6) = (self.flows::<V4>()?, self.flows::<V6>()?);
        v4.clear();
        v6.clear();
        v4.set_room(entries);
        v6.set_room(entries);
        Ok(())
    }

    /// A family's flow table.
    fn flows<F: HostFamily>(&self) -> Result<Table<F>> {
        let (name, number) = if F::NUMBER == V4::NUMBER { ("FLOWS_V4", 0) } else { ("FLOWS_V6", 1) };
        Table::open(self.data(name)?, self.data("ROOM")?, number, SECRET)
    }

    fn data(&self, name: &str) -> Result<&MapData> {
        match self.map(name)? {
            Map::Array(data) => Ok(data),
            other => bail!("{name} is no array: {other:?}"),
        }
    }

    /// Leaves all answers of the present tick to be sent, and no datagram of which fragments may still come.
    pub(crate) fn forget_answers(&mut self) -> Result<()> {
        self.clear::<DatagramKey, Datagram>("DATAGRAMS")?;
        let none = PerCpuValues::try_from(vec![Answers::default(); cpus()?])?;
        Ok(PerCpuArray::try_from(self.map_mut("ANSWERS")?)?.set(0, none, 0)?)
    }

    fn clear<K: Pod, V: Pod>(&mut self, name: &str) -> Result<()> {
        let mut map = BpfHashMap::<_, K, V>::try_from(self.map_mut(name)?)?;
        let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
        keys.iter().try_for_each(|key| Ok(map.remove(key)?))
    }

    /// How many instructions the verifier followed of a program.
    pub(crate) fn verified_instructions(&mut self, program: Program) -> Result<u32> {
        let info = named(&mut self.ebpf, program.name())?.info()?;
        info.verified_instruction_count().context("the kernel does not count them")
    }

    /// Does what the event says.
    ///
    /// # Errors
    ///
    /// Where the program or the tables that it leaves behind are other than on the host.
    pub(crate) fn follow(&mut self, tables: &HostTables, event: &Event<'_>) -> Result<()> {
        match *event {
            Event::Configured => self.configure(tables),
            Event::Frame { ingress, frame, outcome } => {
                self.process(ingress, frame, outcome)?;
                self.compare_tables(tables)
            }
        }
    }

    /// Takes over services, slots, backends, next hops and MTUs.
    pub(crate) fn configure(&mut self, tables: &HostTables) -> Result<()> {
        for (index, service) in (0..).zip(tables.services()) {
            self.array::<Service>("SERVICE")?.set(index, service, 0)?;
            let services = self.map_mut("SERVICES")?;
            BpfHashMap::<_, ServiceKey, u32>::try_from(services)?.insert(service.key, index, 0)?;
        }
        for address in tables.own_addresses() {
            let addresses = self.map_mut("OWN_ADDRESSES")?;
            BpfHashMap::<_, OwnAddress, u8>::try_from(addresses)?.insert(address, 0, 0)?;
        }
        set_all(self.array::<Backend>("BACKENDS")?, tables.backends())?;
        set_all(self.array::<Hop>("NEXT_HOPS")?, tables.next_hops())?;
        set_all(self.array::<u32>("SLOTS")?, tables.slots())?;
        let (paths, interfaces) = tables.mtus();
        for (backend, mtu) in paths {
            self.array::<u32>("PATH_MTUS")?.set(backend, mtu, 0)?;
        }
        for (vlan, mtu) in tables.vlans() {
            let vlans = self.map_mut("VLANS")?;
            BpfHashMap::<_, Vlan, u32>::try_from(vlans)?.insert(vlan, mtu, 0)?;
        }
        let generic = tables.generic();
        for ifindex in interfaces.keys().chain(&generic).copied().collect::<BTreeSet<_>>() {
            let map = self.map_mut("INTERFACES")?;
            let mode = if generic.contains(&ifindex) { GENERIC } else { NATIVE };
            let interface = Interface { since: 0, mode, mtu: interfaces.get(&ifindex).copied().unwrap_or(0) };
            BpfHashMap::<_, u32, Interface>::try_from(map)?.insert(ifindex, interface, 0)?;
        }
        self.array::<u32>("SMALLEST_MTU")?.set(0, tables.smallest_mtu(), 0).map_err(Into::into)
    }

    /// Copies the first entries of an array, more than any case has: each has so many bytes.
    pub(crate) fn copy_array<const BYTES: usize>(&self, name: &str, to: &mut Interpreter) -> Result<()> {
        let array = Array::<_, [u8; BYTES]>::try_from(self.map(name)?)?;
        for index in 0..array.len().min(INDICES) {
            to.set(name, &index.to_le_bytes(), &array.get(&index, 0)?)?;
        }
        Ok(())
    }

    /// Copies a hash map, of which keys and values have so many bytes.
    pub(crate) fn copy_hash<const KEY: usize, const VALUE: usize>(
        &self,
        name: &str,
        to: &mut Interpreter,
    ) -> Result<()> {
        let map = BpfHashMap::<_, [u8; KEY], [u8; VALUE]>::try_from(self.map(name)?)?;
        for entry in map.iter() {
            let (key, value) = entry?;
            to.set(name, &key, &value)?;
        }
        Ok(())
    }

    /// Runs the program on a frame.
    ///
    /// # Errors
    ///
    /// Where it does something else than is expected.
    pub(crate) fn process(&mut self, ingress: u32, frame: &[u8], expected: &Outcome) -> Result<()> {
        /// More than an answer is longer than what it answers.
        const HEADERS: usize = 64;
        let mut out = vec![0; frame.len() + HEADERS];
        let context = xdp_md(u32::try_from(frame.len())?, ingress);
        let result = xdp(&mut self.ebpf)?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        })?;
        for buffer in &mut self.early {
            buffer.for_each(|_event| {});
        }
        // Where a redirect goes to, a test run does not say; the tests in namespaces do.
        let action = action(expected, ingress, self.constants);
        ensure!(
            result.return_value == action,
            "action {} in place of {action}, for {expected:?}",
            result.return_value
        );
        out.truncate(usize::try_from(result.data_size_out)?);
        ensure!(out == expected.frame, "made {out:02x?} of {frame:02x?}, not {:02x?}", expected.frame);
        Ok(())
    }

    /// Compares what the program has counted and which flows it holds.
    pub(crate) fn compare_tables(&mut self, tables: &HostTables) -> Result<()> {
        self.compare_counters(tables)?;
        self.compare_flows::<V4>(tables)?;
        self.compare_flows::<V6>(tables)
    }

    fn compare_counters(&mut self, tables: &HostTables) -> Result<()> {
        let reasons = self.per_cpu::<ReasonCounters>("REASONS", 0)?;
        for reason in Reason::ALL {
            let count: u64 = reasons.iter().map(|cpu| cpu.packets[*reason as usize]).sum();
            let expected = tables.count_of(*reason);
            ensure!(count == expected, "counted {count} '{}', not {expected}", reason.name());
        }
        for backend in 0..u32::try_from(tables.backends().len())? {
            let mut sum = BackendCounters::default();
            for cpu in self.per_cpu::<BackendCounters>("BACKEND_COUNTERS", backend)? {
                sum.requests.packets += cpu.requests.packets;
                sum.requests.bytes += cpu.requests.bytes;
                sum.replies.packets += cpu.replies.packets;
                sum.replies.bytes += cpu.replies.bytes;
                sum.connections += cpu.connections;
            }
            let expected = tables.counters(backend);
            ensure!(sum == expected, "backend {backend} had {sum:?}, not {expected:?}");
        }
        Ok(())
    }

    fn compare_flows<F: HostFamily>(&self, tables: &HostTables) -> Result<()> {
        let table = self.flows::<F>()?;
        let found: Vec<_> = table.flows(0..table.slots()).collect();
        let expected: HashMap<_, _> = tables.flows::<F>().into_iter().map(timeless).collect();
        let flows: HashMap<_, _> = found.iter().map(|flow| timeless((flow.key, flow.entry))).collect();
        ensure!(flows == expected, "IPv{} flows are {flows:#?}, not {expected:#?}", F::NUMBER);
        ensure!(found.len() == flows.len(), "a flow is there twice: {found:#?}");
        for flow in &found {
            ensure!(table.find(&flow.key).is_some(), "{flow:?} is not found under its key");
        }
        let room = i64::try_from(self.flow_entries - found.len())?;
        ensure!(table.room() == room, "there is room for {} entries, not {room}", table.room());
        Ok(())
    }

    fn map(&self, name: &str) -> Result<&Map> {
        self.ebpf.map(name).with_context(|| format!("the object holds no map {name}"))
    }

    fn map_mut(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("the object holds no map {name}"))
    }

    fn array<T: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        Ok(Array::try_from(self.map_mut(name)?)?)
    }

    fn per_cpu<T: Pod>(&self, name: &str, index: u32) -> Result<Vec<T>> {
        Ok(PerCpuArray::<_, T>::try_from(self.map(name)?)?.get(&index, 0)?.to_vec())
    }
}

fn cpus() -> Result<usize> {
    nr_cpus().map_err(|(path, error)| anyhow!("cannot read {path}: {error}"))
}

fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    named(ebpf, Program::Plain.name())
}

fn named<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object holds no program '{name}'"))?;
    Ok(program.try_into()?)
}

fn set_all<T: Pod>(mut array: Array<&mut MapData, T>, values: Vec<T>) -> Result<()> {
    for (index, value) in (0..).zip(values) {
        array.set(index, value, 0)?;
    }
    Ok(())
}

/// The kernel's clock is not the host tables' one.
fn timeless<F: HostFamily>((key, mut entry): (FlowKey<F>, FlowEntry<F>)) -> (FlowKey<F>, FlowEntry<F>) {
    entry.last = Tick::default();
    (key, entry)
}

/// What a program returns (`enum xdp_action` in the kernel's linux/bpf.h).
pub(crate) fn action(outcome: &Outcome, ingress: u32, constants: Constants) -> u32 {
    const XDP_DROP: u32 = 1;
    const XDP_PASS: u32 = 2;
    const XDP_TX: u32 = 3;
    const XDP_REDIRECT: u32 = 4;
    match outcome.reason.action() {
        Action::Drop => XDP_DROP,
        Action::Pass => XDP_PASS,
        Action::Forward | Action::Answer if outcome.egress == ingress && !constants.send_back_by_redirect => {
            XDP_TX
        }
        Action::Forward | Action::Answer => XDP_REDIRECT,
    }
}

/// `struct xdp_md` of linux/bpf.h: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
fn xdp_md(length: u32, ingress: u32) -> Vec<u8> {
    [0, length, 0, ingress, 0, 0].map(u32::to_ne_bytes).concat()
}
