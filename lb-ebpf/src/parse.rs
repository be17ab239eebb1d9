//! From a frame to a [`Packet`], all that the stages up to the rewriting know of it.

use lb_common::{Family, FlowKey, Hop, Port, Protocol, Reason, Seen, Tuple};
use network_types::eth::EthHdr;

use crate::{
    frame::{Field as _, Frame, Link, Ports},
    network::Network,
    transport::{Tcp, Transport, Udp},
};

/// How a frame came in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The way back to whoever sent it on this link.
    pub back: Hop,
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
        let link: &Link = frame.at(0).ok_or(Reason::Malformed)?;
        let dst = (link.dst_head.load(), link.dst_tail.load());
        let src = (link.src_head.load(), link.src_tail.load());
        Ok(Self {
            back: Hop::back(dst, src, ingress),
            ether_type: ethernet.ether_type,
            network: size_of::<EthHdr>(),
        })
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

/// Reads the network and transport headers.
///
/// # Errors
///
/// Those of [`Network::parse`] and [`Transport::parse`]; [`Reason::OtherProtocol`].
#[inline(always)]
pub fn parse<F: Network>(frame: &impl Frame, arrival: &Arrival) -> Result<Packet<F>, Reason> {
    let network = F::parse(frame, arrival.network)?;
    let protocol = Protocol::from_number(network.protocol).ok_or(Reason::OtherProtocol)?;
    let seen = match protocol {
        Protocol::Tcp => Tcp::parse::<F>(frame, network.transport, network.payload)?,
        Protocol::Udp => Udp::parse::<F>(frame, network.transport, network.payload)?,
    };
    let ports: &Ports = frame.at(network.transport).ok_or(Reason::Malformed)?;
    let tuple = Tuple {
        src: network.src,
        dst: network.dst,
        src_port: Port::from_wire(ports.src.load()),
        dst_port: Port::from_wire(ports.dst.load()),
    };
    Ok(Packet {
        key: FlowKey::new(tuple, protocol),
        back: arrival.back,
        protocol,
        seen,
        hops: network.hops,
        network: arrival.network,
        transport: network.transport,
    })
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
