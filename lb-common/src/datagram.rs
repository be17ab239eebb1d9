//! Datagrams that come in fragments. The first fragment has the ports, and so says which way all of them go.

use crate::{
    family::Addr,
    flow::{Ports, Tick},
    verdict::Action,
};

/// Datagrams that are known at a time; the one that nothing has been heard of for longest goes for a new one.
pub const MAX_DATAGRAMS: u32 = 16_384;

/// What the fragments of a datagram have in common (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct DatagramKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Identification, as on the wire.
    pub id: u32,
    /// IP protocol number; 0 for IPv6, where identifications are not each protocol's own.
    pub protocol: u16,
    /// The family of the addresses ([`crate::Family::NUMBER`]).
    pub family: u16,
}

/// What became of a datagram's first fragment, and so becomes of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Datagram {
    /// The ports in it.
    pub ports: Ports,
    /// When it came.
    pub since: Tick,
    /// What became of it.
    pub fate: Fate,
    /// Bytes that it has; 0 while its last fragment has not come.
    pub length: u32,
    /// Bytes of it that have come. CPUs add to it at the same time: in one step.
    pub seen: u64,
}

/// Which bytes of a datagram a fragment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where they begin.
    pub offset: u32,
    /// How many.
    pub length: u32,
    /// Whether there are more behind them.
    pub more: bool,
}

impl Piece {
    /// Where they end.
    #[inline(always)]
    pub const fn end(self) -> u32 {
        self.offset.wrapping_add(self.length)
    }
}

impl Datagram {
    /// Ticks after which an identification is another datagram's: from 8 s to 82 s, as the kernel is configured; Linux waits
    /// 30 s for the rest of a datagram.
    pub const LIFETIME: u32 = 128;

    /// Whether a fragment that comes at `now` can be one of this datagram's.
    #[inline(always)]
    pub const fn is_of(&self, now: Tick) -> bool {
        now.since(self.since) <= Self::LIFETIME
    }

    /// With one more fragment.
    #[must_use]
    #[inline(always)]
    pub const fn with(self, piece: Piece) -> Self {
        let length = if piece.more { self.length } else { piece.end() };
        Self { seen: self.seen.wrapping_add(piece.length as u64), length, ..self }
    }

    /// Whether as many bytes have come as there are: then what comes with its identification is another datagram's.
    #[inline(always)]
    pub const fn is_complete(&self) -> bool {
        self.length != 0 && self.seen >= self.length as u64
    }
}

/// One of the constants. Not an enum, for map memory must be valid whatever it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Fate(u32);

impl Fate {
    /// Sent on, with its connection.
    pub const FORWARDED: Self = Self(1);
    /// Left to the kernel.
    pub const PASSED: Self = Self(2);
    /// Dropped.
    pub const DROPPED: Self = Self(3);

    /// Of a fragment that is treated so.
    #[inline(always)]
    pub const fn of(action: Action) -> Self {
        match action {
            Action::Forward => Self::FORWARDED,
            Action::Pass => Self::PASSED,
            Action::Answer | Action::Drop => Self::DROPPED,
        }
    }
}

/// What precedes a fragment that the XDP program gives to the daemon: one whose datagram's first fragment has not come yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Early {
    /// Its datagram.
    pub key: DatagramKey,
    /// The interface that it came in through.
    pub ingress: u32,
    /// When it came.
    pub at: Tick,
    /// Bytes of its frame, which follows.
    pub length: u32,
}

impl Early {
    /// From the bytes that the program has given; `None` if there are fewer.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<4>();
        let words: &[[u8; 4]; size_of::<Self>() / 4] = words.get(..size_of::<Self>() / 4)?.try_into().ok()?;
        let [a, b, c, d, e, f, g, h, id, both, ingress, at, length] = words.map(u32::from_ne_bytes);
        let [p, q, r, s] = both.to_ne_bytes();
        let key = DatagramKey {
            src: Addr::from_words([a, b, c, d]),
            dst: Addr::from_words([e, f, g, h]),
            id,
            protocol: u16::from_ne_bytes([p, q]),
            family: u16::from_ne_bytes([r, s]),
        };
        Some(Self { key, ingress, at: Tick::from_number(at), length })
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), `Copy`, no padding, valid for any bit pattern.
    unsafe impl aya::Pod for super::DatagramKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Datagram {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATAGRAM: Datagram = Datagram {
        ports: Ports::from_wire(0),
        since: Tick::from_number(1_000),
        fate: Fate::FORWARDED,
        seen: 0,
        length: 0,
    };

    #[test]
    fn a_datagram_is_complete_when_all_of_it_has_come_in_whatever_order() {
        let piece = |number: u32| Piece { offset: number * 8, length: 8, more: number != 2 };
        for order in [[0, 1, 2], [0, 2, 1], [2, 1, 0], [1, 2, 0]] {
            let mut datagram = DATAGRAM;
            for (number, left) in order.into_iter().zip([2, 1, 0]) {
                assert!(!datagram.is_complete(), "{order:?}: {left} more");
                datagram = datagram.with(piece(number));
            }
            assert!(datagram.is_complete(), "{order:?}");
        }
    }

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<DatagramKey>(), 16 + 16 + 4 + 2 + 2);
        assert_eq!(size_of::<Datagram>(), 4 + 4 + 4 + 4 + 8);
        assert_eq!(size_of::<Early>(), size_of::<DatagramKey>() + 4 + 4 + 4);
    }

    #[test]
    fn what_precedes_an_early_fragment_is_read_as_it_lies_in_memory() {
        let words: [u32; 13] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];
        let mut bytes = [0; 4 * 13 + 1];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        let early = Early::from_bytes(&bytes).unwrap();
        assert_eq!(
            (early.key.src, early.key.dst),
            (Addr::from_words([1, 2, 3, 4]), Addr::from_words([5, 6, 7, 8]))
        );
        assert_eq!((early.key.id, early.ingress, early.at, early.length), (9, 11, Tick::from_number(12), 13));
        assert_eq!(
            u32::from(early.key.protocol.to_le()) | u32::from(early.key.family.to_le()) << 16,
            10_u32.to_le()
        );
        assert!(Early::from_bytes(&bytes[..51]).is_none());
    }

    #[test]
    fn an_identification_is_another_datagrams_after_a_while() {
        let datagram = DATAGRAM;
        for (now, is_of) in
            [(1_000, true), (1_000 + Datagram::LIFETIME, true), (1_001 + Datagram::LIFETIME, false)]
        {
            assert_eq!(datagram.is_of(Tick::from_number(now)), is_of, "{now}");
        }
    }
}
