//! What lies between the balancer and both ends: routers that count hops, links that take only small packets.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_tests::balancer::Balancer;
use lb_tests::link;
use lb_tests::namespace::Namespace;
use lb_tests::topology::Topology;

use crate::bulk;
use crate::support::{
    Family, Greeter, Manners, Sockets as _, UdpEcho, both_families, eventually, json, service, start,
    unspecified,
};

/// What is sent over a path in each direction.
const LENGTH: usize = 10_000_000;

/// A narrow link's MTU: the smallest that IPv6 allows.
const NARROW: u16 = 1280;

/// How many packets had that reason.
fn count(topology: &Topology, reason: &str) -> Result<u64> {
    json(topology, &["stats"])?["reasons"][reason].as_u64().context("no such reason")
}

/// The hops that traceroute shows, without names: the addresses in the order of the lines.
fn hops(topology: &Topology, family: Family, args: &[&str]) -> Result<Vec<IpAddr>> {
    let to = family.vip().to_string();
    let version = if family == Family::V4 { "-4" } else { "-6" };
    let args: Vec<_> = [version, "-n", "-q", "1", "-w", "3", "-m", "5"].iter().chain(args).copied().collect();
    let shown = topology.client.run("traceroute", args.iter().copied().chain([to.as_str()]))?;
    println!("{shown}");
    let hop = |line: &str| line.split_whitespace().nth(1)?.parse().ok();
    Ok(shown.lines().skip(1).filter_map(hop).collect())
}

#[test]
fn traceroute_shows_the_balancer_and_then_the_server() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _tcp = Greeter::on_all(&topology, 80, Manners::Echo)?;
    let _udp = UdpEcho::on_all(&topology, 80)?;
    let mut args = both_families(&topology, 80, "tcp");
    args.extend(both_families(&topology, 80, "udp"));
    // Nobody is there.
    args.extend(both_families(&topology, 81, "udp"));
    let _balancer = start(&topology, &args)?;
    for family in Family::ALL {
        // The server is seen as the VIP: from there its answers come, and its errors.
        let vip = [family.vip(); 2];
        for args in [["-T", "-p", "80"], ["-U", "-p", "80"], ["-U", "-p", "81"]] {
            ensure!(hops(&topology, family, &args)? == vip, "{family:?} {args:?}");
        }
    }
    ensure!(count(&topology, "ttl-expired")? == 6, "the first hop is asked for once each time");
    // It asks for several hops at once.
    ensure!(count(&topology, "icmp-forwarded")? >= 2, "port 81 is unreachable");
    Ok(())
}

#[test]
fn a_datagram_to_a_closed_port_is_refused() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _balancer = start(&topology, &both_families(&topology, 81, "udp"))?;
    for family in Family::ALL {
        let to = family.service(81);
        let socket = topology.client.udp(unspecified(to))?;
        socket.connect(to)?;
        socket.send(b"anybody there?")?;
        let refused = socket.recv(&mut [0; 64]).expect_err("nobody answers");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{family:?}");
    }
    Ok(())
}

/// Namespaces behind the topology's own: a client and a server, each behind a router and a link.
///
/// ```text
/// far client ---- near router ---- balancer ---- switch ---- server 1, a router ---- far server
///   172.16.1.2   (topology.client)                                              172.16.2.2
/// ```
struct Far {
    client: Namespace,
    server: Namespace,
    topology: Topology,
}

impl Far {
    fn new() -> Result<Self> {
        let topology = Topology::two_arm(1)?;
        let client = Namespace::new(topology.tag(), "farclient")?;
        let server = Namespace::new(topology.tag(), "farserver")?;
        for (router, far, network) in
            [(&topology.client, &client, 1), (&topology.servers[0].namespace, &server, 2)]
        {
            for (name, value) in [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")] {
                router.sysctl(name, value)?;
            }
            link::veth((router, "eth1"), (far, "eth0"))?;
            for (end, host) in [((router, "eth1"), 1), ((far, "eth0"), 2)] {
                link::address(end, &format!("172.16.{network}.{host}/24"))?;
                link::address(end, &format!("2001:db8:2:{network}::{host}/64"))?;
            }
            link::route(far, "default", &format!("172.16.{network}.1"))?;
            link::route(far, "default", &format!("2001:db8:2:{network}::1"))?;
        }
        let server_router = &topology.servers[0];
        link::route(&topology.balancer, "172.16.2.0/24", &server_router.ipv4.to_string())?;
        link::route(&topology.balancer, "2001:db8:2:2::/64", &server_router.ipv6.to_string())?;
        Ok(Self { client, server, topology })
    }

    fn start(&self) -> Result<Balancer> {
        let mut args = Vec::new();
        for protocol in ["tcp", "udp"] {
            args.extend(service(Family::V4.service(80), protocol, ["172.16.2.2:80".parse()?]));
            args.extend(service(Family::V6.service(80), protocol, ["[2001:db8:2:2::2]:80".parse()?]));
        }
        start(&self.topology, &args)
    }

    /// Sends much each way through a connection; says how many packets meanwhile had that reason.
    fn transfer(&self, family: Family, reason: &str) -> Result<u64> {
        let before = count(&self.topology, reason)?;
        let listener = self.server.listen(family.backend(80))?;
        bulk::both_directions(&self.client, &listener, family, LENGTH)
            .with_context(|| format!("{family:?}"))?;
        Ok(count(&self.topology, reason)? - before)
    }

    /// Checks that much passes each way over each family, though packets at first are too large, with that reason.
    fn adapts(&self, reason: &str) -> Result<()> {
        for family in Family::ALL {
            ensure!(self.transfer(family, reason)? > 0, "{family:?}: nothing was too large");
        }
        Ok(())
    }

    /// Checks that much passes each way over each family now, with nothing too large, and also after a change.
    fn adapts_to(&self, change: impl FnOnce(&Topology) -> Result<()>) -> Result<()> {
        for family in Family::ALL {
            ensure!(self.transfer(family, "too-big")? == 0, "{family:?}: something was too large");
        }
        change(&self.topology)?;
        for family in Family::ALL {
            eventually("they are told", || Ok(self.transfer(family, "too-big")? > 0))?;
        }
        Ok(())
    }
}

impl Family {
    /// Where the far server listens.
    fn backend(self, port: u16) -> SocketAddr {
        let ip = match self {
            Self::V4 => IpAddr::from([172, 16, 2, 2]),
            Self::V6 => IpAddr::from([0x2001, 0xdb8, 2, 2, 0, 0, 0, 2]),
        };
        SocketAddr::new(ip, port)
    }
}

/// Lets a router, or the balancer, send only small packets to the networks that these routes lead to. Only that way: an
/// interface with a small MTU would also not take what is larger.
fn narrow(router: &Namespace, routes: [&str; 2]) -> Result<()> {
    let [v4, v6] = routes;
    router.ip(&format!("-4 route replace {v4} mtu {NARROW}"))?;
    // The kernel's own routes to an interface's network have a metric in IPv6, and so are not replaced.
    router.ip(&format!("-6 route replace {v6} mtu {NARROW} metric 128")).map(drop)
}

#[test]
fn a_narrow_link_behind_the_servers_router_is_found_out() -> Result<()> {
    let far = Far::new()?;
    narrow(&far.topology.servers[0].namespace, ["172.16.2.0/24 dev eth1", "2001:db8:2:2::/64 dev eth1"])?;
    let _balancer = far.start()?;
    far.adapts("icmp-forwarded")
}

#[test]
fn a_narrow_link_behind_the_clients_router_is_found_out() -> Result<()> {
    let far = Far::new()?;
    narrow(&far.topology.client, ["172.16.1.0/24 dev eth1", "2001:db8:2:1::/64 dev eth1"])?;
    let _balancer = far.start()?;
    far.adapts("icmp-forwarded")
}

#[test]
fn a_narrow_route_from_the_balancer_to_a_server_is_told_to_clients() -> Result<()> {
    let far = Far::new()?;
    let balancer = &far.topology.balancer;
    narrow(balancer, ["172.16.2.0/24 via 192.168.1.1", "2001:db8:2:2::/64 via 2001:db8:1::1"])?;
    let _balancer = far.start()?;
    far.adapts("too-big")
}

#[test]
fn a_route_that_becomes_narrow_is_told_to_clients_on_the_way() -> Result<()> {
    let far = Far::new()?;
    let _balancer = far.start()?;
    far.adapts_to(|topology| {
        narrow(&topology.balancer, ["172.16.2.0/24 via 192.168.1.1", "2001:db8:2:2::/64 via 2001:db8:1::1"])
    })
}

#[test]
fn an_interface_towards_clients_that_becomes_narrow_is_told_to_servers() -> Result<()> {
    let far = Far::new()?;
    let _balancer = far.start()?;
    far.adapts_to(|topology| {
        // What comes in is not to be larger either: a veth would throw it away.
        narrow(&topology.client, ["10.10.10.0/24 dev eth0", "2001:db8:10::/64 dev eth0"])?;
        topology.balancer.ip(&format!("link set dev eth0 mtu {NARROW}")).map(drop)
    })
}
