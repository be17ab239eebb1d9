//! Frames as hosts send them.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail};
use etherparse::{PacketBuilder, TcpHeader};

use crate::setting::{Setting, Transport};

/// Sequence numbers of SYNs: of clients', and of servers' as the endpoint has it.
const CLIENTS_SYN: u32 = 1_000;
const SERVERS_SYN: u32 = 5_000;
const WINDOW: u16 = 65_000;
const HOPS: u8 = 64;

/// A kind of frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The first of a connection.
    First,
    /// Of a connection, from a client.
    Request,
    /// Of a connection, from a server.
    Reply,
    /// Like a request, but at its time, which it tells.
    Paced,
}

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl Display for Mac {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|byte| format!("{byte:02x}")).join(":"))
    }
}

/// A frame of a size, but for its flow: the low half of the source address and the ports are zero, and as if they were
/// zero the checksums are right.
pub(crate) fn template(
    setting: &Setting,
    kind: Kind,
    (from, to): (Mac, Mac),
    size: usize,
) -> Result<Vec<u8>> {
    let source = match kind {
        Kind::First | Kind::Request | Kind::Paced => setting.family.client_network(0),
        Kind::Reply => without_low_half(setting.server(0)),
    };
    let packet = PacketBuilder::ethernet2(from.0, to.0);
    let packet = match (source, setting.vip()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => packet.ipv4(source.octets(), target.octets(), HOPS),
        (IpAddr::V6(source), IpAddr::V6(target)) => packet.ipv6(source.octets(), target.octets(), HOPS),
        _ => bail!("source and destination are of two families"),
    };
    let mut frame = Vec::new();
    let payload = |headers: usize| size.checked_sub(headers).map(|left| vec![0; left]).context("too small");
    match setting.transport {
        Transport::Tcp => {
            let packet = packet.tcp_header(segment(kind));
            let payload = payload(packet.size(0))?;
            packet.write(&mut frame, &payload)?;
        }
        Transport::Udp => {
            let packet = packet.udp(0, 0);
            let payload = payload(packet.size(0))?;
            packet.write(&mut frame, &payload)?;
        }
    }
    Ok(frame)
}

fn segment(kind: Kind) -> TcpHeader {
    let (sequence, acknowledged) = match kind {
        Kind::First => (CLIENTS_SYN, None),
        Kind::Request | Kind::Paced => (CLIENTS_SYN + 1, Some(SERVERS_SYN + 1)),
        Kind::Reply => (SERVERS_SYN + 1, Some(CLIENTS_SYN + 1)),
    };
    let mut header = TcpHeader::new(0, 0, sequence, WINDOW);
    header.syn = kind == Kind::First;
    header.ack = acknowledged.is_some();
    header.acknowledgment_number = acknowledged.unwrap_or_default();
    header
}

fn without_low_half(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !0xffff).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !0xffff).into(),
    }
}
