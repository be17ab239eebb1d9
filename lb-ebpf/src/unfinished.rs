//! Checksums that a sender left to its network card, which there is none of between neighbours on one host: a veth hands packets
//! over with only the sum of the pseudo header in place of the checksum (CHECKSUM_PARTIAL in the kernel's
//! linux/skbuff.h), and what XDP sends on has lost the note that says so: they are finished here. In the network stack, generic mode,
//! the note stays, and the kernel finishes them where they leave: they get the sum of the pseudo header that they have then.

use lb_common::{Tuple, checksum::Sum};

use crate::{
    frame::{Field as _, Frame},
    icmp::{Icmp, checksum_offset},
    parse::Packet,
    transport::NO_CHECKSUM,
};

/// When a checksum is finished: one of the constants. Not an enum, for it goes to functions that the verifier follows once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Finish(pub u64);

impl Finish {
    /// Here.
    pub const NOW: Self = Self(0);
    /// By the kernel.
    pub const LATER: Self = Self(1);
}

/// Whether the packet, which is a whole one, has a checksum like that. One in 65 536 that are right looks so, too, unless it is looked
/// at `closely`, which takes a walk over it.
#[inline(always)]
pub fn is_unfinished<F: Icmp>(frame: &impl Frame, packet: &Packet<F>, closely: bool) -> bool {
    let Some(transport) = packet.transport() else { return false };
    let check = frame.at::<[u8; 2]>(transport + checksum_offset(packet.protocol));
    let check = check.map_or(NO_CHECKSUM, |check| check.load());
    let Some((sum, length)) = pseudo_header(frame, packet, transport, packet.key.tuple) else { return false };
    if check == NO_CHECKSUM || check != sum.fold() {
        return false;
    }
    // RFC 1071 section 1: with the checksum in it, the sum of what is right is all ones.
    let is_right =
        || frame.sum(transport, transport + length).is_some_and(|all| all.plus(sum).fold() == 0xffff);
    !closely || !is_right()
}

/// Writes the checksum that the packet, which is a whole one, should have had, or has the kernel do so. `None` if not all of it can be
/// read.
#[inline(always)]
pub fn finish<F: Icmp>(frame: &mut impl Frame, packet: &Packet<F>, when: Finish) -> Option<()> {
    let transport = packet.transport()?;
    let (src, dst) = F::addresses(frame, packet.network())?;
    let tuple = Tuple { src, dst, ..packet.key.tuple };
    let (pseudo_header, length) = pseudo_header(frame, packet, transport, tuple)?;
    let at = transport + checksum_offset(packet.protocol);
    if when == Finish::LATER {
        frame.at_mut::<[u8; 2]>(at)?.store(pseudo_header.fold());
        return Some(());
    }
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
fn pseudo_header<F: Icmp>(
    frame: &impl Frame,
    packet: &Packet<F>,
    transport: usize,
    Tuple { src, dst, .. }: Tuple<F>,
) -> Option<(Sum, usize)> {
    let length = (F::length(frame, packet.network()) + packet.network()).checked_sub(transport)?;
    let words = Sum::of_word(u16::from(packet.protocol.number()).to_be())
        .plus(Sum::of_word(u16::try_from(length).ok()?.to_be()));
    Some((F::sum(&src).plus(F::sum(&dst)).plus(words), length))
}
