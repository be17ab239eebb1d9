//! Network headers: IPv4 (RFC 791) and IPv6 (RFC 8200).

use lb_common::{Address4, Address6, Delta, Family, Reason, Tuple, V4, V6};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::frame::{Field as _, Frame};

/// IP protocol number of IPv6's fragment header (RFC 8200 section 4.5), which here stands for fragments of IPv4 too.
pub const FRAGMENT: u8 = 44;

/// What parsing needs of a network header, addresses apart: read with the rest, they would be kept for long where there is
/// little room.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// IP protocol number of what follows; [`FRAGMENT`] for all fragments.
    pub protocol: u8,
    /// Routers that the packet may still pass, this one included.
    pub hops: u8,
    /// Offset in the frame of what follows.
    pub transport: usize,
    /// Bytes of what follows; less than the frame has where that is padded.
    pub payload: usize,
}

/// The packet path's side of an address family.
pub trait Network: Family {
    /// Reads the header at `offset`.
    ///
    /// # Errors
    ///
    /// [`Reason::Malformed`] where it contradicts itself or the frame.
    fn parse(frame: &impl Frame, offset: usize) -> Result<Header, Reason>;

    /// Source and destination address in the header at `offset`. `None` if the frame ends before.
    fn addresses(frame: &impl Frame, offset: usize) -> Option<(Self::Address, Self::Address)>;

    /// Writes the addresses and one hop less. `delta` is for the header's checksum, the hop included.
    fn rewrite(frame: &mut impl Frame, offset: usize, becomes: &Tuple<Self>, delta: Delta) -> Option<()>;
}

impl Network for V4 {
    #[inline(always)]
    fn parse(frame: &impl Frame, offset: usize) -> Result<Header, Reason> {
        /// More-fragments flag and fragment offset (RFC 791 section 3.1); what remains is reserved and don't-fragment.
        const PARTS: u16 = 0x3fff;

        let header: &Ipv4Hdr = frame.at(offset).ok_or(Reason::Malformed)?;
        let header_length = usize::from(header.vihl & 0x0f) * 4;
        let total_length = usize::from(u16::from_be(header.tot_len.load()));
        if header.vihl >> 4 != 4
            || header_length < size_of::<Ipv4Hdr>()
            || total_length < header_length
            || total_length + offset > frame.length()
        {
            return Err(Reason::Malformed);
        }
        let is_part = u16::from_be(header.frags.load()) & PARTS != 0;
        Ok(Header {
            protocol: if is_part { FRAGMENT } else { header.proto },
            hops: header.ttl,
            transport: offset + header_length,
            payload: total_length - header_length,
        })
    }

    #[inline(always)]
    fn addresses(frame: &impl Frame, offset: usize) -> Option<(Address4, Address4)> {
        let header: &Ipv4Hdr = frame.at(offset)?;
        Some((Address4(header.src_addr.load()), Address4(header.dst_addr.load())))
    }

    #[inline(always)]
    fn rewrite(frame: &mut impl Frame, offset: usize, becomes: &Tuple<Self>, delta: Delta) -> Option<()> {
        let header: &mut Ipv4Hdr = frame.at_mut(offset)?;
        header.src_addr.store(becomes.src.0);
        header.dst_addr.store(becomes.dst.0);
        header.ttl = header.ttl.wrapping_sub(1);
        header.check.store(delta.apply(header.check.load()));
        Some(())
    }
}

impl Network for V6 {
    #[inline(always)]
    fn parse(frame: &impl Frame, offset: usize) -> Result<Header, Reason> {
        let header: &Ipv6Hdr = frame.at(offset).ok_or(Reason::Malformed)?;
        let payload = usize::from(u16::from_be(header.payload_len.load()));
        let [version, ..] = header.vcf;
        if version >> 4 != 6 || payload + offset + size_of::<Ipv6Hdr>() > frame.length() {
            return Err(Reason::Malformed);
        }
        Ok(Header {
            protocol: header.next_hdr,
            hops: header.hop_limit,
            transport: offset + size_of::<Ipv6Hdr>(),
            payload,
        })
    }

    #[inline(always)]
    fn addresses(frame: &impl Frame, offset: usize) -> Option<(Address6, Address6)> {
        let header: &Ipv6Hdr = frame.at(offset)?;
        Some((Address6(header.src_addr.load()), Address6(header.dst_addr.load())))
    }

    #[inline(always)]
    fn rewrite(frame: &mut impl Frame, offset: usize, becomes: &Tuple<Self>, _delta: Delta) -> Option<()> {
        let header: &mut Ipv6Hdr = frame.at_mut(offset)?;
        header.src_addr.store(becomes.src.0);
        header.dst_addr.store(becomes.dst.0);
        header.hop_limit = header.hop_limit.wrapping_sub(1);
        Some(())
    }
}
