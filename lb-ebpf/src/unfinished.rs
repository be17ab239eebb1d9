//! Checksums that a sender left to its network card, which there is none of between neighbours on one host: a veth hands packets
//! over with only the sum of the pseudo header in place of the checksum (CHECKSUM_PARTIAL in the kernel's
//! linux/skbuff.h), and what XDP sends on has lost the note that says so. They are finished here.

use lb_common::{Tuple, checksum::Sum};

use crate::{
    frame::{Field as _, Frame},
    icmp::{Icmp, checksum_offset},
    parse::Packet,
    transport::NO_CHECKSUM,
};

/// Whether the packet, which is a whole one, has a checksum like that. One in 65 536 that are right looks so, too; it is as right
/// after it has been finished.
#[inline(always)]
pub fn is_unfinished<F: Icmp>(frame: &impl Frame, packet: &Packet<F>) -> bool {
    let Some(transport) = packet.transport() else { return false };
    let check = frame.at::<[u8; 2]>(transport + checksum_offset(packet.protocol));
    let check = check.map_or(NO_CHECKSUM, |check| check.load());
    let pseudo_header = pseudo_header(frame, packet, transport);
    pseudo_header.is_some_and(|(sum, _)| check != NO_CHECKSUM && check == sum.fold())
}

/// Writes the checksum that the packet, which is a whole one, should have had. `None` if not all of it can be read.
#[inline(always)]
pub fn finish<F: Icmp>(frame: &mut impl Frame, packet: &Packet<F>) -> Option<()> {
    let transport = packet.transport()?;
    let (pseudo_header, length) = pseudo_header(frame, packet, transport)?;
    let at = transport + checksum_offset(packet.protocol);
    frame.at_mut::<[u8; 2]>(at)?.store(0);
    let sum = frame.sum(transport, transport + length)?;
    let check = match sum.plus(pseudo_header).checksum() {
        // RFC 768; TCP knows no difference.
        0 => 0xffff,
        check => check,
    };
    frame.at_mut::<[u8; 2]>(at)?.store(check);
    Some(())
}

/// The sum over the pseudo header of the transport at that offset (RFC 9293 section 3.1, RFC 8200 section 8.1), and how long
/// header and payload are together.
#[inline(always)]
fn pseudo_header<F: Icmp>(frame: &impl Frame, packet: &Packet<F>, transport: usize) -> Option<(Sum, usize)> {
    let Tuple { src, dst, .. } = &packet.key.tuple;
    let length = (F::length(frame, packet.network()) + packet.network()).checked_sub(transport)?;
    let words = Sum::of_word(u16::from(packet.protocol.number()).to_be())
        .plus(Sum::of_word(u16::try_from(length).ok()?.to_be()));
    Some((F::sum(src).plus(F::sum(dst)).plus(words), length))
}
