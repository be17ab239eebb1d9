//! Address families. Flows are typed by family; services and backends carry a family-neutral [`Addr`].

use core::{fmt::Debug, hash::Hash, net::IpAddr};

use crate::checksum::Sum;

/// An address family as flows see it: how large an address is, and how much of an entry is left to fill two (IPv4)
/// or three (IPv6) cache lines.
pub trait Family: Copy + Eq + Debug + Hash + 'static {
    /// An address as it stands on the wire, big-endian.
    type Address: Copy + Eq + Debug + Hash + AsRef<[u8]> + 'static;
    /// Unused bytes at the end of a flow entry.
    type Reserve: Copy + Eq + Debug + 'static;
    /// No bytes used.
    const RESERVE: Self::Reserve;
    /// What [`Addr::family`] says of an address of this family.
    const NUMBER: u8;

    /// The family-neutral form of `address`.
    fn widen(address: Self::Address) -> Addr;
    /// The address of this family in `addr`; the caller knows that the family is this one.
    fn narrow(addr: &Addr) -> Self::Address;
    /// The address's 16-bit words, summed.
    fn sum(address: &Self::Address) -> Sum;
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum V4 {}

/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum V6 {}

impl Family for V4 {
    type Address = [u8; 4];
    type Reserve = [u8; 12];
    const RESERVE: Self::Reserve = [0; 12];
    const NUMBER: u8 = 4;

    #[inline(always)]
    fn widen(address: [u8; 4]) -> Addr {
        let [a, b, c, d] = address;
        Addr { bytes: [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] }
    }

    #[inline(always)]
    fn narrow(addr: &Addr) -> [u8; 4] {
        let [a, b, c, d, ..] = addr.bytes;
        [a, b, c, d]
    }

    #[inline(always)]
    fn sum(address: &[u8; 4]) -> Sum {
        Sum::of_double_word(*address)
    }
}

impl Family for V6 {
    type Address = [u8; 16];
    type Reserve = [u8; 28];
    const RESERVE: Self::Reserve = [0; 28];
    const NUMBER: u8 = 6;

    #[inline(always)]
    fn widen(address: [u8; 16]) -> Addr {
        Addr { bytes: address }
    }

    #[inline(always)]
    fn narrow(addr: &Addr) -> [u8; 16] {
        addr.bytes
    }

    #[inline(always)]
    fn sum(address: &[u8; 16]) -> Sum {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
        Sum::of_double_word([a, b, c, d])
            .plus(Sum::of_double_word([e, f, g, h]))
            .plus(Sum::of_double_word([i, j, k, l]))
            .plus(Sum::of_double_word([m, n, o, p]))
    }
}

/// An address of either family: IPv4 in the first four bytes, the rest zero. Which family it is stands beside it,
/// in the service's or backend's `family` ([`Family::NUMBER`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C, align(4))]
pub struct Addr {
    /// Big-endian.
    pub bytes: [u8; 16],
}

impl Addr {
    /// The address together with its family's number.
    pub const fn new(ip: IpAddr) -> (Self, u8) {
        match ip {
            IpAddr::V4(ip) => {
                let [a, b, c, d] = ip.octets();
                (Self { bytes: [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] }, V4::NUMBER)
            }
            IpAddr::V6(ip) => (Self { bytes: ip.octets() }, V6::NUMBER),
        }
    }

    /// The address, read as one of the family with that number.
    pub fn ip(&self, family: u8) -> IpAddr {
        if family == V4::NUMBER { IpAddr::from(V4::narrow(self)) } else { IpAddr::from(V6::narrow(self)) }
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
