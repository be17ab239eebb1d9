//! Cables and switches between namespaces.

use std::path::Path;

use anyhow::Result;

use crate::namespace::Namespace;

/// The end of a cable: an interface in a namespace.
pub type End<'a> = (&'a Namespace, &'a str);

/// Connects two namespaces by a pair of veth interfaces, both up. They never appear on the host.
///
/// Neither end leaves checksums unfinished: a balancer in XDP cannot see that they are, and sends them on as they are.
/// Both ends poll (GRO), so that packets can be redirected to them.
///
/// # Errors
///
/// If the kernel refuses.
pub fn veth(a: End<'_>, b: End<'_>) -> Result<()> {
    veth_with_queues(a, b, 1)
}

/// The same with so many queues in each direction: each is worked on by one core at a time.
///
/// # Errors
///
/// If the kernel refuses.
pub fn veth_with_queues((a, a_device): End<'_>, (b, b_device): End<'_>, queues: usize) -> Result<()> {
    let (a_name, b_name) = (a.name(), b.name());
    let queues = format!("numtxqueues {queues} numrxqueues {queues}");
    // From inside of one namespace, the other is known by its name.
    a.ip(&format!("link add {a_device} {queues} type veth peer name {b_device} {queues} netns {b_name}"))?;
    for (namespace, device) in [(a, a_device), (b, b_device)] {
        namespace.ip(&format!("link set dev {device} up"))?;
    }
    // In this order: the kernel tells one end that the other polls only if that begins while it is up.
    for (namespace, device) in [(a, a_device), (b, b_device)] {
        namespace.run("ethtool", ["-K", device, "tx", "off", "gro", "on"])?;
    }
    debug_assert_ne!(a_name, b_name, "a cable has its ends in two namespaces");
    Ok(())
}

/// Makes a switch out of interfaces of a namespace.
///
/// # Errors
///
/// If the kernel refuses.
pub fn bridge(namespace: &Namespace, device: &str, ports: &[String]) -> Result<()> {
    // Without a querier, snooping would lose neighbour discovery.
    namespace.ip(&format!("link add {device} type bridge forward_delay 0 mcast_snooping 0"))?;
    for port in ports {
        namespace.ip(&format!("link set dev {port} master {device}"))?;
    }
    namespace.ip(&format!("link set dev {device} up")).map(drop)
}

/// Gives an interface an address with its prefix length, `192.168.1.1/24`. An IPv6 address is usable at once.
///
/// # Errors
///
/// If the kernel refuses.
pub fn address((namespace, device): End<'_>, address: &str) -> Result<()> {
    let nodad = if address.contains(':') { "nodad" } else { "" };
    namespace.ip(&format!("address add {address} dev {device} {nodad}")).map(drop)
}

/// Adds a route; `to` may be `default`.
///
/// # Errors
///
/// If the kernel refuses.
pub fn route(namespace: &Namespace, to: &str, via: &str) -> Result<()> {
    let family = if via.contains(':') { "-6" } else { "-4" };
    namespace.ip(&format!("{family} route add {to} via {via}")).map(drop)
}

/// Attaches the program in the section `xdp` of an object file, in native mode.
///
/// What one end of a veth sends with XDP_TX, the other end takes only with a program of its own; polling alone is not
/// enough, unlike for XDP_REDIRECT. So a one-arm balancer needs a program that passes everything at the other end.
///
/// # Errors
///
/// If the kernel, or `ip`, refuses the object.
pub fn attach_xdp((namespace, device): End<'_>, object: &Path) -> Result<()> {
    let object = object.display().to_string();
    namespace
        .run("ip", ["link", "set", "dev", device, "xdpdrv", "object", &object, "section", "xdp"])
        .map(drop)
}
