//! Transport headers: TCP (RFC 9293) and UDP (RFC 768).

use lb_common::{Delta, Family, Reason, Seen, V4};
use network_types::{tcp::TcpHdr, udp::UdpHdr};

use crate::frame::{Field as _, Frame};

/// What differs between the transports that services have.
pub trait Transport {
    /// Offset of the checksum in the header.
    const CHECKSUM: usize;

    /// Checks the header at `offset`, of which the network header says that `payload` bytes follow, and says what it
    /// adds to what its direction has seen.
    ///
    /// # Errors
    ///
    /// [`Reason::Malformed`] where it contradicts itself, the network header or the frame; [`Reason::NoChecksum`].
    fn parse<F: Family>(frame: &impl Frame, offset: usize, payload: usize) -> Result<Seen, Reason>;

    /// What `checksum` is after a change by `delta`.
    fn adjusted(checksum: u16, delta: Delta) -> u16;

    /// Adds `delta` to the checksum.
    fn adjust(frame: &mut impl Frame, offset: usize, delta: Delta) -> Option<()>;
}

/// TCP.
#[derive(Clone, Copy, Debug)]
pub enum Tcp {}

/// UDP.
#[derive(Clone, Copy, Debug)]
pub enum Udp {}

impl Transport for Tcp {
    /// RFC 9293 section 3.1.
    const CHECKSUM: usize = 16;

    #[inline(always)]
    fn parse<F: Family>(frame: &impl Frame, offset: usize, payload: usize) -> Result<Seen, Reason> {
        /// Data offset and control bits (RFC 9293 section 3.1), as bytes of the header.
        const DATA_OFFSET: usize = 12;
        const CONTROL: usize = 13;

        let bytes: &[u8; size_of::<TcpHdr>()] = frame.at(offset).ok_or(Reason::Malformed)?;
        let data_offset = usize::from(bytes[DATA_OFFSET] >> 4) * 4;
        if data_offset < size_of::<TcpHdr>() || data_offset > payload {
            return Err(Reason::Malformed);
        }
        Ok(Seen::of_control(bytes[CONTROL]))
    }

    #[inline(always)]
    fn adjusted(checksum: u16, delta: Delta) -> u16 {
        delta.apply(checksum)
    }

    #[inline(always)]
    fn adjust(frame: &mut impl Frame, offset: usize, delta: Delta) -> Option<()> {
        let header: &mut TcpHdr = frame.at_mut(offset)?;
        header.check.store(Self::adjusted(header.check.load(), delta));
        Some(())
    }
}

impl Transport for Udp {
    /// RFC 768.
    const CHECKSUM: usize = 6;

    #[inline(always)]
    fn parse<F: Family>(frame: &impl Frame, offset: usize, payload: usize) -> Result<Seen, Reason> {
        let header: &UdpHdr = frame.at(offset).ok_or(Reason::Malformed)?;
        let length = usize::from(u16::from_be(header.len.load()));
        if length < size_of::<UdpHdr>() || length > payload {
            return Err(Reason::Malformed);
        }
        if F::NUMBER != V4::NUMBER && header.check.load() == NO_CHECKSUM {
            return Err(Reason::NoChecksum);
        }
        Ok(Seen::PACKET)
    }

    #[inline(always)]
    fn adjusted(checksum: u16, delta: Delta) -> u16 {
        if checksum == NO_CHECKSUM {
            return NO_CHECKSUM;
        }
        // A sum that comes to 'no checksum' is sent as its other zero (RFC 768).
        match delta.apply(checksum) {
            NO_CHECKSUM => 0xffff,
            checksum => checksum,
        }
    }

    #[inline(always)]
    fn adjust(frame: &mut impl Frame, offset: usize, delta: Delta) -> Option<()> {
        let header: &mut UdpHdr = frame.at_mut(offset)?;
        header.check.store(Self::adjusted(header.check.load(), delta));
        Some(())
    }
}

/// In a UDP header: the sender computed none (RFC 768); not allowed over IPv6 (RFC 8200 section 8.1).
pub(crate) const NO_CHECKSUM: u16 = 0;
