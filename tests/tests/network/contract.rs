//! What scripts read: the JSON that the command line promises.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_tests::topology::Topology;
use serde_json::Value;

use crate::support::{
    Family, Greeter, Manners, Sockets as _, UdpEcho, Visit, ask, both_families, eventually, json, start,
    unspecified,
};

fn assert_keys(what: &str, value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "{what} has no {key}: {value}");
    }
}

fn list<'a>(what: &str, value: &'a Value) -> Result<&'a Vec<Value>> {
    value.as_array().with_context(|| format!("{what} is no list: {value}"))
}

/// The backends of all services, in their order.
fn backends(services: &Value) -> Result<Vec<&Value>> {
    let mut backends = Vec::new();
    for service in list("services", services)? {
        assert_keys("a service", service, &["address", "scheduler", "backends"]);
        for backend in list("backends", &service["backends"])? {
            let keys = ["address", "weight", "state", "connections", "packets", "bytes"];
            assert_keys("a backend", backend, &keys);
            backends.push(backend);
        }
    }
    Ok(backends)
}

#[test]
fn reading_commands_write_what_the_contract_says() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let _balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
    let status = json(&topology, &["status"])?;
    assert_keys("status", &status, &["interfaces", "services"]);
    let interfaces = list("interfaces", &status["interfaces"])?;
    let mut names: Vec<_> = interfaces.iter().filter_map(|interface| interface["name"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["eth0", "eth1"]);
    for (services, what) in [
        (&status["services"], "status"),
        (&json(&topology, &["service", "list"])?, "service list"),
        (&json(&topology, &["backend", "list"])?, "backend list"),
    ] {
        let addresses: Vec<_> = list(what, services)?.iter().map(|service| &service["address"]).collect();
        assert_eq!(addresses, ["10.10.10.1:80/tcp", "[2001:db8:10::1]:80/tcp"], "{what}");
        let backends = backends(services)?;
        let addresses: Vec<_> = backends.iter().map(|backend| &backend["address"]).collect();
        let expected = ["192.168.1.1:80", "192.168.1.2:80", "[2001:db8:1::1]:80", "[2001:db8:1::2]:80"];
        assert_eq!(addresses, expected, "{what}");
        for backend in backends {
            let (weight, state) = (backend["weight"].as_u64(), backend["state"].as_str());
            assert_eq!((weight, state), (Some(1), Some("up")), "{what}");
        }
    }
    let one = json(&topology, &["backend", "list", "[2001:db8:10::1]:80"])?;
    assert_eq!(backends(&one)?.len(), 2);
    let stats = json(&topology, &["stats"])?;
    let reasons = stats["reasons"].as_object().context("reasons are no object")?;
    ensure!(!reasons.is_empty() && reasons.values().all(Value::is_u64), "{stats}");
    assert_eq!(json(&topology, &["flows"])?, Value::Array(Vec::new()));
    Ok(())
}

#[test]
fn packets_and_bytes_are_those_of_a_known_exchange() -> Result<()> {
    // Whole frames: Ethernet, IP and UDP headers (RFC 894, 791, 8200, 768).
    const ETHERNET: u64 = 14;
    const UDP: u64 = 8;
    const DATAGRAMS: u64 = 5;
    const REQUEST: u64 = 100;
    let topology = Topology::two_arm(1)?;
    let _servers = UdpEcho::on_all(&topology, 53)?;
    let _balancer = start(&topology, &both_families(&topology, 53, "udp"))?;
    for (place, family, ip) in [(0, Family::V4, 20), (1, Family::V6, 40)] {
        let to = family.service(53);
        let socket = topology.client.udp(unspecified(to))?;
        let mut reply = 0;
        for _ in 0..DATAGRAMS {
            let greeting = ask(&socket, to, &vec![b'x'; usize::try_from(REQUEST)?])?;
            reply = format!("1 {}\n", greeting.client).len() as u64 + REQUEST;
        }
        let status = json(&topology, &["status"])?;
        let backend = backends(&status["services"])?.into_iter().nth(place).context("no backend")?.clone();
        let headers = 2 * (ETHERNET + ip + UDP);
        assert_eq!(backend["packets"], 2 * DATAGRAMS, "{family:?}");
        assert_eq!(backend["bytes"], DATAGRAMS * (headers + REQUEST + reply), "{family:?}");
        assert_eq!(backend["connections"], 1, "{family:?}");
    }
    let stats = json(&topology, &["stats"])?;
    assert_eq!(stats["reasons"]["forwarded"], 2 * 2 * DATAGRAMS, "{stats}");
    Ok(())
}

#[test]
fn connections_are_counted_while_they_last() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    let _balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
    let count = || -> Result<u64> {
        let status = json(&topology, &["status"])?;
        backends(&status["services"])?
            .iter()
            .map(|backend| backend["connections"].as_u64().context("connections are no number"))
            .sum()
    };
    let visits: Vec<_> = Family::ALL
        .into_iter()
        .cycle()
        .take(6)
        .map(|family| Visit::begin(&topology.client, family.service(80)))
        .collect::<Result<_>>()?;
    assert_eq!(count()?, 6);
    visits.into_iter().try_for_each(|visit| visit.end(Manners::Echo))?;
    eventually("ended connections are not counted", || Ok(count()? == 0))?;
    Ok(())
}

#[test]
fn flows_are_listed_and_filtered() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    let _udp = UdpEcho::on_all(&topology, 80)?;
    let mut args = both_families(&topology, 80, "tcp");
    args.extend(both_families(&topology, 80, "udp"));
    let _balancer = start(&topology, &args)?;
    lb_tests::link::address((&topology.client, "eth0"), "10.10.10.3/24")?;

    // One of each kind; from the second address, one more over TCP.
    let clients = [
        (Family::V4, "10.10.10.2:41000".parse::<SocketAddr>()?),
        (Family::V6, "[2001:db8:10::2]:41000".parse()?),
        (Family::V4, "10.10.10.3:41000".parse()?),
    ];
    let mut visits = Vec::new();
    for (family, client) in clients {
        let stream = topology.client.connect_from(client, family.service(80))?;
        visits.push((client, family, Visit::over(stream)?));
    }
    for (_, family, client) in clients.iter().take(2).map(|(family, client)| ((), family, client)) {
        ask(&topology.client.udp(*client)?, family.service(80), b"hello")?;
    }

    let flows = json(&topology, &["flows"])?;
    let flows = list("flows", &flows)?;
    assert_eq!(flows.len(), 5);
    for flow in flows {
        assert_keys(
            "a flow",
            flow,
            &["protocol", "client", "service", "snat", "backend", "state", "idle_seconds"],
        );
    }
    for (client, family, visit) in &visits {
        let flow = flows
            .iter()
            .find(|flow| flow["client"] == client.to_string() && flow["protocol"] == "tcp")
            .with_context(|| format!("no flow of {client}"))?;
        let server = &topology.servers[visit.greeting.server - 1];
        assert_eq!(flow["service"], format!("{}/tcp", family.service(80)));
        assert_eq!(flow["backend"], family.at(server, 80).to_string());
        assert_eq!(flow["snat"], visit.greeting.client.to_string(), "what the server sees");
        ensure!(flow["idle_seconds"].as_u64().is_some_and(|seconds| seconds < 60), "{flow}");
    }
    for (filter, count) in [
        (&["--service", "10.10.10.1:80"][..], 2),
        (&["--service", "10.10.10.1:80/udp"], 1),
        (&["--service", "[2001:db8:10::1]:80/tcp"], 1),
        (&["--client", "10.10.10.2"], 2),
        (&["--client", "10.10.10.3"], 1),
        (&["--client", "2001:db8:10::2"], 2),
        (&["--client", "10.10.10.9"], 0),
        // Each service begins at its first backend.
        (&["--backend", "192.168.1.1:80"], 2),
        (&["--backend", "192.168.1.2:80"], 1),
        (&["--backend", "192.168.1.2:80", "--client", "10.10.10.2"], 0),
    ] {
        let filtered = json(&topology, &[&["flows"], filter].concat())?;
        assert_eq!(list("flows", &filtered)?.len(), count, "{filter:?}: {filtered}");
    }
    Ok(())
}

#[test]
fn what_was_refused_is_counted_under_its_reason() -> Result<()> {
    let topology = Topology::two_arm(0)?;
    let _balancer = start(&topology, &both_families(&topology, 53, "udp"))?;
    let to = Family::V4.service(53);
    let socket = topology.client.udp(unspecified(to))?;
    for _ in 0..7 {
        socket.send_to(b"anybody?", to)?;
    }
    eventually("all are counted", || Ok(json(&topology, &["stats"])?["reasons"]["no-backend"] == 7))?;
    Ok(())
}
