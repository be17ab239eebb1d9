//! Packets as hosts send them, and a judge of what leaves. Nothing here knows the packet path: `etherparse` writes the
//! headers and computes checksums from scratch, and the judge sums up words as RFC 1071 has it.

use core::{
    net::{IpAddr, SocketAddr},
    ops::BitOr,
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
        // Everything that has to stay as it is has a value that shows.
        const TRAFFIC_CLASS: u8 = 0xb9;
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
        let header = ip_header((self.src, self.dst), self.hops, self.traffic_class);
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
/// UDP over IPv4 may do without one.
///
/// # Panics
///
/// If it is no such frame.
pub fn checksums_hold(frame: &[u8]) -> bool {
    let packet = &frame[ETHERNET..];
    let length = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let (header, protocol, addresses, end) = match packet[0] >> 4 {
        4 => (usize::from(packet[0] & 0x0f) * 4, packet[9], &packet[12..20], length(2)),
        6 => (IPV6, packet[6], &packet[8..40], IPV6 + length(4)),
        version => panic!("there is no IP version {version}"),
    };
    let transport = &packet[header..end];
    // RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1: only zeros beyond these words.
    let mut pseudo_header = addresses.to_vec();
    pseudo_header.extend([0, protocol]);
    pseudo_header.extend(u16::try_from(transport.len()).expect("an IP packet is shorter").to_be_bytes());
    let is_udp = IpNumber(protocol) == ip_number::UDP;
    let none = is_udp && transport[6..8] == [0, 0];
    let network_holds = packet[0] >> 4 == 6 || sum(&[&packet[..header]]) == 0xffff;
    if IpNumber(protocol) == ip_number::ICMP {
        // RFC 792: without a pseudo header.
        pseudo_header.clear();
    }
    let transport_holds =
        if none { packet[0] >> 4 == 4 } else { sum(&[&pseudo_header, transport]) == 0xffff };
    network_holds && transport_holds
}

/// Whether an ICMP error has no wrong checksum: its own, and of what it quotes those that can be judged.
///
/// # Panics
///
/// If the frame is none.
pub fn error_checksums_hold(frame: &[u8]) -> bool {
    /// RFC 792, RFC 4443 section 2.1.
    const ICMP: usize = 8;
    let at =
        ETHERNET + if frame[ETHERNET] >> 4 == 4 { usize::from(frame[ETHERNET] & 0x0f) * 4 } else { IPV6 };
    let quote = &frame[at + ICMP..];
    let length = |at: usize| usize::from(u16::from_be_bytes([quote[at], quote[at + 1]]));
    let (header, whole) = match quote[0] >> 4 {
        4 => (usize::from(quote[0] & 0x0f) * 4, length(2)),
        version => {
            assert_eq!(version, 6, "there is no such IP version");
            (0, IPV6 + length(4))
        }
    };
    let quoted_holds = if quote.len() >= whole {
        checksums_hold(&[&frame[..ETHERNET], quote].concat())
    } else {
        // Without the whole segment its checksum says nothing.
        header == 0 || sum(&[&quote[..header]]) == 0xffff
    };
    checksums_hold(frame) && quoted_holds
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
