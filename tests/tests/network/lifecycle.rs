//! What comes with the balancer goes with it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use lb_tests::balancer::{self, Balancer};
use lb_tests::process::output;
use lb_tests::topology::Topology;
use nix::sys::signal::Signal;

use crate::support::{
    Family, Greeter, Manners, Visit, both_families, eventually, json, pass_object, start, xdp_program,
};

/// That no program, pin or process is left.
pub(crate) fn assert_no_trace(topology: &Topology, pid: u32, programs: &[u32]) -> Result<()> {
    for device in topology.interfaces() {
        assert_eq!(xdp_program(&topology.balancer, device)?, None, "a program is left on {device}");
    }
    assert!(!topology.tag().pin_dir().exists(), "pins are left");
    assert!(!Path::new("/proc").join(pid.to_string()).exists(), "the process is left");
    // The kernel frees a program a moment after its last link is gone. Its links and maps hold it, or are held by it.
    eventually("the kernel has freed the program", || Ok(programs.iter().all(|id| !is_loaded(*id)))).map(drop)
}

/// Whether the kernel still has the program.
fn is_loaded(id: u32) -> bool {
    loaded_programs().filter_map(Result::ok).any(|program| program.id() == id)
}

/// The ids of the programs on the balancer's interfaces.
pub(crate) fn programs(topology: &Topology) -> Result<Vec<u32>> {
    let ids = topology.interfaces().iter().map(|device| {
        xdp_program(&topology.balancer, device)?.with_context(|| format!("no program on {device}"))
    });
    ids.collect()
}

fn serves(topology: &Topology) -> Result<()> {
    for family in Family::ALL {
        let mut visit = Visit::begin(&topology.client, family.service(80))?;
        visit.say("hello")?;
        visit.end(Manners::Echo)?;
    }
    Ok(())
}

#[test]
fn ctrl_c_and_sigterm_leave_no_trace() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    for mode in ["native", "generic"] {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let mut args = both_families(&topology, 80, "tcp");
            args.extend(["--mode".to_owned(), mode.to_owned()]);
            let mut balancer = start(&topology, &args)?;
            serves(&topology)?;
            let (pid, programs) = (balancer.process().id(), programs(&topology)?);
            let status = balancer.process().stop(signal)?;
            ensure!(status.success(), "after {signal}: {status}");
            assert_eq!(balancer.process().stderr(), Vec::<String>::new(), "after {signal}");
            assert_no_trace(&topology, pid, &programs)?;
        }
    }
    Ok(())
}

#[test]
fn after_a_kill_a_new_start_works() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    let args = both_families(&topology, 80, "tcp");
    let mut killed = start(&topology, &args)?;
    serves(&topology)?;
    killed.process().stop(Signal::SIGKILL)?;
    // Its links are gone with it; its pins are not.
    for device in topology.interfaces() {
        eventually("the link is gone", || Ok(xdp_program(&topology.balancer, device)?.is_none()))?;
    }
    let status = json(&topology, &["status"])?;
    assert!(status["interfaces"].as_array().is_some_and(Vec::is_empty), "{status}");

    let mut balancer = start(&topology, &args)?;
    serves(&topology)?;
    let (pid, programs) = (balancer.process().id(), programs(&topology)?);
    balancer.stop()?;
    assert_no_trace(&topology, pid, &programs)
}

/// While the kernel still clears the killed one away.
#[test]
fn at_once_after_a_kill_a_new_start_works() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    let args = both_families(&topology, 80, "tcp");
    let mut balancer = start(&topology, &args)?;
    for _ in 0..4 {
        balancer.process().signal(Signal::SIGKILL)?;
        balancer = start(&topology, &args)?;
        serves(&topology)?;
    }
    balancer.process().signal(Signal::SIGKILL)?;
    topology.lb(&["detach"])?;
    for device in topology.interfaces() {
        eventually("the link is gone", || Ok(xdp_program(&topology.balancer, device)?.is_none()))?;
    }
    Ok(())
}

/// Servers that close first hold what they closed in TIME-WAIT, and answer a SYN from the same source port so that the
/// client begins anew: by then another server has its turn.
#[test]
fn a_new_start_does_not_meet_what_servers_still_hold() -> Result<()> {
    let topology = Topology::two_arm(4)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Brief)?;
    for _ in 0..4 {
        let mut killed = start(&topology, &both_families(&topology, 80, "tcp"))?;
        for family in Family::ALL {
            for turn in 0..8 {
                let visit = Visit::begin(&topology.client, family.service(80))?;
                assert_eq!(visit.greeting.server, turn % 4 + 1, "{family:?}");
                visit.end(Manners::Brief)?;
            }
        }
        killed.process().stop(Signal::SIGKILL)?;
    }
    Ok(())
}

#[test]
fn detach_ends_a_living_balancer() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let mut balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
    let (pid, programs) = (balancer.process().id(), programs(&topology)?);
    topology.lb(&["detach"])?;
    let status = balancer.process().stop(Signal::SIGTERM)?;
    ensure!(status.success(), "{status}");
    assert_no_trace(&topology, pid, &programs)?;
    // Once more does no harm.
    topology.lb(&["detach"])?;
    Ok(())
}

#[test]
fn detach_cleans_up_after_a_kill() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let mut balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
    let (pid, programs) = (balancer.process().id(), programs(&topology)?);
    balancer.process().stop(Signal::SIGKILL)?;
    assert!(topology.tag().pin_dir().exists());
    topology.lb(&["detach"])?;
    assert_no_trace(&topology, pid, &programs)?;
    topology.lb(&["detach"])?;
    Ok(())
}

#[test]
fn an_attach_that_fails_halfway_is_undone() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    // What is redirected to a veth whose other end does not poll is lost, and only the second interface is one.
    let switch = topology.switch.name();
    topology.balancer.ip(&format!("link add eth2 up type veth peer name port-eth2 netns {switch}"))?;
    let mut command = topology.lb_command(&["run", "--iface", "eth0", "--iface", "eth2", "--mode", "native"]);
    let error = output(&mut command).err().context("such a veth was taken")?.to_string();
    ensure!(error.contains("eth2") && error.contains("gro on"), "{error}");
    for device in topology.interfaces() {
        assert_eq!(xdp_program(&topology.balancer, device)?, None, "a program is left on {device}");
    }
    assert!(!topology.tag().pin_dir().exists(), "pins are left");
    Ok(())
}

#[test]
fn several_balancers_run_side_by_side() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let other = format!("{}-other", topology.tag().pin_dir().display());
    let first = Balancer::start(&mut topology.lb_command(&["run", "--iface", "eth0"]))?;
    let mut command = topology.balancer.command(balancer::binary());
    command.args(["run", "--iface", "eth1", "--pin-dir"]).arg(&other);
    let second = Balancer::start(&mut command)?;
    second.stop()?;
    assert!(!Path::new(&other).exists());
    assert!(xdp_program(&topology.balancer, "eth0")?.is_some(), "the first goes on");
    first.stop()
}

#[test]
fn connections_are_reset_when_the_balancer_is_gone() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    topology.attach_to_peers(&pass_object(&topology)?)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    let args = both_families(&topology, 80, "tcp");
    let balancer = start(&topology, &args)?;
    let mut visit = Visit::begin(&topology.client, Family::V4.service(80))?;
    visit.say("hello")?;
    balancer.stop()?;
    // The host owns the VIP and knows no such connection.
    let error = visit.say("anybody there?").err().context("somebody answers")?;
    ensure!(crate::support::is_reset(&error), "the client is left hanging: {error:#}");
    Ok(())
}

#[test]
fn a_balancer_without_traffic_costs_nothing() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let mut balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
    let ticks = |pid: u32| -> Result<u64> {
        // Fields 14 and 15, after the name in parentheses: proc_pid_stat(5).
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("no name")?;
        let times = fields.split_whitespace().skip(11).take(2);
        Ok(times.map(str::parse::<u64>).sum::<Result<u64, _>>()?)
    };
    let pid = balancer.process().id();
    let before = ticks(pid)?;
    std::thread::sleep(Duration::from_secs(2));
    let spent = ticks(pid)? - before;
    // Of 200 ticks of 10 ms.
    ensure!(spent <= 20, "{spent} ticks in two seconds");
    Ok(())
}

#[test]
fn a_missing_bpf_file_system_is_mounted() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    // In a mount namespace of its own, where it may miss.
    let script = "umount --lazy /sys/fs/bpf && ! mountpoint --quiet /sys/fs/bpf && exec \"$@\"";
    let mut command = topology.balancer.command("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(balancer::binary());
    command.args(["run", "--iface", "eth0", "--pin-dir"]).arg(topology.tag().pin_dir());
    let balancer = Balancer::start(&mut command)?;
    assert!(xdp_program(&topology.balancer, "eth0")?.is_some());
    balancer.stop()?;
    assert_eq!(xdp_program(&topology.balancer, "eth0")?, None);
    Ok(())
}
