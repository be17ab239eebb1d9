//! Address families. Flows are typed by family; services and backends carry a family-neutral [`Addr`].

use core::{
    fmt::Debug,
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{checksum::Sum, table::mix};

/// An address family as flows see it: how large an address is, and how much of a slot of the flow table is left to fill one
/// (IPv4) or two (IPv6) cache lines.
pub trait Family: Copy + Eq + Debug + Hash + 'static {
    /// An address as it stands on the wire, big-endian.
    type Address: Copy + Eq + Debug + Hash + 'static;
    /// Unused words at the end of a slot.
    type Reserve: Copy + Eq + Debug + 'static;
    /// No word used.
    const RESERVE: Self::Reserve;
    /// The unspecified address.
    const UNSPECIFIED: Self::Address;
    /// What [`Addr::family`] says of an address of this family.
    const NUMBER: u8;

    /// The family-neutral form of `address`.
    fn widen(address: Self::Address) -> Addr;
    /// The address of this family in `addr`; the caller knows that the family is this one.
    fn narrow(addr: &Addr) -> Self::Address;
    /// The address's 16-bit words, summed.
    fn sum(address: &Self::Address) -> Sum;
    /// Whether that is the same address. Not `==`: derived, that calls `bcmp`, byte by byte on BPF.
    fn is_same(one: &Self::Address, other: &Self::Address) -> bool;
    /// A hash of both addresses.
    fn digest(src: &Self::Address, dst: &Self::Address, seed: u64) -> u64;
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum V4 {}

/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum V6 {}

/// An IPv4 address: the bytes on the wire, as one word in the machine's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Address4(pub u32);

/// An IPv6 address: the bytes on the wire, as words in the machine's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Address6(pub [u32; 4]);

impl From<Ipv4Addr> for Address4 {
    fn from(ip: Ipv4Addr) -> Self {
        Self(u32::from_ne_bytes(ip.octets()))
    }
}

impl From<Ipv6Addr> for Address6 {
    fn from(ip: Ipv6Addr) -> Self {
        Self(words(ip.octets()))
    }
}

const fn words(bytes: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

impl Family for V4 {
    type Address = Address4;
    type Reserve = [u64; 0];
    const RESERVE: Self::Reserve = [];
    const UNSPECIFIED: Address4 = Address4(0);
    const NUMBER: u8 = 4;

    #[inline(always)]
    fn widen(address: Address4) -> Addr {
        Addr { words: [address.0, 0, 0, 0] }
    }

    #[inline(always)]
    fn narrow(addr: &Addr) -> Address4 {
        Address4(addr.words[0])
    }

    #[inline(always)]
    fn sum(address: &Address4) -> Sum {
        Sum::of_double_word(address.0)
    }

    #[inline(always)]
    fn is_same(one: &Address4, other: &Address4) -> bool {
        one.0 == other.0
    }

    #[inline(always)]
    fn digest(src: &Address4, dst: &Address4, seed: u64) -> u64 {
        mix(seed, join(src.0, dst.0))
    }
}

impl Family for V6 {
    type Address = Address6;
    type Reserve = [u64; 2];
    const RESERVE: Self::Reserve = [0; 2];
    const UNSPECIFIED: Address6 = Address6([0; 4]);
    const NUMBER: u8 = 6;

    #[inline(always)]
    fn widen(address: Address6) -> Addr {
        Addr { words: address.0 }
    }

    #[inline(always)]
    fn narrow(addr: &Addr) -> Address6 {
        Address6(addr.words)
    }

    #[inline(always)]
    fn sum(address: &Address6) -> Sum {
        let [a, b, c, d] = address.0;
        Sum::of_double_word(a)
            .plus(Sum::of_double_word(b))
            .plus(Sum::of_double_word(c))
            .plus(Sum::of_double_word(d))
    }

    #[inline(always)]
    fn is_same(one: &Address6, other: &Address6) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (one.0, other.0);
        a == e && b == f && c == g && d == h
    }

    #[inline(always)]
    fn digest(src: &Address6, dst: &Address6, seed: u64) -> u64 {
        let ([a, b, c, d], [e, f, g, h]) = (src.0, dst.0);
        mix(mix(mix(mix(seed, join(a, b)), join(c, d)), join(e, f)), join(g, h))
    }
}

/// Two words as one.
#[inline(always)]
const fn join(low: u32, high: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

/// An address of either family: IPv4 in the first word, the rest zero. Which family it is stands beside it, in the
/// service's or backend's `family` ([`Family::NUMBER`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(C)]
pub struct Addr {
    words: [u32; 4],
}

impl Addr {
    /// From the words that it is made of.
    pub(crate) const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The address together with its family's number.
    pub fn new(ip: IpAddr) -> (Self, u8) {
        match ip {
            IpAddr::V4(ip) => (V4::widen(ip.into()), V4::NUMBER),
            IpAddr::V6(ip) => (V6::widen(ip.into()), V6::NUMBER),
        }
    }

    /// The address, read as one of the family with that number.
    pub fn ip(&self, family: u8) -> IpAddr {
        let [a, b, c, d] = self.words.map(u32::to_ne_bytes);
        if family == V4::NUMBER {
            IpAddr::from(a)
        } else {
            let mut bytes = [0; 16];
            for (to, word) in bytes.chunks_exact_mut(4).zip([a, b, c, d]) {
                to.copy_from_slice(&word);
            }
            IpAddr::from(bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString as _;

    #[test]
    fn an_address_survives_widening_and_narrowing() {
        for text in ["10.10.10.1", "0.0.0.0", "2001:db8::1", "::ffff:10.10.10.1", "::"] {
            let ip: IpAddr = text.parse().unwrap();
            let (addr, family) = Addr::new(ip);
            assert_eq!(addr.ip(family).to_string(), text);
        }
    }
}
