//! From what a flow says to the bytes of the frame.

use lb_common::{FlowEntry, Hop, Protocol, Tag, vlan::TAG};

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

/// Where tags are (IEEE 802.1Q): behind the MAC addresses.
pub const TAGS: usize = 12;

/// Gives a frame that has tags of `before` bytes the tags of its way, and no priority; where nothing changes they are kept. The frame's
/// start moves. `None` if it cannot: there is no room.
#[inline(always)]
pub fn tag(frame: &mut impl Frame, before: usize, hop: &Hop) -> Option<()> {
    let after = hop.tags.length();
    if after > before {
        frame.extend_front(after - before)?;
    } else if after < before {
        frame.shorten_front(before - after)?;
    }
    link(frame, hop)?;
    let word = |tag: Option<Tag>| tag.map_or(0, Tag::wire);
    write_tags(frame, after, [word(hop.tags.outer()), word(hop.tags.inner())])
}

/// Writes tags of so many bytes, in words of the machine's order.
#[inline(always)]
pub fn write_tags(frame: &mut impl Frame, length: usize, [outer, inner]: [u32; 2]) -> Option<()> {
    if length >= TAG {
        frame.at_mut::<[u8; TAG]>(TAGS)?.store(outer);
    }
    if length >= 2 * TAG {
        frame.at_mut::<[u8; TAG]>(TAGS + TAG)?.store(inner);
    }
    Some(())
}

/// Reads them.
#[inline(always)]
pub fn read_tags(frame: &impl Frame, length: usize) -> Option<[u32; 2]> {
    let word = |offset: usize| Some(frame.at::<[u8; TAG]>(TAGS + offset)?.load());
    Some([if length >= TAG { word(0)? } else { 0 }, if length >= 2 * TAG { word(TAG)? } else { 0 }])
}
