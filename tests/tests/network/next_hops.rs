//! The network around the balancer changes while it runs.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_tests::link;
use lb_tests::namespace::Namespace;
use lb_tests::topology::Topology;

use crate::support::{
    Family, Greeter, Make, Manners, Visit, both_families, eventually, pass_object, service, start,
};

/// Whether a connection is made soon; the kernel's own first repetition of a SYN comes after a second.
fn connects(topology: &Topology, family: Family) -> Result<bool> {
    let socket = {
        let _inside = topology.client.enter()?;
        socket2::Socket::new(socket2::Domain::for_address(family.service(80)), socket2::Type::STREAM, None)?
    };
    Ok(socket.connect_timeout(&family.service(80).into(), Duration::from_millis(500)).is_ok())
}

#[test]
fn a_backend_whose_host_appears_late_is_found() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let late = &topology.servers[0];
    late.namespace.ip("link set dev eth0 down")?;
    let _balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
    assert!(!connects(&topology, Family::V4)?);
    late.namespace.ip("link set dev eth0 up")?;
    // Going down, an interface loses its IPv6 addresses and all routes.
    link::address((&late.namespace, "eth0"), &format!("{}/64", late.ipv6))?;
    for via in ["192.168.1.254", "2001:db8:1::fe"] {
        link::route(&late.namespace, "default", via)?;
    }
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    for family in Family::ALL {
        let waited = eventually("the backend is found", || connects(&topology, family))?;
        ensure!(waited < Duration::from_secs(8), "{family:?}: only after {waited:?}");
    }
    Ok(())
}

#[test]
fn a_backend_added_before_its_host_appears_is_found() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let server = &topology.servers[0];
    let _balancer = start(&topology, &[])?;
    for (family, address) in [(Family::V4, "192.168.1.77"), (Family::V6, "2001:db8:1::77")] {
        let (service, address) = (family.service(80).to_string(), address.parse::<IpAddr>()?);
        let backend = std::net::SocketAddr::new(address, 80).to_string();
        topology.lb(&["service", "add", &service])?;
        topology.lb(&["backend", "add", &service, &backend])?;
        assert!(!connects(&topology, family)?);
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        link::address((&server.namespace, "eth0"), &format!("{address}/{prefix}"))?;
    }
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    for family in Family::ALL {
        eventually("the backend is found", || connects(&topology, family))?;
    }
    Ok(())
}

/// Two connections that talk, over both families.
fn visits(topology: &Topology) -> Result<Vec<Visit>> {
    Family::ALL.into_iter().map(|family| Visit::begin(&topology.client, family.service(80))).collect()
}

/// Gives an interface another MAC address, as a host that is replaced has.
fn change_mac(namespace: &Namespace, mac: &str) -> Result<()> {
    namespace.ip(&format!("link set dev eth0 address {mac}")).map(drop)
}

#[test]
fn connections_survive_a_backend_that_announces_a_new_mac_address() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    let server = &topology.servers[0].namespace;
    for notify in ["net/ipv4/conf/eth0/arp_notify", "net/ipv6/conf/eth0/ndisc_notify"] {
        server.sysctl(notify, "1")?;
    }
    // The kernel would not believe two announcements within a second.
    topology.balancer.sysctl("net/ipv4/neigh/eth1/locktime", "0")?;
    let _balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
    let mut visits = visits(&topology)?;
    for mac in ["02:00:00:00:00:01", "02:00:00:00:00:02"] {
        change_mac(server, mac)?;
        for visit in &mut visits {
            let begin = Instant::now();
            visit.say(&format!("to {mac}"))?;
            ensure!(begin.elapsed() < Duration::from_secs(3), "only after {:?}", begin.elapsed());
        }
    }
    Ok(())
}

#[test]
fn a_backend_that_changes_its_mac_address_silently_is_found_again() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    // The kernel takes a neighbour for reachable for 15 to 45 s, and goes on for 5 s more before it asks. Not here.
    for family in ["ipv4", "ipv6"] {
        for (name, value) in [("base_reachable_time_ms", "1000"), ("delay_first_probe_time", "1")] {
            topology.balancer.sysctl(&format!("net/{family}/neigh/eth1/{name}"), value)?;
        }
    }
    let _balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
    let mut visits = visits(&topology)?;
    change_mac(&topology.servers[0].namespace, "02:00:00:00:00:01")?;
    for family in Family::ALL {
        // Nobody tells the balancer: it notices when it asks again.
        let waited = eventually("the backend is found again", || connects(&topology, family))?;
        println!("{family:?}: found again after {waited:?}");
    }
    visits.iter_mut().try_for_each(|visit| visit.say("still here"))
}

#[test]
fn connections_survive_a_client_with_a_new_mac_address() -> Result<()> {
    for (topology, arms) in [(Topology::two_arm as Make, 2), (Topology::one_arm, 1)] {
        let topology = topology(1)?;
        topology.attach_to_peers(&pass_object(&topology)?)?;
        let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
        let _balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
        let mut visits = visits(&topology)?;
        change_mac(&topology.client, "02:00:00:00:00:03")?;
        for visit in &mut visits {
            visit.say(&format!("from another address, {arms} arms"))?;
        }
    }
    Ok(())
}

#[test]
fn connections_survive_a_route_that_moves_to_another_gateway() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    // Two routers, the servers of the topology, lead to one host.
    let far = Namespace::new(topology.tag(), "far")?;
    link::address((&far, "lo"), "172.16.0.7/32")?;
    link::address((&far, "lo"), "2001:db8:2::7/128")?;
    for (device, router) in ["eth1", "eth2"].into_iter().zip(&topology.servers) {
        let (number, inside) = (router.number, &router.namespace);
        link::veth((inside, "eth1"), (&far, device))?;
        for (name, value) in [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")] {
            inside.sysctl(name, value)?;
        }
        for (end, host) in [((inside, "eth1"), 1), ((&far, device), 7)] {
            link::address(end, &format!("172.16.{number}.{host}/24"))?;
            link::address(end, &format!("2001:db8:2:{number}::{host}/64"))?;
        }
        link::route(inside, "172.16.0.7/32", &format!("172.16.{number}.7"))?;
        link::route(inside, "2001:db8:2::7/128", &format!("2001:db8:2:{number}::7"))?;
    }
    link::route(&far, "default", "172.16.1.1")?;
    link::route(&far, "default", "2001:db8:2:1::1")?;
    let towards = |verb: &str, gateway: usize| -> Result<()> {
        let router = &topology.servers[gateway];
        topology.balancer.ip(&format!("route {verb} 172.16.0.7/32 via {}", router.ipv4))?;
        topology.balancer.ip(&format!("-6 route {verb} 2001:db8:2::7/128 via {}", router.ipv6))?;
        Ok(())
    };
    towards("add", 0)?;
    let _greeter = Greeter::start(&far, 7, 80, Manners::Echo)?;
    let mut args = service(Family::V4.service(80), "tcp", ["172.16.0.7:80".parse()?]);
    args.extend(service(Family::V6.service(80), "tcp", ["[2001:db8:2::7]:80".parse()?]));
    let _balancer = start(&topology, &args)?;
    let mut visits = visits(&topology)?;
    for visit in &mut visits {
        visit.say("through the first gateway")?;
    }
    towards("replace", 1)?;
    // The first one is no way any more; answers keep coming back through it.
    for (name, value) in [("net/ipv4/ip_forward", "0"), ("net/ipv6/conf/all/forwarding", "0")] {
        topology.servers[0].namespace.sysctl(name, value)?;
    }
    link::route(&far, "192.168.1.0/24", "172.16.2.1")?;
    far.ip("route replace default via 172.16.2.1")?;
    far.ip("-6 route replace default via 2001:db8:2:2::1")?;
    for visit in &mut visits {
        visit.say("through the second gateway")?;
    }
    for family in Family::ALL {
        eventually("new connections work", || connects(&topology, family))?;
    }
    Ok(())
}

#[test]
fn next_hops_stay_known_without_traffic() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _greeters = Greeter::on_all(&topology, 80, Manners::Echo)?;
    let _balancer = start(&topology, &both_families(&topology, 80, "tcp"))?;
    topology.balancer.ip("-4 neighbour flush all")?;
    topology.balancer.ip("-6 neighbour flush all")?;
    for family in Family::ALL {
        eventually("the next hop is known again", || connects(&topology, family))?;
    }
    Ok(())
}
