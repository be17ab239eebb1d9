//! What is not for a service goes on as if there were no balancer on the interface.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use lb_tests::balancer::Balancer;
use lb_tests::namespace::Namespace;
use lb_tests::topology::Topology;
use socket2::SockRef;

use crate::support::{
    Family, Greeter, Manners, Sockets as _, UdpEcho, Visit, ask, both_families, start, unspecified,
    xdp_program,
};

const MODES: [&str; 2] = ["native", "generic"];

fn with_balancer(mode: &str) -> Result<(Topology, Balancer)> {
    let topology = Topology::two_arm(1)?;
    let mut args = both_families(&topology, 80, "tcp");
    args.extend(both_families(&topology, 80, "udp"));
    args.extend(["--mode".to_owned(), mode.to_owned()]);
    let balancer = start(&topology, &args)?;
    ensure!(xdp_program(&topology.balancer, "eth0")?.is_some());
    Ok((topology, balancer))
}

/// An address of a client and of a server as the balancer's host sees them, of both families.
fn neighbours(topology: &Topology) -> [(&Namespace, String); 4] {
    let server = &topology.servers[0];
    [
        (&topology.client, "10.10.10.2".to_owned()),
        (&topology.client, "2001:db8:10::2".to_owned()),
        (&server.namespace, server.ipv4.to_string()),
        (&server.namespace, server.ipv6.to_string()),
    ]
}

fn ping(from: &Namespace, to: &str, size: usize) -> Result<()> {
    let size = size.to_string();
    from.run("ping", ["-c", "3", "-i", "0.05", "-W", "3", "-s", &size, to]).map(drop)
}

#[test]
fn pings_of_all_sizes_pass_to_and_from_the_host() -> Result<()> {
    for mode in MODES {
        let (topology, _balancer) = with_balancer(mode)?;
        // One byte, the default, a full frame, and fragments.
        for size in [1, 56, 1_452, 8_000] {
            for (neighbour, address) in neighbours(&topology) {
                let family = if address.contains(':') { Family::V6 } else { Family::V4 };
                ping(neighbour, &family.vip().to_string(), size)?;
                ping(&topology.balancer, &address, size)?;
            }
        }
    }
    Ok(())
}

#[test]
fn addresses_are_resolved_from_scratch() -> Result<()> {
    for mode in MODES {
        let (topology, _balancer) = with_balancer(mode)?;
        for (neighbour, address) in neighbours(&topology) {
            let family = if address.contains(':') { Family::V6 } else { Family::V4 };
            for (from, to) in [(neighbour, family.vip().to_string()), (&topology.balancer, address.clone())] {
                for namespace in [neighbour, &topology.balancer] {
                    namespace.ip("-4 neighbour flush all")?;
                    namespace.ip("-6 neighbour flush all")?;
                }
                ping(from, &to, 56).with_context(|| format!("{mode} {to}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn other_tcp_ports_of_the_vip_are_the_hosts_own() -> Result<()> {
    for mode in MODES {
        let (topology, _balancer) = with_balancer(mode)?;
        let _ssh = Greeter::start(&topology.balancer, 22, 22, Manners::Echo)?;
        for (neighbour, address) in neighbours(&topology) {
            let family = if address.contains(':') { Family::V6 } else { Family::V4 };
            let mut session = Visit::begin(neighbour, family.service(22))?;
            assert_eq!(session.greeting.client.ip(), address.parse::<std::net::IpAddr>()?);
            for length in [1, 1_000, 3_000] {
                session.say(&"x".repeat(length))?;
            }
            session.end(Manners::Echo)?;
        }
    }
    Ok(())
}

#[test]
fn the_hosts_own_connections_leave_and_return() -> Result<()> {
    for mode in MODES {
        let (topology, _balancer) = with_balancer(mode)?;
        // Port 80 too: the backends' own port, which the host may speak to directly, for health checks say.
        let _listening =
            [(&topology.client, 5000), (&topology.client, 80), (&topology.servers[0].namespace, 80)]
                .map(|(namespace, port)| Greeter::start(namespace, port.into(), port, Manners::Echo));
        let server = &topology.servers[0];
        for to in [
            "10.10.10.2:5000".parse()?,
            "10.10.10.2:80".parse()?,
            "[2001:db8:10::2]:5000".parse()?,
            "[2001:db8:10::2]:80".parse()?,
            Family::V4.at(server, 80),
            Family::V6.at(server, 80),
        ] {
            let mut session = Visit::begin(&topology.balancer, to)?;
            session.say(&"x".repeat(3_000))?;
            session.end(Manners::Echo)?;
        }
    }
    Ok(())
}

#[test]
fn other_udp_passes_both_ways() -> Result<()> {
    for mode in MODES {
        let (topology, _balancer) = with_balancer(mode)?;
        let _host = UdpEcho::start(&topology.balancer, 9, 53)?;
        let _client = UdpEcho::start(&topology.client, 8, 53)?;
        for (from, to, server) in [
            (&topology.client, Family::V4.service(53), 9),
            (&topology.client, Family::V6.service(53), 9),
            (&topology.balancer, "10.10.10.2:53".parse()?, 8),
            (&topology.balancer, "[2001:db8:10::2]:53".parse()?, 8),
        ] {
            let socket = from.udp(unspecified(to))?;
            // The last one travels in fragments.
            for length in [0, 1, 1_400, 20_000] {
                assert_eq!(ask(&socket, to, &vec![b'x'; length])?.server, server, "{mode} {to} {length}");
            }
        }
    }
    Ok(())
}

/// A socket on one device, like those of DHCP clients and servers.
fn broadcaster(namespace: &Namespace, port: u16) -> Result<UdpSocket> {
    let socket = namespace.udp((Ipv4Addr::UNSPECIFIED, port).into())?;
    socket.set_broadcast(true)?;
    SockRef::from(&socket).bind_device(Some(b"eth0"))?;
    Ok(socket)
}

fn broadcaster_v6(namespace: &Namespace, port: u16) -> Result<UdpSocket> {
    let socket = namespace.udp((Ipv6Addr::UNSPECIFIED, port).into())?;
    SockRef::from(&socket).bind_device(Some(b"eth0"))?;
    Ok(socket)
}

fn receives(socket: &UdpSocket, text: &[u8]) -> Result<SocketAddr> {
    let mut buffer = [0; 1_500];
    let (length, from) = socket.recv_from(&mut buffer)?;
    ensure!(buffer.get(..length) == Some(text));
    Ok(from)
}

#[test]
fn broadcasts_of_dhcp_and_multicasts_pass() -> Result<()> {
    for mode in MODES {
        let (topology, _balancer) = with_balancer(mode)?;
        let (client, server) = (broadcaster(&topology.client, 68)?, broadcaster(&topology.balancer, 67)?);
        client.send_to(b"discover", (Ipv4Addr::BROADCAST, 67))?;
        assert_eq!(receives(&server, b"discover")?.port(), 68, "{mode}");
        server.send_to(b"offer", (Ipv4Addr::BROADCAST, 68))?;
        assert_eq!(receives(&client, b"offer")?.port(), 67, "{mode}");

        let group = Ipv4Addr::new(224, 0, 0, 251);
        let member = broadcaster(&topology.balancer, 5353)?;
        SockRef::from(&member).join_multicast_v4(&group, &Ipv4Addr::new(10, 10, 10, 1))?;
        client.send_to(b"who is there", (group, 5353))?;
        receives(&member, b"who is there").with_context(|| format!("{mode} {group}"))?;

        // Every host is a member of that one.
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let (member, sender) =
            (broadcaster_v6(&topology.balancer, 5354)?, broadcaster_v6(&topology.client, 0)?);
        sender.send_to(b"who is there", (group, 5354))?;
        receives(&member, b"who is there").with_context(|| format!("{mode} {group}"))?;
    }
    Ok(())
}

#[test]
fn datagrams_to_a_services_port_at_another_address_are_the_hosts_own() -> Result<()> {
    let (topology, _balancer) = with_balancer("native")?;
    let _host = UdpEcho::start(&topology.balancer, 9, 80)?;
    let server = &topology.servers[0].namespace;
    for to in ["192.168.1.254:80", "[2001:db8:1::fe]:80"] {
        let to = to.parse()?;
        let socket = server.udp(unspecified(to))?;
        assert_eq!(ask(&socket, to, b"hello")?.server, 9, "{to}");
    }
    Ok(())
}
