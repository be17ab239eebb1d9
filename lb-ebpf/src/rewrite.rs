//! From what a flow says to the bytes of the frame.

use lb_common::{FlowEntry, Hop, Protocol};

use crate::{
    frame::{Field as _, Frame},
    network::Network,
    parse::Packet,
    transport::{Tcp, Transport as _, Udp},
};

/// Writes MAC addresses, addresses and ports, takes one hop, and adds the flow's deltas to the checksums. `None` if
/// the frame is shorter than it was when it was parsed, which cannot be: the verifier asks.
#[inline(always)]
pub fn rewrite<F: Network>(
    frame: &mut impl Frame,
    packet: &Packet<F>,
    flow: &FlowEntry<F>,
    hop: &Hop,
) -> Option<()> {
    let becomes = &flow.becomes;
    // First: behind a comparison at an offset that is not constant, the compiler would spare this one.
    link(frame, hop)?;
    if let Some(transport) = packet.transport() {
        match packet.protocol {
            Protocol::Tcp => Tcp::adjust(frame, transport, flow.transport)?,
            Protocol::Udp => Udp::adjust(frame, transport, flow.transport)?,
        }
        frame.at_mut::<[u8; 4]>(transport)?.store(becomes.ports.wire());
    }
    F::rewrite(frame, packet.network(), becomes, flow.network)
}

/// Writes MAC addresses.
#[inline(always)]
pub fn link(frame: &mut impl Frame, hop: &Hop) -> Option<()> {
    let [head, middle, tail] = hop.link();
    frame.at_mut::<[u8; 4]>(0)?.store(head);
    frame.at_mut::<[u8; 4]>(4)?.store(middle);
    frame.at_mut::<[u8; 4]>(8)?.store(tail);
    Some(())
}
