//! Datagrams that do not fit into one packet: fragmented by the stacks of clients and servers, in any order.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, UdpHeader,
    ip_number,
};
use lb_tests::link::End;
use lb_tests::topology::Topology;
use serde_json::Value;

use crate::support::{
    Family, Make, Sockets as _, UdpEcho, ask, both_families, eventually, json, pass_object, start,
    unspecified,
};
use crate::wire::Wire;

/// Both topologies in both modes.
const SETTINGS: [(Make, &str); 4] = [
    (Topology::two_arm, "native"),
    (Topology::two_arm, "generic"),
    (Topology::one_arm, "native"),
    (Topology::one_arm, "generic"),
];

/// Bytes of a datagram of some fragments.
const LENGTH: usize = 8_000;

fn payload(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

/// Runs the test in every setting and family, with a UDP service on port 80 that has two servers.
fn everywhere(test: impl Fn(&Topology, Family) -> Result<()>) -> Result<()> {
    for (topology, mode) in SETTINGS {
        let topology = topology(2)?;
        let _echoes = UdpEcho::on_all(&topology, 80)?;
        topology.attach_to_peers(&pass_object(&topology)?)?;
        let mut args = both_families(&topology, 80, "udp");
        args.extend(["--mode".to_owned(), mode.to_owned()]);
        let _balancer = start(&topology, &args)?;
        for family in Family::ALL {
            test(&topology, family)
                .with_context(|| format!("{family:?}, {mode}, {} interfaces", topology.interfaces().len()))?;
        }
    }
    Ok(())
}

#[test]
fn datagrams_of_many_fragments_come_and_go_whole() -> Result<()> {
    everywhere(|topology, family| {
        let to = family.service(80);
        for round in 0..10 {
            let socket = topology.client.udp(unspecified(to))?;
            // The largest that UDP has, an answer's greeting left out.
            for length in [LENGTH, 1_473 + round, 3_000, 60_000] {
                let greeting =
                    ask(&socket, to, &payload(length)).with_context(|| format!("{length} bytes"))?;
                ensure!(greeting.client.ip() == family.vip(), "{} is seen", greeting.client);
            }
        }
        Ok(())
    })
}

#[test]
fn fragments_in_any_order_come_whole() -> Result<()> {
    everywhere(|topology, family| {
        let to = family.service(80);
        let wire = Wire::open(&topology.client, "eth0")?;
        let macs = (mac((&topology.client, "eth0"))?, mac((&topology.balancer, "eth0"))?);
        let local = topology.client.udp(unspecified(to))?;
        // Also for the neighbour's sake.
        let _greeting = ask(&local, to, b"hello")?;
        let from = source(topology, family, local.local_addr()?.port())?;
        let orders: [fn(&mut Vec<Vec<u8>>); 4] = [
            |_in_order| {},
            |reversed| reversed.reverse(),
            |last_first| last_first.rotate_right(1),
            |first_late| first_late.swap(0, 1),
        ];
        for (id, order) in (1_000..).zip(orders) {
            let mut frames = fragments(macs, from, to, &payload(LENGTH), id)?;
            order(&mut frames);
            frames.iter().try_for_each(|frame| wire.send(frame))?;
            let mut answer = vec![0; 65_536];
            let (length, _) = local.recv_from(&mut answer).with_context(|| format!("order {id}"))?;
            let end = answer.iter().position(|byte| *byte == b'\n').context("no greeting")?;
            ensure!(answer[end + 1..length] == payload(LENGTH), "order {id}: {length} bytes are other ones");
        }
        Ok(())
    })
}

#[test]
fn a_fragment_whose_first_never_comes_is_counted_and_goes_nowhere() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let _balancer = start(&topology, &both_families(&topology, 80, "udp"))?;
    let count = || -> Result<u64> {
        json(&topology, &["stats"])?["reasons"]["fragment-early"].as_u64().context("no such reason")
    };
    let wire = Wire::open(&topology.client, "eth0")?;
    let server = Wire::open(&topology.servers[0].namespace, "eth0")?;
    let macs = (mac((&topology.client, "eth0"))?, mac((&topology.balancer, "eth0"))?);
    for (family, counted) in Family::ALL.into_iter().zip(1..) {
        let from = source(&topology, family, 4_711)?;
        let frames = fragments(macs, from, family.service(80), &payload(LENGTH), 9)?;
        wire.send(&frames[1])?;
        eventually("it is counted", || Ok(count()? == counted))?;
    }
    let deadline = Instant::now() + Duration::from_millis(100);
    while let Some(frame) = server.receive_until(deadline)? {
        ensure!(frame.len() < 1_000, "a fragment came to the server");
    }
    Ok(())
}

#[test]
fn the_vip_answers_pings_of_many_fragments() -> Result<()> {
    everywhere(|topology, family| {
        let vip = family.vip().to_string();
        topology.client.run("ping", ["-c", "3", "-i", "0.2", "-W", "5", "-s", "4000", &vip]).map(drop)
    })
}

/// The client's address, with that port.
fn source(topology: &Topology, family: Family, port: u16) -> Result<SocketAddr> {
    let probe = topology.client.udp(unspecified(family.service(80)))?;
    probe.connect(family.service(80))?;
    Ok(SocketAddr::new(probe.local_addr()?.ip(), port))
}

pub(crate) fn mac((namespace, device): End<'_>) -> Result<[u8; 6]> {
    let links: Value = serde_json::from_str(&namespace.ip(&format!("-json link show dev {device}"))?)?;
    let text = links.pointer("/0/address").and_then(Value::as_str).context("no MAC address")?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().ok().context("six bytes")
}

/// The frames of a datagram's fragments, in their order.
fn fragments(
    (from_mac, to_mac): ([u8; 6], [u8; 6]),
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
    id: u16,
) -> Result<Vec<Vec<u8>>> {
    /// A multiple of eight that fits into 1 500 bytes with any headers.
    const PART: usize = 1_400;
    const HOPS: u8 = 64;

    let mut whole = Vec::new();
    let ports = (from.port(), to.port());
    match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            let header = Ipv4Header::new(0, HOPS, ip_number::UDP, from.ip().octets(), to.ip().octets())?;
            UdpHeader::with_ipv4_checksum(ports.0, ports.1, &header, payload)?.write(&mut whole)?;
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            let header = Ipv6Header {
                source: from.ip().octets(),
                destination: to.ip().octets(),
                ..Ipv6Header::default()
            };
            UdpHeader::with_ipv6_checksum(ports.0, ports.1, &header, payload)?.write(&mut whole)?;
        }
        _ => anyhow::bail!("{from} and {to} are of two families"),
    }
    whole.extend_from_slice(payload);

    let parts = whole.chunks(PART);
    let count = parts.len();
    parts
        .enumerate()
        .map(|(number, part)| {
            let more = number + 1 < count;
            let offset = IpFragOffset::try_new(u16::try_from(number * PART / 8)?)?;
            let ether_type = if from.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
            let mut frame = Vec::new();
            Ethernet2Header { source: from_mac, destination: to_mac, ether_type }.write(&mut frame)?;
            match (from, to) {
                (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                    let length = u16::try_from(part.len())?;
                    let mut header =
                        Ipv4Header::new(length, HOPS, ip_number::UDP, from.ip().octets(), to.ip().octets())?;
                    (header.identification, header.more_fragments) = (id, more);
                    (header.fragment_offset, header.dont_fragment) = (offset, false);
                    header.header_checksum = header.calc_header_checksum();
                    header.write(&mut frame)?;
                }
                (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                    let header = Ipv6Header {
                        payload_length: u16::try_from(part.len() + Ipv6FragmentHeader::LEN)?,
                        next_header: ip_number::IPV6_FRAGMENTATION_HEADER,
                        hop_limit: HOPS,
                        source: from.ip().octets(),
                        destination: to.ip().octets(),
                        ..Ipv6Header::default()
                    };
                    header.write(&mut frame)?;
                    Ipv6FragmentHeader::new(ip_number::UDP, offset, more, id.into()).write(&mut frame)?;
                }
                _ => anyhow::bail!("{from} and {to} are of two families"),
            }
            frame.extend_from_slice(part);
            Ok(frame)
        })
        .collect()
}
