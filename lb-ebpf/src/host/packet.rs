//! Packets as hosts send them, and a judge of what leaves. Nothing here knows the packet path: `etherparse` writes the
//! headers and computes checksums from scratch, and the judge sums up words as RFC 1071 has it.

use core::{
    net::{IpAddr, SocketAddr},
    ops::{BitOr, Range},
};
use std::{vec, vec::Vec};

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv6FlowLabel, Ipv6FragmentHeader,
    Ipv6FragmentHeaderSlice, Ipv6Header, Ipv6HeaderSlice, Ipv6RawExtHeader, Ipv6RawExtHeaderSlice,
    PacketBuilder, TcpHeader, ip_number,
};
use lb_common::Protocol;

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// A MAC address.
pub type Mac = [u8; 6];

/// Control bits of TCP (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control(u8);

impl Control {
    /// No bit set.
    pub const NONE: Self = Self(0);
    /// The sender has no more to say.
    pub const FIN: Self = Self(0x01);
    /// Begins a connection.
    pub const SYN: Self = Self(0x02);
    /// Breaks a connection off.
    pub const RST: Self = Self(0x04);
    /// Deliver without delay.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement number counts.
    pub const ACK: Self = Self(0x10);
    /// ECN echo (RFC 3168 section 6.1).
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced (RFC 3168 section 6.1).
    pub const CWR: Self = Self(0x80);

    /// Both sets together.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// As they are in the header.
    pub const fn bits(self) -> u8 {
        self.0
    }

    const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Control {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.or(other)
    }
}

/// A header between IPv6's and what the packet carries (RFC 8200 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options of so many bytes: six, and eights more.
    HopByHop(u8),
    /// Destination options, likewise.
    Destination(u8),
    /// A routing header with so many addresses left to be visited, and so many bytes behind its length, likewise.
    Routing(u8, u8),
    /// A fragment header of a datagram that is whole (RFC 6946), with that identification.
    Atomic(u32),
}

impl Extension {
    const fn number(self) -> IpNumber {
        match self {
            Self::HopByHop(_) => ip_number::IPV6_HEADER_HOP_BY_HOP,
            Self::Destination(_) => ip_number::IPV6_DESTINATION_OPTIONS,
            Self::Routing(..) => ip_number::IPV6_ROUTE_HEADER,
            Self::Atomic(_) => ip_number::IPV6_FRAGMENTATION_HEADER,
        }
    }

    /// The header in front of what has the number `next`.
    fn bytes(self, next: IpNumber) -> Vec<u8> {
        /// An experimental option that is passed over (RFC 4727 section 3.2), and an experimental routing type.
        const OPTION: u8 = 0x1e;
        const ROUTING: u8 = 253;
        let raw = |first: [u8; 2], length: u8| {
            let mut content = vec![0xc5; length.into()];
            content[..2].copy_from_slice(&first);
            let header = Ipv6RawExtHeader::new_raw(next, &content).expect("six bytes, and eights more");
            header.to_bytes().to_vec()
        };
        match self {
            Self::HopByHop(length) | Self::Destination(length) => raw([OPTION, length - 2], length),
            Self::Routing(left, length) => raw([ROUTING, left], length),
            Self::Atomic(id) => {
                Ipv6FragmentHeader::new(next, IpFragOffset::ZERO, false, id).to_bytes().to_vec()
            }
        }
    }

    /// Those headers in front of what has the number `last`, and the number of the first of all.
    fn chain(extensions: &[Self], last: IpNumber) -> (IpNumber, Vec<u8>) {
        extensions.iter().rev().fold((last, Vec::new()), |(next, behind), extension| {
            (extension.number(), [extension.bytes(next), behind].concat())
        })
    }
}

/// A frame with IPv6 that has those headers as well, before all that follow IPv6's.
///
/// # Panics
///
/// If there is no IPv6 in it, or the packet becomes too long.
pub fn extended(frame: &[u8], extensions: &[Extension]) -> Vec<u8> {
    let (mut header, rest) = Ipv6Header::from_slice(&frame[ETHERNET..]).expect("an IPv6 header");
    let (next, headers) = Extension::chain(extensions, header.next_header);
    let length = headers.len() + usize::from(header.payload_length);
    header.next_header = next;
    header.set_payload_length(length).expect("the packet is not too long");
    [&frame[..ETHERNET], &header.to_bytes(), &headers, rest].concat()
}

/// A TCP segment or UDP datagram, in its packet, in its frame.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Source MAC address.
    pub from: Mac,
    /// Destination MAC address.
    pub to: Mac,
    /// Source address and port.
    pub src: SocketAddr,
    /// Destination address and port; of the same family.
    pub dst: SocketAddr,
    /// TTL or hop limit.
    pub hops: u8,
    /// Options of the IPv4 header, a multiple of four bytes.
    pub ip_options: Vec<u8>,
    /// What follows the IPv6 header.
    pub extensions: Vec<Extension>,
    /// The transport.
    pub protocol: Protocol,
    /// TCP's control bits.
    pub control: Control,
    /// TCP's options, a multiple of four bytes.
    pub tcp_options: Vec<u8>,
    /// What the transport carries.
    pub payload: Vec<u8>,
    /// What follows the packet in the frame: padding.
    pub trailer: Vec<u8>,
}

impl Packet {
    /// A packet between those two, with 64 hops to go and a payload of an odd length.
    pub fn new(protocol: Protocol, (from, src): (Mac, SocketAddr), (to, dst): (Mac, SocketAddr)) -> Self {
        Self {
            from,
            to,
            src,
            dst,
            hops: 64,
            ip_options: Vec::new(),
            extensions: Vec::new(),
            protocol,
            control: Control::SYN,
            tcp_options: Vec::new(),
            payload: b"payload".to_vec(),
            trailer: Vec::new(),
        }
    }

    /// Offset in the frame of the transport header.
    pub fn transport_offset(&self) -> usize {
        let (_, extensions) = Extension::chain(&self.extensions, self.number());
        ETHERNET + if self.src.is_ipv4() { IPV4 + self.ip_options.len() } else { IPV6 + extensions.len() }
    }

    /// Offset in the frame of the transport checksum.
    pub fn checksum_offset(&self) -> usize {
        /// RFC 9293 section 3.1, RFC 768.
        const IN_TCP: usize = 16;
        const IN_UDP: usize = 6;
        self.transport_offset() + if self.protocol == Protocol::Tcp { IN_TCP } else { IN_UDP }
    }

    /// The frame, its checksums right.
    ///
    /// # Panics
    ///
    /// If the families are mixed, or options or payload too long.
    pub fn frame(&self) -> Vec<u8> {
        let ip = PacketBuilder::ethernet2(self.from, self.to).ip(self.ip_header());
        let mut frame = Vec::new();
        match self.protocol {
            Protocol::Tcp => ip.tcp_header(self.tcp_header()).write(&mut frame, &self.payload),
            Protocol::Udp => ip.udp(self.src.port(), self.dst.port()).write(&mut frame, &self.payload),
        }
        .expect("the packet is not too long");
        if !self.extensions.is_empty() {
            frame = extended(&frame, &self.extensions);
        }
        frame.extend(&self.trailer);
        frame
    }

    const fn number(&self) -> IpNumber {
        match self.protocol {
            Protocol::Tcp => ip_number::TCP,
            Protocol::Udp => ip_number::UDP,
        }
    }

    /// The frames of the packet's fragments, which begin at those bytes of what is fragmented (eights), and at its start.
    ///
    /// # Panics
    ///
    /// If there cannot be such fragments.
    pub fn fragments(&self, id: u32, cuts: &[usize]) -> Vec<Vec<u8>> {
        self.cut(&self.frame(), id, cuts)
    }

    /// As [`Packet::fragments`], of a frame that the packet has in place of its own.
    ///
    /// # Panics
    ///
    /// Likewise.
    pub fn cut(&self, frame: &[u8], id: u32, cuts: &[usize]) -> Vec<Vec<u8>> {
        // RFC 8200 section 4.5: 'all headers up to and including the Routing header if present, else the Hop-by-Hop
        // Options header if present'.
        let is_of_each =
            |extension: &Extension| matches!(extension, Extension::HopByHop(_) | Extension::Routing(..));
        let of_each = self.extensions.iter().rposition(is_of_each).map_or(0, |last| last + 1);
        let (of_each, of_first) = self.extensions.split_at(of_each);
        let (fragmented, _) = Extension::chain(of_first, self.number());
        let (next, of_each) = Extension::chain(of_each, ip_number::IPV6_FRAGMENTATION_HEADER);
        let (link, packet) = frame.split_at(ETHERNET);
        let start = if self.src.is_ipv4() { IPV4 + self.ip_options.len() } else { IPV6 + of_each.len() };
        let content = &packet[start..packet.len() - self.trailer.len()];
        let starts = [0].iter().chain(cuts);
        let ends = cuts.iter().copied().chain([content.len()]);
        starts
            .zip(ends)
            .map(|(&start, end)| {
                assert_eq!(start % 8, 0, "fragments begin at multiples of eight bytes");
                let offset =
                    u16::try_from(start / 8).ok().and_then(|eights| IpFragOffset::try_new(eights).ok());
                let (offset, more) = (offset.expect("thirteen bits"), end < content.len());
                let part = &content[start..end];
                let headers = if self.src.is_ipv4() {
                    let (mut header, _) = Ipv4Header::from_slice(packet).expect("an IPv4 header");
                    header.identification = u16::try_from(id).expect("sixteen bits");
                    header.dont_fragment = false;
                    (header.fragment_offset, header.more_fragments) = (offset, more);
                    header.set_payload_len(part.len()).expect("the packet is not too long");
                    header.header_checksum = header.calc_header_checksum();
                    header.to_bytes().to_vec()
                } else {
                    let (mut header, _) = Ipv6Header::from_slice(packet).expect("an IPv6 header");
                    let fragment = Ipv6FragmentHeader::new(fragmented, offset, more, id).to_bytes();
                    header.next_header = next;
                    let length = of_each.len() + fragment.len() + part.len();
                    header.set_payload_length(length).expect("the packet is not too long");
                    [&header.to_bytes()[..], &of_each, &fragment].concat()
                };
                [link, &headers, part].concat()
            })
            .collect()
    }

    /// The frame of a UDP datagram whose sender computed no checksum.
    pub fn frame_without_checksum(&self) -> Vec<u8> {
        let mut frame = self.frame();
        frame[self.checksum_offset()..][..2].fill(0);
        frame
    }

    /// The frame as a stack makes it that leaves the checksum to a network card: the sum of the pseudo header is in its place.
    ///
    /// # Panics
    ///
    /// As [`Packet::frame`].
    pub fn frame_with_unfinished_checksum(&self) -> Vec<u8> {
        let mut frame = self.frame();
        leave_unfinished(&mut frame);
        frame
    }

    fn ip_header(&self) -> IpHeaders {
        let mut headers = ip_header((self.src.ip(), self.dst.ip()), self.hops, TRAFFIC_CLASS);
        match &mut headers {
            IpHeaders::Ipv4(header, _) => {
                header.identification = 0x1234;
                header.options = self.ip_options[..].try_into().expect("IPv4 options fit");
            }
            IpHeaders::Ipv6(header, _) => {
                header.flow_label = Ipv6FlowLabel::try_new(0xa_bcde).expect("twenty bits");
            }
        }
        headers
    }

    fn tcp_header(&self) -> TcpHeader {
        let mut header = TcpHeader::new(self.src.port(), self.dst.port(), 0x1357_9bdf, 0xfff0);
        header.fin = self.control.has(Control::FIN);
        header.syn = self.control.has(Control::SYN);
        header.rst = self.control.has(Control::RST);
        header.psh = self.control.has(Control::PSH);
        header.ack = self.control.has(Control::ACK);
        header.ece = self.control.has(Control::ECE);
        header.cwr = self.control.has(Control::CWR);
        header.acknowledgment_number = if header.ack { 0x2468_ace0 } else { 0 };
        header.set_options_raw(&self.tcp_options).expect("TCP options fit");
        header
    }
}

/// Of packets of TCP and UDP. Everything that has to stay as it is has a value that shows.
pub const TRAFFIC_CLASS: u8 = 0xb9;

/// The header of a packet between those two that is not to be fragmented.
fn ip_header(addresses: (IpAddr, IpAddr), hops: u8, traffic_class: u8) -> IpHeaders {
    match addresses {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = Ipv4Header::new(0, hops, IpNumber(0), src.octets(), dst.octets())
                .expect("an empty packet is not too long");
            header.dscp = (traffic_class >> 2).try_into().expect("six bits");
            header.ecn = (traffic_class & 3).try_into().expect("two bits");
            header.dont_fragment = true;
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => IpHeaders::Ipv6(
            Ipv6Header {
                traffic_class,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: IpNumber(0),
                hop_limit: hops,
                source: src.octets(),
                destination: dst.octets(),
            },
            Default::default(),
        ),
        (src, dst) => panic!("{src} and {dst} are of two families"),
    }
}

/// An ICMP error in its frame.
#[derive(Clone, Debug)]
pub struct IcmpError {
    /// Source MAC address.
    pub from: Mac,
    /// Destination MAC address.
    pub to: Mac,
    /// Who sends it.
    pub src: IpAddr,
    /// To whom; of the same family.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub hops: u8,
    /// Traffic class or type of service.
    pub traffic_class: u8,
    /// Whether a router may fragment it, over IPv4.
    pub may_fragment: bool,
    /// Type and code.
    pub kind: (u8, u8),
    /// What stands between checksum and quotation: an MTU, say.
    pub word: [u8; 4],
    /// The packet that it is about, from the network header on, as much as is quoted.
    pub quote: Vec<u8>,
}

impl IcmpError {
    /// The frame, its checksums right.
    ///
    /// # Panics
    ///
    /// If the families are mixed, or the quotation too long.
    pub fn frame(&self) -> Vec<u8> {
        let (kind, code) = self.kind;
        let mut header = ip_header((self.src, self.dst), self.hops, self.traffic_class);
        if let IpHeaders::Ipv4(header, _) = &mut header {
            header.dont_fragment = !self.may_fragment;
        }
        let ip = PacketBuilder::ethernet2(self.from, self.to).ip(header);
        let mut frame = Vec::new();
        if self.src.is_ipv4() {
            ip.icmpv4_raw(kind, code, self.word).write(&mut frame, &self.quote)
        } else {
            ip.icmpv6_raw(kind, code, self.word).write(&mut frame, &self.quote)
        }
        .expect("the packet is not too long");
        frame
    }
}

/// Whether a frame with TCP, UDP or ICMP has no wrong checksum, by sums from scratch (RFC 1071). UDP over IPv4 may do without
/// one; of a fragment only the network header's can be judged. It has not if it is no such frame.
pub fn checksums_hold(frame: &[u8]) -> bool {
    let Some(parts) = Parts::of(frame) else { return false };
    let transport = &frame[parts.transport.clone()];
    let network_holds = parts.is_v6 || sum(&[&frame[parts.header.clone()]]) == 0xffff;
    let transport_holds = if parts.piece != Piece::Whole {
        true
    } else if parts.is_udp() && transport[6..8] == [0, 0] {
        !parts.is_v6
    } else {
        sum(&[&parts.pseudo_header, transport]) == 0xffff
    };
    network_holds && transport_holds
}

/// Leaves the checksum of a whole packet of TCP or UDP to a network card. Other frames stay as they are.
pub fn leave_unfinished(frame: &mut [u8]) {
    if let Some(parts) = Parts::of(frame).filter(|parts| parts.piece == Piece::Whole && !parts.is_icmp()) {
        let at = parts.transport.start + parts.checksum;
        let sum = u16::try_from(sum(&[&parts.pseudo_header])).expect("a folded sum");
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The frame with its checksum finished, if its sender left that to a network card: if it is the sum of the pseudo header.
pub fn finished(frame: &[u8]) -> Vec<u8> {
    let mut finished = frame.to_vec();
    if let Some(parts) = Parts::of(frame).filter(|parts| parts.piece == Piece::Whole && !parts.is_icmp()) {
        let at = parts.transport.start + parts.checksum;
        let pseudo_header = u16::try_from(sum(&[&parts.pseudo_header])).expect("a folded sum");
        if frame[at..at + 2] == pseudo_header.to_be_bytes() {
            mend_packet(&mut finished);
            // What is wrong in the network header stays so.
            finished[parts.header.clone()].copy_from_slice(&frame[parts.header]);
        }
    }
    finished
}

/// Whether a frame with TCP or UDP, or with a fragment of them, has become one that differs from it only as a translation does:
/// in MAC addresses, addresses, hops, ports, and in checksums exactly by as much as in those.
pub fn is_translation(before: &[u8], after: &[u8]) -> bool {
    let (Some(old), Some(new)) = (Parts::of(before), Parts::of(after)) else { return false };
    let alike = (old.piece, old.protocol, &old.header, &old.transport)
        == (new.piece, new.protocol, &new.header, &new.transport)
        && before[12..ETHERNET] == after[12..ETHERNET]
        && before.len() == after.len();
    if !alike {
        return false;
    }
    let (start, end) = (old.transport.start, old.transport.end);
    let same = |range: Range<usize>| before[range.clone()] == after[range];
    // Words that change with their checksum keep their sum.
    let keeps_sum = |range: Range<usize>, old: &[u8], new: &[u8]| {
        sum(&[old, &before[range.clone()]]) == sum(&[new, &after[range]])
    };
    let network = if old.is_v6 {
        // But for hops and addresses.
        same(ETHERNET..ETHERNET + 7) && same(old.header.end..start)
    } else {
        same(ETHERNET..ETHERNET + 8)
            && same(ETHERNET + 9..ETHERNET + 10)
            && same(ETHERNET + IPV4..start)
            && keeps_sum(old.header.clone(), &[], &[])
    };
    let transport = if old.piece == Piece::Later {
        same(start..end)
    } else {
        let checksum = start + old.checksum;
        let none = |frame: &[u8]| old.is_udp() && frame[checksum..checksum + 2] == [0, 0];
        same(start + 4..checksum)
            && same(checksum + 2..end)
            && none(before) == none(after)
            && (none(before) || keeps_sum(start..end, &old.pseudo_header, &new.pseudo_header))
    };
    network && transport && same(end..before.len())
}

/// Whether an ICMP error has no wrong checksum: its own, and of what it quotes those that can be judged. It has not if the
/// frame is no error about TCP or UDP.
pub fn error_checksums_hold(frame: &[u8]) -> bool {
    let Some(quoted) = quoted_frame(frame) else { return false };
    let quote = &quoted[ETHERNET..];
    // Without the whole segment its checksum says nothing.
    let quoted_holds = match (Parts::of(&quoted), quote.first().map_or(0, |byte| byte >> 4)) {
        (Some(_), _) => checksums_hold(&quoted),
        (None, 4) => quote.get(..header_length(quote)).is_some_and(|header| sum(&[header]) == 0xffff),
        (None, version) => version == 6,
    };
    checksums_hold(frame) && quoted_holds
}

/// Makes right what checksums there are: of a packet with TCP, UDP or ICMP, and of the packet that an ICMP error quotes as
/// a whole. Other frames stay as they are.
pub fn mend_checksums(frame: &mut [u8]) {
    if let Some(mut quoted) = quoted_frame(frame) {
        mend_packet(&mut quoted);
        let start = quote_offset(frame).unwrap_or(frame.len());
        let end = start + quoted.len() - ETHERNET;
        frame[start..end].copy_from_slice(&quoted[ETHERNET..]);
    }
    mend_packet(frame);
}

fn mend_packet(frame: &mut [u8]) {
    /// RFC 791 section 3.1.
    const IN_IPV4: usize = 10;

    let Some(parts) = Parts::of(frame) else { return };
    let mut store = |at: usize, covered: Range<usize>, pseudo_header: &[u8]| {
        frame[at..at + 2].fill(0);
        let checksum = !u16::try_from(sum(&[pseudo_header, &frame[covered]])).expect("a folded sum");
        // RFC 768: zero would be none. To others it is as good.
        let checksum = if checksum == 0 { 0xffff } else { checksum };
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    };
    if !parts.is_v6 {
        store(parts.header.start + IN_IPV4, parts.header.clone(), &[]);
    }
    if parts.piece == Piece::Whole {
        store(parts.transport.start + parts.checksum, parts.transport.clone(), &parts.pseudo_header);
    }
}

/// Which part of its datagram a packet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Whole,
    /// That with the transport header.
    First,
    /// Another one.
    Later,
}

/// What is behind an IP header and all that extends it, as far as it is there; the judge's own walk.
#[derive(Clone, Copy, Debug)]
struct End {
    is_v6: bool,
    protocol: IpNumber,
    piece: Piece,
    /// Bytes of the IP header alone.
    header: usize,
    /// Bytes before what is at the end.
    at: usize,
}

impl End {
    /// `None` without a whole IP header.
    fn of(packet: &[u8]) -> Option<Self> {
        let piece = |offset: IpFragOffset, more| match (offset.value(), more) {
            (0, false) => Piece::Whole,
            (0, true) => Piece::First,
            _ => Piece::Later,
        };
        if packet.first()? >> 4 == 4 {
            let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
            let at = header.slice().len();
            let piece = piece(header.fragments_offset(), header.more_fragments());
            return Some(Self { is_v6: false, protocol: header.protocol(), piece, header: at, at });
        }
        let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
        let mut end =
            Self { is_v6: true, protocol: header.next_header(), piece: Piece::Whole, header: IPV6, at: IPV6 };
        // What a later fragment begins with is no header.
        while end.piece != Piece::Later {
            let rest = &packet[end.at..];
            match end.protocol {
                ip_number::IPV6_FRAGMENTATION_HEADER => {
                    let Ok(fragment) = Ipv6FragmentHeaderSlice::from_slice(rest) else { break };
                    match piece(fragment.fragment_offset(), fragment.more_fragments()) {
                        Piece::Whole => {}
                        other => end.piece = other,
                    }
                    end.protocol = fragment.next_header();
                    end.at += fragment.slice().len();
                }
                ip_number::IPV6_HEADER_HOP_BY_HOP
                | ip_number::IPV6_DESTINATION_OPTIONS
                | ip_number::IPV6_ROUTE_HEADER => {
                    let Ok(extension) = Ipv6RawExtHeaderSlice::from_slice(rest) else { break };
                    end.protocol = extension.next_header();
                    end.at += extension.slice().len();
                }
                _ => break,
            }
        }
        Some(end)
    }
}

/// Where fields are in a frame with an IP header that is there as a whole; what follows may be cut off.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    is_v6: bool,
    protocol: IpNumber,
    piece: Piece,
    /// The number of hops.
    pub hops: usize,
    /// The transport header, or ICMP's; of a later fragment, what it carries.
    pub transport: usize,
}

impl Places {
    /// `None` without a whole IP header.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let End { is_v6, protocol, piece, at, .. } = End::of(frame.get(ETHERNET..)?)?;
        let hops = ETHERNET + if is_v6 { 7 } else { 8 };
        Some(Self { is_v6, protocol, piece, hops, transport: ETHERNET + at })
    }

    /// TCP's control bits.
    pub const fn control(self) -> usize {
        self.transport + 13
    }

    /// The source address.
    pub fn source(self, frame: &[u8]) -> Option<IpAddr> {
        let [src, _] = self.addresses();
        match self.is_v6 {
            false => Some(IpAddr::from(<[u8; 4]>::try_from(frame.get(src..src + 4)?).ok()?)),
            true => Some(IpAddr::from(<[u8; 16]>::try_from(frame.get(src..src + 16)?).ok()?)),
        }
    }

    /// Source and destination address.
    const fn addresses(self) -> [usize; 2] {
        if self.is_v6 { [ETHERNET + 8, ETHERNET + 24] } else { [ETHERNET + 12, ETHERNET + 16] }
    }
}

/// What answers a packet of TCP or UDP, as far as addresses and ports go: sums stay as they are.
pub fn turned_back(frame: &[u8]) -> Vec<u8> {
    let mut back = frame.to_vec();
    let Some(places) = Places::of(frame) else { return back };
    let mut swap = |[one, other]: [usize; 2], length: usize| {
        if other + length <= back.len() {
            for byte in 0..length {
                back.swap(one + byte, other + byte);
            }
        }
    };
    swap([0, 6], 6);
    swap(places.addresses(), if places.is_v6 { 16 } else { 4 });
    if matches!(places.protocol, ip_number::TCP | ip_number::UDP) && places.piece != Piece::Later {
        swap([places.transport, places.transport + 2], 2);
    }
    back
}

/// Has the lengths of the network header and of UDP say that the packet reaches to the frame's end. Other frames stay as
/// they are.
pub fn fit_lengths(frame: &mut [u8]) {
    let Some(places) = Places::of(frame) else { return };
    let end = frame.len();
    let mut store = |at: usize, start: usize| {
        if let (Some(place), Ok(length)) = (frame.get_mut(at..at + 2), u16::try_from(end - start)) {
            place.copy_from_slice(&length.to_be_bytes());
        }
    };
    if places.is_v6 {
        store(ETHERNET + 4, ETHERNET + IPV6);
    } else {
        store(ETHERNET + 2, ETHERNET);
    }
    if places.protocol == ip_number::UDP && places.piece == Piece::Whole {
        store(places.transport + 4, places.transport);
    }
}

/// Bytes of ICMP before the quotation (RFC 792, RFC 4443 section 2.1).
const ICMP: usize = 8;

/// Where in the frame of an ICMP error its quotation begins.
fn quote_offset(frame: &[u8]) -> Option<usize> {
    let parts = Parts::of(frame).filter(Parts::is_icmp)?;
    Some(parts.transport.start + ICMP)
}

/// What an ICMP error quotes, as a frame.
fn quoted_frame(frame: &[u8]) -> Option<Vec<u8>> {
    let parts = Parts::of(frame).filter(Parts::is_icmp)?;
    let quote = &frame[parts.transport][ICMP..];
    Some([&frame[..ETHERNET], quote].concat())
}

/// What an IP header says of its own length; 40 bytes for what is not IPv4.
fn header_length(packet: &[u8]) -> usize {
    match packet.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 0x0f) * 4,
        _ => IPV6,
    }
}

/// What checksums cover of a packet with TCP, UDP or ICMP, and where they are.
struct Parts {
    is_v6: bool,
    protocol: IpNumber,
    piece: Piece,
    /// Offsets in the frame: of the IP header alone, of what is behind it and all that extends it.
    header: Range<usize>,
    transport: Range<usize>,
    /// Of the transport's checksum, in its header.
    checksum: usize,
    pseudo_header: Vec<u8>,
}

impl Parts {
    /// `None` if the frame does not hold them whole. A later fragment has none, whatever it is one of.
    fn of(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(ETHERNET..)?;
        let End { is_v6, protocol, piece, header, at } = End::of(packet)?;
        let number =
            |at: usize| Some(usize::from(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?])));
        let (addresses, end) = if is_v6 { (8..40, IPV6 + number(4)?) } else { (12..20, number(2)?) };
        let (least, checksum) = match protocol {
            _ if piece == Piece::Later => (0, 0),
            ip_number::TCP => (20, 16),
            ip_number::UDP => (8, 6),
            ip_number::ICMP | ip_number::IPV6_ICMP => (ICMP, 2),
            _ => return None,
        };
        if at + least > end || end > packet.len() {
            return None;
        }
        // RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1: only zeros beyond these words.
        let mut pseudo_header = packet[addresses].to_vec();
        pseudo_header.extend([0, protocol.0]);
        pseudo_header.extend(u16::try_from(end - at).ok()?.to_be_bytes());
        if protocol == ip_number::ICMP {
            // RFC 792: without a pseudo header.
            pseudo_header.clear();
        }
        let (header, transport) = (ETHERNET..ETHERNET + header, ETHERNET + at..ETHERNET + end);
        Some(Self { is_v6, protocol, piece, header, transport, checksum, pseudo_header })
    }

    fn is_udp(&self) -> bool {
        self.protocol == ip_number::UDP
    }

    fn is_icmp(&self) -> bool {
        matches!(self.protocol, ip_number::ICMP | ip_number::IPV6_ICMP) && self.piece == Piece::Whole
    }
}

/// The one's-complement sum of 16-bit words (RFC 1071 section 1), an odd byte counting as if a zero followed.
fn sum(parts: &[&[u8]]) -> u64 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u64 =
        words.map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |&low| low.into())).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// A frame of another kind: an Ethernet header with that type, and `payload`.
pub fn ethernet(to: Mac, from: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ether_type.to_be_bytes(), payload].concat()
}

/// A frame without its 802.1Q and 802.1ad tags.
pub fn untagged(frame: &[u8]) -> Vec<u8> {
    const ADDRESSES: usize = 12;
    let mut untagged = frame.to_vec();
    while matches!(untagged.get(ADDRESSES..ADDRESSES + 2), Some([0x81, 0x00] | [0x88, 0xa8])) {
        untagged.drain(ADDRESSES..untagged.len().min(ADDRESSES + 4));
    }
    untagged
}

/// A frame with 802.1Q tags put in, outermost first: tag protocol identifier and tag control information.
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    const ADDRESSES: usize = 12;
    let tags = tags.iter().flat_map(|(tpid, tci)| [tpid.to_be_bytes(), tci.to_be_bytes()].concat());
    let mut tagged = vec![];
    tagged.extend(&frame[..ADDRESSES]);
    tagged.extend(tags);
    tagged.extend(&frame[ADDRESSES..]);
    tagged
}
