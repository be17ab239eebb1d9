//! What remains of a frame when all that two balancers may do in their own way is taken out.
//!
//! Source ports towards servers become numbers, in the order in which they appear; identification and flow label of
//! packets that a balancer sends of its own accord become constants; fragments become the packet that they are of; padding goes. A
//! checksum becomes the sum over all that it covers, itself included, of as much as is there: translation leaves that sum
//! as it is, for a truncated quote as well, and where everything is there, it has to be [`HOLDS`].

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use etherparse::ip_number;

use crate::hosts::{Family, Side};
use crate::layout::{FRAGMENT_HEADER, Fragment, IPV4, Layout, word};
use crate::packet::{ETHERNET, FLOW_LABEL, ICMP, TCP, UDP, pseudo_header, sum};

/// What a sum over everything that a checksum covers, and the checksum, has to be (RFC 1071 section 1).
const HOLDS: u16 = 0xffff;

/// Stands for every identification, and every flow label, that nobody sent in.
const FRESH: u16 = 0xf5e5;

/// Numbers in place of the source ports that a balancer has chosen, by server, source and IP protocol number.
#[derive(Debug, Default)]
pub(crate) struct Names {
    numbers: HashMap<(SocketAddr, SocketAddr, u8), u16>,
    given: u16,
}

impl Names {
    /// Numbers the source port of a packet that came out at the servers, if it is the balancer's choice.
    pub(crate) fn learn(&mut self, packet: &[u8]) {
        if let Some(tuple) = Tuple::of(packet)
            && tuple.src.ip() == Family::of(tuple.src.ip()).vip()
        {
            let given = &mut self.given;
            self.numbers.entry((tuple.dst, tuple.src, tuple.protocol)).or_insert_with(|| {
                *given += 1;
                *given
            });
        }
    }

    /// A new connection may have the port of the one before it, or another one.
    pub(crate) fn forget(&mut self, tuple: &Tuple) {
        self.numbers.remove(&(tuple.dst, tuple.src, tuple.protocol));
    }

    fn get(&self, server: SocketAddr, source: SocketAddr, protocol: u8) -> Option<u16> {
        self.numbers.get(&(server, source, protocol)).copied()
    }
}

/// Where a TCP or UDP packet, or one that is quoted, came from and went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) protocol: u8,
}

impl Tuple {
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        let layout = Layout::of(packet).filter(Layout::has_transport)?;
        if ![ip_number::TCP.0, ip_number::UDP.0].contains(&layout.protocol) {
            return None;
        }
        Some(Self {
            src: SocketAddr::new(layout.src, word(packet, layout.transport)?),
            dst: SocketAddr::new(layout.dst, word(packet, layout.transport + 2)?),
            protocol: layout.protocol,
        })
    }
}

/// A frame in its canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Canonical {
    pub(crate) bytes: Vec<u8>,
    /// The checksums over something that is all there, but which do not hold.
    pub(crate) wrong: Vec<&'static str>,
}

impl Canonical {
    /// `sent` are the identifications of the packets that went in.
    pub(crate) fn of(frame: &[u8], side: Side, names: &Names, sent: &[u16]) -> Self {
        let mut canonical = Self { bytes: frame.to_vec(), wrong: Vec::new() };
        let Some(layout) = frame.get(ETHERNET..).and_then(Layout::of) else { return canonical };
        canonical.bytes.truncate(ETHERNET + layout.end);
        let packet = &mut canonical.bytes[ETHERNET..];
        let names = (side == Side::Server).then_some(names);
        take_sums(packet, names, &mut canonical.wrong);
        if layout.src.is_ipv4() && word(packet, 4).is_some_and(|id| !sent.contains(&id)) {
            packet[4..6].copy_from_slice(&FRESH.to_be_bytes());
        }
        if layout.src.is_ipv6() && flow_label(packet) != FLOW_LABEL {
            packet[1] &= 0xf0;
            packet[2..4].copy_from_slice(&FRESH.to_be_bytes());
        }
        canonical
    }
}

/// An IPv6 packet's.
fn flow_label(packet: &[u8]) -> u32 {
    u32::from_be_bytes([0, packet[1] & 0x0f, packet[2], packet[3]])
}

/// Puts sums in place of checksums, and then numbers in place of ports; the same for what an ICMP error quotes.
fn take_sums(packet: &mut [u8], names: Option<&Names>, wrong: &mut Vec<&'static str>) {
    let Some(layout) = Layout::of(packet) else { return };
    if layout.src.is_ipv4() {
        let sum = sum(&[&packet[..layout.transport]]);
        note(sum, true, "IPv4", wrong);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    if !layout.has_transport() || packet.len() < layout.transport || layout.end < layout.transport {
        return;
    }
    let whole = layout.end <= packet.len() && layout.fragment.is_none();
    let end = layout.end.min(packet.len());
    let bytes = &mut packet[layout.transport..end];
    let length = layout.end - layout.transport;
    let Ok(pseudo_header) = pseudo_header(layout.src, layout.dst, layout.protocol, length) else { return };
    match etherparse::IpNumber(layout.protocol) {
        ip_number::TCP if bytes.len() >= TCP - 2 => {
            replace(bytes, 16, &pseudo_header, whole, "TCP", wrong);
        }
        // Without a checksum it has to stay; with one, the sum is never zero.
        ip_number::UDP if bytes.len() >= UDP && word(bytes, 6) != Some(0) => {
            replace(bytes, 6, &pseudo_header, whole, "UDP", wrong);
        }
        ip_number::UDP if bytes.len() >= UDP && layout.src.is_ipv6() => wrong.push("no UDP"),
        ip_number::ICMP if bytes.len() >= ICMP => replace(bytes, 2, &[], whole, "ICMP", wrong),
        ip_number::IPV6_ICMP if bytes.len() >= ICMP => {
            replace(bytes, 2, &pseudo_header, whole, "ICMPv6", wrong);
        }
        _ => {}
    }
    if let Some(quote) = quote(layout.protocol, bytes) {
        take_sums(&mut bytes[quote], names, wrong);
    }
    if let Some(names) = names
        && let Some(tuple) = Tuple::of(packet)
    {
        let ports = &mut packet[layout.transport..];
        if let Some(number) = names.get(tuple.dst, tuple.src, tuple.protocol) {
            ports[..2].copy_from_slice(&number.to_be_bytes());
        } else if let Some(number) = names.get(tuple.src, tuple.dst, tuple.protocol) {
            ports[2..4].copy_from_slice(&number.to_be_bytes());
        }
    }
}

fn replace(
    bytes: &mut [u8],
    checksum: usize,
    pseudo_header: &[u8],
    whole: bool,
    name: &'static str,
    wrong: &mut Vec<&'static str>,
) {
    let sum = sum(&[pseudo_header, bytes]);
    note(sum, whole, name, wrong);
    bytes[checksum..][..2].copy_from_slice(&sum.to_be_bytes());
}

fn note(sum: u16, whole: bool, name: &'static str, wrong: &mut Vec<&'static str>) {
    if whole && sum != HOLDS {
        wrong.push(name);
    }
}

/// Where an ICMP error quotes the packet that it is about (RFC 792, RFC 4443 section 2.1).
fn quote(protocol: u8, message: &[u8]) -> Option<Range<usize>> {
    const ERRORS: [u8; 5] = [3, 4, 5, 11, 12];
    let kind = *message.first().filter(|_| message.len() > ICMP)?;
    let v6 = match etherparse::IpNumber(protocol) {
        ip_number::ICMP if ERRORS.contains(&kind) => false,
        ip_number::IPV6_ICMP if kind < 128 => true,
        _ => return None,
    };
    // Something else may follow it; then its length is said.
    let length = match extensible(v6, kind) {
        true if v6 => usize::from(message[4]) * 8,
        true => usize::from(message[5]) * 4,
        false => 0,
    };
    let length = if length == 0 { message.len() } else { ICMP + length };
    Some(ICMP..length.min(message.len()))
}

/// Whether errors of that type may have extensions behind the quote (RFC 4884 section 4).
pub(crate) const fn extensible(v6: bool, kind: u8) -> bool {
    matches!((v6, kind), (false, 3 | 11 | 12) | (true, 1 | 3))
}

/// Puts fragments together; what is never completed stays as it is, at the end. Of several datagrams any may be complete first,
/// and one fragment that is all of a datagram is none to the kernel: so all come in the order of their lengths, or of their
/// payloads.
pub(crate) fn reassemble(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut whole = Vec::new();
    let mut waiting: Vec<(Key, Vec<&[u8]>)> = Vec::new();
    for frame in frames {
        let Some((layout, fragment)) = fragment(frame) else {
            whole.push(frame.clone());
            continue;
        };
        let key = (layout.src, layout.dst, fragment.id);
        let at = waiting.iter().position(|(other, _)| *other == key).unwrap_or_else(|| {
            waiting.push((key, Vec::new()));
            waiting.len() - 1
        });
        waiting[at].1.push(frame);
        if let Some(frame) = put_together(&waiting[at].1) {
            whole.push(frame);
            waiting.remove(at);
        }
    }
    whole.sort_by_cached_key(|frame| (frame.len(), frame.iter().rev().copied().collect::<Vec<_>>()));
    whole.extend(waiting.into_iter().flat_map(|(_, rest)| rest).map(<[u8]>::to_vec));
    whole
}

/// Addresses and identification.
type Key = (IpAddr, IpAddr, u32);

/// A fragment's layout, if its own header is right: a wrong one must not be lost in the whole packet.
fn fragment(frame: &[u8]) -> Option<(Layout, Fragment)> {
    let packet = frame.get(ETHERNET..)?;
    let layout = Layout::of(packet)?;
    let fragment = layout.fragment?;
    let right = layout.src.is_ipv6() || sum(&[&packet[..layout.transport]]) == HOLDS;
    (right && layout.end <= packet.len()).then_some((layout, fragment))
}

/// The packet that these are all fragments of, in the frame and under the header of the first.
fn put_together(frames: &[&[u8]]) -> Option<Vec<u8>> {
    let mut pieces: Vec<_> = frames
        .iter()
        .filter_map(|frame| {
            let (layout, fragment) = fragment(frame)?;
            // The transport begins where the fragment's payload does: after its header, or after IPv4's.
            let start = fragment.header.map_or(layout.transport, |(at, _)| at + FRAGMENT_HEADER);
            Some((fragment, *frame, frame.get(ETHERNET + start..ETHERNET + layout.end)?))
        })
        .collect();
    pieces.sort_by_key(|(fragment, ..)| fragment.offset);
    let mut payload = Vec::new();
    for (fragment, _, piece) in &pieces {
        if fragment.offset == payload.len() {
            payload.extend_from_slice(piece);
        } else if fragment.offset > payload.len() {
            return None;
        }
    }
    let ((first, frame, _), (last, ..)) = (pieces.first()?, pieces.last()?);
    if first.offset != 0 || last.more {
        return None;
    }
    let packet = &frame[ETHERNET..];
    let mut header = match first.header {
        None => packet[..Layout::of(packet)?.transport].to_vec(),
        Some((at, announced)) => {
            let mut header = packet[..at].to_vec();
            header[announced] = packet[at];
            header
        }
    };
    if first.header.is_none() {
        let total = u16::try_from(header.len() + payload.len()).ok()?;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[6..8].fill(0);
        header[10..12].fill(0);
        let checksum = !sum(&[&header]);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        let length = u16::try_from(header.len() + payload.len() - crate::layout::IPV6).ok()?;
        header[4..6].copy_from_slice(&length.to_be_bytes());
    }
    debug_assert!(header.len() >= IPV4, "every packet has a header");
    Some([&frame[..ETHERNET], &header, &payload].concat())
}

#[cfg(test)]
mod tests {
    use anyhow::{Result, ensure};
    use lb_common::Protocol;

    use super::*;
    use crate::hosts::{Host, backend};
    use crate::layout::IPV6;
    use crate::packet::{ACK, Carriage, Content, Cut, Packet};

    const ID: u16 = 77;
    /// A source port that a balancer may choose.
    const PORT: u16 = 4_711;

    fn tcp() -> Content {
        let (sequence, acknowledgement, window) = (1, 2, 3);
        let (options, payload) = (vec![2, 4, 5, 0xb4], b"payload".to_vec());
        Content::Tcp { sequence, acknowledgement, control: ACK, window, options, payload }
    }

    fn udp(length: usize) -> Content {
        Content::Udp { checksum: true, payload: (0..length).map(|at| at.to_le_bytes()[0]).collect() }
    }

    /// A packet to the first server, as a balancer sends it that has chosen that source port.
    fn request(family: Family, content: Content, port: u16, carriage: Carriage) -> Packet {
        let protocol = if matches!(content, Content::Tcp { .. }) { Protocol::Tcp } else { Protocol::Udp };
        let src = SocketAddr::new(family.vip(), port);
        Packet { src, dst: backend(family, protocol, 0), id: ID, carriage, content }
    }

    fn frames(packet: &Packet) -> Result<Vec<Vec<u8>>> {
        packet.frames(Side::Server.balancer_mac(), Host::Server(0).mac())
    }

    /// An error that a client sends about an answer: it quotes so many bytes of the transport.
    fn error(family: Family, content: Content, port: u16, quoted: usize) -> Result<Packet> {
        let request = request(family, content, port, Carriage::default());
        let reply = Packet { src: request.dst, dst: request.src, ..request };
        let header = if family == Family::V4 { IPV4 } else { IPV6 };
        let mut payload = frames(&reply)?.concat().split_off(ETHERNET);
        payload.truncate(header + quoted);
        let kind = if family == Family::V4 { 3 } else { 1 };
        let content = Content::Icmp { kind, code: 4, rest: [0; 4], payload };
        Ok(Packet {
            src: SocketAddr::new(family.vip(), 0),
            dst: SocketAddr::new(reply.src.ip(), 0),
            carriage: Carriage::default(),
            id: ID,
            content,
        })
    }

    /// Packets of all kinds at the server, for that source port.
    fn packets(port: u16) -> Result<Vec<Packet>> {
        let mut packets = Vec::new();
        for family in Family::ALL {
            for content in [tcp(), udp(6)] {
                packets.push(request(family, content.clone(), port, Carriage::default()));
                for quoted in [8, 20, 21, 100] {
                    packets.push(error(family, content.clone(), port, quoted)?);
                }
            }
        }
        Ok(packets)
    }

    /// A balancer whose first connections, a TCP and a UDP one of each family, have that source port.
    fn names(port: u16) -> Result<Names> {
        let mut names = Names::default();
        for packet in packets(port)? {
            names.learn(&frames(&packet)?.concat()[ETHERNET..]);
        }
        Ok(names)
    }

    fn canonical(frame: &[u8], port: u16) -> Result<Canonical> {
        Ok(Canonical::of(frame, Side::Server, &names(port)?, &[ID]))
    }

    #[test]
    fn every_byte_of_a_frame_counts() -> Result<()> {
        for packet in packets(PORT)? {
            let frame = frames(&packet)?.concat();
            let right = canonical(&frame, PORT)?;
            ensure!(right.wrong.is_empty(), "{:?} in {packet:?}", right.wrong);
            for at in 0..frame.len() {
                for bit in 0..8 {
                    let mut flipped = frame.clone();
                    flipped[at] ^= 1 << bit;
                    ensure!(canonical(&flipped, PORT)? != right, "bit {bit} of byte {at} of {packet:?}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_source_port_does_not_count_whatever_is_quoted() -> Result<()> {
        for (one, other) in packets(PORT)?.iter().zip(packets(PORT + 1)?) {
            let (frame, otherwise) = (frames(one)?.concat(), frames(&other)?.concat());
            ensure!(frame != otherwise, "the port is nowhere in {one:?}");
            let (one, other) = (canonical(&frame, PORT)?, canonical(&otherwise, PORT + 1)?);
            ensure!(one == other, "{one:02x?} is not {other:02x?}");
        }
        Ok(())
    }

    #[test]
    fn a_wrong_checksum_is_wrong_for_whatever_is_all_there() -> Result<()> {
        let spoilt = Carriage { spoilt: true, ..Carriage::default() };
        for packet in packets(PORT)? {
            let frame = frames(&Packet { carriage: spoilt.clone(), ..packet.clone() })?.concat();
            ensure!(canonical(&frame, PORT)?.wrong.len() == 1, "{packet:?}");
        }
        Ok(())
    }

    #[test]
    fn fragments_become_the_packet_that_they_were_cut_from() -> Result<()> {
        for family in Family::ALL {
            let whole = Carriage { dont_fragment: false, ..Carriage::default() };
            let uncut = frames(&request(family, udp(500), PORT, whole.clone()))?;
            for order in [vec![0; 11], vec![10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0], vec![3, 3, 0, 5, 5, 5]] {
                let cut = Some(Cut { size: 48, order, lost: 0 });
                let cut = frames(&request(family, udp(500), PORT, Carriage { cut, ..whole.clone() }))?;
                ensure!(cut.len() == 11, "{} fragments", cut.len());
                ensure!(reassemble(&cut) == uncut, "{family:?}");
                ensure!(reassemble(&cut[1..]).len() == 10, "what is not complete is left as it is");
            }
        }
        Ok(())
    }
}
