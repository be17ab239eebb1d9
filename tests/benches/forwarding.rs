//! How many packets a second the balancer forwards on one core, against a forwarder that does nothing else and against
//! the least that translating takes: what `cargo xtask bench` runs.
//!
//! Frames are generated (live frames of `BPF_PROG_TEST_RUN`), forwarded and thrown away on one core, so that the generator's
//! cost is in every figure. The forwarders stand in networks of their own and are measured in turn, round after round: only
//! ratios say something.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, PerCpuArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use clap::Parser;
use etherparse::PacketBuilder;
use lb_tests::balancer::{self, Balancer};
use lb_tests::leftovers::Tag;
use lb_tests::link;
use lb_tests::namespace::Namespace;
use nix::net::if_::if_nametoindex;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Frames of one call: each call takes milliseconds to set up.
const FRAMES: u32 = 1 << 20;
/// Frames that the kernel makes at a time (NAPI's budget).
const BATCH: u32 = 64;
/// How long one measurement takes at least.
const MEASUREMENT: Duration = Duration::from_millis(600);
/// One backend takes 31 744 connections.
const BACKENDS: u8 = 32;
/// Words that the generator writes: as many as in its template.
const WORDS: usize = 19;
/// Bytes of a frame.
const FRAME: usize = 4 * WORDS + 2;
/// Flows by which the generator goes on when they are not to come in order: a prime.
const STRIDE: u32 = 190_813;

#[derive(Parser)]
struct Options {
    /// How often each is measured
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Numbers of flows
    #[arg(long, value_delimiter = ',', default_values_t = [100, 10_000, 500_000])]
    flows: Vec<u32>,
    /// Takes the flows in another order than they were made in
    #[arg(long)]
    shuffled: bool,
    /// The core that is measured
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arms {
    One,
    Two,
}

/// What forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forwarder {
    /// Nothing but forwarding.
    Bare,
    /// The least that translating takes.
    Sketch,
    /// `lb run`.
    Balancer,
}

/// Where a forwarder is measured.
#[derive(Clone, Copy, Debug)]
struct Setting {
    arms: Arms,
    flows: u32,
    stride: u32,
}

/// A generator, a forwarder and a sink in a network of their own.
struct Lane {
    generator: Ebpf,
    /// What the generator's frames come in through, as it sees it.
    ingress: u32,
    sink: Ebpf,
    _forwarder: Option<Ebpf>,
    _balancer: Option<Balancer>,
    client: Namespace,
    middle: Namespace,
    _server: Namespace,
    // Last, because it is dropped last: the balancer's pins are under it.
    tag: Tag,
}

impl Lane {
    fn new(forwarder: Forwarder, setting: Setting) -> Result<Self> {
        let tag = Tag::new()?;
        let client = Namespace::new(&tag, "client")?;
        let middle = Namespace::new(&tag, "middle")?;
        let server = Namespace::new(&tag, "server")?;
        link::veth((&client, "eth0"), (&middle, "eth0"))?;
        link::veth((&server, "eth0"), (&middle, "eth1"))?;
        link::address((&middle, "eth0"), "10.10.10.1/16")?;
        let (way_out, beyond) = match setting.arms {
            Arms::One => ("eth0", &client),
            Arms::Two => ("eth1", &server),
        };
        link::address((&middle, way_out), "192.168.1.254/24")?;

        let mut sink = load(&[])?;
        attach(&mut sink, "sink", beyond, "eth0")?;
        let mut generator = load(&[("FLOWS", setting.flows), ("STRIDE", setting.stride)])?;
        xdp(&mut generator, "generate")?.load()?;
        let ingress = index(&client, "eth0")?;
        let mac_beyond = mac(beyond, "eth0")?;
        let mut lane = Self {
            generator,
            ingress,
            sink,
            _forwarder: None,
            _balancer: None,
            client,
            middle,
            _server: server,
            tag,
        };
        if forwarder == Forwarder::Balancer {
            lane._balancer = Some(lane.start_balancer(setting, way_out, mac_beyond)?);
        } else {
            lane._forwarder = Some(lane.attach_forwarder(forwarder, setting, way_out, mac_beyond)?);
        }
        lane.make_flows(setting.flows)?;
        Ok(lane)
    }

    fn attach_forwarder(
        &self,
        forwarder: Forwarder,
        setting: Setting,
        way_out: &str,
        mac_beyond: [u8; 6],
    ) -> Result<Ebpf> {
        let egress = if setting.arms == Arms::One { 0 } else { index(&self.middle, way_out)? };
        let mut program = load(&[("EGRESS", egress)])?;
        let link = [mac_beyond, mac(&self.middle, way_out)?].concat();
        Array::<_, [u32; 3]>::try_from(program.map_mut("LINK").context("the object has no map LINK")?)?.set(
            0,
            words(&link),
            0,
        )?;
        let name = if forwarder == Forwarder::Bare { "forward" } else { "sketch" };
        attach(&mut program, name, &self.middle, "eth0")?;
        Ok(program)
    }

    fn start_balancer(&self, setting: Setting, way_out: &str, mac_beyond: [u8; 6]) -> Result<Balancer> {
        let lladdr = mac_beyond.map(|byte| format!("{byte:02x}")).join(":");
        // A little room, as an administrator would leave.
        let max_flows = (setting.flows + setting.flows / 20).max(1024).to_string();
        let mut command = self.middle.command(balancer::binary());
        command.args(["run", "--iface", "eth0"]);
        if setting.arms == Arms::Two {
            command.args(["--iface", way_out]);
        }
        command.arg("--pin-dir").arg(self.tag.pin_dir()).args(["--max-flows", &max_flows]);
        command.args(["--service", "10.10.10.1:80/tcp"]);
        for number in 1..=BACKENDS {
            let backend = format!("192.168.1.{number}");
            self.middle
                .ip(&format!("neighbour replace {backend} lladdr {lladdr} dev {way_out} nud permanent"))?;
            command.arg("--backend").arg(format!("{backend}:80"));
        }
        Balancer::start(&mut command)
    }

    /// Sends one SYN for each flow, and prepares the generator for what follows.
    fn make_flows(&mut self, flows: u32) -> Result<()> {
        let (from, to) = (mac(&self.client, "eth0")?, mac(&self.middle, "eth0")?);
        let tcp = || {
            PacketBuilder::ethernet2(from, to)
                .ipv4([10, 10, 10, 2], [10, 10, 10, 1], 64)
                .tcp(0, 80, 1, 65_000)
        };
        self.set_template(tcp().syn())?;
        let before = self.sunk()?;
        let _took = self.generate(flows)?;
        let made = self.sunk()? - before;
        ensure!(made >= u64::from(flows), "only {made} of {flows} first packets came through");
        self.set_template(tcp().ack(1))
    }

    fn set_template(&mut self, tcp: etherparse::PacketBuilderStep<etherparse::TcpHeader>) -> Result<()> {
        let headers = tcp.size(0);
        let mut frame = Vec::new();
        tcp.write(&mut frame, &vec![0; FRAME - headers])?;
        let map = self.generator.map_mut("TEMPLATE").context("the object has no map TEMPLATE")?;
        Ok(Array::<_, [u32; WORDS]>::try_from(map)?.set(0, words(&frame), 0)?)
    }

    /// Sends so many frames; says how long it took.
    fn generate(&mut self, frames: u32) -> Result<Duration> {
        let _inside = self.client.enter()?;
        // `struct xdp_md` of linux/bpf.h: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let length = u32::try_from(FRAME)?;
        let context = [0, length, 0, self.ingress, 0, 0].map(u32::to_ne_bytes).concat();
        let begin = Instant::now();
        xdp(&mut self.generator, "generate")?.test_run(TestRunOptions {
            data_in: Some(&[0; FRAME]),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        })?;
        Ok(begin.elapsed())
    }

    /// How many frames have arrived.
    fn sunk(&self) -> Result<u64> {
        let map = self.sink.map("SUNK").context("the object has no map SUNK")?;
        Ok(PerCpuArray::<_, u64>::try_from(map)?.get(&0, 0)?.iter().sum())
    }

    /// Millions of packets a second that arrive.
    fn measure(&mut self) -> Result<f64> {
        let before = self.sunk()?;
        let mut took = Duration::ZERO;
        while took < MEASUREMENT {
            took += self.generate(FRAMES)?;
        }
        let arrived = u32::try_from(self.sunk()? - before)?;
        Ok(f64::from(arrived) / took.as_secs_f64() / 1e6)
    }
}

/// The programs, with these constants.
fn load(constants: &[(&'static str, u32)]) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for (name, value) in constants {
        loader.override_global(name, value, true);
    }
    loader.load(lb_user::program::BENCH).context("cannot load what benchmarks measure with")
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?.try_into()?)
}

fn attach(ebpf: &mut Ebpf, name: &str, namespace: &Namespace, device: &str) -> Result<()> {
    let program = xdp(ebpf, name)?;
    program.load()?;
    let _inside = namespace.enter()?;
    program.attach(device, XdpMode::Driver).with_context(|| format!("cannot attach {name}"))?;
    Ok(())
}

fn index(namespace: &Namespace, device: &str) -> Result<u32> {
    let _inside = namespace.enter()?;
    Ok(if_nametoindex(device)?)
}

fn mac(namespace: &Namespace, device: &str) -> Result<[u8; 6]> {
    let text = namespace.ip(&format!("-o link show dev {device}"))?;
    let address = text.split_whitespace().find(|word| word.matches(':').count() == 5).unwrap_or_default();
    let bytes: Vec<u8> =
        address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    <[u8; 6]>::try_from(bytes).ok().with_context(|| format!("{device} has no MAC address"))
}

/// Bytes as the words that BPF moves.
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}

/// Keeps this thread on a core, and with it the work on the frames that it generates.
fn stay_on(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

/// The middle one, and the lowest and highest.
fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

/// Measures the three forwarders in turn.
fn compare(setting: Setting, options: &Options) -> Result<()> {
    // The daemons of the balancers are not to work on the core that is measured.
    stay_on(usize::from(options.core == 0))?;
    let mut lanes = [Forwarder::Bare, Forwarder::Sketch, Forwarder::Balancer]
        .map(|forwarder| Lane::new(forwarder, setting).with_context(|| format!("{forwarder:?}")));
    stay_on(options.core)?;
    let mut rounds = Vec::new();
    for _ in 0..options.rounds.max(1) {
        let mut round = [0.0; 3];
        for (lane, speed) in lanes.iter_mut().zip(&mut round) {
            let lane = lane.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
            *speed = lane.measure()?;
        }
        rounds.push(round);
    }
    let of = |value: fn(&[f64; 3]) -> f64| spread(rounds.iter().map(value).collect());
    let (bare, sketch, lb) = (of(|round| round[0]), of(|round| round[1]), of(|round| round[2]));
    let to_bare = of(|round| round[2] / round[0]);
    let to_sketch = of(|round| round[2] / round[1]);
    println!(
        "{:<8} {:>8} {:>6.2} {:>7.2} {:>6.2}   {:.2} ({:.2}-{:.2})   {:.2} ({:.2}-{:.2})",
        if setting.arms == Arms::One { "one-arm" } else { "two-arm" },
        setting.flows,
        bare.0,
        sketch.0,
        lb.0,
        to_bare.0,
        to_bare.1,
        to_bare.2,
        to_sketch.0,
        to_sketch.1,
        to_sketch.2,
    );
    Ok(())
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!(
        "IPv4, TCP, frames of {FRAME} bytes, one core; millions of packets a second, medians of {} rounds:\n",
        options.rounds.max(1)
    );
    println!("            flows   bare  sketch     lb   lb/bare            lb/sketch");
    for arms in [Arms::Two, Arms::One] {
        for &flows in &options.flows {
            let stride = if options.shuffled { STRIDE % flows.max(1) } else { 1 };
            compare(Setting { arms, flows, stride: stride.max(1) }, &options)?;
        }
    }
    Ok(())
}
