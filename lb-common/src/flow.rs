//! Flows: a key says which packets, an entry what they become. A connection is a pair of entries, one a direction.

use crate::{
    backend::Hop,
    checksum::{Delta, Sum},
    family::Family,
    service::Protocol,
};

/// A port in network order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Port(u16);

impl Port {
    /// From a number.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// The number.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// Both ports of a packet, the four bytes that TCP and UDP headers begin with, as one word in the machine's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Ports(u32);

impl Ports {
    /// From that source to that destination.
    #[inline(always)]
    pub const fn new(src: Port, dst: Port) -> Self {
        let ([a, b], [c, d]) = (src.0.to_ne_bytes(), dst.0.to_ne_bytes());
        Self(u32::from_ne_bytes([a, b, c, d]))
    }

    /// From the word on the wire.
    #[inline(always)]
    pub const fn from_wire(word: u32) -> Self {
        Self(word)
    }

    /// The word on the wire.
    #[inline(always)]
    pub const fn wire(self) -> u32 {
        self.0
    }

    /// Source port.
    #[inline(always)]
    pub const fn src(self) -> Port {
        let [a, b, _, _] = self.0.to_ne_bytes();
        Port(u16::from_ne_bytes([a, b]))
    }

    /// Destination port.
    #[inline(always)]
    pub const fn dst(self) -> Port {
        let [_, _, a, b] = self.0.to_ne_bytes();
        Port(u16::from_ne_bytes([a, b]))
    }

    /// The ports of the answer.
    #[inline(always)]
    pub const fn reversed(self) -> Self {
        Self(self.0.rotate_left(16))
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
    /// Source and destination port.
    pub ports: Ports,
}

impl<F: Family> Tuple<F> {
    /// The tuple of the answer.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, ports: self.ports.reversed() }
    }

    /// What it does to a checksum over both addresses when this tuple is rewritten to `to`.
    // By itself: inlined for both halves of an IPv6 pair, it makes the compiler keep more words than BPF has stack for.
    #[inline(never)]
    pub fn address_delta(&self, to: &Self) -> Delta {
        Delta::new(self.address_sum(), to.address_sum())
    }

    /// Likewise for both ports.
    #[inline(always)]
    pub const fn port_delta(&self, to: &Self) -> Delta {
        Delta::new(self.port_sum(), to.port_sum())
    }

    #[inline(always)]
    fn address_sum(&self) -> Sum {
        F::sum(&self.src).plus(F::sum(&self.dst))
    }

    #[inline(always)]
    const fn port_sum(&self) -> Sum {
        Sum::of_double_word(self.ports.wire())
    }
}

/// The key of a flow: the tuple and protocol as packets arrive. 16 bytes for IPv4, 40 for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct FlowKey<F: Family> {
    /// As on the wire.
    pub tuple: Tuple<F>,
    /// IP protocol number ([`Protocol::number`]); a whole word, so that the key has no padding.
    pub protocol: u32,
}

impl<F: Family> FlowKey<F> {
    /// The key of packets with that tuple.
    #[inline(always)]
    pub const fn new(tuple: Tuple<F>, protocol: Protocol) -> Self {
        Self { tuple, protocol: protocol.number() as u32 }
    }

    /// The transport, if it is one that services have.
    #[inline(always)]
    pub const fn protocol(&self) -> Option<Protocol> {
        match self.protocol {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            _ => None,
        }
    }

    /// The key of packets of the same protocol with another tuple.
    #[inline(always)]
    pub const fn with(&self, tuple: Tuple<F>) -> Self {
        Self { tuple, protocol: self.protocol }
    }
}

/// Which half of a pair an entry is, and so which way its packets go: one of the constants. Not an enum, for map memory
/// must be valid whatever it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Side(u8);

#[expect(non_upper_case_globals, reason = "they read as the variants that they stand for")]
impl Side {
    /// From the client to the backend.
    pub const Request: Self = Self(0);
    /// From the backend to the client.
    pub const Reply: Self = Self(1);
}

/// What has been seen in one direction: a set of the constants. TCP's control bits are where a header has them (RFC 9293 section
/// 3.1), so that a packet's take no work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Seen(u8);

impl Seen {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// A FIN.
    pub const FIN: Self = Self(0x01);
    /// A SYN.
    pub const SYN: Self = Self(0x02);
    /// A RST.
    pub const RST: Self = Self(0x04);
    /// Any packet at all; PSH's place.
    pub const PACKET: Self = Self(0x08);
    /// An ACK (a SYN+ACK's counts).
    pub const ACK: Self = Self(0x10);
    /// A checksum that the sender left to its network card.
    pub const UNFINISHED: Self = Self(0x20);

    /// What a TCP packet with these control bits adds.
    #[inline(always)]
    pub const fn of_control(bits: u8) -> Self {
        Self(bits & (Self::FIN.0 | Self::SYN.0 | Self::RST.0 | Self::ACK.0) | Self::PACKET.0)
    }

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

    /// What of this set ends a direction.
    #[inline(always)]
    pub const fn end(self) -> Self {
        Self(self.0 & (Self::FIN.0 | Self::RST.0))
    }

    /// Whether this is a first packet's: a SYN and no other control bit that counts.
    #[inline(always)]
    pub const fn is_syn(self) -> bool {
        self.0 == Self::PACKET.0 | Self::SYN.0
    }

    /// `other` if `condition` holds, else nothing.
    #[inline(always)]
    pub const fn when(condition: bool, other: Self) -> Self {
        if condition { other } else { Self(0) }
    }
}

/// Time in units of 64 jiffies (from 64 ms to 0.64 s, as the kernel is configured): fine enough for timeouts, and a stamp
/// is written only a few times a second however fast packets come. Wraps after nine years of uptime or more.
///
/// Jiffies, for BPF reads them with one load; the coarse monotonic clock, which follows them, takes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Tick(u32);

impl Tick {
    /// Jiffies in a tick.
    pub const JIFFIES: u32 = 64;

    /// From what `bpf_jiffies64` reads.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "wraps after nine years")]
    pub const fn from_jiffies(jiffies: u64) -> Self {
        Self((jiffies / Self::JIFFIES as u64) as u32)
    }

    /// From the number of ticks.
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// The number of ticks.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Ticks from `earlier` to this one; none if `earlier` is later.
    pub const fn since(self, earlier: Self) -> u32 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Which backend a flow belongs to, and which half of a pair it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Role(u16);

impl Role {
    const REPLY: u16 = 1 << 15;

    /// That half of a connection to the backend with that index, which is below [`crate::backend::MAX_BACKENDS`].
    #[inline(always)]
    pub const fn new(backend: u32, side: Side) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "there are fewer backends")]
        let backend = backend as u16;
        Self(if side.0 == Side::Reply.0 { backend | Self::REPLY } else { backend })
    }

    /// Index of the backend.
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        (self.0 & !Self::REPLY) as u32
    }

    /// Which half.
    #[inline(always)]
    pub const fn side(self) -> Side {
        if self.0 & Self::REPLY == 0 { Side::Request } else { Side::Reply }
    }
}

/// A flow: the packets that it is for, what they become, and what has been seen of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct FlowEntry<F: Family> {
    /// The tuple of its packets as they arrive.
    pub arrives: Tuple<F>,
    /// The tuple to write.
    pub becomes: Tuple<F>,
    /// How the client is reached: the interface that its packets came from, and their MAC addresses turned round.
    pub client: Hop,
    /// For the network header's checksum (IPv4): the addresses, and one hop taken.
    pub network: Delta,
    /// For the transport header's checksum: addresses and ports.
    pub transport: Delta,
    /// When the last packet passed in this direction.
    pub last: Tick,
    /// For the backend's next hop and its counters, and which half this is.
    pub role: Role,
    /// What passed in this direction.
    pub seen: Seen,
    /// The FIN and RST that passed in the other direction: the one thing that one half is told of the other.
    pub partner_end: Seen,
}

impl<F: Family> FlowEntry<F> {
    /// Of no packets.
    pub const EMPTY: Self = {
        let nowhere = Tuple { src: F::UNSPECIFIED, dst: F::UNSPECIFIED, ports: Ports(0) };
        Self {
            arrives: nowhere,
            becomes: nowhere,
            client: Hop::new([0; 6], [0; 6], 0),
            network: Delta::NONE,
            transport: Delta::NONE,
            last: Tick(0),
            role: Role(0),
            seen: Seen(0),
            partner_end: Seen(0),
        }
    };

    /// Becomes the half for packets of tuple `arrives`, whose answers have tuple `partner`, on that side of the pair.
    // In place and field by field: on the BPF stack there is no room for an entry.
    #[inline(always)]
    pub fn begin(&mut self, arrives: &Tuple<F>, partner: &Tuple<F>, side: Side, shared: &Shared) {
        let (addresses, ports) = if side == Side::Request {
            (shared.addresses, shared.ports)
        } else {
            (shared.addresses.inverse(), shared.ports.inverse())
        };
        self.arrives = *arrives;
        self.becomes.src = partner.dst;
        self.becomes.dst = partner.src;
        self.becomes.ports = partner.ports.reversed();
        self.client = shared.client;
        self.network = addresses.and(Delta::ONE_HOP);
        self.transport = addresses.and(ports);
        self.last = shared.now;
        self.role = Role::new(shared.backend, side);
        self.seen = Seen::default();
        self.partner_end = Seen::default();
    }

    /// An entry that [begins](Self::begin) so.
    pub fn new(arrives: &Tuple<F>, partner: &Tuple<F>, side: Side, shared: &Shared) -> Self {
        let mut entry = Self::EMPTY;
        entry.begin(arrives, partner, side, shared);
        entry
    }

    /// Index of the backend.
    #[inline(always)]
    pub const fn backend(&self) -> u32 {
        self.role.backend()
    }

    /// Which half of the pair this is.
    #[inline(always)]
    pub const fn side(&self) -> Side {
        self.role.side()
    }

    /// Whether both directions have come to their end, as far as this half knows: then a new SYN is a new connection, and
    /// the port may be taken again. The same as [`crate::ConnectionState::is_over`] says of both halves. What is over stays
    /// over.
    #[inline(always)]
    pub const fn is_over(&self) -> bool {
        let (own, other) = (self.seen, self.partner_end);
        own.has(Seen::RST) || other.has(Seen::RST) || (own.has(Seen::FIN) && other.has(Seen::FIN))
    }

    /// Whether packets of that tuple answer this half's: whether that tuple's is the pair's other half.
    #[inline(always)]
    pub fn is_answered_by(&self, tuple: &Tuple<F>) -> bool {
        self.becomes.ports == tuple.ports.reversed()
            && F::is_same(&self.becomes.src, &tuple.dst)
            && F::is_same(&self.becomes.dst, &tuple.src)
    }

    /// The key of the pair's other half: answers to what this half's packets become.
    #[inline(always)]
    pub const fn partner(&self, protocol: u32) -> FlowKey<F> {
        FlowKey { tuple: self.becomes.reversed(), protocol }
    }
}

/// What both halves of a pair are made from.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// What the request's rewriting does to a checksum over the addresses; the reply's undoes it.
    pub addresses: Delta,
    /// Likewise for the ports.
    pub ports: Delta,
    /// See [`FlowEntry::client`].
    pub client: Hop,
    /// Index of the backend.
    pub backend: u32,
    /// When they are made.
    pub now: Tick,
}

#[cfg(feature = "user")]
mod pod {
    use super::{Family, FlowEntry, FlowKey};

    // SAFETY: repr(C), `Copy`, no padding, valid for any bit pattern.
    unsafe impl<F: Family> aya::Pod for FlowKey<F> {}
    // SAFETY: as above.
    unsafe impl<F: Family> aya::Pod for FlowEntry<F> {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{V4, V6};
    use core::net::Ipv4Addr;

    #[test]
    fn an_entry_has_no_padding() {
        // Both tuples, the client's hop, two deltas, a tick, a role, two sets.
        assert_eq!(size_of::<FlowKey<V4>>(), 16);
        assert_eq!(size_of::<FlowKey<V6>>(), 40);
        assert_eq!(size_of::<FlowEntry<V4>>(), 2 * 12 + 20 + 4 + 4 + 2 + 2);
        assert_eq!(size_of::<FlowEntry<V6>>(), 2 * 36 + 20 + 4 + 4 + 2 + 2);
    }

    #[test]
    fn a_role_keeps_every_backend_apart_from_the_side() {
        for backend in [0, 1, crate::backend::MAX_BACKENDS - 1] {
            for side in [Side::Request, Side::Reply] {
                let role = Role::new(backend, side);
                assert_eq!((role.backend(), role.side()), (backend, side));
            }
        }
    }

    #[test]
    fn the_partner_of_the_partner_is_the_flow_itself() {
        let from = Tuple::<V4> {
            src: Ipv4Addr::new(10, 0, 0, 2).into(),
            dst: Ipv4Addr::new(10, 10, 10, 1).into(),
            ports: Ports::new(Port::new(40_000), Port::new(80)),
        };
        let becomes = Tuple::<V4> {
            src: Ipv4Addr::new(10, 10, 10, 1).into(),
            dst: Ipv4Addr::new(192, 168, 1, 1).into(),
            ports: Ports::new(Port::new(1024), Port::new(8080)),
        };
        let shared = Shared {
            addresses: from.address_delta(&becomes),
            ports: from.port_delta(&becomes),
            client: Hop::default(),
            backend: 0,
            now: Tick::default(),
        };
        let request = FlowEntry::new(&from, &becomes.reversed(), Side::Request, &shared);
        assert_eq!(request.partner(6).tuple, becomes.reversed());
        let reply = FlowEntry::new(&becomes.reversed(), &from, Side::Reply, &shared);
        assert_eq!(reply.partner(6), FlowKey::new(from, Protocol::Tcp));
    }

    #[test]
    fn one_half_knows_of_the_end_what_both_together_say() {
        let tuple = Tuple::<V4> {
            src: Ipv4Addr::LOCALHOST.into(),
            dst: Ipv4Addr::LOCALHOST.into(),
            ports: Ports::new(Port::new(1), Port::new(2)),
        };
        let shared = Shared {
            addresses: Delta::default(),
            ports: Delta::default(),
            client: Hop::default(),
            backend: 0,
            now: Tick::default(),
        };
        let mut half = FlowEntry::new(&tuple, &tuple, Side::Request, &shared);
        for request in (0..64).map(Seen) {
            for reply in (0..64).map(Seen) {
                (half.seen, half.partner_end) = (request, reply.end());
                let both = crate::ConnectionState::of(Protocol::Tcp, request, reply);
                assert_eq!(half.is_over(), both.is_over(), "{request:?} {reply:?}");
            }
        }
    }
}
