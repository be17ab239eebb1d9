//! Answers to packets that cannot be sent on: ICMP errors to whoever sent them (RFC 792, RFC 4443), made of the packet
//! itself, which they quote.

use crate::{
    frame::{Field as _, Frame, Link},
    icmp::{self, Icmp},
    parse::Arrival,
    rewrite,
    tables::Tables,
};

/// Answers of one CPU in one tick at the most (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4(f)): a few hundred a second.
pub const BUDGET: u32 = 100;

/// Makes of the frame the answer to the packet in it, with that message: it leaves where the packet came in. `None` if it is to have none; then the frame is to be dropped.
#[inline(always)]
pub fn answer<F: Icmp, M: Tables>(frame: &mut impl Frame, tables: M, message: icmp::Message) -> Option<()> {
    let arrival = Arrival::in_vlan(frame, 0).ok()?;
    let packet = F::parse(frame, arrival.network).ok()?;
    let (src, dst) = F::addresses(frame, arrival.network)?;
    let link: &Link = frame.at(0)?;
    let to_one_host = link.dst_head[0] & GROUP == 0;
    if !to_one_host || !F::is_one_host(&src) || tables.take_answer(tables.now()) >= BUDGET {
        return None;
    }
    let length = packet.transport + packet.payload - arrival.network;
    let quoted = length.min(F::QUOTE);

    let back = arrival.back(frame);
    let tags_length = Arrival::tags_before(arrival.network);
    let tags = rewrite::read_tags(frame, tags_length)?;
    // Between the Ethernet header and the packet.
    frame.extend_front(F::HEADER + icmp::HEADER)?;
    let message_at = arrival.network + F::HEADER;
    let quote_at = message_at + icmp::HEADER;
    frame.truncate(quote_at + quoted)?;
    rewrite::link(frame, &back)?;
    rewrite::write_tags(frame, tags_length, tags)?;
    frame.at_mut::<[u8; 2]>(arrival.network - size_of::<u16>())?.store(arrival.ether_type);
    // The packet's destination is an address of ours.
    let pseudo_header = F::write(frame, arrival.network, &dst, &src, icmp::HEADER + quoted)?;
    message.write::<F>(frame, message_at)?;
    let sum = frame.sum(message_at, quote_at + quoted)?.plus(pseudo_header);
    frame.at_mut::<[u8; 2]>(message_at + icmp::CHECKSUM)?.store(sum.checksum());
    Some(())
}

/// In the first byte of a MAC address: it is that of many hosts (IEEE 802).
const GROUP: u8 = 1;
