//! Many services, many backends.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lb_tests::topology::Topology;

use crate::support::{Family, Greeter, Manners, Visit, json, service, start};

const MANY: u16 = 1_000;

#[test]
fn a_thousand_services_all_work() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Brief)?;
    let family = Family::V4;
    let backend = family.at(&topology.servers[0], 80);
    let args: Vec<_> =
        (0..MANY).flat_map(|number| service(family.service(10_000 + number), "tcp", [backend])).collect();
    let begin = Instant::now();
    let _balancer = start(&topology, &args)?;
    println!("{MANY} services: ready after {:.2} s", begin.elapsed().as_secs_f64());
    for number in 0..MANY {
        let visit = Visit::begin(&topology.client, family.service(10_000 + number))
            .with_context(|| format!("service {number}"))?;
        visit.end(Manners::Brief)?;
    }
    assert_eq!(json(&topology, &["service", "list"])?.as_array().map(Vec::len), Some(MANY.into()));
    Ok(())
}

#[test]
fn a_thousand_backends_take_turns() -> Result<()> {
    let topology = Topology::two_arm(4)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Brief)?;
    let mut backends = Vec::new();
    for number in 0..MANY {
        let server = &topology.servers[usize::from(number) % topology.servers.len()];
        // 192.168.1.1-4 are the servers' first addresses.
        let address =
            IpAddr::from([192, 168, 4 + u8::try_from(number / 250)?, 1 + u8::try_from(number % 250)?]);
        backends.push(SocketAddr::new(address, 80));
        // An address for all of them is one command; each is reached through its server.
        topology.balancer.ip(&format!("route add {address} via {}", server.ipv4))?;
    }
    for server in &topology.servers {
        // Whatever comes for these networks is the server's own: AnyIP.
        server.namespace.ip("route add local 192.168.4.0/22 dev lo")?;
    }
    let begin = Instant::now();
    let _balancer = start(&topology, &service(Family::V4.service(80), "tcp", backends))?;
    println!("{MANY} backends: ready after {:.2} s", begin.elapsed().as_secs_f64());
    let mut shares = [0; 4];
    for number in 0..MANY {
        let visit = Visit::begin(&topology.client, Family::V4.service(80))
            .with_context(|| format!("connection {number}"))?;
        *shares.get_mut(visit.greeting.server - 1).context("an unknown server")? += 1;
        visit.end(Manners::Brief)?;
    }
    assert_eq!(shares, [250; 4]);
    let status = json(&topology, &["status"])?;
    let totals = status["services"][0]["backends"].as_array().context("no backends")?;
    ensure!(totals.iter().all(|backend| backend["connections_total"] == 1), "not one connection each");
    Ok(())
}
