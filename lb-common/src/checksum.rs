//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).
//!
//! Sums are of 16-bit words in network order, read as big-endian, so that a result is written with `to_be_bytes`.

/// A sum of 16-bit words with the carries not yet folded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Sum(u32);

impl Sum {
    /// Both words of four bytes.
    #[inline(always)]
    pub const fn of_double_word(bytes: [u8; 4]) -> Self {
        let [a, b, c, d] = bytes;
        Self(u16::from_be_bytes([a, b]) as u32 + u16::from_be_bytes([c, d]) as u32)
    }

    /// One word.
    #[inline(always)]
    pub const fn of_word(bytes: [u8; 2]) -> Self {
        Self(u16::from_be_bytes(bytes) as u32)
    }

    /// The sum of both; neither may hold more than 32 768 words in all.
    #[inline(always)]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
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
    /// Words that summed to `old` become words that sum to `new`.
    #[inline(always)]
    pub const fn new(old: Sum, new: Sum) -> Self {
        Self(Sum(!old.fold() as u32).plus(new).fold())
    }

    /// Both changes together.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(Sum(self.0 as u32 + other.0 as u32).fold())
    }

    /// The checksum after the change: `HC' = ~(~HC + ~m + m')`.
    #[inline(always)]
    pub const fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        let complement = !u16::from_be_bytes(checksum) as u32;
        (!Sum(complement + self.0 as u32).fold()).to_be_bytes()
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

    #[test]
    fn rfc_1624_section_4_example() {
        // "HC = 0xDD2F, m = 0x5555, m' = 0x3285": equation 3 gives 0x0000, where RFC 1141 gave 0xFFFF.
        let delta = Delta::new(Sum::of_word([0x55, 0x55]), Sum::of_word([0x32, 0x85]));
        assert_eq!(delta.apply([0xdd, 0x2f]), [0x00, 0x00]);
    }

    #[test]
    fn rfc_1071_section_3_example() {
        let sum =
            Sum::of_double_word([0x00, 0x01, 0xf2, 0x03]).plus(Sum::of_double_word([0xf4, 0xf5, 0xf6, 0xf7]));
        assert_eq!(sum.fold(), 0xddf2);
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
                old = old.plus(Sum::of_word(word.to_be_bytes()));
                *word = random.word();
                new = new.plus(Sum::of_word(word.to_be_bytes()));
            }
            let after = Delta::new(old, new).apply(before.to_be_bytes());
            assert_eq!(u16::from_be_bytes(after), from_scratch(&words));
        }
    }

    #[test]
    fn two_deltas_in_one_step_equal_two_steps() {
        let mut random = Random(42);
        for _ in 0..10_000 {
            let mut delta =
                || Delta::new(Sum::of_word(random.word().to_be_bytes()), Sum::of_word([0x12, 0x34]));
            let (first, second) = (delta(), delta());
            let checksum = [0xbe, 0xef];
            assert_eq!(first.and(second).apply(checksum), second.apply(first.apply(checksum)));
        }
    }
}
