//! Writes packets, from the frame down to what an ICMP error quotes. etherparse writes the headers, the checksums are
//! sums from scratch (RFC 1071), and nothing here knows the packet path.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6FragmentHeader,
    Ipv6Header, Ipv6RawExtHeader, TcpHeader, UdpHeader, ip_number,
};

/// A MAC address.
pub(crate) type Mac = [u8; 6];

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;

/// Length of a TCP header without options, of a UDP header and of an ICMP error's own header.
pub(crate) const TCP: usize = 20;
pub(crate) const UDP: usize = 8;
pub(crate) const ICMP: usize = 8;

/// Flow label of every IPv6 packet that goes in.
pub(crate) const FLOW_LABEL: u32 = 0xa_bcde;

/// Control bits of TCP (RFC 9293 section 3.1).
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

/// What a packet's network header says, and how the packet is carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Carriage {
    /// TTL or hop limit.
    pub(crate) hops: u8,
    /// Differentiated services and ECN.
    pub(crate) traffic_class: u8,
    /// IPv4 only.
    pub(crate) dont_fragment: bool,
    /// Of IPv4's header: a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// Of IPv6: protocol numbers and bodies, each six bytes more than a multiple of eight.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// Bytes that follow the packet in the frame.
    pub(crate) padding: usize,
    /// The transport's checksum is wrong.
    pub(crate) spoilt: bool,
    pub(crate) cut: Option<Cut>,
}

impl Default for Carriage {
    fn default() -> Self {
        Self {
            hops: 64,
            traffic_class: 0,
            dont_fragment: true,
            options: Vec::new(),
            extensions: Vec::new(),
            padding: 0,
            spoilt: false,
            cut: None,
        }
    }
}

impl Display for Carriage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} hops, class {:#04x}", self.hops, self.traffic_class)?;
        if self.dont_fragment {
            write!(f, ", not to be fragmented")?;
        }
        if !self.options.is_empty() {
            write!(f, ", IP options {:02x?}", self.options)?;
        }
        for (number, body) in &self.extensions {
            write!(f, ", extension header {number} {body:02x?}")?;
        }
        if self.padding != 0 {
            write!(f, ", {} bytes of padding", self.padding)?;
        }
        if self.spoilt {
            write!(f, ", its checksum wrong")?;
        }
        if let Some(cut) = &self.cut {
            write!(f, ", {cut:?}")?;
        }
        Ok(())
    }
}

/// How a packet is cut into fragments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Payload of every fragment but the last, a multiple of eight.
    pub(crate) size: usize,
    /// In which order they travel, as positions among those that are left.
    pub(crate) order: Vec<usize>,
    /// How many, at the end, never arrive.
    pub(crate) lost: usize,
}

/// A transport's bytes with the checksum still to be written.
struct Body {
    protocol: IpNumber,
    bytes: Vec<u8>,
    checksum: Option<Checksum>,
}

struct Checksum {
    offset: usize,
    pseudo_header: bool,
    /// What to send for a sum of zero.
    zero: u16,
}

/// What a packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Tcp { sequence: u32, acknowledgement: u32, control: u8, window: u16, options: Vec<u8>, payload: Vec<u8> },
    Udp { checksum: bool, payload: Vec<u8> },
    Icmp { kind: u8, code: u8, rest: [u8; 4], payload: Vec<u8> },
}

/// A packet: its endpoints (an ICMP message has no ports) and the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    /// Identification, also of IPv6's fragments.
    pub(crate) id: u16,
    pub(crate) carriage: Carriage,
    pub(crate) content: Content,
}

impl Packet {
    /// The packet in its frame, or the frames of its fragments.
    pub(crate) fn frames(&self, from: Mac, to: Mac) -> Result<Vec<Vec<u8>>> {
        let body = self.body()?;
        let payload = self.sum_up(body)?;
        let packets = match (&self.carriage.cut, &payload) {
            (None, (protocol, payload)) => vec![self.packet(*protocol, payload, None)?],
            (Some(cut), (protocol, payload)) => self.fragments(*protocol, payload, cut)?,
        };
        let ether_type = if self.src.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        let ethernet = Ethernet2Header { source: from, destination: to, ether_type };
        let padding = vec![0; self.carriage.padding];
        Ok(packets.iter().map(|packet| [&ethernet.to_bytes()[..], packet, &padding].concat()).collect())
    }

    fn body(&self) -> Result<Body> {
        let (src, dst) = (self.src.port(), self.dst.port());
        Ok(match &self.content {
            Content::Tcp { sequence, acknowledgement, control, window, options, payload } => {
                const CONTROL: usize = 13;
                let mut header = TcpHeader::new(src, dst, *sequence, *window);
                header.acknowledgment_number = *acknowledgement;
                header.set_options_raw(options).context("TCP options are too long")?;
                let mut bytes = header.to_bytes().to_vec();
                bytes[CONTROL] = *control;
                bytes.extend(payload);
                Body { protocol: ip_number::TCP, bytes, checksum: Some(Checksum::with_pseudo_header(16, 0)) }
            }
            Content::Udp { checksum, payload } => {
                let length = u16::try_from(UDP + payload.len())?;
                let header = UdpHeader { source_port: src, destination_port: dst, length, checksum: 0 };
                let bytes = [&header.to_bytes()[..], payload].concat();
                let checksum = checksum.then_some(Checksum::with_pseudo_header(6, 0xffff));
                Body { protocol: ip_number::UDP, bytes, checksum }
            }
            Content::Icmp { kind, code, rest, payload } => {
                let bytes = [&[*kind, *code, 0, 0], &rest[..], payload].concat();
                let v6 = self.src.is_ipv6();
                Body {
                    protocol: if v6 { ip_number::IPV6_ICMP } else { ip_number::ICMP },
                    bytes,
                    checksum: Some(Checksum { offset: 2, pseudo_header: v6, zero: 0 }),
                }
            }
        })
    }

    /// Writes the checksum.
    fn sum_up(&self, mut body: Body) -> Result<(IpNumber, Vec<u8>)> {
        if let Some(checksum) = body.checksum {
            let pseudo_header = if checksum.pseudo_header {
                pseudo_header(self.src.ip(), self.dst.ip(), body.protocol.0, body.bytes.len())?
            } else {
                Vec::new()
            };
            let sum = !sum(&[&pseudo_header, &body.bytes]);
            let sum = if sum == 0 { checksum.zero } else { sum };
            let sum = if self.carriage.spoilt { sum ^ 0x0101 } else { sum };
            body.bytes[checksum.offset..][..2].copy_from_slice(&sum.to_be_bytes());
        }
        Ok((body.protocol, body.bytes))
    }

    fn fragments(&self, protocol: IpNumber, payload: &[u8], cut: &Cut) -> Result<Vec<Vec<u8>>> {
        ensure!(cut.size > 0 && cut.size.is_multiple_of(8), "fragments are cut at multiples of eight bytes");
        let pieces = payload.chunks(cut.size).count();
        let mut fragments = payload
            .chunks(cut.size)
            .enumerate()
            .map(|(number, piece)| {
                let offset = IpFragOffset::try_new(u16::try_from(number * cut.size / 8)?)?;
                self.packet(protocol, piece, Some((offset, number + 1 < pieces)))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut ordered = Vec::new();
        for position in &cut.order {
            if !fragments.is_empty() {
                ordered.push(fragments.remove(position % fragments.len()));
            }
        }
        ordered.extend(fragments);
        ordered.truncate(ordered.len().saturating_sub(cut.lost));
        Ok(ordered)
    }

    /// The network header before a payload, which is a fragment at that offset with more to follow or not.
    fn packet(
        &self,
        protocol: IpNumber,
        payload: &[u8],
        fragment: Option<(IpFragOffset, bool)>,
    ) -> Result<Vec<u8>> {
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header =
                    Ipv4Header::new(0, self.carriage.hops, protocol, src.octets(), dst.octets())?;
                header.dscp = (self.carriage.traffic_class >> 2).try_into()?;
                header.ecn = (self.carriage.traffic_class & 3).try_into()?;
                header.identification = self.id;
                header.dont_fragment = self.carriage.dont_fragment && fragment.is_none();
                header.options = self.carriage.options[..].try_into()?;
                if let Some((offset, more)) = fragment {
                    (header.fragment_offset, header.more_fragments) = (offset, more);
                }
                header.set_payload_len(payload.len())?;
                header.header_checksum = header.calc_header_checksum();
                Ok([&header.to_bytes()[..], payload].concat())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut next = protocol;
                let mut rest = payload.to_vec();
                if let Some((offset, more)) = fragment {
                    let header = Ipv6FragmentHeader::new(next, offset, more, self.id.into());
                    rest.splice(0..0, header.to_bytes());
                    next = ip_number::IPV6_FRAGMENTATION_HEADER;
                }
                for (number, body) in self.carriage.extensions.iter().rev() {
                    rest.splice(0..0, Ipv6RawExtHeader::new_raw(next, body)?.to_bytes());
                    next = IpNumber(*number);
                }
                let header = Ipv6Header {
                    traffic_class: self.carriage.traffic_class,
                    flow_label: Ipv6FlowLabel::try_new(FLOW_LABEL)?,
                    payload_length: u16::try_from(rest.len())?,
                    next_header: next,
                    hop_limit: self.carriage.hops,
                    source: src.octets(),
                    destination: dst.octets(),
                };
                Ok([&header.to_bytes()[..], &rest].concat())
            }
            (src, dst) => anyhow::bail!("{src} and {dst} are of two families"),
        }
    }
}

impl Checksum {
    const fn with_pseudo_header(offset: usize, zero: u16) -> Self {
        Self { offset, pseudo_header: true, zero }
    }
}

/// What TCP's, UDP's and ICMPv6's checksums cover of the network header (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub(crate) fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Result<Vec<u8>> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let length = u32::try_from(length)?.to_be_bytes();
    // IPv4's has two bytes for the length, and the same sum: the upper half is zero.
    Ok([octets(src), octets(dst), length.to_vec(), vec![0, 0, 0, protocol]].concat())
}

/// The one's-complement sum of 16-bit words (RFC 1071 section 1). A part is padded to whole words.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u64 =
        words.map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |&low| low.into())).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// A question for the MAC address of `about` (RFC 826).
pub(crate) fn arp_request(from: (Mac, IpAddr), about: IpAddr) -> Result<Vec<u8>> {
    let ((mac, IpAddr::V4(sender)), IpAddr::V4(target)) = (from, about) else {
        anyhow::bail!("ARP is for IPv4");
    };
    let ethernet =
        Ethernet2Header { source: mac, destination: [0xff; 6], ether_type: EtherType::ARP }.to_bytes();
    let arp = etherparse::ArpPacket::new(
        etherparse::ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        etherparse::ArpOperation::REQUEST,
        &mac,
        &sender.octets(),
        &[0; 6],
        &target.octets(),
    )?;
    Ok([&ethernet[..], &arp.to_bytes()].concat())
}
