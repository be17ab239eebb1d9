//! Flows: a key says which packets, an entry what they become. A connection is a pair of entries, one a direction.

use crate::{
    backend::Hop,
    checksum::{Delta, Sum},
    family::Family,
    service::Protocol,
};

/// A port as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Port([u8; 2]);

impl Port {
    /// From a number.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be_bytes())
    }

    /// From the bytes on the wire.
    #[inline(always)]
    pub const fn from_wire(bytes: [u8; 2]) -> Self {
        Self(bytes)
    }

    /// The bytes on the wire.
    #[inline(always)]
    pub const fn wire(self) -> [u8; 2] {
        self.0
    }

    /// The number.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

/// Where a packet comes from and goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Tuple<F: Family> {
    /// Source address.
    pub src: F::Address,
    /// Destination address.
    pub dst: F::Address,
    /// Source port.
    pub src_port: Port,
    /// Destination port.
    pub dst_port: Port,
}

impl<F: Family> Tuple<F> {
    /// The tuple of the answer.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port }
    }

    #[inline(always)]
    fn address_sum(&self) -> Sum {
        F::sum(&self.src).plus(F::sum(&self.dst))
    }

    #[inline(always)]
    fn port_sum(&self) -> Sum {
        Sum::of_word(self.src_port.wire()).plus(Sum::of_word(self.dst_port.wire()))
    }
}

/// The key of a flow: the tuple and protocol as packets arrive. 16 bytes for IPv4, 40 for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct FlowKey<F: Family> {
    /// As on the wire.
    pub tuple: Tuple<F>,
    /// IP protocol number ([`Protocol::number`]).
    pub protocol: u8,
    zero: [u8; 3],
}

impl<F: Family> FlowKey<F> {
    /// The key of packets with that tuple.
    #[inline(always)]
    pub const fn new(tuple: Tuple<F>, protocol: Protocol) -> Self {
        Self { tuple, protocol: protocol.number(), zero: [0; 3] }
    }
}

/// Which half of a pair an entry is, and so which way its packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// From the client to the backend.
    Request = 0,
    /// From the backend to the client.
    Reply = 1,
}

/// What has been seen in one direction: a set of the constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Seen(u8);

impl Seen {
    /// Any packet at all.
    pub const PACKET: Self = Self(0x01);
    /// A SYN.
    pub const SYN: Self = Self(0x02);
    /// An ACK (a SYN+ACK's counts).
    pub const ACK: Self = Self(0x04);
    /// A FIN.
    pub const FIN: Self = Self(0x08);
    /// A RST.
    pub const RST: Self = Self(0x10);

    /// Both sets together.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in this set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// `other` if `condition` holds, else nothing.
    #[inline(always)]
    pub const fn when(condition: bool, other: Self) -> Self {
        if condition { other } else { Self(0) }
    }
}

/// Coarse monotonic time in units of 2^28 ns (0.27 s): fine enough for timeouts, and a stamp is written only a few
/// times a second however fast packets come. Wraps after 36 years of uptime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Tick(u32);

impl Tick {
    const SHIFT: u32 = 28;

    /// From nanoseconds of `CLOCK_MONOTONIC_COARSE`, which is what `bpf_ktime_get_coarse_ns` reads.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "wraps after 36 years")]
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self((nanoseconds >> Self::SHIFT) as u32)
    }

    /// Nanoseconds from `earlier` to this tick; zero if `earlier` is later.
    pub const fn nanoseconds_since(self, earlier: Self) -> u64 {
        (self.0.saturating_sub(earlier.0) as u64) << Self::SHIFT
    }
}

/// What a packet of a flow becomes, and what has been seen of the flow in this direction.
///
/// With its key and the kernel's 48-byte element header an IPv4 entry fills two cache lines exactly, an IPv6 entry
/// three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct FlowEntry<F: Family> {
    /// The tuple to write.
    pub becomes: Tuple<F>,
    /// For the network header's checksum (IPv4): the addresses.
    pub network: Delta,
    /// For the transport header's checksum: addresses and ports.
    pub transport: Delta,
    /// How the client is reached: the interface that its packets came from, and their MAC addresses turned round.
    pub client: Hop,
    /// Index of the backend, for its next hop and its counters.
    pub backend: u32,
    /// Index of the service.
    pub service: u32,
    /// When the last packet passed in this direction.
    pub last: Tick,
    /// When the pair was made.
    pub born: Tick,
    /// What passed in this direction.
    pub seen: Seen,
    /// Which half this is.
    pub side: Side,
    zero: [u8; 2],
    reserve: F::Reserve,
}

impl<F: Family> FlowEntry<F> {
    /// The half that turns `from` into `becomes`.
    #[inline(always)]
    pub fn new(from: &Tuple<F>, becomes: Tuple<F>, side: Side, shared: Shared) -> Self {
        let network = Delta::new(from.address_sum(), becomes.address_sum());
        Self {
            becomes,
            network,
            transport: network.and(Delta::new(from.port_sum(), becomes.port_sum())),
            client: shared.client,
            backend: shared.backend,
            service: shared.service,
            last: shared.born,
            born: shared.born,
            seen: Seen::default(),
            side,
            zero: [0; 2],
            reserve: F::RESERVE,
        }
    }

    /// The key of the pair's other half: answers to what this half's packets become.
    #[inline(always)]
    pub const fn partner(&self, protocol: u8) -> FlowKey<F> {
        FlowKey { tuple: self.becomes.reversed(), protocol, zero: [0; 3] }
    }
}

/// What both halves of a pair hold alike.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// See [`FlowEntry::client`].
    pub client: Hop,
    /// See [`FlowEntry::backend`].
    pub backend: u32,
    /// See [`FlowEntry::service`].
    pub service: u32,
    /// See [`FlowEntry::born`].
    pub born: Tick,
}

#[cfg(feature = "user")]
mod pod {
    use super::{Family, FlowKey};

    // SAFETY: repr(C), `Copy`, every byte initialised (the padding is the field `zero`), valid for any bit pattern.
    unsafe impl<F: Family> aya::Pod for FlowKey<F> {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{V4, V6};

    #[test]
    fn layouts_have_the_sizes_that_the_cache_lines_ask_for() {
        const ELEMENT_HEADER: usize = 48;
        assert_eq!(size_of::<FlowKey<V4>>(), 16);
        assert_eq!(size_of::<FlowKey<V6>>(), 40);
        assert_eq!(ELEMENT_HEADER + size_of::<FlowKey<V4>>() + size_of::<FlowEntry<V4>>(), 2 * 64);
        assert_eq!(ELEMENT_HEADER + size_of::<FlowKey<V6>>() + size_of::<FlowEntry<V6>>(), 3 * 64);
    }

    #[test]
    fn the_partner_of_the_partner_is_the_flow_itself() {
        let from = Tuple::<V4> {
            src: [10, 0, 0, 2],
            dst: [10, 10, 10, 1],
            src_port: Port::new(40_000),
            dst_port: Port::new(80),
        };
        let becomes = Tuple::<V4> {
            src: [10, 10, 10, 1],
            dst: [192, 168, 1, 1],
            src_port: Port::new(1024),
            dst_port: Port::new(8080),
        };
        let shared = Shared { client: Hop::default(), backend: 0, service: 0, born: Tick::default() };
        let request = FlowEntry::new(&from, becomes, Side::Request, shared);
        let reply_key = request.partner(Protocol::Tcp.number());
        let reply = FlowEntry::new(&reply_key.tuple, from.reversed(), Side::Reply, shared);
        assert_eq!(reply.partner(Protocol::Tcp.number()), FlowKey::new(from, Protocol::Tcp));
    }
}
