//! ICMP (RFC 792) and ICMPv6 (RFC 4443) headers: of errors, which quote the packet that they are about.

use lb_common::{
    Address4, Address6, Delta, Family, FlowEntry, FlowKey, Hop, Ports, Protocol, Reason, Tuple, V4, V6,
    checksum::Sum,
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    frame::{Field as _, Frame, opaque},
    network::Header,
    parse::{Arrival, Part},
    part::{self, Parts},
    rewrite,
    transport::{Tcp, Transport, Udp},
};

/// Type, code, checksum, and four bytes whose meaning depends on the type (RFC 792, RFC 4443 section 2.1).
pub(crate) const HEADER: usize = 8;
/// Offset of the checksum in it.
pub(crate) const CHECKSUM: usize = 2;

/// What of the transport is quoted at least (RFC 792): ports and four bytes more.
const QUOTED: usize = 8;

/// What differs between ICMP and ICMPv6.
pub trait Icmp: Parts {
    /// 'Time exceeded in transit': type and code.
    const TIME_EXCEEDED: [u8; 2];
    /// 'Fragmentation needed' or 'packet too big': type and code.
    const TOO_BIG: [u8; 2];
    /// Bytes of a network header without options.
    const HEADER: usize;
    /// Bytes that an error quotes at the most.
    const QUOTE: usize;

    /// Length of the packet whose header is at `offset`.
    fn length(frame: &impl Frame, offset: usize) -> usize;

    /// Whether messages of that type are errors about one packet, which they quote.
    fn is_error(kind: u8) -> bool;

    /// Reads the quoted header at `offset`; `length` bytes are quoted in all. The payload is what of it is quoted.
    ///
    /// # Errors
    ///
    /// [`Reason::Malformed`] where it contradicts itself or is cut off.
    fn parse_quoted(frame: &impl Frame, offset: usize, length: usize) -> Result<Header, Reason>;

    /// Writes the addresses of the quoted header at `offset`, whose packet went the other way than those that become
    /// `becomes`; they change by `delta` in sum. Returns how the sum of the whole header changes.
    fn rewrite_quoted(
        frame: &mut impl Frame,
        offset: usize,
        becomes: &Tuple<Self>,
        delta: Delta,
    ) -> Option<Delta>;

    /// What a change of the packet's addresses is to the checksum of the message in it.
    fn pseudo_header(delta: Delta) -> Delta;

    /// Writes the header of a packet that carries an ICMP error of `length` bytes, in front of that and what it quotes;
    /// returns the sum of what its checksum covers beside it.
    fn write(
        frame: &mut impl Frame,
        offset: usize,
        src: &Self::Address,
        dst: &Self::Address,
        length: usize,
    ) -> Option<Sum>;

    /// Whether that may be the address of one host: only those are told of errors (RFC 1122 section 3.2.2, RFC 4443
    /// section 2.4(e)).
    fn is_one_host(address: &Self::Address) -> bool;
}

/// What routers give their own packets (RFC 1700).
const HOPS: u8 = 64;

impl Icmp for V4 {
    const TIME_EXCEEDED: [u8; 2] = [11, 0];
    const TOO_BIG: [u8; 2] = [3, 4];
    const HEADER: usize = size_of::<Ipv4Hdr>();
    /// RFC 1812 section 4.3.2.3: 576 bytes in all.
    const QUOTE: usize = 576 - Self::HEADER - HEADER;

    #[inline(always)]
    fn length(frame: &impl Frame, offset: usize) -> usize {
        frame.at::<Ipv4Hdr>(offset).map_or(0, |header| u16::from_be(header.tot_len.load()).into())
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        /// RFC 792; source quench is there for old routers (RFC 6633). A redirect is for the host that it is sent to.
        const UNREACHABLE: u8 = 3;
        const SOURCE_QUENCH: u8 = 4;
        const TIME_EXCEEDED: u8 = 11;
        const PARAMETER_PROBLEM: u8 = 12;

        matches!(kind, UNREACHABLE | SOURCE_QUENCH | TIME_EXCEEDED | PARAMETER_PROBLEM)
    }

    #[inline(always)]
    fn parse_quoted(frame: &impl Frame, offset: usize, length: usize) -> Result<Header, Reason> {
        let header: &Ipv4Hdr = frame.at(offset).ok_or(Reason::Malformed)?;
        let header_length = usize::from(header.vihl & 0x0f) * 4;
        if header.vihl >> 4 != 4 || header_length < size_of::<Ipv4Hdr>() || header_length > length {
            return Err(Reason::Malformed);
        }
        Ok(Header {
            protocol: header.proto,
            hops: header.ttl,
            transport: offset + header_length,
            payload: length - header_length,
        })
    }

    #[inline(always)]
    fn rewrite_quoted(
        frame: &mut impl Frame,
        offset: usize,
        becomes: &Tuple<Self>,
        delta: Delta,
    ) -> Option<Delta> {
        let header: &mut Ipv4Hdr = frame.at_mut(offset)?;
        header.src_addr.store(becomes.dst.0);
        header.dst_addr.store(becomes.src.0);
        let before = header.check.load();
        let after = delta.apply(before);
        header.check.store(after);
        Some(delta.and(Delta::new(Sum::of_word(before), Sum::of_word(after))))
    }

    /// RFC 792: the checksum covers the message.
    #[inline(always)]
    fn pseudo_header(_delta: Delta) -> Delta {
        Delta::default()
    }

    #[inline(always)]
    fn write(
        frame: &mut impl Frame,
        offset: usize,
        src: &Address4,
        dst: &Address4,
        length: usize,
    ) -> Option<Sum> {
        /// RFC 791 section 3.1: version and header length in words.
        const VERSION: u8 = 0x45;
        /// RFC 1812 section 4.3.2.5: 'internetwork control', and the type of service of the quoted packet.
        const PRECEDENCE: u8 = 0xc0;
        const TYPE_OF_SERVICE: u8 = 0x1e;

        let quoted: &Ipv4Hdr = frame.at(offset + Self::HEADER + HEADER)?;
        let tos = PRECEDENCE | quoted.tos & TYPE_OF_SERVICE;
        let header: &mut Ipv4Hdr = frame.at_mut(offset)?;
        header.vihl = VERSION;
        header.tos = tos;
        header.tot_len.store(u16::try_from(Self::HEADER + length).ok()?.to_be());
        // It may be fragmented, but is so small that nobody does.
        header.id.store(0);
        header.frags.store(0);
        header.ttl = HOPS;
        header.proto = Self::ICMP;
        header.src_addr.store(src.0);
        header.dst_addr.store(dst.0);
        let sum = Sum::of_word(u16::from_ne_bytes([VERSION, tos]))
            .plus(Sum::of_word(header.tot_len.load()))
            .plus(Sum::of_word(u16::from_ne_bytes([HOPS, Self::ICMP])))
            .plus(Self::sum(src))
            .plus(Self::sum(dst));
        header.check.store(sum.checksum());
        Some(Sum::default())
    }

    /// Not 'this network', loopback, multicast, reserved and broadcast (RFC 6890, RFC 5771).
    #[inline(always)]
    fn is_one_host(address: &Address4) -> bool {
        const MULTICAST: u8 = 224;

        let [first, ..] = address.0.to_ne_bytes();
        first != 0 && first != 127 && first < MULTICAST
    }
}

impl Icmp for V6 {
    const TIME_EXCEEDED: [u8; 2] = [3, 0];
    const TOO_BIG: [u8; 2] = [2, 0];
    const HEADER: usize = size_of::<Ipv6Hdr>();
    /// RFC 4443 section 2.4(c): as much as the minimum MTU has room for.
    const QUOTE: usize = 1280 - Self::HEADER - HEADER;

    #[inline(always)]
    fn length(frame: &impl Frame, offset: usize) -> usize {
        let payload = |header: &Ipv6Hdr| usize::from(u16::from_be(header.payload_len.load()));
        frame.at(offset).map_or(0, |header| Self::HEADER + payload(header))
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        /// RFC 4443 section 3: unreachable, too big, time exceeded, parameter problem.
        const ERRORS: core::ops::RangeInclusive<u8> = 1..=4;

        ERRORS.contains(&kind)
    }

    #[inline(always)]
    fn parse_quoted(frame: &impl Frame, offset: usize, length: usize) -> Result<Header, Reason> {
        let header: &Ipv6Hdr = frame.at(offset).ok_or(Reason::Malformed)?;
        let [version, ..] = header.vcf;
        if version >> 4 != 6 || length < size_of::<Ipv6Hdr>() {
            return Err(Reason::Malformed);
        }
        Ok(Header {
            protocol: header.next_hdr,
            hops: header.hop_limit,
            transport: offset + size_of::<Ipv6Hdr>(),
            payload: length - size_of::<Ipv6Hdr>(),
        })
    }

    #[inline(always)]
    fn rewrite_quoted(
        frame: &mut impl Frame,
        offset: usize,
        becomes: &Tuple<Self>,
        delta: Delta,
    ) -> Option<Delta> {
        let header: &mut Ipv6Hdr = frame.at_mut(offset)?;
        header.src_addr.store(becomes.dst.0);
        header.dst_addr.store(becomes.src.0);
        Some(delta)
    }

    /// RFC 4443 section 2.3.
    #[inline(always)]
    fn pseudo_header(delta: Delta) -> Delta {
        delta
    }

    #[inline(always)]
    fn write(
        frame: &mut impl Frame,
        offset: usize,
        src: &Address6,
        dst: &Address6,
        length: usize,
    ) -> Option<Sum> {
        /// RFC 8200 section 3: version, and neither traffic class nor flow label.
        const VERSION: [u8; 4] = [0x60, 0, 0, 0];

        let header: &mut Ipv6Hdr = frame.at_mut(offset)?;
        let length = u16::try_from(length).ok()?.to_be();
        header.vcf.store(u32::from_ne_bytes(VERSION));
        header.payload_len.store(length);
        header.next_hdr = Self::ICMP;
        header.hop_limit = HOPS;
        header.src_addr.store(src.0);
        header.dst_addr.store(dst.0);
        // RFC 8200 section 8.1.
        let protocol = Sum::of_word(u16::from(Self::ICMP).to_be());
        Some(Self::sum(src).plus(Self::sum(dst)).plus(Sum::of_word(length)).plus(protocol))
    }

    /// Not unspecified, loopback (both begin with 96 zeros), multicast (RFC 4291 sections 2.5 and 2.7).
    #[inline(always)]
    fn is_one_host(address: &Address6) -> bool {
        const MULTICAST: u8 = 0xff;

        let [a, b, c, _] = address.0;
        let [first, ..] = a.to_ne_bytes();
        first != MULTICAST && (a | b | c) != 0
    }
}

/// An ICMP error about a packet that was sent from here.
#[derive(Clone, Copy, Debug)]
pub struct Report<F: Family> {
    /// The key of packets that answer the quoted one: their flow says what this error becomes.
    pub key: FlowKey<F>,
    /// The quoted packet's transport.
    protocol: Protocol,
    /// Routers that the error may still pass, this one included.
    hops: u8,
    /// Whether the quotation reaches to the end of the transport's checksum.
    has_checksum: bool,
    /// Offset of the network header.
    pub(crate) network: usize,
    /// Offset of the ICMP header.
    message: usize,
    /// Offset of the quoted transport header.
    transport: usize,
}

impl<F: Icmp> Report<F> {
    /// Reads the packet that came so.
    ///
    /// # Errors
    ///
    /// [`Reason::OtherProtocol`] for what is no error, or not about TCP or UDP; [`Reason::Fragment`] where the quoted fragment
    /// has no ports; those of [`Icmp::parse_quoted`] and [`part::end`]; [`Reason::Malformed`] where it is not addressed to the
    /// sender of what it quotes.
    #[inline(always)]
    pub fn parse(frame: &mut impl Frame, arrival: &Arrival) -> Result<Self, Reason> {
        let header = F::parse(frame, arrival.network)?;
        let end = part::end::<F>(frame, arrival.network)?;
        let packet = part::without_extensions(&header, &end)?;
        let header: &[u8; HEADER] = frame.at(packet.transport).ok_or(Reason::Malformed)?;
        let [kind, ..] = *header;
        if end.part() != Part::Whole || !F::is_error(kind) {
            return Err(Reason::OtherProtocol);
        }
        // The compiler knows that the payload lies within the frame, and would spare the comparisons with the frame's end
        // that follow from it; the verifier insists on them.
        let length = opaque(packet.payload).checked_sub(HEADER).ok_or(Reason::Malformed)?;
        let quote = packet.transport + HEADER;
        let header = F::parse_quoted(frame, quote, length)?;
        let end = part::end::<F>(frame, quote)?;
        let quoted = part::without_extensions(&header, &end)?;
        let protocol = Protocol::from_number(quoted.protocol).ok_or(Reason::OtherProtocol)?;
        if end.part() == Part::Later {
            return Err(Reason::Fragment);
        }
        let (_, addressee) = F::addresses(frame, arrival.network).ok_or(Reason::Malformed)?;
        let (src, dst) = F::addresses(frame, quote).ok_or(Reason::Malformed)?;
        if quoted.payload < QUOTED || !F::is_same(&src, &addressee) {
            return Err(Reason::Malformed);
        }
        let ports: &[u8; 4] = frame.at(quoted.transport).ok_or(Reason::Malformed)?;
        let ports = Ports::from_wire(ports.load()).reversed();
        let answer = Tuple { src: dst, dst: src, ports };
        Ok(Self {
            key: FlowKey::new(answer, protocol),
            protocol,
            hops: packet.hops,
            has_checksum: quoted.payload >= checksum_offset(protocol) + size_of::<u16>(),
            network: arrival.network,
            // To be compared with the frame's end again.
            message: opaque(packet.transport),
            transport: opaque(quoted.transport),
        })
    }

    /// As [`crate::parse::Packet::may_travel`].
    ///
    /// # Errors
    ///
    /// [`Reason::TtlExpiredUnanswered`] if not: no error is sent about an error (RFC 1122 section 3.2.2, RFC 4443
    /// section 2.4(e)).
    #[inline(always)]
    pub const fn may_travel(&self) -> Result<(), Reason> {
        if self.hops > 1 { Ok(()) } else { Err(Reason::TtlExpiredUnanswered) }
    }

    /// Writes the error as the flow's other side is to see it: it comes from where answers come from, about the packet
    /// that was sent. `None` if the frame is shorter than it was when it was parsed.
    ///
    /// The quoted tuple is the flow's, reversed, which is the same to a sum: the flow's own deltas serve.
    #[inline(always)]
    pub fn rewrite(&self, frame: &mut impl Frame, flow: &FlowEntry<F>, hop: &Hop) -> Option<()> {
        let addresses = flow.network.and(Delta::ONE_HOP.inverse());
        let ports = flow.transport.and(addresses.inverse());
        let becomes = &flow.becomes;
        let mut delta = F::rewrite_quoted(frame, self.message + HEADER, becomes, addresses)?.and(ports);
        frame.at_mut::<[u8; 4]>(self.transport)?.store(becomes.ports.reversed().wire());
        if self.has_checksum {
            let check: &mut [u8; 2] = frame.at_mut(self.transport + checksum_offset(self.protocol))?;
            let before = check.load();
            let after = match self.protocol {
                Protocol::Tcp => Tcp::adjusted(before, flow.transport),
                Protocol::Udp => Udp::adjusted(before, flow.transport),
            };
            check.store(after);
            delta = delta.and(Delta::new(Sum::of_word(before), Sum::of_word(after)));
        }

        // Its sender may be any router.
        let (src, dst) = F::addresses(frame, self.network)?;
        let outer =
            Delta::new(F::sum(&src).plus(F::sum(&dst)), F::sum(&becomes.src).plus(F::sum(&becomes.dst)));
        let check: &mut [u8; 2] = frame.at_mut(self.message + CHECKSUM)?;
        check.store(delta.and(F::pseudo_header(outer)).apply(check.load()));
        F::rewrite(frame, self.network, becomes, outer.and(Delta::ONE_HOP))?;
        rewrite::link(frame, hop)
    }
}

/// What an answer to a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// It has passed as many routers as it may.
    TimeExceeded,
    /// Its way takes only that many bytes.
    TooBig(u16),
}

impl Message {
    /// Writes the ICMP header at `offset`, its checksum being zero yet.
    #[inline(always)]
    pub fn write<F: Icmp>(self, frame: &mut impl Frame, offset: usize) -> Option<()> {
        let ([kind, code], word) = match self {
            Self::TimeExceeded => (F::TIME_EXCEEDED, 0),
            // RFC 1191 section 4 has 16 bits for it and zeros before, RFC 4443 section 3.2 has 32.
            Self::TooBig(mtu) => (F::TOO_BIG, u32::from(mtu).to_be()),
        };
        frame.at_mut::<[u8; 4]>(offset)?.store(u32::from_ne_bytes([kind, code, 0, 0]));
        frame.at_mut::<[u8; 4]>(offset + 4)?.store(word);
        Some(())
    }
}

/// Offset of the checksum in the transport's header.
#[inline(always)]
pub(crate) const fn checksum_offset(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => Tcp::CHECKSUM,
        Protocol::Udp => Udp::CHECKSUM,
    }
}
