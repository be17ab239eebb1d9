//! Backends come and go while the service is in use.

use std::io::{ErrorKind, Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::topology::Topology;

use crate::support::{
    Family, Greeter, Manners, PATIENCE, Sockets as _, UdpEcho, Visit, ask, at_once, both_families,
    eventually, is_reset, json, pass_object, service, start, unspecified,
};

/// Threads that make one short connection after another.
const WORKERS: usize = 4;

/// What a change is made under: short connections without pause and long ones that all talk. Then, when the change is
/// made, its effect is looked at.
fn under_load(
    topology: &Topology,
    family: Family,
    change: impl FnOnce() -> Result<()>,
) -> Result<(Vec<Result<()>>, Vec<Visit>)> {
    let to = family.service(80);
    let mut long: Vec<_> =
        (0..24).map(|_| Visit::begin(&topology.client, family.service(81))).collect::<Result<_>>()?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let over = &over;
        let short = scope.spawn(move || {
            at_once(WORKERS, |_| {
                let mut outcomes = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    outcomes
                        .push(Visit::begin(&topology.client, to).and_then(|visit| visit.end(Manners::Brief)));
                }
                Ok(outcomes)
            })
        });
        let talk = |long: &mut Vec<Visit>, rounds: usize| -> Result<()> {
            for round in 0..rounds {
                for visit in &mut *long {
                    visit.say(&format!("round {round}"))?;
                }
            }
            Ok(())
        };
        let changed = talk(&mut long, 20).and_then(|()| change());
        // The short ones go on for a while, whatever happened.
        thread::sleep(Duration::from_millis(300));
        over.store(true, Ordering::Relaxed);
        let short = short.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        changed?;
        Ok((short.into_iter().flatten().collect(), long))
    })
}

/// Services on ports 80 (brief servers) and 81 (echoing ones), with the first so many of the servers.
fn services(topology: &Topology, family: Family, backends: usize) -> Vec<String> {
    [80, 81]
        .into_iter()
        .flat_map(|port| {
            let backends = topology.servers.iter().take(backends).map(move |server| family.at(server, port));
            service(family.service(port), "tcp", backends)
        })
        .collect()
}

/// How many of so many new connections, one after another, each server gets.
fn shares(topology: &Topology, family: Family, connections: usize) -> Result<Vec<usize>> {
    let mut shares = vec![0; topology.servers.len()];
    for _ in 0..connections {
        let visit = Visit::begin(&topology.client, family.service(80))?;
        *shares.get_mut(visit.greeting.server - 1).context("an unknown server")? += 1;
        visit.end(Manners::Brief)?;
    }
    Ok(shares)
}

#[test]
fn a_server_added_under_load_gets_its_exact_share_and_nobody_loses_anything() -> Result<()> {
    for family in Family::ALL {
        let topology = Topology::two_arm(4)?;
        let brief = Greeter::on_all(&topology, 80, Manners::Brief)?;
        let _echoing = Greeter::on_all(&topology, 81, Manners::Echo)?;
        let _balancer = start(&topology, &services(&topology, family, 3))?;
        let accepted = || brief.iter().map(Greeter::accepted).collect::<Vec<_>>();
        let mut before = Vec::new();
        let (short, mut long) = under_load(&topology, family, || {
            for port in [80, 81] {
                let (service, backend) = (family.service(port), family.at(&topology.servers[3], port));
                topology.lb(&["backend", "add", &service.to_string(), &backend.to_string()])?;
                if port == 80 {
                    before = accepted();
                }
            }
            Ok(())
        })?;
        for outcome in &short {
            assert!(outcome.is_ok(), "a short connection failed: {outcome:?}");
        }
        // Each worker may have had a connection under way when `before` was read.
        let gained: Vec<_> = std::iter::zip(accepted(), &before).map(|(now, before)| now - before).collect();
        let (least, most) = (gained.iter().min(), gained.iter().max());
        let spread = most.zip(least).map_or(0, |(most, least)| most - least);
        ensure!(spread <= 2 * WORKERS, "since the fourth server is there: {gained:?}");
        ensure!(gained.iter().all(|gained| *gained > 0), "no load: {gained:?}");

        for visit in &mut long {
            visit.say("still here")?;
        }
        assert_eq!(shares(&topology, family, 40)?, [10; 4], "{family:?}");
    }
    Ok(())
}

#[test]
fn a_server_removed_under_load_takes_no_other_connections_with_it() -> Result<()> {
    for family in Family::ALL {
        let topology = Topology::two_arm(4)?;
        let brief = Greeter::on_all(&topology, 80, Manners::Brief)?;
        let _echoing = Greeter::on_all(&topology, 81, Manners::Echo)?;
        let _balancer = start(&topology, &services(&topology, family, 4))?;
        let (short, long) = under_load(&topology, family, || {
            for port in [80, 81] {
                let (service, backend) = (family.service(port), family.at(&topology.servers[1], port));
                topology.lb(&["backend", "rm", &service.to_string(), &backend.to_string()])?;
            }
            Ok(())
        })?;
        let failed: Vec<_> = short.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        ensure!(failed.len() <= WORKERS, "{} of {} failed: {:?}", failed.len(), short.len(), failed.first());

        let accepted = brief[1].accepted();
        for mut visit in long {
            match (visit.greeting.server, visit.say("still here")) {
                (2, Ok(())) => bail!("a connection to the removed server goes on"),
                (2, Err(error)) => ensure!(is_reset(&error), "it was left hanging: {error:#}"),
                (other, said) => said.with_context(|| format!("the connection to server {other} broke"))?,
            }
        }
        let mut shares = shares(&topology, family, 30)?;
        assert_eq!(shares.remove(1), 0);
        assert_eq!(shares, [10; 3], "{family:?}");
        assert_eq!(brief[1].accepted(), accepted, "the removed server got new connections");
    }
    Ok(())
}

#[test]
fn a_drained_server_gets_no_new_connections_and_keeps_the_old_ones() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    let _balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
    for family in Family::ALL {
        let (service, backend) = (family.service(80), family.at(&topology.servers[0], 80));
        let mut old: Vec<_> =
            (0..4).map(|_| Visit::begin(&topology.client, service)).collect::<Result<_>>()?;
        topology.lb(&["backend", "drain", &service.to_string(), &backend.to_string()])?;
        for _ in 0..6 {
            let visit = Visit::begin(&topology.client, service)?;
            assert_eq!(visit.greeting.server, 2);
            visit.end(Manners::Echo)?;
        }
        for visit in &mut old {
            visit.say("still here")?;
        }
        let services = json(&topology, &["status"])?;
        let states: Vec<_> = services["services"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|view| view["address"] == format!("{service}/tcp"))
            .flat_map(|view| view["backends"].as_array().into_iter().flatten())
            .map(|backend| &backend["state"])
            .collect();
        assert_eq!(states, ["draining", "up"]);
    }
    Ok(())
}

/// What wrk says about failures; nothing if there were none.
fn complaints(printed: &str) -> Vec<&str> {
    printed.lines().filter(|line| line.contains("Socket errors") || line.contains("Non-2xx")).collect()
}

#[test]
fn wrk_notices_nothing_of_a_server_that_comes() -> Result<()> {
    let topology = Topology::two_arm(4)?;
    let servers = topology.start_web_servers()?;
    let family = Family::V4;
    let backends = topology.servers.iter().take(3).map(|server| family.at(server, 80));
    let _balancer = start(&topology, &service(family.service(80), "tcp", backends))?;
    let url = format!("http://{}/", family.vip());
    // A connection for each request, so that the new server matters.
    let arguments = ["-t1", "-c16", "-d3", "-H", "Connection: close", &url];
    let wrk = thread::scope(|scope| {
        let wrk = scope.spawn(|| topology.client.run("wrk", arguments));
        let load = eventually("wrk is at work", || Ok(servers[0].clients()?.len() > 100));
        let (service, backend) = (family.service(80), family.at(&topology.servers[3], 80));
        let added = topology.lb(&["backend", "add", &service.to_string(), &backend.to_string()]);
        let wrk = wrk.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        load?;
        added?;
        anyhow::Ok(wrk)
    })?;
    assert_eq!(complaints(&wrk), Vec::<&str>::new(), "{wrk}");
    ensure!(servers[3].clients()?.len() > 10, "the new server got nothing: {wrk}");
    let answers = (0..8).map(|_| topology.client.fetch(&url)).collect::<Result<Vec<_>>>()?;
    for number in 1..=4 {
        let page = format!("Server {number}\n");
        assert_eq!(answers.iter().filter(|answer| **answer == page).count(), 2, "{answers:?}");
    }
    Ok(())
}

#[test]
fn a_service_without_servers_begins_to_work_with_the_first() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Brief)?;
    let _balancer = start(&topology, &[])?;
    for family in Family::ALL {
        let (service, backend) = (family.service(80), family.at(&topology.servers[0], 80));
        topology.lb(&["service", "add", &service.to_string()])?;
        topology.lb(&["backend", "add", &service.to_string(), &backend.to_string()])?;
        assert_eq!(Visit::begin(&topology.client, service)?.greeting.server, 1);
        topology.lb(&["service", "rm", &service.to_string()])?;
        let listed = json(&topology, &["service", "list"])?;
        assert_eq!(listed.as_array().map(Vec::len), Some(0));
        // Without a service, the port is the host's, and there nobody listens.
        let refused = Visit::begin(&topology.client, service).err().context("the service goes on")?;
        let reason = refused.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        assert_eq!(reason, Some(ErrorKind::ConnectionRefused), "{refused:#}");
    }
    Ok(())
}

#[test]
fn both_peers_of_a_removed_servers_connection_are_reset_at_once_though_they_only_listen() -> Result<()> {
    for topology in [Topology::two_arm(1)?, Topology::one_arm(1)?] {
        topology.attach_to_peers(&pass_object(&topology)?)?;
        let _balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
        for family in Family::ALL {
            let (to, backend) = (family.service(80), family.at(&topology.servers[0], 80));
            let listener = topology.servers[0].namespace.listen(backend)?;
            let mut peers = Vec::new();
            for _ in 0..3 {
                let client = topology.client.connect(to)?;
                let (server, _) = listener.accept()?;
                server.set_read_timeout(Some(PATIENCE))?;
                peers.extend([client, server]);
            }
            // What has been said before makes no difference to which numbers are expected.
            peers[0].write_all(b"hello")?;
            peers[1].read_exact(&mut [0; 5])?;
            let begin = Instant::now();
            topology.lb(&["backend", "rm", &to.to_string(), &backend.to_string()])?;
            for peer in &mut peers {
                let error = peer.read(&mut [0; 8]).err().context("no reset")?;
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{family:?}");
            }
            ensure!(begin.elapsed() < PATIENCE / 3, "{family:?}: only after {:?}", begin.elapsed());
        }
    }
    Ok(())
}

#[test]
fn a_udp_client_of_a_removed_server_comes_to_another() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let _servers = UdpEcho::on_all(&topology, 53)?;
    let _balancer = start(&topology, &both_families(&topology, 53, "udp"))?;
    for family in Family::ALL {
        let service = family.service(53);
        let socket = topology.client.udp(unspecified(service))?;
        let first = ask(&socket, service, b"one")?.server;
        let backend = family.at(&topology.servers[first - 1], 53);
        topology.lb(&["backend", "rm", &format!("{service}/udp"), &backend.to_string()])?;
        assert_eq!(ask(&socket, service, b"two")?.server, 3 - first, "{family:?}");
    }
    Ok(())
}
