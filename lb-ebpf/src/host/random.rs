//! Random numbers, the same ones from the same seed.

use core::net::IpAddr;
use std::vec::Vec;

use crate::host::cases::Ip;

/// A small generator (Marsaglia's xorshift64).
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator with that seed.
    pub const fn new(seed: u64) -> Self {
        /// Neighbouring seeds are to begin far from each other; and no state may be zero.
        const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
        match seed.wrapping_mul(GOLDEN_RATIO) {
            0 => Self(GOLDEN_RATIO),
            state => Self(state),
        }
    }

    const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Less than `bound`.
    ///
    /// # Panics
    ///
    /// If that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("a usize has 64 bits at the most");
        usize::try_from(self.next() % bound).expect("less than a usize")
    }

    /// Once in so many times.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// Any byte.
    pub const fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[2]
    }

    /// Any port, or any other 16-bit number.
    pub const fn port(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// So many bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.byte()).collect()
    }

    /// One of those.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// One of those, where it is.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn one_of<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Any address of that family that one host can have.
    pub fn host(&mut self, ip: Ip) -> IpAddr {
        loop {
            let address = self.address(ip);
            let of_one = match address {
                IpAddr::V4(v4) => !matches!(v4.octets()[0], 0 | 127 | 224..),
                IpAddr::V6(v6) => !v6.is_multicast(),
            };
            if of_one {
                return address;
            }
        }
    }

    /// Any address of that family.
    pub fn address(&mut self, ip: Ip) -> IpAddr {
        match ip {
            Ip::V4 => IpAddr::from(core::array::from_fn::<u8, 4, _>(|_| self.byte())),
            Ip::V6 => IpAddr::from(core::array::from_fn::<u8, 16, _>(|_| self.byte())),
        }
    }
}
