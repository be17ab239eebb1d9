//! `lb run --persist`: the data path outlives its daemon, and the next one adopts it without losing a packet.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::Meta;
use lb_tests::balancer::{self, Balancer};
use lb_tests::process::{Process, output};
use lb_tests::topology::Topology;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lifecycle::{assert_no_trace, programs};
use crate::support::{
    Family, Greeter, Manners, PATIENCE, Sockets as _, UdpEcho, Visit, both_families, eventually, json, start,
    unspecified, xdp_program,
};

/// What every test here serves, on one port of both families.
const PORT: u16 = 7;

/// Enough for these tests: the kernel takes the memory for the tables at once.
const MAX_FLOWS: &str = "50000";

/// How often balancers are killed and replaced: `LB_RESTARTS=1000` takes a quarter of an hour.
pub(crate) fn restarts() -> usize {
    env::var("LB_RESTARTS").ok().and_then(|number| number.parse().ok()).unwrap_or(24)
}

/// Arguments of a balancer that persists.
fn persistent(topology: &Topology) -> Vec<String> {
    let mut args = [both_families(topology, PORT, "tcp"), both_families(topology, PORT, "udp")].concat();
    args.extend(["--persist", "--max-flows", MAX_FLOWS].map(str::to_owned));
    args
}

/// `lb run` with these arguments, to be started.
fn run(topology: &Topology, args: &[String]) -> std::process::Command {
    let interfaces = topology.interfaces().iter().flat_map(|interface| ["--iface", interface]);
    let args: Vec<_> = ["run"].into_iter().chain(interfaces).chain(args.iter().map(String::as_str)).collect();
    topology.lb_command(&args)
}

/// That `lb` with these arguments ends with status 1 and one sentence that has these words.
fn assert_refused(mut command: std::process::Command, words: &[&str]) -> Result<()> {
    let error = output(&mut command).err().context("that was taken")?.to_string();
    for word in words {
        ensure!(error.contains(word), "no '{word}' in: {error}");
    }
    Ok(())
}

fn servers(topology: &Topology) -> Result<(Vec<Greeter>, Vec<UdpEcho>)> {
    Ok((Greeter::on_all(topology, PORT, Manners::Echo)?, UdpEcho::on_all(topology, PORT)?))
}

/// What clients saw while something happened.
#[derive(Debug, Default)]
struct Seen {
    datagrams: usize,
    lost: usize,
    rounds: usize,
    connections: usize,
}

/// Does something while clients are at work, of whom none may notice: numbered datagrams in both families, each of which
/// has to come back; connections that talk all the time; and new ones, one after another.
fn unnoticed<T>(topology: &Topology, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let over = AtomicBool::new(false);
    let (done, seen) = thread::scope(|scope| {
        let over = &over;
        let streams = Family::ALL.map(|family| scope.spawn(move || stream(topology, family, over)));
        let talk = scope.spawn(|| talk(topology, over));
        let visits = scope.spawn(|| visit(topology, over));
        let done = work();
        // Whatever was done last has its effect, too.
        thread::sleep(Duration::from_millis(200));
        over.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow::anyhow!("a thread panicked");
        let mut seen = Seen::default();
        for stream in streams {
            let (datagrams, lost) = stream.join().map_err(panicked)??;
            seen.datagrams += datagrams;
            seen.lost += lost;
        }
        seen.rounds = talk.join().map_err(panicked)??;
        seen.connections = visits.join().map_err(panicked)??;
        anyhow::Ok((done, seen))
    })?;
    let done = done?;
    println!("{seen:?}");
    ensure!(seen.lost == 0, "datagrams were lost: {seen:?}");
    ensure!(seen.datagrams > 100 && seen.rounds > 10 && seen.connections > 10, "no load: {seen:?}");
    Ok(done)
}

/// Sends numbered datagrams without pause, and says how many, and how many of them did not come back.
fn stream(topology: &Topology, family: Family, over: &AtomicBool) -> Result<(usize, usize)> {
    const PAUSE: Duration = Duration::from_micros(500);
    let to = family.service(PORT);
    let socket = topology.client.udp(unspecified(to))?;
    let sent = AtomicUsize::new(0);
    thread::scope(|scope| {
        let answers = scope.spawn(|| answers(&socket, to, &sent, over));
        while !over.load(Ordering::Relaxed) {
            let number = sent.fetch_add(1, Ordering::Relaxed);
            socket.send_to(number.to_string().as_bytes(), to)?;
            thread::sleep(PAUSE);
        }
        let came = answers.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        let sent = sent.load(Ordering::Relaxed);
        Ok((sent, sent - came.len()))
    })
}

/// The numbers that come back, until all are there or no more come.
fn answers(
    socket: &UdpSocket,
    to: SocketAddr,
    sent: &AtomicUsize,
    over: &AtomicBool,
) -> Result<HashSet<usize>> {
    let mut came = HashSet::new();
    let mut buffer = [0; 256];
    // A socket has one limit for all: short, for the other thread shares it.
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                ensure!(from == to, "{from} answered instead of {to}");
                let text = std::str::from_utf8(buffer.get(..length).unwrap_or_default())?;
                let number = text.rsplit('\n').next().context("no number")?.parse()?;
                ensure!(came.insert(number), "{number} came twice");
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if over.load(Ordering::Relaxed) {
                    return Ok(came);
                }
            }
            Err(error) => return Err(error.into()),
        }
        if over.load(Ordering::Relaxed) && came.len() == sent.load(Ordering::Relaxed) {
            return Ok(came);
        }
    }
}

/// Connections that talk in turn; says how many rounds.
fn talk(topology: &Topology, over: &AtomicBool) -> Result<usize> {
    let mut visits = Vec::new();
    for family in Family::ALL.into_iter().cycle().take(8) {
        visits.push(Visit::begin(&topology.client, family.service(PORT))?);
    }
    let mut rounds = 0;
    while !over.load(Ordering::Relaxed) {
        for visit in &mut visits {
            visit.say(&format!("round {rounds}"))?;
        }
        rounds += 1;
    }
    visits.into_iter().try_for_each(|visit| visit.end(Manners::Echo))?;
    Ok(rounds)
}

/// New connections, one after another; says how many. Ended ones stay in the tables for a while, which must not fill.
fn visit(topology: &Topology, over: &AtomicBool) -> Result<usize> {
    const PAUSE: Duration = Duration::from_millis(20);
    let mut connections = 0;
    for family in Family::ALL.into_iter().cycle() {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let mut visit = Visit::begin(&topology.client, family.service(PORT))?;
        visit.say("hello")?;
        visit.end(Manners::Echo)?;
        connections += 1;
        thread::sleep(PAUSE);
    }
    Ok(connections)
}

/// Times and numbers that look random, the same in each run.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn throw(&mut self) -> u32 {
        // Knuth, The Art of Computer Programming, volume 2, section 3.3.4: MMIX. The upper half is the better one.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 32).unwrap_or_default()
    }

    /// A time up to so much.
    pub(crate) fn up_to(&mut self, most: Duration) -> Duration {
        most.mul_f64(f64::from(self.throw()) / f64::from(u32::MAX))
    }

    /// A number below this one.
    pub(crate) fn below(&mut self, number: usize) -> usize {
        usize::try_from(self.throw()).unwrap_or_default() % number
    }
}

fn interface_names(status: &Value) -> Vec<&str> {
    let interfaces = status["interfaces"].as_array().into_iter().flatten();
    let mut names: Vec<_> = interfaces.filter_map(|interface| interface["name"].as_str()).collect();
    names.sort_unstable();
    names
}

#[test]
fn stopped_and_started_again_it_loses_nothing_and_says_what_it_does() -> Result<()> {
    for topology in [Topology::two_arm(2)?, Topology::one_arm(2)?] {
        topology.attach_to_peers(&crate::support::pass_object(&topology)?)?;
        let _servers = servers(&topology)?;
        let args = persistent(&topology);
        let mut first = start(&topology, &args)?;
        let (pid, old) = (first.process().id(), programs(&topology)?);
        let status = unnoticed(&topology, || {
            let status = first.process().stop(Signal::SIGTERM)?;
            ensure!(status.success(), "{status}");
            let status = json(&topology, &["status"])?;
            first = start(&topology, &args)?;
            assert_eq!(first.process().stderr(), Vec::<String>::new());
            Ok(status)
        })?;
        assert_eq!((&status["pid"], &status["persists"]), (&Value::Null, &true.into()), "{status}");
        assert_eq!(interface_names(&status), topology.interfaces(), "{status}");
        let new = programs(&topology)?;
        ensure!(old != new, "the program was not replaced");
        topology.lb(&["detach"])?;
        assert_no_trace(&topology, pid, &[old, new].concat())?;
    }
    Ok(())
}

#[test]
fn killed_at_any_moment_and_started_again_it_loses_nothing() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let _servers = servers(&topology)?;
    let args = persistent(&topology);
    let begin = Instant::now();
    let mut first = start(&topology, &args)?;
    let (pid, first_programs) = (first.process().id(), programs(&topology)?);
    // Until it is ready, and a while longer.
    let most = begin.elapsed() * 3 / 2;
    let mut dice = Dice::new(1);
    let last = unnoticed(&topology, || {
        first.process().stop(Signal::SIGKILL)?;
        for _ in 0..restarts() {
            let mut next = Process::spawn(&mut run(&topology, &args))?;
            thread::sleep(dice.up_to(most));
            next.stop(Signal::SIGKILL)?;
            ensure!(next.stderr().is_empty(), "{:?}", next.stderr());
        }
        start(&topology, &args)
    })?;
    last.stop()?;
    topology.lb(&["detach"])?;
    assert_no_trace(&topology, pid, &first_programs)
}

#[test]
fn one_that_lives_is_relieved_by_the_next_without_a_gap() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let _servers = servers(&topology)?;
    let args = persistent(&topology);
    // Another binary: an upgrade, and then back again.
    let copy = topology.tag().directory().join("lb-next");
    fs::copy(balancer::binary(), &copy)?;
    let mut present = start(&topology, &args)?;
    let mut pid = 0;
    unnoticed(&topology, || {
        for binary in [copy, balancer::binary()].into_iter().cycle().take(restarts().div_ceil(6)) {
            let command = run(&topology, &args);
            // The program behind `nsenter --net=... --`.
            let arguments = command
                .get_args()
                .map(|arg| if Path::new(arg) == balancer::binary() { binary.as_os_str() } else { arg });
            let mut exchanged = std::process::Command::new(command.get_program());
            exchanged.args(arguments);
            let next = Balancer::start(&mut exchanged)?;
            let status = std::mem::replace(&mut present, next).process().stop(Signal::SIGTERM)?;
            ensure!(status.success(), "the one that was relieved: {status}");
            pid = present.process().id();
            assert_eq!(json(&topology, &["status"])?["pid"], pid);
        }
        Ok(())
    })?;
    // Without --persist nobody is relieved.
    assert_refused(run(&topology, &[]), &["already running", &pid.to_string(), "--persist"])?;
    topology.lb(&["detach"])?;
    drop(present);
    assert_no_trace(&topology, pid, &[])
}

#[test]
fn adopted_without_persist_it_goes_with_its_daemon() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let _servers = servers(&topology)?;
    let mut first = start(&topology, &persistent(&topology))?;
    let mut last = unnoticed(&topology, || {
        first.process().stop(Signal::SIGKILL)?;
        start(&topology, &[])
    })?;
    let (pid, programs) = (last.process().id(), programs(&topology)?);
    last.stop()?;
    assert_no_trace(&topology, pid, &programs)
}

#[test]
fn edits_work_without_a_daemon_and_outlive_it() -> Result<()> {
    let topology = Topology::two_arm(3)?;
    let _servers = servers(&topology)?;
    let args = persistent(&topology);
    let mut first = start(&topology, &args)?;
    first.process().stop(Signal::SIGKILL)?;
    let (service, third) =
        (Family::V4.service(PORT).to_string(), Family::V4.at(&topology.servers[2], PORT).to_string());
    let server = |expected: usize| -> Result<()> {
        let visit = Visit::begin(&topology.client, Family::V4.service(PORT))?;
        assert_eq!(visit.greeting.server, expected);
        visit.end(Manners::Echo)
    };
    for number in 0..2 {
        let backend = Family::V4.at(&topology.servers[number], PORT).to_string();
        topology.lb(&["backend", "rm", &service, &backend])?;
    }
    server(3)?;
    topology.lb(&["backend", "rm", &service, &third])?;
    // Its neighbour is looked up by the command itself.
    topology.balancer.ip("neigh flush all")?;
    topology.lb(&["backend", "add", &service, &third])?;
    server(3)?;
    let backends = |status: &Value| status["services"][0]["backends"].as_array().map(Vec::len);
    let status = json(&topology, &["status"])?;
    ensure!(status["services"][0]["backends"][0]["next_hop"].is_string(), "{status}");
    assert_eq!(backends(&status), Some(1), "{status}");

    // What the command line names and the balancer has not any more is told, and not added.
    let mut next = start(&topology, &args)?;
    let told = next.process().stderr();
    assert_eq!(told.len(), 2, "{told:?}");
    for (line, number) in told.iter().zip(0..) {
        let backend = Family::V4.at(&topology.servers[number], PORT);
        ensure!(line.contains(&format!("`lb backend add {service}/tcp {backend}`")), "{told:?}");
    }
    server(3)?;
    assert_eq!(backends(&json(&topology, &["status"])?), Some(1));
    next.stop()
}

#[test]
fn without_a_daemon_idle_connections_are_swept_by_hand() -> Result<()> {
    /// What a reset connection may be idle for, and some more.
    const AFTER_RESET: Duration = Duration::from_secs(12);
    let topology = Topology::two_arm(1)?;
    let _servers = servers(&topology)?;
    let mut first = start(&topology, &persistent(&topology))?;
    first.process().stop(Signal::SIGKILL)?;
    let mut lasting = Visit::begin(&topology.client, Family::V4.service(PORT))?;
    for family in Family::ALL {
        let stream = topology.client.connect(family.service(PORT))?;
        // Closed so, it is reset rather than finished (socket(7)).
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    let flows = || Ok::<_, anyhow::Error>(json(&topology, &["flows"])?.as_array().map(Vec::len));
    assert_eq!(flows()?, Some(3));
    assert_eq!(json(&topology, &["sweep"])?["removed"], 0, "they are young");
    thread::sleep(AFTER_RESET);
    assert_eq!(topology.lb(&["sweep"])?, "removed 2 idle connections\n");
    assert_eq!((json(&topology, &["sweep"])?, flows()?), (serde_json::json!({ "removed": 0 }), Some(1)));
    lasting.say("still here")
}

#[test]
fn a_next_hop_that_changes_while_nobody_looks_is_corrected_on_adoption() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _servers = servers(&topology)?;
    let args = persistent(&topology);
    let mut first = start(&topology, &args)?;
    first.process().stop(Signal::SIGKILL)?;
    let server = &topology.servers[0].namespace;
    server.ip("link set dev eth0 address 02:00:00:00:00:77")?;
    topology.balancer.ip("neigh flush all")?;
    let _next = start(&topology, &args)?;
    for family in Family::ALL {
        let visit = Visit::begin(&topology.client, family.service(PORT))?;
        visit.end(Manners::Echo)?;
    }
    Ok(())
}

#[test]
fn interfaces_come_and_go_with_a_new_start() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let with = |interfaces: &[&str]| {
        let mut args = vec!["run", "--persist", "--max-flows", MAX_FLOWS];
        args.extend(interfaces.iter().flat_map(|interface| ["--iface", interface]));
        topology.lb_command(&args)
    };
    let mut present = Balancer::start(&mut with(&["eth0"]))?;
    let kept = |interfaces: &[&str]| -> Result<()> {
        assert_eq!(interface_names(&json(&topology, &["status"])?), interfaces);
        for device in topology.interfaces() {
            eventually(&format!("{device} is as it should be"), || {
                Ok(xdp_program(&topology.balancer, device)?.is_some() == interfaces.contains(device))
            })?;
        }
        Ok(())
    };
    for interfaces in [&["eth0", "eth1"][..], &["eth1"], &["eth0"], &["eth0", "eth1"]] {
        present.process().stop(Signal::SIGTERM)?;
        present = Balancer::start(&mut with(interfaces))?;
        kept(interfaces)?;
    }
    // One that is made anew has another index, and the link to the old one holds nothing any more.
    present.process().stop(Signal::SIGKILL)?;
    topology.balancer.ip("link delete eth0")?;
    assert_eq!(interface_names(&json(&topology, &["status"])?), ["eth1"]);
    lb_tests::link::veth((&topology.client, "eth0"), (&topology.balancer, "eth0"))?;
    present = Balancer::start(&mut with(&["eth0", "eth1"]))?;
    kept(&["eth0", "eth1"])?;
    // And one that goes while the daemon lives is forgotten with its pin.
    topology.balancer.ip("link delete eth0")?;
    eventually("the link is forgotten", || {
        Ok(fs::read_dir(topology.tag().pin_dir().join("links"))?.count() == 1)
    })?;
    drop(present);
    topology.lb(&["detach"])?;
    assert!(!topology.tag().pin_dir().exists());
    Ok(())
}

#[test]
fn options_that_would_cost_connections_are_refused_and_the_rest_goes_on() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _servers = servers(&topology)?;
    let first = start(&topology, &persistent(&topology))?;
    let programs = programs(&topology)?;
    for options in [
        &["--max-flows", "20000"][..],
        &["--snat-ports", "2000-3000"],
        &["--snat", "192.168.1.254"],
        &["--mode", "generic"],
    ] {
        let args: Vec<_> = ["--persist"].iter().chain(options).map(|&arg| arg.to_owned()).collect();
        assert_refused(run(&topology, &args), &[options[0], "lb detach"])?;
    }
    // From another network namespace its interfaces are not to be seen.
    let mut command = topology.client.command(balancer::binary());
    command.args(["run", "--persist", "--iface", "eth0", "--pin-dir"]).arg(topology.tag().pin_dir());
    assert_refused(command, &["another network namespace"])?;
    assert_eq!(crate::lifecycle::programs(&topology)?, programs);
    let mut visit = Visit::begin(&topology.client, Family::V4.service(PORT))?;
    visit.say("hello")?;
    first.stop()
}

#[test]
fn another_layout_is_not_adopted_and_the_remedy_is_named() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let args = persistent(&topology);
    let mut first = start(&topology, &args)?;
    let (pid, programs) = (first.process().id(), programs(&topology)?);
    let dir = topology.tag().pin_dir();
    let mut meta: Array<_, Meta> = Map::from_map_data(MapData::from_pin(dir.join("META"))?)?.try_into()?;
    let made = meta.get(&0, 0)?;
    let version = made.layout_version + 1;
    meta.set(0, Meta { layout_version: version, ..made }, 0)?;
    for lives in [true, false] {
        if !lives {
            first.process().stop(Signal::SIGTERM)?;
        }
        let words = [&format!("layout version {version}")[..], "lb detach"];
        assert_refused(run(&topology, &args), &words)?;
        assert_refused(topology.lb_command(&["status"]), &words)?;
    }
    assert_eq!(crate::lifecycle::programs(&topology)?, programs, "what runs goes on");
    topology.lb(&["detach"])?;
    assert_no_trace(&topology, pid, &programs)
}

/// What a kill can leave, made by hand: pins that are missing, from the last that is made to the first.
#[test]
fn what_is_half_made_is_completed_begun_anew_or_removed() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _servers = servers(&topology)?;
    let args = persistent(&topology);
    let dir = topology.tag().pin_dir();
    let links = || -> Result<Vec<_>> {
        let entries = fs::read_dir(dir.join("links"))?.collect::<std::io::Result<Vec<_>>>()?;
        Ok(entries.into_iter().map(|entry| entry.path()).collect())
    };
    let states: [(&str, &dyn Fn() -> Result<()>); 5] = [
        ("one link is missing", &|| Ok(fs::remove_file(links()?.first().context("no link")?)?)),
        ("all links are missing", &|| links()?.iter().try_for_each(|link| Ok(fs::remove_file(link)?))),
        ("the program's pin is missing", &|| Ok(fs::remove_file(dir.join("program"))?)),
        ("a pin of the next program is left", &|| {
            Ok(fs::rename(dir.join("program"), dir.join("next_program"))?)
        }),
        ("links and some maps are missing", &|| {
            links()?.iter().try_for_each(fs::remove_file)?;
            fs::remove_dir(dir.join("links"))?;
            Ok(["META", "SLOTS"].iter().try_for_each(|map| fs::remove_file(dir.join(map)))?)
        }),
    ];
    for (state, make) in states {
        for detach in [false, true] {
            let mut first = start(&topology, &args)?;
            let (pid, programs) = (first.process().id(), programs(&topology)?);
            first.process().stop(Signal::SIGKILL)?;
            make().context(state)?;
            if !detach {
                let next = start(&topology, &args).context(state)?;
                let visit = Visit::begin(&topology.client, Family::V4.service(PORT)).context(state)?;
                visit.end(Manners::Echo)?;
                next.stop()?;
            }
            topology.lb(&["detach"]).context(state)?;
            // Links whose pins this test has removed are the kernel's to release, in its own time.
            eventually("the kernel has released all links", || {
                let attached =
                    topology.interfaces().iter().map(|device| xdp_program(&topology.balancer, device));
                Ok(attached.collect::<Result<Vec<_>>>()?.iter().all(Option::is_none))
            })?;
            assert_no_trace(&topology, pid, &programs).context(state)?;
        }
    }
    Ok(())
}

#[test]
fn maps_that_miss_under_links_are_told_and_removed() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let args = persistent(&topology);
    let mut first = start(&topology, &args)?;
    let (pid, programs) = (first.process().id(), programs(&topology)?);
    first.process().stop(Signal::SIGKILL)?;
    fs::remove_file(topology.tag().pin_dir().join("SLOTS"))?;
    assert_refused(run(&topology, &args), &["SLOTS", "lb detach"])?;
    assert_refused(topology.lb_command(&["status"]), &["SLOTS", "lb detach"])?;
    topology.lb(&["detach"])?;
    assert_no_trace(&topology, pid, &programs)
}

#[test]
fn starts_that_compete_end_with_one_daemon() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _servers = servers(&topology)?;
    let args = persistent(&topology);
    let first = start(&topology, &args)?;
    unnoticed(&topology, || {
        let mut starts: Vec<_> =
            (0..4).map(|_| Process::spawn(&mut run(&topology, &args))).collect::<Result<_>>()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ready = |process: &Process| process.stdout().iter().any(|line| line.starts_with("ready"));
            if starts.iter().all(ready) {
                break;
            }
            ensure!(Instant::now() < deadline, "not all became ready: {starts:?}");
            thread::sleep(Duration::from_millis(20));
        }
        let pid = json(&topology, &["status"])?["pid"].as_u64();
        let Some(last) = starts.iter().position(|process| Some(u64::from(process.id())) == pid) else {
            bail!("process {pid:?} is none of them");
        };
        let mut last = starts.swap_remove(last);
        for mut other in starts {
            let status = other.stop(Signal::SIGCONT)?;
            ensure!(status.success(), "{status}");
        }
        last.stop(Signal::SIGTERM).map(drop)
    })?;
    drop(first);
    topology.lb(&["detach"])?;
    assert!(!topology.tag().pin_dir().exists());
    Ok(())
}
