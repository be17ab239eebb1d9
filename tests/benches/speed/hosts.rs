//! The hosts around a forwarder: what sends frames, what answers them, what throws them away.
//!
//! ```text
//! client eth0 ------- eth0 middle eth1 ------- eth0 server      with one arm, servers are behind eth0 too
//! ```

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, anyhow};
use aya::Ebpf;
use aya::maps::{Array, PerCpuArray, PerCpuValues};
use aya::programs::xdp::XdpLinkId;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use lb_tests::leftovers::Tag;
use lb_tests::link;
use lb_tests::namespace::Namespace;

use crate::cores::stay_on;
use crate::frame::{self, Kind, Mac};
use crate::programs::{attach, index, load, mac, words, xdp, xdp_loaded};
use crate::setting::{Arms, Family, Frames, SERVER_PORT, SERVICE_PORT, Setting, Transport};

/// Frames that the kernel makes at a time (NAPI's budget).
const BATCH: u32 = 64;
/// Words that the generator writes: as many as are in its template.
const WORDS: usize = 19;
/// Frames of a burst of paced ones.
pub(crate) const BURST: u32 = 8;
/// Bytes of a small frame.
pub(crate) const SMALL: usize = 4 * WORDS + 2;
/// A mix: of twelve frames, how many have how many bytes.
const MIX: [(u32, usize); 3] = [(7, SMALL), (4, 594), (1, 1514)];
const MIX_FRAMES: u32 = 12;
/// Flows that share a client's address, and the low half of the first one: as the generator has it.
const PORTS: u32 = 49_999;
const FIRST_CLIENT: u16 = 0x0a02;
/// Clients and servers, each at the other end of one of the forwarder's interfaces.
pub(crate) struct Hosts {
    programs: Ebpf,
    /// The program that takes frames, and where.
    receiver: &'static str,
    endpoints: Vec<XdpLinkId>,
    setting: Setting,
    kind: Kind,
    client: Namespace,
    server: Namespace,
    /// The forwarder's MAC addresses, on the clients' side and on the servers'.
    gateways: [Mac; 2],
}

impl Hosts {
    /// Hosts that are connected to a forwarder's namespace, and answer if the forwarder translates.
    pub(crate) fn new(setting: Setting, tag: &Tag, middle: &Namespace) -> Result<Self> {
        let client = Namespace::new(tag, "client")?;
        let server = Namespace::new(tag, "server")?;
        link::veth_with_queues((&client, "eth0"), (middle, "eth0"), setting.queues)?;
        link::veth_with_queues((&server, "eth0"), (middle, "eth1"), setting.queues)?;
        let (low_half, transport, identification) = match setting.family {
            Family::V4 => (28, 34, 18),
            Family::V6 => (36, 54, 0),
        };
        let constants = [
            ("FLOWS", setting.flows),
            ("STRIDE", setting.stride),
            ("SERVICES", setting.services.into()),
            ("FIRST_SERVICE", SERVICE_PORT.into()),
            ("SOURCE", low_half),
            ("SOURCE_PORT", transport),
            ("IDENTIFICATION", identification),
            ("TCP", u32::from(setting.transport == Transport::Tcp)),
            ("TRANSPORT", transport),
            ("SERVER_PORT", SERVER_PORT.into()),
            ("BURST", BURST),
        ];
        let mut programs = load(&constants, &[("OFFERED", setting.flows)])?;
        for kind in [Kind::First, Kind::Request, Kind::Reply, Kind::Paced] {
            xdp_loaded(&mut programs, generator(kind))?;
        }
        let receiver = if setting.translates() { "endpoint" } else { "sink" };
        let way_out = mac(middle, setting.arms.way_out())?;
        let gateways = [mac(middle, "eth0")?, way_out];
        let hosts = Self {
            programs,
            receiver,
            endpoints: Vec::new(),
            setting,
            kind: Kind::First,
            client,
            server,
            gateways,
        };
        hosts.wait_for_frames()
    }

    fn wait_for_frames(mut self) -> Result<Self> {
        let namespaces = match self.setting.arms {
            Arms::One => vec![&self.client],
            Arms::Two => vec![&self.client, &self.server],
        };
        for namespace in namespaces {
            self.endpoints.push(attach(&mut self.programs, self.receiver, namespace, "eth0")?);
        }
        Ok(self)
    }

    /// From now on nobody answers.
    pub(crate) fn only_sink(&mut self) -> Result<()> {
        self.receive_by("sink")
    }

    fn receive_by(&mut self, receiver: &'static str) -> Result<()> {
        let before = std::mem::replace(&mut self.receiver, receiver);
        if before == receiver {
            return Ok(());
        }
        for id in std::mem::take(&mut self.endpoints) {
            // Without a moment in which there is none: a forwarder's XDP_TX needs one here.
            let link = xdp(&mut self.programs, before)?.take_link(id)?;
            self.endpoints.push(xdp_loaded(&mut self.programs, receiver)?.attach_to_link(link)?);
        }
        Ok(())
    }

    /// The namespace that servers are in.
    fn behind(&self) -> &Namespace {
        match self.setting.arms {
            Arms::One => &self.client,
            Arms::Two => &self.server,
        }
    }

    pub(crate) fn client_mac(&self) -> Result<Mac> {
        mac(&self.client, "eth0")
    }

    pub(crate) fn server_mac(&self) -> Result<Mac> {
        mac(self.behind(), "eth0")
    }

    /// All of the clients' addresses.
    pub(crate) fn client_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let last = u16::try_from(self.setting.flows / PORTS).unwrap_or(u16::MAX);
        let family = self.setting.family;
        (0..=last).map(move |number| family.client_network(FIRST_CLIENT + number))
    }

    /// Sends such frames from now on.
    pub(crate) fn send_from_now(&mut self, kind: Kind) -> Result<()> {
        self.kind = kind;
        self.set_template(SMALL)
    }

    fn set_template(&mut self, size: usize) -> Result<()> {
        let (from, to) = match self.kind {
            Kind::First | Kind::Request | Kind::Paced => (mac(&self.client, "eth0")?, self.gateways[0]),
            Kind::Reply => (mac(self.behind(), "eth0")?, self.gateways[1]),
        };
        let frame = frame::template(&self.setting, self.kind, (from, to), size)?;
        let map = self.programs.map_mut("TEMPLATE").context("the object has no map TEMPLATE")?;
        Ok(Array::<_, [u32; WORDS]>::try_from(map)?.set(0, words(&frame), 0)?)
    }

    /// Sends one small frame of the kind for each of so many flows; says how long it took.
    pub(crate) fn generate_once(&self, flows: u32) -> Result<Duration> {
        self.generate_alike(flows, SMALL)
    }

    /// Sends so many frames of the kind, as large as they are to be; says how long it took.
    pub(crate) fn generate(&mut self, frames: u32) -> Result<Duration> {
        if self.setting.frames == Frames::Small {
            return self.generate_alike(frames, SMALL);
        }
        let mut took = Duration::ZERO;
        for (share, size) in MIX {
            self.set_template(size)?;
            took += self.generate_alike(frames / MIX_FRAMES * share, size)?;
        }
        Ok(took)
    }

    fn generate_alike(&self, frames: u32, size: usize) -> Result<Duration> {
        let from = if self.kind == Kind::Reply { self.behind() } else { &self.client };
        let ingress = index(from, "eth0")?;
        let _inside = from.enter()?;
        // `struct xdp_md` of linux/bpf.h: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, u32::try_from(size)?, 0, ingress, 0, 0].map(u32::to_ne_bytes).concat();
        let data = vec![0; size];
        let name = generator(self.kind);
        let program =
            self.programs.program(name).with_context(|| format!("the object has no program {name}"))?;
        let batch = if self.kind == Kind::Paced { BURST } else { BATCH };
        let begin = Instant::now();
        <&Xdp>::try_from(program)?.test_run(TestRunOptions {
            data_in: Some(&data),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::new()
        })?;
        Ok(begin.elapsed())
    }

    /// Sends so many small frames on each of these cores at the same time, on each beginning with another flow; says how
    /// long the slowest took.
    pub(crate) fn generate_on(&mut self, cores: &[usize], frames: u32) -> Result<Duration> {
        let apart = self.setting.flows / u32::try_from(cores.len())?;
        let next: Vec<_> =
            (0..u32::try_from(nr_cpus()?)?).map(|core| core * apart % self.setting.flows).collect();
        let map = self.programs.map_mut("NEXT").context("the object has no map NEXT")?;
        PerCpuArray::<_, u32>::try_from(map)?.set(0, PerCpuValues::try_from(next)?, 0)?;
        let hosts = &*self;
        thread::scope(|scope| {
            let threads: Vec<_> = cores
                .iter()
                .map(|&core| {
                    scope.spawn(move || {
                        stay_on(core)?;
                        hosts.generate_alike(frames, SMALL)
                    })
                })
                .collect();
            let mut slowest = Duration::ZERO;
            for thread in threads {
                slowest = slowest.max(thread.join().map_err(|_| Error::msg("a generator panicked"))??);
            }
            Ok(slowest)
        })
    }

    /// From now on, frames are sent in bursts, of which one begins every so many nanoseconds.
    pub(crate) fn pace(&mut self, interval: u64) -> Result<()> {
        self.receive_by("sink_paced")?;
        let map = self.programs.map_mut("INTERVAL").context("the object has no map INTERVAL")?;
        Array::<_, u64>::try_from(map)?.set(0, interval, 0)?;
        self.send_from_now(Kind::Paced)
    }

    /// How many paced frames were under way for how long: the number at index N is of those that took N times 32
    /// nanoseconds.
    pub(crate) fn delays(&self) -> Result<Vec<u64>> {
        let map = self.programs.map("DELAYS").context("the object has no map DELAYS")?;
        let delays = PerCpuArray::<_, u64>::try_from(map)?;
        let sum = |index| Ok(delays.get(&index, 0)?.iter().sum());
        (0..delays.len()).map(sum).collect()
    }

    /// How many frames have come to their end.
    pub(crate) fn sunk(&self) -> Result<u64> {
        let map = self.programs.map("SUNK").context("the object has no map SUNK")?;
        Ok(PerCpuArray::<_, u64>::try_from(map)?.get(&0, 0)?.iter().sum())
    }
}

/// The program that makes frames of a kind.
const fn generator(kind: Kind) -> &'static str {
    match kind {
        Kind::First | Kind::Request => "generate",
        Kind::Reply => "generate_replies",
        Kind::Paced => "generate_paced",
    }
}

fn nr_cpus() -> Result<usize> {
    aya::util::nr_cpus().map_err(|(path, error)| anyhow!("cannot read {path}: {error}"))
}
