//! Round robin through full NAT, whatever the network around the balancer looks like.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use lb_tests::balancer::Balancer;
use lb_tests::link;
use lb_tests::namespace::Namespace;
use lb_tests::topology::{Topology, VIP, VIP_V6};
use serde_json::Value;

use crate::support::{
    Family, Greeter, Make, Manners, Sockets as _, UdpEcho, Visit, ask, both_families, json, pass_object,
    service, start, unspecified,
};

/// Where the balancer stands, and how its program hangs on its interfaces.
const CASES: [(Make, &str); 4] = [
    (Topology::two_arm, "native"),
    (Topology::two_arm, "generic"),
    (Topology::one_arm, "native"),
    (Topology::one_arm, "generic"),
];

/// A topology with a balancer in that mode for a service over both families.
fn with_balancer(topology: Make, mode: &str, port: u16, protocol: &str) -> Result<(Topology, Balancer)> {
    let topology = topology(4)?;
    if mode == "native" {
        topology.attach_to_peers(&pass_object(&topology)?)?;
    }
    let mut args = both_families(&topology, port, protocol);
    args.extend(["--mode".to_owned(), mode.to_owned()]);
    let balancer = start(&topology, &args)?;
    let status = json(&topology, &["status"])?;
    for interface in status["interfaces"].as_array().into_iter().flatten() {
        assert_eq!(interface["mode"], mode);
    }
    Ok((topology, balancer))
}

#[test]
fn eight_requests_go_round_and_the_servers_see_only_the_vip() -> Result<()> {
    for (topology, mode) in CASES {
        let (topology, balancer) = with_balancer(topology, mode, 80, "tcp")?;
        let servers = topology.start_web_servers()?;
        for url in [format!("http://{VIP}/"), format!("http://[{VIP_V6}]/")] {
            let answers = (0..8).map(|_| topology.client.fetch(&url)).collect::<Result<Vec<_>>>()?;
            let expected: Vec<_> = (0..8).map(|turn| format!("Server {}\n", turn % 4 + 1)).collect();
            assert_eq!(answers, expected, "{mode} {url}");
        }
        for server in &servers {
            let (v4, v6) = (VIP.to_string(), VIP_V6.to_string());
            assert_eq!(server.clients()?, [v4.clone(), v4, v6.clone(), v6], "{mode}");
        }
        balancer.stop()?;
    }
    Ok(())
}

#[test]
fn udp_services_answer_in_turn_over_both_families() -> Result<()> {
    for (topology, mode) in CASES {
        let (topology, balancer) = with_balancer(topology, mode, 5353, "udp")?;
        let _servers = UdpEcho::on_all(&topology, 5353)?;
        for family in Family::ALL {
            let to = family.service(5353);
            // All at the same time: otherwise two might have the same port, and be one client.
            let sockets: Vec<_> =
                (0..8).map(|_| topology.client.udp(unspecified(to))).collect::<Result<_>>()?;
            for (turn, socket) in sockets.iter().enumerate() {
                // Of one socket, all datagrams go to one server: lengths odd, even, none and whole frames.
                for length in [0, 1, 2, 333, 1400] {
                    let greeting = ask(socket, to, &vec![b'x'; length])?;
                    assert_eq!(greeting.server, turn % 4 + 1, "{mode} {family:?} {length}");
                    assert_eq!(greeting.client.ip(), family.vip(), "{mode}");
                }
            }
        }
        balancer.stop()?;
    }
    Ok(())
}

#[test]
fn a_backend_has_a_port_of_its_own() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let (first, second) = (&topology.servers[0], &topology.servers[1]);
    let _greeters = [(first, 8080), (first, 9090), (second, 8080)]
        .map(|(server, port)| Greeter::start(&server.namespace, port.into(), port, Manners::Brief));
    for family in Family::ALL {
        let backends = [family.at(first, 8080), family.at(first, 9090), family.at(second, 8080)];
        let _balancer = start(&topology, &service(family.service(80), "tcp", backends))?;
        for port in [8080, 9090, 8080, 8080, 9090, 8080] {
            let visit = Visit::begin(&topology.client, family.service(80))?;
            assert_eq!(visit.greeting.server, port, "{family:?}");
            visit.end(Manners::Brief)?;
        }
    }
    Ok(())
}

#[test]
fn backends_may_be_behind_a_gateway() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let router = &topology.servers[0];
    let far = Namespace::new(topology.tag(), "far")?;
    link::veth((&router.namespace, "eth1"), (&far, "eth0"))?;
    for (end, address) in [
        ((&router.namespace, "eth1"), "172.16.0.254/24"),
        ((&router.namespace, "eth1"), "2001:db8:2::fe/64"),
        ((&far, "eth0"), "172.16.0.7/24"),
        ((&far, "eth0"), "2001:db8:2::7/64"),
    ] {
        link::address(end, address)?;
    }
    for (name, value) in [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")] {
        router.namespace.sysctl(name, value)?;
    }
    for (to, via) in [("172.16.0.0/24", router.ipv4.into()), ("2001:db8:2::/64", IpAddr::from(router.ipv6))] {
        link::route(&topology.balancer, to, &via.to_string())?;
    }
    for via in ["172.16.0.254", "2001:db8:2::fe"] {
        link::route(&far, "default", via)?;
    }
    let _greeters = [
        Greeter::start(&far, 7, 80, Manners::Echo)?,
        // The gateway itself may be a backend too.
        Greeter::start(&router.namespace, 1, 80, Manners::Echo)?,
    ];
    for (family, address) in [(Family::V4, "172.16.0.7:80"), (Family::V6, "[2001:db8:2::7]:80")] {
        let backends = [address.parse()?, family.at(router, 80)];
        let _balancer = start(&topology, &service(family.service(80), "tcp", backends))?;
        visits_reach(&topology, family, &[7, 1, 7, 1])?;
    }
    Ok(())
}

/// Visits the service once for each server expected, one after another; each must see the VIP as its client.
fn visits_reach(topology: &Topology, family: Family, servers: &[usize]) -> Result<()> {
    for expected in servers {
        let mut visit = Visit::begin(&topology.client, family.service(80))?;
        visit.say("hello")?;
        assert_eq!((visit.greeting.server, visit.greeting.client.ip()), (*expected, family.vip()));
        visit.end(Manners::Echo)?;
    }
    Ok(())
}

#[test]
fn backends_may_be_on_different_interfaces() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let near = Namespace::new(topology.tag(), "near")?;
    link::veth((&topology.balancer, "eth2"), (&near, "eth0"))?;
    for (end, address) in [
        ((&topology.balancer, "eth2"), "172.16.0.254/24"),
        ((&topology.balancer, "eth2"), "2001:db8:2::fe/64"),
        ((&near, "eth0"), "172.16.0.7/24"),
        ((&near, "eth0"), "2001:db8:2::7/64"),
    ] {
        link::address(end, address)?;
    }
    for via in ["172.16.0.254", "2001:db8:2::fe"] {
        link::route(&near, "default", via)?;
    }
    // The client is one of them: requests to it leave through the interface that they came in by.
    let _greeters = [
        Greeter::start(&topology.servers[0].namespace, 1, 80, Manners::Echo)?,
        Greeter::start(&near, 2, 80, Manners::Echo)?,
        Greeter::start(&topology.client, 3, 80, Manners::Echo)?,
    ];
    topology.attach_to_peers(&pass_object(&topology)?)?;
    for (family, near, beside_client) in [
        (Family::V4, "172.16.0.7:80", "10.10.10.2:80"),
        (Family::V6, "[2001:db8:2::7]:80", "[2001:db8:10::2]:80"),
    ] {
        let backends = [family.at(&topology.servers[0], 80), near.parse()?, beside_client.parse()?];
        let mut args = service(family.service(80), "tcp", backends);
        args.extend(["--iface".to_owned(), "eth2".to_owned()]);
        let _balancer = start(&topology, &args)?;
        visits_reach(&topology, family, &[1, 2, 3, 1, 2, 3])?;
    }
    Ok(())
}

#[test]
fn a_server_may_be_a_client_of_its_own_service() -> Result<()> {
    for topology in [Topology::two_arm, Topology::one_arm] {
        let topology = topology(2)?;
        topology.attach_to_peers(&pass_object(&topology)?)?;
        let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
        let _balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
        for family in Family::ALL {
            for expected in [1, 2, 1, 2] {
                let mut visit = Visit::begin(&topology.servers[0].namespace, family.service(80))?;
                visit.say("hello")?;
                assert_eq!(visit.greeting.server, expected);
                visit.end(Manners::Echo)?;
            }
        }
    }
    Ok(())
}

#[test]
fn sources_towards_backends_can_be_chosen() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Brief)?;
    for (family, snat) in [(Family::V4, "192.168.1.254"), (Family::V6, "2001:db8:1::fe")] {
        let mut args = service(family.service(80), "tcp", [family.at(&topology.servers[0], 80)]);
        args.extend(["--snat", snat, "--snat-ports", "2000-2003"].map(str::to_owned));
        let _balancer = start(&topology, &args)?;
        // More than there are ports, one after another: those of ended connections are used again.
        for _ in 0..12 {
            let visit = Visit::begin(&topology.client, family.service(80))?;
            let source = visit.greeting.client;
            assert_eq!(source.ip(), snat.parse::<IpAddr>()?);
            ensure!((2000..=2003).contains(&source.port()), "{source}");
            visit.end(Manners::Brief)?;
        }
    }
    Ok(())
}

#[test]
fn an_interface_is_used_in_native_mode_where_the_driver_can() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _balancer = start(&topology, &[])?;
    let status = json(&topology, &["status"])?;
    let modes: Vec<_> =
        status["interfaces"].as_array().into_iter().flatten().map(|link| &link["mode"]).collect();
    assert_eq!(modes, [&Value::from("native"), &Value::from("native")]);
    Ok(())
}

#[test]
fn where_native_frames_would_not_arrive_generic_mode_is_used_and_said() -> Result<()> {
    for topology in [Topology::two_arm, Topology::one_arm] {
        let topology = topology(2)?;
        for (namespace, device) in topology.peers() {
            // Now the peers neither poll nor have programs.
            namespace.run("ethtool", ["-K", device, "gro", "off"])?;
        }
        let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
        let mut balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
        let warnings = balancer.process().stderr();
        for interface in json(&topology, &["status"])?["interfaces"].as_array().into_iter().flatten() {
            assert_eq!(interface["mode"], "generic", "{warnings:?}");
        }
        ensure!(warnings.iter().any(|line| line.contains("generic")), "nothing is said: {warnings:?}");
        for family in Family::ALL {
            for expected in [1, 2, 1, 2] {
                let mut visit = Visit::begin(&topology.client, family.service(80))?;
                visit.say("hello")?;
                assert_eq!(visit.greeting.server, expected);
                visit.end(Manners::Echo)?;
            }
        }
    }
    Ok(())
}
