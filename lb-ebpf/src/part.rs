//! Packets that come in parts or have more headers than most: what is behind IPv6's extension headers, and which part of a
//! datagram a fragment is.

use lb_common::datagram::Piece;
use lb_common::{Datagram, DatagramKey, Family, Fate, FlowKey, Ports, Protocol, Reason, Seen, Tuple, V4, V6};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    frame::{Extension, Field as _, Frame},
    network::{FRAGMENT, Header, Network},
    parse::{self, Arrival, OFFSETS, Packet, Part},
    tables::Tables,
};

/// What is behind a network header and all that extends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct End {
    /// The datagram's identification as on the wire, if this is not the whole of it.
    pub id: u32,
    /// Offset in the frame.
    pub offset: u16,
    /// Which fragment this is, as in IPv4's header: 'more fragments', and the offset in units of 8 bytes.
    fragment: u16,
    /// IP protocol number of what is there.
    pub protocol: u8,
    zeros: [u8; 3],
}

impl End {
    /// RFC 791 section 3.1.
    const MORE: u16 = 0x2000;
    const FRAGMENT_OFFSET: u16 = 0x1fff;

    /// Of nothing.
    pub const NONE: Self = Self { id: 0, offset: 0, fragment: 0, protocol: 0, zeros: [0; 3] };

    /// Which part of the datagram it is in.
    #[inline(always)]
    pub const fn part(&self) -> Part {
        if self.fragment & Self::FRAGMENT_OFFSET != 0 {
            Part::Later
        } else if self.fragment & Self::MORE != 0 {
            Part::First
        } else {
            Part::Whole
        }
    }

    /// What of the datagram that is, if there are so many bytes behind all headers.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a packet's length")]
    fn piece(&self, payload: usize) -> Piece {
        Piece {
            offset: u32::from(self.fragment & Self::FRAGMENT_OFFSET) * 8,
            length: payload as u32,
            more: self.fragment & Self::MORE != 0,
        }
    }
}

/// What a family's headers say of parts, beyond what [`Network::parse`] reads.
pub trait Parts: Network {
    /// IP protocol number of ICMP.
    const ICMP: u8;

    /// Walks on from the header at `offset` to what it carries, headers that extend it and fragment headers
    /// passed over. `None` where there are too many or some in a first fragment, or the frame ends before.
    fn end(frame: &impl Frame, offset: usize) -> Option<End>;
}

impl Parts for V4 {
    const ICMP: u8 = 1;

    #[inline(always)]
    fn end(frame: &impl Frame, offset: usize) -> Option<End> {
        let header: &Ipv4Hdr = frame.at(offset)?;
        let fragment = u16::from_be(header.frags.load()) & (End::MORE | End::FRAGMENT_OFFSET);
        let id = if fragment == 0 { 0 } else { header.id.load().into() };
        let end = offset + usize::from(header.vihl & 0x0f) * 4;
        Some(End { id, offset: u16::try_from(end).ok()?, fragment, protocol: header.proto, ..End::NONE })
    }
}

impl Parts for V6 {
    const ICMP: u8 = 58;

    #[inline(always)]
    fn end(frame: &impl Frame, offset: usize) -> Option<End> {
        /// Headers passed over at the most. Counted in 64 bits, for the verifier keeps track of whole words only.
        const MOST: u64 = 8;
        /// RFC 8200 sections 4.3 to 4.6. Their length stands in units of 8 bytes, without the first.
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const DESTINATION: u8 = 60;
        const UNIT: usize = size_of::<Extension>();

        let header: &Ipv6Hdr = frame.at(offset)?;
        let (mut next, mut at) = (header.next_hdr, offset + size_of::<Ipv6Hdr>());
        let (mut fragment, mut id) = (0, 0);
        // Once more, for what is behind the last one.
        for _ in 0..=MOST {
            let known = matches!(next, HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT);
            if known && fragment == End::MORE {
                // Its other fragments do not say what is behind these headers.
                return None;
            }
            if !known || fragment & End::FRAGMENT_OFFSET != 0 {
                return Some(End {
                    id,
                    offset: u16::try_from(at).ok()?,
                    fragment,
                    protocol: next,
                    ..End::NONE
                });
            }
            let header: &Extension = frame.at(at)?;
            if next == FRAGMENT {
                /// RFC 8200 section 4.5: behind the offset.
                const MORE: u16 = 0x0001;

                let field = u16::from_be(header.fragment.load());
                fragment = field >> 3 | if field & MORE == 0 { 0 } else { End::MORE };
                id = if fragment == 0 { 0 } else { header.id.load() };
                at += UNIT;
            } else {
                at += (usize::from(header.length) + 1) * UNIT;
            }
            if at >= OFFSETS {
                return None;
            }
            next = header.next;
        }
        None
    }
}

/// Finds what is behind the network header at `offset` and all that extends it, and writes it to `to`; says whether it is
/// found.
#[inline(always)]
pub fn find_end<F: Parts>(frame: &impl Frame, offset: usize, to: &mut End) -> bool {
    match F::end(frame, offset & (OFFSETS - 1)) {
        Some(end) => {
            *to = end;
            true
        }
        None => false,
    }
}

/// What is behind the network header at `offset`, and all that extends it.
///
/// # Errors
///
/// [`Reason::Extension`] where that cannot be said.
#[inline(always)]
pub fn end<F: Parts>(frame: &mut impl Frame, offset: usize) -> Result<End, Reason> {
    let mut end = End::NONE;
    if frame.find_end::<F>(offset, &mut end) { Ok(end) } else { Err(Reason::Extension) }
}

/// The header as [`Network::parse`] would have read it, were there nothing between it and its end.
///
/// # Errors
///
/// [`Reason::Malformed`] where the packet ends before.
#[inline(always)]
pub fn without_extensions(header: &Header, end: &End) -> Result<Header, Reason> {
    let transport = usize::from(end.offset) & (OFFSETS - 1);
    let payload = (header.transport + header.payload).checked_sub(transport).ok_or(Reason::Malformed)?;
    Ok(Header { protocol: end.protocol, transport, payload, ..*header })
}

/// The key of the datagram with that identification.
#[inline(always)]
fn key<F: Family>(src: F::Address, dst: F::Address, id: u32, protocol: u32) -> DatagramKey {
    #[expect(clippy::cast_possible_truncation, reason = "a byte of the header")]
    let protocol = if F::NUMBER == V4::NUMBER { protocol as u16 } else { 0 };
    DatagramKey { src: F::widen(src), dst: F::widen(dst), id, protocol, family: F::NUMBER.into() }
}

/// What a packet that is not as most are has turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Examined {
    /// One of a transport that services have, or a part of one.
    Packet,
    /// One of ICMP.
    Icmp,
}

/// Reads the packet in the frame, which came in through interface `ingress`, and of a later fragment what its datagram's first
/// one said, into `packet`: by return value it would be on the stack twice.
///
/// # Errors
///
/// Why it goes with no connection.
#[inline(always)]
pub fn examine<F: Parts, M: Tables>(
    frame: &mut impl Frame,
    tables: M,
    ingress: u32,
    packet: &mut Packet<F>,
) -> Result<Examined, Reason> {
    let arrival = Arrival::in_vlan(frame, ingress)?;
    let header = F::parse(frame, arrival.network)?;
    let end = end::<F>(frame, arrival.network)?;
    let header = without_extensions(&header, &end)?;
    let Some(protocol) = Protocol::from_number(end.protocol) else {
        let is_icmp = end.protocol == F::ICMP && end.part() == Part::Whole;
        return if is_icmp { Ok(Examined::Icmp) } else { Err(Reason::OtherProtocol) };
    };
    let (src, dst) = F::addresses(frame, arrival.network).ok_or(Reason::Malformed)?;
    let (ports, seen) = if end.part() == Part::Later {
        let key = key::<F>(src, dst, end.id, protocol.number().into());
        (ports(frame, tables, &key, end.piece(header.payload), ingress)?, Seen::PACKET)
    } else {
        match parse::transport::<F>(frame, &header, protocol, end.part()) {
            Ok(transport) => transport,
            Err(reason) => {
                if end.part() == Part::First {
                    let key = key::<F>(src, dst, end.id, protocol.number().into());
                    note_fate(tables, &key, Ports::from_wire(0), reason, end.piece(header.payload));
                }
                return Err(reason);
            }
        }
    };
    *packet = Packet::new(frame, &arrival, &header, protocol, ports, seen);
    packet.back = arrival.back(frame);
    (packet.part, packet.id) = (end.part(), end.id);
    // Packets are no longer.
    packet.length = u16::try_from(header.payload).unwrap_or(u16::MAX);
    Ok(Examined::Packet)
}

/// The ports of the datagram that a later fragment is a part of.
///
/// # Errors
///
/// What becomes of it, where it does not go with a connection.
#[inline(always)]
fn ports<M: Tables>(
    frame: &mut impl Frame,
    tables: M,
    key: &DatagramKey,
    piece: Piece,
    ingress: u32,
) -> Result<Ports, Reason> {
    let now = tables.now();
    let datagram = tables.datagram(key, piece).filter(|datagram| datagram.is_of(now));
    let Some(datagram) = datagram else {
        if !tables.is_own(&key.dst, key.family) {
            return Err(Reason::Fragment);
        }
        let kept = frame.keep_back(key, ingress, now);
        return Err(if kept { Reason::FragmentEarly } else { Reason::FragmentDropped });
    };
    if datagram.is_complete() {
        tables.forget_datagram(key);
    }
    match datagram.fate {
        Fate::FORWARDED => Ok(datagram.ports),
        Fate::PASSED => Err(Reason::Fragment),
        _ => Err(Reason::FragmentDropped),
    }
}

/// Notes what became of a first fragment.
#[inline(never)]
pub fn note<F: Family, M: Tables>(tables: M, packet: &Packet<F>, reason: Reason) {
    let FlowKey { tuple: Tuple { src, dst, ports }, protocol } = packet.key;
    let piece = Piece { offset: 0, length: packet.length.into(), more: true };
    note_fate(tables, &key::<F>(src, dst, packet.id, protocol), ports, reason, piece);
}

/// Notes what became of a first fragment. Of datagrams that are none of ours nothing is noted, for their other fragments pass
/// anyhow.
#[inline(always)]
fn note_fate<M: Tables>(tables: M, key: &DatagramKey, ports: Ports, reason: Reason, first: Piece) {
    let fate = Fate::of(reason.action());
    if fate == Fate::FORWARDED || tables.is_own(&key.dst, key.family) {
        let datagram = Datagram { ports, since: tables.now(), fate, seen: 0, length: 0 };
        tables.note_datagram(key, &datagram.with(first));
    }
}
