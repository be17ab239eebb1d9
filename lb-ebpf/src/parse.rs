//! From a frame to a [`Packet`], all that the stages up to the rewriting know of it.

use lb_common::{
    Family, FlowKey, Hop, Ports, Protocol, Reason, Seen, Tag, Tags, Tuple, Vlan,
    vlan::{MOST_TAGS, TAG},
};
use network_types::{eth::EthHdr, tcp::TcpHdr, udp::UdpHdr};

use crate::{
    frame::{Field as _, Frame, Link, opaque},
    network::{self, Network},
    tables::Tables,
    transport::{Tcp, Transport, Udp},
};

/// How a frame came in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The interface that it came in through.
    pub ingress: u32,
    /// What the Ethernet header says follows it, as it stands on the wire.
    pub ether_type: u16,
    /// Offset of the network header.
    pub network: usize,
    /// The VLAN that it is in.
    pub tags: Tags,
    /// Whose it is.
    pub networks: Networks,
}

/// Whose network a VLAN is: one of the constants. Not an enum, for it goes through a function that the verifier follows once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Networks(pub u64);

impl Networks {
    /// This host's: it has a device for the VLAN, or there are no tags.
    pub const OF_HOST: Self = Self(0);
    /// The host does not look at tags there: they are the network's business.
    pub const OF_ALL: Self = Self(1);
    /// Others': the host has devices for other VLANs there.
    pub const OF_OTHERS: Self = Self(2);

    /// Whose network that is.
    #[inline(always)]
    pub fn of<M: Tables>(tables: M, vlan: &Vlan) -> Self {
        if vlan.tags.is_none() || tables.vlan_mtu(vlan).is_some() {
            Self::OF_HOST
        } else if tables.vlan_mtu(&Vlan { tags: Tags::NONE, ..*vlan }).is_some() {
            Self::OF_OTHERS
        } else {
            Self::OF_ALL
        }
    }
}

impl Arrival {
    /// Reads the Ethernet header of a frame that came in through interface `ingress`.
    ///
    /// # Errors
    ///
    /// [`Reason::Malformed`] where the frame is shorter than the header.
    #[inline(always)]
    pub fn of(frame: &impl Frame, ingress: u32) -> Result<Self, Reason> {
        let ethernet: &EthHdr = frame.at(0).ok_or(Reason::Malformed)?;
        Ok(Self {
            ingress,
            ether_type: ethernet.ether_type,
            network: size_of::<EthHdr>(),
            tags: Tags::NONE,
            networks: Networks::OF_HOST,
        })
    }

    /// The same, of a frame that may be tagged.
    ///
    /// # Errors
    ///
    /// [`Reason::Malformed`] where the frame is shorter than headers and tags.
    #[inline(always)]
    pub fn in_vlan(frame: &impl Frame, ingress: u32) -> Result<Self, Reason> {
        let mut arrival = Self::of(frame, ingress)?;
        for _ in 0..MOST_TAGS {
            if !Tag::follows(arrival.ether_type) {
                break;
            }
            let [a, b, c, d] = *frame.at::<[u8; TAG]>(arrival.network).ok_or(Reason::Malformed)?;
            if let Some(tag) = Tag::from_wire(arrival.ether_type, u16::from_ne_bytes([a, b])) {
                arrival.tags = arrival.tags.and(tag).unwrap_or(arrival.tags);
            }
            arrival.ether_type = u16::from_ne_bytes([c, d]);
            arrival.network += TAG;
        }
        // As it is: for the verifier, which would follow all that comes after for each number of tags.
        arrival.network = opaque(arrival.network) & (NETWORK_OFFSETS - 1);
        Ok(arrival)
    }

    /// Bytes of tags, also of those that name no VLAN, of a frame whose network header has that offset.
    #[inline(always)]
    pub const fn tags_before(network: usize) -> usize {
        network.wrapping_sub(size_of::<EthHdr>())
    }

    /// The way back to whoever sent it on this link.
    #[inline(always)]
    pub fn back(&self, frame: &impl Frame) -> Hop {
        let Some(link) = frame.at::<Link>(0) else { return Hop::default() };
        let dst = (link.dst_head.load(), link.dst_tail.load());
        let src = (link.src_head.load(), link.src_tail.load());
        Hop::back(dst, src, self.ingress).tagged(self.tags)
    }
}

/// A packet of a transport that services have, in the words of no header.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Packet<F: Family> {
    /// Its flow's key.
    pub key: FlowKey<F>,
    /// The way back to whoever sent it on this link, where it has been [looked at](Arrival::back).
    pub back: Hop,
    /// Its datagram's identification as on the wire, if it is not the whole of it.
    pub id: u32,
    network: u16,
    transport: u16,
    /// Bytes behind all headers that come before the transport's, if it is not the whole of its datagram.
    pub length: u16,
    zeros: u16,
    /// Its transport.
    pub protocol: Protocol,
    /// What it adds to what its direction has seen.
    pub seen: Seen,
    /// Routers that it may still pass, this one included.
    pub hops: u8,
    /// Which part of its datagram it is.
    pub part: Part,
}

/// Which part of a datagram a packet is: one of the constants. Not an enum, for it goes through memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Part(pub(crate) u8);

#[expect(non_upper_case_globals, reason = "they read as the variants that they stand for")]
impl Part {
    /// All of it.
    pub const Whole: Self = Self(0);
    /// The fragment that the transport header is in.
    pub const First: Self = Self(1);
    /// Another one, without ports.
    pub const Later: Self = Self(2);
}

/// Offsets behind network headers are smaller, also behind all that extends them: what is beyond is no packet of a service's.
pub const OFFSETS: usize = 1 << 12;

/// Offsets of network headers are smaller.
const NETWORK_OFFSETS: usize = 1 << 5;

impl<F: Network> Packet<F> {
    /// The whole of a datagram, by what its headers say together; without the way back, for registers are few.
    // Not fallible: an error in its place would share a byte with an address, which the compiler would then write byte by
    // byte, and the hash that reads it as a word would wait for all four.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "offsets are small")]
    pub fn new(
        frame: &impl Frame,
        arrival: &Arrival,
        network: &network::Header,
        protocol: Protocol,
        ports: Ports,
        seen: Seen,
    ) -> Self {
        // They are there: the header has been parsed.
        let (src, dst) = F::addresses(frame, arrival.network).unwrap_or((F::UNSPECIFIED, F::UNSPECIFIED));
        Self {
            key: FlowKey::new(Tuple { src, dst, ports }, protocol),
            back: Hop::default(),
            id: 0,
            network: arrival.network as u16,
            transport: network.transport as u16,
            length: 0,
            zeros: 0,
            protocol,
            seen,
            hops: network.hops,
            part: Part::Whole,
        }
    }
}

/// The transport's part of parsing: its ports, and what the packet adds to what its direction has seen.
///
/// # Errors
///
/// Those of [`Transport::parse`].
#[inline(always)]
pub fn transport<F: Network>(
    frame: &impl Frame,
    network: &network::Header,
    protocol: Protocol,
    part: Part,
) -> Result<(Ports, Seen), Reason> {
    // A first fragment's transport header speaks of what later ones carry, but is not itself continued in one: what follows the
    // packet in the frame is none of it.
    let payload = if part == Part::First {
        let least = match protocol {
            Protocol::Tcp => size_of::<TcpHdr>(),
            Protocol::Udp => size_of::<UdpHdr>(),
        };
        if network.payload < least {
            return Err(Reason::Malformed);
        }
        usize::MAX
    } else {
        network.payload
    };
    let seen = match protocol {
        Protocol::Tcp => Tcp::parse::<F>(frame, network.transport, payload)?,
        Protocol::Udp => Udp::parse::<F>(frame, network.transport, payload)?,
    };
    // RFC 9293 section 3.1 and RFC 768: both begin with them.
    let ports: &[u8; 4] = frame.at(network.transport).ok_or(Reason::Malformed)?;
    Ok((Ports::from_wire(ports.load()), seen))
}

impl<F: Family> Packet<F> {
    /// None.
    pub const EMPTY: Self = {
        let nowhere = Tuple { src: F::UNSPECIFIED, dst: F::UNSPECIFIED, ports: Ports::from_wire(0) };
        Self {
            key: FlowKey::new(nowhere, Protocol::Udp),
            back: Hop::new([0; 6], [0; 6], 0),
            id: 0,
            network: 0,
            transport: 0,
            length: 0,
            zeros: 0,
            protocol: Protocol::Udp,
            seen: Seen::NONE,
            hops: 0,
            part: Part::Whole,
        }
    };

    /// Offset of the network header.
    #[inline(always)]
    pub fn network(&self) -> usize {
        // Changes nothing: for the verifier, where the packet has been in memory.
        usize::from(self.network) & (NETWORK_OFFSETS - 1)
    }

    /// Offset of the transport header, if it has one.
    #[inline(always)]
    pub fn transport(&self) -> Option<usize> {
        // Likewise.
        (self.part != Part::Later).then_some(usize::from(self.transport) & (OFFSETS - 1))
    }

    /// Whether it is a TCP connection's first packet.
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.seen.is_syn()
    }

    /// Whether it is one of those in the midst of a connection, whose direction has seen that: neither the first in it, nor one that
    /// begins or ends something, nor with a checksum to be finished.
    #[inline(always)]
    pub const fn continues(&self, seen: Seen) -> bool {
        seen.has(Seen::PACKET.and(self.seen.end())) && !seen.has(Seen::UNFINISHED) && !self.is_syn()
    }

    /// Whether a connection may begin with it.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        matches!(self.protocol, Protocol::Udp) || self.is_syn()
    }

    /// Whether the packet has a hop left to spend here (RFC 1812 section 5.3.1, RFC 8200 section 3).
    ///
    /// # Errors
    ///
    /// [`Reason::TtlExpired`] if not.
    #[inline(always)]
    pub const fn may_travel(&self) -> Result<(), Reason> {
        if self.hops > 1 { Ok(()) } else { Err(Reason::TtlExpired) }
    }
}
