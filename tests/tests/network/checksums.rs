//! tcpdump, which knows nothing of this project, judges the checksums of what leaves.

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::namespace::Namespace;
use lb_tests::process::Process;
use lb_tests::topology::Topology;
use nix::sys::signal::Signal;

use crate::bulk;
use crate::support::{
    Family, Greeter, Make, Manners, PATIENCE, Sockets as _, UdpEcho, Visit, ask, both_families, pass_object,
    start, unspecified,
};

/// A tcpdump that watches an interface.
struct Watcher {
    process: Process,
}

impl Watcher {
    fn start(namespace: &Namespace) -> Result<Self> {
        // Only what arrives: what leaves here, the kernel wrote.
        let args = ["-l", "-n", "-vv", "-Q", "in", "-i", "eth0", "tcp or udp"];
        let mut process = namespace.spawn("tcpdump", args)?;
        process.wait_until(PATIENCE, |process| {
            process.stderr().iter().any(|line| line.contains("listening on"))
        })?;
        Ok(Self { process })
    }

    /// Ends it, and counts the transport checksums that it found correct.
    fn verdict(mut self, at_least: usize) -> Result<usize> {
        let correct = |process: &Process| {
            let lines = process.stdout();
            lines
                .iter()
                .filter(|line| {
                    line.contains("cksum") && line.contains("(correct)") || line.contains("[udp sum ok]")
                })
                .count()
        };
        self.process.wait_until(PATIENCE, |process| correct(process) >= at_least)?;
        self.process.stop(Signal::SIGINT)?;
        std::thread::sleep(Duration::from_millis(50));
        for line in self.process.stdout() {
            ensure!(!line.contains("incorrect") && !line.contains("[bad "), "a wrong checksum: {line}");
        }
        Ok(correct(&self.process))
    }
}

#[test]
fn tcpdump_finds_every_checksum_correct() -> Result<()> {
    let cases: [(Make, &str); 3] =
        [(Topology::two_arm, "native"), (Topology::two_arm, "generic"), (Topology::one_arm, "native")];
    for (topology, mode) in cases {
        let topology = topology(1)?;
        if mode == "native" {
            topology.attach_to_peers(&pass_object(&topology)?)?;
        }
        let server = &topology.servers[0];
        join_nothing(&topology)?;
        let _tcp = Greeter::on_all(&topology, 80, Manners::Echo)?;
        let _udp = UdpEcho::on_all(&topology, 80)?;
        let mut args = both_families(&topology, 80, "tcp");
        args.extend(both_families(&topology, 80, "udp"));
        args.extend(["--mode".to_owned(), mode.to_owned()]);
        let _balancer = start(&topology, &args)?;
        let (at_server, at_client) = (Watcher::start(&server.namespace)?, Watcher::start(&topology.client)?);
        for family in Family::ALL {
            let to = family.service(80);
            ask_at_all_lengths(&topology, to)?;
            for length in [1, 2, 700, 4_001] {
                let mut visit = Visit::begin(&topology.client, to)?;
                visit.say(&"x".repeat(length))?;
                visit.end(Manners::Echo)?;
            }
            // A reset carries a checksum too: this client leaves with an answer unread.
            let mut stream = topology.client.connect(to)?;
            stream.write_all(b"farewell")?;
            stream.shutdown(Shutdown::Read)?;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        // Both families: six datagrams; four connections with a handshake, a line and an end.
        let least = 2 * (6 + 4 * 3);
        for (name, watcher) in [("server", at_server), ("client", at_client)] {
            let correct = watcher.verdict(least).with_context(|| format!("{mode}, at the {name}"))?;
            println!("{mode}, at the {name}: {correct} correct");
        }
    }
    Ok(())
}

#[test]
fn checksums_that_senders_leave_to_their_network_cards_are_finished() -> Result<()> {
    let cases: [Make; 2] = [Topology::two_arm, Topology::one_arm];
    for topology in cases {
        let topology = topology(1)?;
        topology.attach_to_peers(&pass_object(&topology)?)?;
        let server = &topology.servers[0];
        leave_checksums_unfinished(&topology)?;
        let _echo = UdpEcho::on_all(&topology, 80)?;
        let mut args = both_families(&topology, 80, "udp");
        args.extend(both_families(&topology, 80, "tcp"));
        let _balancer = start(&topology, &args)?;
        join_nothing(&topology)?;
        let (at_server, at_client) = (Watcher::start(&server.namespace)?, Watcher::start(&topology.client)?);
        for family in Family::ALL {
            let to = family.service(80);
            ask_at_all_lengths(&topology, to)?;
            let listener = server.namespace.listen(family.at(server, 80))?;
            bulk::both_directions(&topology.client, &listener, family, 1_000_000)
                .with_context(|| format!("{family:?}"))?;
        }
        for (name, watcher) in [("server", at_server), ("client", at_client)] {
            let correct = watcher.verdict(2 * 700).with_context(|| format!("at the {name}"))?;
            println!("at the {name}: {correct} correct");
        }
    }
    Ok(())
}

#[test]
fn in_generic_mode_the_kernel_finishes_what_is_unfinished() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    leave_checksums_unfinished(&topology)?;
    let _udp = UdpEcho::on_all(&topology, 80)?;
    let _tcp = Greeter::on_all(&topology, 80, Manners::Echo)?;
    let mut args = both_families(&topology, 80, "udp");
    args.extend(both_families(&topology, 80, "tcp"));
    args.extend(["--mode".to_owned(), "generic".to_owned()]);
    let _balancer = start(&topology, &args)?;
    // The switch's other port has them finished, and the server looks at them.
    for family in Family::ALL {
        let to = family.service(80);
        ask_at_all_lengths(&topology, to)?;
        for length in [1, 2, 700, 1_401] {
            let mut visit = Visit::begin(&topology.client, to)?;
            visit.say(&"x".repeat(length))?;
            visit.end(Manners::Echo)?;
        }
    }
    Ok(())
}

/// Six datagrams and their answers, of odd and even lengths.
fn ask_at_all_lengths(topology: &Topology, to: SocketAddr) -> Result<()> {
    for length in [0_u16, 1, 2, 3, 700, 1_401] {
        let socket = topology.client.udp(unspecified(to))?;
        ask(&socket, to, &vec![length.to_le_bytes()[0]; length.into()])?;
    }
    Ok(())
}

/// What receive offload joins has no checksum of its own. Where redirected packets arrive, the program polls.
fn join_nothing(topology: &Topology) -> Result<()> {
    let server = &topology.servers[0].namespace;
    let ends = [(&topology.client, "eth0"), (&topology.switch, "port-balancer"), (server, "eth0")];
    ends.into_iter().try_for_each(|(end, device)| end.run("ethtool", ["-K", device, "gro", "off"]).map(drop))
}

/// As it is where nobody has said `ethtool -K DEV tx off`.
fn leave_checksums_unfinished(topology: &Topology) -> Result<()> {
    let ends = [&topology.client, &topology.servers[0].namespace];
    ends.into_iter().try_for_each(|end| end.run("ethtool", ["-K", "eth0", "tx", "on"]).map(drop))
}
