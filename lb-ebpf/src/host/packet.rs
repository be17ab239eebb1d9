//! Packets as hosts send them, and a judge of what leaves. Nothing here knows the packet path: `etherparse` writes the
//! headers and computes checksums from scratch, and the judge sums up words as RFC 1071 has it.

use core::{
    net::{IpAddr, SocketAddr},
    ops::{BitOr, Range},
};
use std::{vec, vec::Vec};

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder, TcpHeader, ip_number,
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
            protocol,
            control: Control::SYN,
            tcp_options: Vec::new(),
            payload: b"payload".to_vec(),
            trailer: Vec::new(),
        }
    }

    /// Offset in the frame of the transport header.
    pub fn transport_offset(&self) -> usize {
        ETHERNET + if self.src.is_ipv4() { IPV4 + self.ip_options.len() } else { IPV6 }
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
        frame.extend(&self.trailer);
        frame
    }

    /// The frame of a UDP datagram whose sender computed no checksum.
    pub fn frame_without_checksum(&self) -> Vec<u8> {
        let mut frame = self.frame();
        frame[self.checksum_offset()..][..2].fill(0);
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

/// Whether a frame with TCP, UDP or ICMP in an unfragmented packet has no wrong checksum, by sums from scratch (RFC 1071).
/// UDP over IPv4 may do without one. It has not if it is no such frame.
pub fn checksums_hold(frame: &[u8]) -> bool {
    let Some(parts) = Parts::of(frame) else { return false };
    let transport = &frame[parts.transport.clone()];
    let none = parts.is_udp() && transport[6..8] == [0, 0];
    let network_holds = parts.is_v6 || sum(&[&frame[parts.header.clone()]]) == 0xffff;
    let transport_holds = if none { !parts.is_v6 } else { sum(&[&parts.pseudo_header, transport]) == 0xffff };
    network_holds && transport_holds
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
        let start = frame.len().min(quote_offset(frame));
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
    store(parts.transport.start + parts.checksum, parts.transport.clone(), &parts.pseudo_header);
}

/// Where fields are in a frame with an IP header that is there as a whole; what follows may be cut off.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    is_v6: bool,
    protocol: IpNumber,
    /// The number of hops.
    pub hops: usize,
    /// The transport header, or ICMP's.
    pub transport: usize,
}

impl Places {
    /// `None` without a whole IP header.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(ETHERNET..)?;
        let header = header_length(packet);
        let (is_v6, hops, protocol) = match packet.first()? >> 4 {
            4 => (false, 8, 9),
            6 => (true, 7, 6),
            _ => return None,
        };
        let protocol = IpNumber(*packet.get(protocol)?);
        let whole = header >= IPV4 && packet.len() >= header;
        whole.then_some(Self { is_v6, protocol, hops: ETHERNET + hops, transport: ETHERNET + header })
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
    if matches!(places.protocol, ip_number::TCP | ip_number::UDP) {
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
        store(ETHERNET + 4, places.transport);
    } else {
        store(ETHERNET + 2, ETHERNET);
    }
    if places.protocol == ip_number::UDP {
        store(places.transport + 4, places.transport);
    }
}

/// Bytes of ICMP before the quotation (RFC 792, RFC 4443 section 2.1).
const ICMP: usize = 8;

/// Where in the frame of an ICMP error its quotation begins.
fn quote_offset(frame: &[u8]) -> usize {
    ETHERNET + header_length(&frame[ETHERNET..]) + ICMP
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
    /// Offsets in the frame.
    header: Range<usize>,
    transport: Range<usize>,
    /// Of the transport's checksum, in its header.
    checksum: usize,
    pseudo_header: Vec<u8>,
}

impl Parts {
    /// `None` if the frame does not hold them whole.
    fn of(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(ETHERNET..)?;
        let number =
            |at: usize| Some(usize::from(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?])));
        let header = header_length(packet);
        let (is_v6, protocol, addresses, end) = match packet.first()? >> 4 {
            4 => (false, *packet.get(9)?, packet.get(12..20)?, number(2)?),
            6 => (true, *packet.get(6)?, packet.get(8..40)?, IPV6 + number(4)?),
            _ => return None,
        };
        let protocol = IpNumber(protocol);
        let (least, checksum) = match protocol {
            ip_number::TCP => (20, 16),
            ip_number::UDP => (8, 6),
            ip_number::ICMP | ip_number::IPV6_ICMP => (ICMP, 2),
            _ => return None,
        };
        if header < IPV4 || header + least > end || end > packet.len() {
            return None;
        }
        // RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1: only zeros beyond these words.
        let mut pseudo_header = addresses.to_vec();
        pseudo_header.extend([0, protocol.0]);
        pseudo_header.extend(u16::try_from(end - header).ok()?.to_be_bytes());
        if protocol == ip_number::ICMP {
            // RFC 792: without a pseudo header.
            pseudo_header.clear();
        }
        let (header, transport) = (ETHERNET..ETHERNET + header, ETHERNET + header..ETHERNET + end);
        Some(Self { is_v6, protocol, header, transport, checksum, pseudo_header })
    }

    fn is_udp(&self) -> bool {
        self.protocol == ip_number::UDP
    }

    fn is_icmp(&self) -> bool {
        matches!(self.protocol, ip_number::ICMP | ip_number::IPV6_ICMP)
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
