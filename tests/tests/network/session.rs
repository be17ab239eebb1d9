//! Short sessions, from loading to detaching. `cargo xtask vm-test` runs this module on other kernels, in emulated
//! machines that have `ip`, `ethtool` and `nsenter` but neither nginx nor curl: keep to what [`crate::support`] has.

use anyhow::{Result, ensure};
use lb_tests::topology::Topology;
use nix::sys::signal::Signal;

use crate::lifecycle::{assert_no_trace, programs};
use crate::support::{
    Family, Greeter, Manners, Sockets as _, UdpEcho, Visit, ask, both_families, json, pass_object, start,
    unspecified,
};

const PORT: u16 = 7;
const SERVERS: u8 = 2;

/// Enough for a session: the machines have little memory, and the tables take theirs at once.
const MAX_FLOWS: &str = "1000";

#[test]
fn sessions_with_two_arms_go_round_in_either_mode_and_leave_no_trace() -> Result<()> {
    sessions(&Topology::two_arm(SERVERS)?)
}

#[test]
fn sessions_with_one_arm_go_round_in_either_mode_and_leave_no_trace() -> Result<()> {
    sessions(&Topology::one_arm(SERVERS)?)
}

fn sessions(topology: &Topology) -> Result<()> {
    topology.attach_to_peers(&pass_object(topology)?)?;
    ["native", "generic"].into_iter().try_for_each(|mode| session(topology, mode))
}

fn session(topology: &Topology, mode: &str) -> Result<()> {
    let _servers = (Greeter::on_all(topology, PORT, Manners::Echo)?, UdpEcho::on_all(topology, PORT)?);
    let mut args = [both_families(topology, PORT, "tcp"), both_families(topology, PORT, "udp")].concat();
    args.extend(["--mode", mode, "--max-flows", MAX_FLOWS].map(str::to_owned));
    let mut balancer = start(topology, &args)?;
    let (pid, programs) = (balancer.process().id(), programs(topology)?);
    for interface in json(topology, &["status"])?["interfaces"].as_array().into_iter().flatten() {
        assert_eq!(interface["mode"], mode);
    }
    for family in Family::ALL {
        goes_round_over_tcp(topology, family)?;
        goes_round_over_udp(topology, family)?;
    }
    topology.lb(&["detach"])?;
    balancer.stop()?;
    assert_no_trace(topology, pid, &programs)
}

#[test]
fn a_session_goes_on_when_its_daemon_is_killed_and_another_one_adopts_it() -> Result<()> {
    let topology = Topology::two_arm(SERVERS)?;
    topology.attach_to_peers(&pass_object(&topology)?)?;
    let _servers = Greeter::on_all(&topology, PORT, Manners::Echo)?;
    let mut args = both_families(&topology, PORT, "tcp");
    args.extend(["--persist", "--max-flows", MAX_FLOWS].map(str::to_owned));
    let mut first = start(&topology, &args)?;
    let old = programs(&topology)?;
    let mut visits = Vec::new();
    // A whole round, so that the next ones begin at the first server: the turns outlive the daemon too.
    for family in Family::ALL {
        for _ in 0..SERVERS {
            visits.push(Visit::begin(&topology.client, family.service(PORT))?);
        }
    }
    first.process().stop(Signal::SIGKILL)?;
    let mut talk = |text| visits.iter_mut().try_for_each(|visit| visit.say(text));
    talk("without a daemon")?;
    let mut next = start(&topology, &args)?;
    let (pid, new) = (next.process().id(), programs(&topology)?);
    ensure!(old != new, "the program was not replaced");
    talk("with the next one")?;
    for family in Family::ALL {
        goes_round_over_tcp(&topology, family)?;
    }
    next.stop()?;
    topology.lb(&["detach"])?;
    assert_no_trace(&topology, pid, &[old, new].concat())
}

/// The servers in the order in which two rounds visit them.
fn two_rounds() -> impl Iterator<Item = usize> {
    [1, 2].into_iter().cycle().take(2 * usize::from(SERVERS))
}

fn goes_round_over_tcp(topology: &Topology, family: Family) -> Result<()> {
    for server in two_rounds() {
        let mut visit = Visit::begin(&topology.client, family.service(PORT))?;
        assert_eq!(visit.greeting.server, server, "{family:?}");
        assert_eq!(visit.greeting.client.ip(), family.vip(), "{family:?}");
        visit.say("hello")?;
        visit.end(Manners::Echo)?;
    }
    Ok(())
}

fn goes_round_over_udp(topology: &Topology, family: Family) -> Result<()> {
    let to = family.service(PORT);
    // All at the same time: otherwise two might have the same port, and be one client.
    let sockets = two_rounds().map(|_| topology.client.udp(unspecified(to))).collect::<Result<Vec<_>>>()?;
    for (socket, server) in sockets.iter().zip(two_rounds()) {
        // Of one socket, all datagrams go to one server.
        for text in [&b"hello"[..], b""] {
            let greeting = ask(socket, to, text)?;
            assert_eq!(greeting.server, server, "{family:?}");
            assert_eq!(greeting.client.ip(), family.vip(), "{family:?}");
        }
    }
    Ok(())
}
