//! From a frame to a [`Packet`], all that the stages up to the rewriting know of it.

use lb_common::{Family, FlowKey, Hop, Ports, Protocol, Reason, Seen, Tuple};
use network_types::eth::EthHdr;

use crate::{
    frame::{Field as _, Frame, Link},
    network::{self, Network},
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
        Ok(Self { ingress, ether_type: ethernet.ether_type, network: size_of::<EthHdr>() })
    }

    /// The way back to whoever sent it on this link. Read when it is written down, for registers are few.
    #[inline(always)]
    pub fn back(&self, frame: &impl Frame) -> Hop {
        let Some(link) = frame.at::<Link>(0) else { return Hop::default() };
        let dst = (link.dst_head.load(), link.dst_tail.load());
        let src = (link.src_head.load(), link.src_tail.load());
        Hop::back(dst, src, self.ingress)
    }
}

/// A packet of a transport that services have, in the words of no header.
#[derive(Clone, Copy, Debug)]
pub struct Packet<F: Family> {
    /// Its flow's key.
    pub key: FlowKey<F>,
    /// The way back to whoever sent it on this link.
    pub back: Hop,
    /// Its transport.
    pub protocol: Protocol,
    /// What it adds to what its direction has seen.
    pub seen: Seen,
    /// Routers that it may still pass, this one included.
    pub hops: u8,
    /// Offset of the network header.
    pub network: usize,
    /// Offset of the transport header.
    pub transport: usize,
}

impl<F: Network> Packet<F> {
    /// What the headers say together.
    // Not fallible: an error in its place would share a byte with an address, which the compiler would then write byte by
    // byte, and the hash that reads it as a word would wait for all four.
    #[inline(always)]
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
            back: arrival.back(frame),
            protocol,
            seen,
            hops: network.hops,
            network: arrival.network,
            transport: network.transport,
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
) -> Result<(Ports, Seen), Reason> {
    let seen = match protocol {
        Protocol::Tcp => Tcp::parse::<F>(frame, network.transport, network.payload)?,
        Protocol::Udp => Udp::parse::<F>(frame, network.transport, network.payload)?,
    };
    // RFC 9293 section 3.1 and RFC 768: both begin with them.
    let ports: &[u8; 4] = frame.at(network.transport).ok_or(Reason::Malformed)?;
    Ok((Ports::from_wire(ports.load()), seen))
}

impl<F: Family> Packet<F> {
    /// Whether it is a TCP connection's first packet.
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.seen.is_syn()
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
