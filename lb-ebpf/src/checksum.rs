//! Sums over what a checksum covers, from scratch.

use lb_common::checksum::Sum;

use crate::frame::{Field as _, Frame, opaque};

/// Offsets are smaller than this, a power of two: more than lies in one piece of a frame.
const MOST: usize = 1 << 12;

const WORD: usize = 4;

/// So many words at a time: the verifier follows every comparison with the frame's end.
const BLOCK: usize = 4;

/// The sum of what is between those offsets. `None` if that is too much, or not all of it is in the frame's first piece.
#[inline(always)]
pub fn sum(frame: &impl Frame, from: usize, to: usize) -> Option<Sum> {
    if to > MOST {
        return None;
    }
    let (mut sum, mut at) = (Sum::default(), from);
    for _ in 0..MOST / (BLOCK * WORD) {
        at = below_most(at);
        if at + BLOCK * WORD > to {
            break;
        }
        let block = frame.at::<[u8; BLOCK * WORD]>(at)?;
        let [a, b, c, d] = block.load().map(Sum::of_double_word);
        sum = sum.plus(a).plus(b).plus(c).plus(d);
        at += BLOCK * WORD;
    }
    for _ in 0..BLOCK * WORD / 2 {
        at = below_most(at);
        if at + 2 > to {
            break;
        }
        sum = sum.plus(Sum::of_word(frame.at::<[u8; 2]>(at)?.load()));
        at += 2;
    }
    if at < to {
        // With the byte before it, which there is: of one byte the verifier does not see the comparison.
        let [_, last] = *frame.at::<[u8; 2]>(below_most(at.wrapping_sub(1)))?;
        // As if a zero followed (RFC 1071 section 4.1).
        sum = sum.plus(Sum::of_word(u16::from_ne_bytes([last, 0])));
        at += 1;
    }
    (at >= to).then_some(sum)
}

/// The offset as it is. The verifier, which sees a mask, then knows as much of it in every round, so that it follows what comes
/// after the rounds but once; and the compiler knows nothing, so that it spares no comparison with the frame's end.
#[inline(always)]
fn below_most(offset: usize) -> usize {
    opaque(offset) & (MOST - 1)
}
