//! VLANs: clients and servers behind tags, which frames have in them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::leftovers::Tag;
use lb_tests::link::{self, End};
use lb_tests::namespace::Namespace;
use lb_tests::topology::{Topology, VIP, VIP_V6};

use crate::bulk;
use crate::support::{
    Family, Sockets as _, UdpEcho, ask, both_families, eventually, json, service, start, unspecified,
};

/// Protocol and number of each VLAN, the outermost first.
type Vlans = &'static [(&'static str, u16)];

/// The MTU of what two tags pass.
const WITH_TAGS: u32 = 1508;

/// More than one packet takes.
const LENGTH: usize = 100_000;

/// Puts an interface's addresses into a VLAN on it, and has it write tags into frames, as cables have them: on veth, the kernel hands
/// them on beside the frame, where XDP does not see them.
fn put_into(vlans: Vlans, (namespace, device): End<'_>, addresses: &[String]) -> Result<()> {
    if vlans.is_empty() {
        return Ok(());
    }
    namespace.run("ethtool", ["-K", device, "txvlan", "off", "tx-vlan-stag-hw-insert", "off"])?;
    namespace.ip(&format!("address flush dev {device} scope global"))?;
    // As cables have it: room for both tags.
    namespace.ip(&format!("link set dev {device} mtu {WITH_TAGS}"))?;
    let mut below = device.to_owned();
    for (protocol, number) in vlans {
        let name = format!("{below}.{number}");
        namespace
            .ip(&format!("link add link {below} name {name} type vlan protocol {protocol} id {number}"))?;
        namespace.ip(&format!("link set dev {name} up mtu 1500"))?;
        below = name;
    }
    addresses.iter().try_for_each(|address| link::address((namespace, &below), address))
}

/// Between clients and servers that are in those VLANs.
fn two_arm(clients: Vlans, servers: Vlans) -> Result<Topology> {
    let topology = Topology::two_arm(2)?;
    let of = |v4: &str, v6: &str| [format!("{v4}/24"), format!("{v6}/64")];
    put_into(clients, (&topology.client, "eth0"), &of("10.10.10.2", "2001:db8:10::2"))?;
    put_into(clients, (&topology.balancer, "eth0"), &of(&VIP.to_string(), &VIP_V6.to_string()))?;
    put_into(servers, (&topology.balancer, "eth1"), &of("192.168.1.254", "2001:db8:1::fe"))?;
    for server in &topology.servers {
        let end = (&server.namespace, "eth0");
        put_into(servers, end, &of(&server.ipv4.to_string(), &server.ipv6.to_string()))?;
        for (family, gateway) in [(4, "192.168.1.254"), (6, "2001:db8:1::fe")] {
            server.namespace.ip(&format!("-{family} route replace default via {gateway}"))?;
        }
    }
    for port in ["port-balancer", "port-1", "port-2", "br0"] {
        topology.switch.ip(&format!("link set dev {port} mtu {WITH_TAGS}"))?;
    }
    // Frames come out of the switch as they went in.
    for (namespace, device) in topology.peers() {
        namespace.run("ethtool", ["-K", device, "txvlan", "off", "tx-vlan-stag-hw-insert", "off"])?;
    }
    Ok(topology)
}

/// Datagrams in turn, fragments of one, and much through one connection, over both families.
fn serves(topology: &Topology, args: &[&str]) -> Result<()> {
    let _udp = UdpEcho::on_all(topology, 53)?;
    let mut services = both_families(topology, 53, "udp");
    for family in Family::ALL {
        services.extend(service(family.service(80), "tcp", [family.at(&topology.servers[0], 80)]));
    }
    services.extend(args.iter().map(|arg| (*arg).to_owned()));
    let _balancer = start(topology, &services)?;
    for family in Family::ALL {
        let to = family.service(53);
        for _ in 0..4 {
            let socket = topology.client.udp(unspecified(to))?;
            ask(&socket, to, b"a few bytes").with_context(|| format!("{family:?}"))?;
            ask(&socket, to, &[7; 1_900]).with_context(|| format!("{family:?}, in fragments"))?;
        }
        let listener = topology.servers[0].namespace.listen(family.at(&topology.servers[0], 80))?;
        bulk::both_directions(&topology.client, &listener, family, LENGTH)?;
    }
    let reasons = json(topology, &["stats"])?;
    for reason in ["malformed", "no-next-hop", "no-headroom", "too-big"] {
        let count = reasons["reasons"][reason].as_u64().context("no such reason")?;
        ensure!(count == 0, "{count} '{reason}'");
    }
    Ok(())
}

/// Whether this kernel has devices for VLANs. Not all that tests run on do; those of `cargo xtask vm-test` do.
fn has_vlans() -> Result<bool> {
    let tag = Tag::new()?;
    let namespace = Namespace::new(&tag, "any")?;
    // A loopback interface has none, which only a kernel says that knows what that is.
    let answer = namespace.ip("link add link lo name any type vlan id 1");
    let unknown = answer.is_err_and(|error| format!("{error:#}").contains("Unknown device type"));
    if unknown {
        println!("this kernel has no 802.1Q (CONFIG_VLAN_8021Q)");
    }
    Ok(!unknown)
}

#[test]
fn clients_and_servers_may_be_in_any_vlans() -> Result<()> {
    if !has_vlans()? {
        return Ok(());
    }
    const NONE: Vlans = &[];
    const CUSTOMER: Vlans = &[("802.1Q", 100)];
    const BOTH: Vlans = &[("802.1ad", 7), ("802.1Q", 200)];
    for (clients, servers, mode) in [
        (CUSTOMER, BOTH, "native"),
        (BOTH, NONE, "native"),
        (NONE, CUSTOMER, "native"),
        (CUSTOMER, CUSTOMER, "generic"),
        (BOTH, NONE, "generic"),
    ] {
        let topology = two_arm(clients, servers)?;
        serves(&topology, &["--mode", mode]).with_context(|| format!("{clients:?} {servers:?} {mode}"))?;
    }
    Ok(())
}

#[test]
fn a_vlan_that_comes_later_is_served_and_one_that_goes_is_not() -> Result<()> {
    if !has_vlans()? {
        return Ok(());
    }
    let topology = Topology::two_arm(1)?;
    let _udp = UdpEcho::on_all(&topology, 53)?;
    let balancer = start(&topology, &both_families(&topology, 53, "udp"))?;
    let to = Family::V4.service(53);
    for namespace in [&topology.client, &topology.balancer] {
        put_into(&[("802.1Q", 100)], (namespace, "eth0"), &[])?;
    }
    link::address((&topology.client, "eth0.100"), "10.10.10.2/24")?;
    link::address((&topology.balancer, "eth0.100"), "10.10.10.1/24")?;
    let socket = topology.client.udp(unspecified(to))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    eventually("datagrams are answered", || Ok(ask(&socket, to, b"hello").is_ok()))?;
    // In others it still is.
    topology.balancer.ip("link add link eth0 name eth0.101 type vlan id 101")?;
    topology.balancer.ip("link set dev eth0.101 up")?;
    topology.balancer.ip("link del eth0.100")?;
    // Nobody answers ARP there any more; the client is to send nevertheless.
    topology.client.ip("neigh replace 10.10.10.1 lladdr ff:ff:ff:ff:ff:ff dev eth0.100")?;
    eventually("datagrams pass", || {
        socket.send_to(b"hello", to)?;
        let counts = json(&topology, &["stats"])?;
        Ok(counts["reasons"]["other-vlan"].as_u64() > Some(0))
    })?;
    balancer.stop()
}
