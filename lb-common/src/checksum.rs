//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).
//!
//! Words are read and written in the machine's byte order: one's-complement sums do not care (RFC 1071 section 2B),
//! and no byte is swapped.

/// A sum of 16-bit words with the carries not yet folded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Sum(u32);

impl Sum {
    /// Both halves of four bytes.
    #[inline(always)]
    pub const fn of_double_word(word: u32) -> Self {
        Self((word & 0xffff) + (word >> 16))
    }

    /// One word.
    #[inline(always)]
    pub const fn of_word(word: u16) -> Self {
        Self(word as u32)
    }

    /// Not yet folded, as functions of the XDP program return it.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// From that number.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// The sum of both; neither may hold more than 32 768 words in all.
    #[inline(always)]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The checksum over the words.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// Folds the carries in, end around (RFC 1071 section 2).
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let once = (self.0 & 0xffff) + (self.0 >> 16);
        let twice = (once & 0xffff) + (once >> 16);
        #[expect(clippy::cast_possible_truncation, reason = "two folds leave 16 bits of a 32-bit sum")]
        {
            twice as u16
        }
    }
}

/// What a rewrite adds to the one's complement of a checksum: `~m + m'` of RFC 1624, over all words rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Delta(u16);

impl Delta {
    /// Nothing changes.
    pub const NONE: Self = Self(0);
    /// One taken from the upper byte of a word: IPv4's time to live.
    pub const ONE_HOP: Self = Self::new(Sum::of_word(u16::from_ne_bytes([1, 0])), Sum(0));

    /// Words that summed to `old` become words that sum to `new`.
    #[inline(always)]
    pub const fn new(old: Sum, new: Sum) -> Self {
        Self(Sum(!old.fold() as u32).plus(new).fold())
    }

    /// The change that undoes this one.
    #[inline(always)]
    pub const fn inverse(self) -> Self {
        Self(!self.0)
    }

    /// Both changes together.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(add(self.0, other.0))
    }

    /// The checksum after the change: `HC' = ~(~HC + ~m + m')`.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        !add(!checksum, self.0)
    }
}

/// The one's-complement sum of two words: their carry is one at the most, so that one fold takes it in.
#[inline(always)]
const fn add(left: u16, right: u16) -> u16 {
    let sum = left as u32 + right as u32;
    #[expect(clippy::cast_possible_truncation, reason = "the carry is in")]
    {
        (sum + (sum >> 16)) as u16
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// RFC 1071 section 4.1, written independently: add words, fold, complement.
    fn from_scratch(words: &[u16]) -> u16 {
        let mut sum: u64 = words.iter().map(|&word| u64::from(word)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    /// A word as it stands on the wire.
    fn wire(number: u16) -> u16 {
        number.to_be()
    }

    #[test]
    fn rfc_1624_section_4_example() {
        // "HC = 0xDD2F, m = 0x5555, m' = 0x3285": equation 3 gives 0x0000, where RFC 1141 gave 0xFFFF.
        let delta = Delta::new(Sum::of_word(wire(0x5555)), Sum::of_word(wire(0x3285)));
        assert_eq!(delta.apply(wire(0xdd2f)), 0x0000);
    }

    #[test]
    fn rfc_1071_section_3_example() {
        let double_word = |bytes| Sum::of_double_word(u32::from_ne_bytes(bytes));
        let sum = double_word([0x00, 0x01, 0xf2, 0x03]).plus(double_word([0xf4, 0xf5, 0xf6, 0xf7]));
        assert_eq!(sum.fold(), wire(0xddf2));
    }

    /// A small generator with a fixed seed (Marsaglia's xorshift64).
    struct Random(u64);

    impl Random {
        fn word(&mut self) -> u16 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            // Edges come up often: carries and the two zeros live there.
            match self.0 >> 60 {
                0 => 0x0000,
                1 => 0xffff,
                _ => u16::try_from(self.0 >> 16 & 0xffff).unwrap(),
            }
        }
    }

    #[test]
    fn incremental_equals_from_scratch_over_random_edits() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..200_000 {
            // A header is never all zeros: RFC 1624 section 3 rests on it.
            let mut words: Vec<u16> = (0..8).map(|_| random.word()).collect();
            words.push(0x4500);
            let before = from_scratch(&words);
            let (mut old, mut new) = (Sum::default(), Sum::default());
            for word in words.iter_mut().take(6) {
                old = old.plus(Sum::of_word(wire(*word)));
                *word = random.word();
                new = new.plus(Sum::of_word(wire(*word)));
            }
            let after = Delta::new(old, new).apply(wire(before));
            assert_eq!(after, wire(from_scratch(&words)));
        }
    }

    #[test]
    fn the_inverse_undoes_a_change() {
        let mut random = Random(7);
        for _ in 0..10_000 {
            let delta = Delta::new(Sum::of_word(random.word()), Sum::of_word(random.word()));
            // 0x0000 and 0xffff are the same sum; a checksum over a header that is not all zeros is never 0xffff.
            let checksum = random.word() & 0xfffe;
            assert_eq!(delta.inverse().apply(delta.apply(checksum)), checksum);
        }
    }

    #[test]
    fn one_hop_takes_one_from_the_time_to_live() {
        for ttl in [2, 64, 255] {
            let word = |ttl: u8| u16::from_be_bytes([ttl, 6]);
            let before = from_scratch(&[0x4500, word(ttl)]);
            let after = from_scratch(&[0x4500, word(ttl - 1)]);
            assert_eq!(Delta::ONE_HOP.apply(wire(before)), wire(after));
        }
    }

    #[test]
    fn two_deltas_in_one_step_equal_two_steps() {
        let mut random = Random(42);
        for _ in 0..10_000 {
            let mut delta = || Delta::new(Sum::of_word(random.word()), Sum::of_word(wire(0x1234)));
            let (first, second) = (delta(), delta());
            let checksum = wire(0xbeef);
            assert_eq!(first.and(second).apply(checksum), second.apply(first.apply(checksum)));
        }
    }
}
