//! Many clients, many connections, and clients that look alike.

use std::collections::{BTreeMap, HashSet};
use std::env;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lb_tests::topology::Topology;

use crate::support::{
    Family, Greeter, Manners, Sockets as _, UdpEcho, Visit, ask, at_once, both_families, eventually, json,
    many_files, service, start,
};

/// How many short connections follow one another; LB_SHORT_CONNECTIONS says otherwise.
const SHORT_CONNECTIONS: usize = 30_000;

/// Clients at the same time.
const CLIENTS: usize = 1_000;

#[test]
fn one_client_port_may_use_two_services_with_the_same_backends_at_once() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let _tcp = Greeter::on_all(&topology, 80, Manners::Echo)?;
    let _udp = UdpEcho::on_all(&topology, 80)?;
    let mut args = Vec::new();
    for family in Family::ALL {
        for (port, protocol) in [(80, "tcp"), (81, "tcp"), (80, "udp"), (81, "udp")] {
            let backends = topology.servers.iter().map(|server| family.at(server, 80));
            args.extend(service(family.service(port), protocol, backends));
        }
    }
    let _balancer = start(&topology, &args)?;
    for (family, client) in [(Family::V4, "10.10.10.2"), (Family::V6, "2001:db8:10::2")] {
        // Each port meets the same backend through both services, for both services begin at the first.
        for port in 40_000..40_010 {
            let from = SocketAddr::new(client.parse()?, port);
            let mut visits: Vec<_> = [80, 81]
                .into_iter()
                .map(|port| Visit::over(topology.client.connect_from(from, family.service(port))?))
                .collect::<Result<_>>()?;
            ensure!(visits[0].greeting.server == visits[1].greeting.server, "they do not share a backend");
            ensure!(visits[0].greeting.client != visits[1].greeting.client, "they cannot be told apart");
            for round in 0..10 {
                for (number, visit) in visits.iter_mut().enumerate() {
                    visit.say(&format!("{round} through service {number}"))?;
                }
            }
            // When one is over, the other goes on.
            let mut last = visits.remove(1);
            visits.into_iter().try_for_each(|visit| visit.end(Manners::Echo))?;
            last.say("still here")?;
            last.end(Manners::Echo)?;

            let socket = topology.client.udp(from)?;
            for round in 0..10 {
                for port in [80, 81] {
                    ask(&socket, family.service(port), format!("{round} to {port}").as_bytes())?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_thousand_clients_at_once_are_served_in_equal_shares() -> Result<()> {
    many_files()?;
    let topology = Topology::two_arm(4)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    let _balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
    for family in Family::ALL {
        let everybody = Barrier::new(CLIENTS);
        let served = at_once(CLIENTS, |number| {
            let visit = Visit::begin(&topology.client, family.service(80));
            // All are connected at the same time, also when one has failed.
            everybody.wait();
            let mut visit = visit?;
            for round in 0..3 {
                visit.say(&format!("client {number} round {round}"))?;
            }
            let server = visit.greeting.server;
            everybody.wait();
            visit.end(Manners::Echo)?;
            Ok(server)
        })?;
        let mut shares = BTreeMap::new();
        for server in served {
            *shares.entry(server).or_insert(0) += 1;
        }
        assert_eq!(shares.into_values().collect::<Vec<_>>(), [CLIENTS / 4; 4], "{family:?}");
    }
    Ok(())
}

#[test]
fn a_thousand_clients_live_in_the_flow_table_side_by_side() -> Result<()> {
    many_files()?;
    let topology = Topology::two_arm(4)?;
    let _servers = UdpEcho::on_all(&topology, 53)?;
    let _balancer = start(&topology, &both_families(&topology, 53, "udp"))?;
    let to = Family::V4.service(53);
    let sockets: Vec<_> =
        (0..CLIENTS).map(|_| topology.client.udp("0.0.0.0:0".parse()?)).collect::<Result<_>>()?;
    let first = sockets.iter().map(|socket| ask(socket, to, b"first")).collect::<Result<Vec<_>>>()?;
    // Nobody's answers go to somebody else, and everybody keeps server and source.
    for (socket, greeting) in sockets.iter().zip(&first) {
        assert_eq!(ask(socket, to, b"second")?, *greeting);
    }
    let sources: HashSet<_> = first.iter().map(|greeting| (greeting.server, greeting.client)).collect();
    assert_eq!(sources.len(), CLIENTS);
    let flows = json(&topology, &["flows"])?;
    assert_eq!(flows.as_array().map(Vec::len), Some(CLIENTS));
    Ok(())
}

#[test]
fn thousands_of_short_connections_one_after_another_all_succeed() -> Result<()> {
    let connections = match env::var("LB_SHORT_CONNECTIONS") {
        Ok(number) => number.parse().context("LB_SHORT_CONNECTIONS is no number")?,
        Err(_) => SHORT_CONNECTIONS,
    };
    let topology = Topology::two_arm(4)?;
    let _greeters = [(80, Manners::Brief), (81, Manners::Echo)]
        .map(|(port, manners)| Greeter::on_all(&topology, port, manners));
    let mut args = both_families(&topology, 80, "tcp");
    args.extend(both_families(&topology, 81, "tcp"));
    let _balancer = start(&topology, &args)?;
    // The client that closes first keeps its port for a minute, and there are fewer than connections.
    topology.client.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
    topology.client.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    for (family, port, manners, share) in [
        (Family::V4, 80, Manners::Brief, connections / 2),
        (Family::V4, 81, Manners::Echo, connections / 4),
        (Family::V6, 80, Manners::Brief, connections / 8),
        (Family::V6, 81, Manners::Echo, connections / 8),
    ] {
        let begin = Instant::now();
        for number in 0..share {
            let visit = Visit::begin(&topology.client, family.service(port))
                .with_context(|| format!("{family:?} {manners:?}: connection {number} of {share}"))?;
            assert_eq!(visit.greeting.server, number % 4 + 1);
            visit.end(manners)?;
        }
        println!("{share} connections over {family:?}, {manners:?}: {:.1} s", begin.elapsed().as_secs_f64());
    }
    Ok(())
}

#[test]
fn a_clients_port_may_be_used_again_at_once() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Brief)?;
    let _balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
    // The server closes first, so that the client's port is free when the connection is over.
    for (family, client) in [(Family::V4, "10.10.10.2:40000"), (Family::V6, "[2001:db8:10::2]:40000")] {
        for number in 0..100 {
            let mut visit = None;
            eventually("the client's kernel has seen the last connection end", || {
                match topology.client.connect_from(client.parse()?, family.service(80)) {
                    Ok(stream) => visit = Some(Visit::over(stream)?),
                    Err(error) if is_taken(&error) => {}
                    Err(error) => return Err(error),
                }
                Ok(visit.is_some())
            })
            .with_context(|| format!("{family:?}: connection {number}"))?;
            let visit = visit.context("no connection")?;
            assert_eq!(visit.greeting.server, number % 2 + 1);
            visit.end(Manners::Brief)?;
        }
    }
    Ok(())
}

/// Whether a client's own kernel still has a connection with that port.
fn is_taken(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
}
