//! Backends: who serves, how to reach them, and what they have been sent.

use crate::{family::Addr, flow::Port, vlan::Tags};

/// Backends of all services together.
pub const MAX_BACKENDS: u32 = 16_384;

/// The layer-2 way to somebody: what to write into a frame and where to send it.
///
/// The MAC addresses are three words as they stand at the start of a frame, so that BPF moves them in three
/// instructions; the destination lies in the first eight bytes, so that a neighbour's new address is seen whole.
#[derive(Clone, Copy, Debug, Eq, Default)]
#[repr(C)]
pub struct Hop {
    link: [u32; 3],
    /// Index of the interface to send through; 0 while unknown.
    pub ifindex: u32,
    /// The VLAN there.
    pub tags: Tags,
}

impl Hop {
    /// The way through that interface, from MAC address `src` to `dst`.
    #[inline(always)]
    pub const fn new(dst: [u8; 6], src: [u8; 6], ifindex: u32) -> Self {
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (dst, src);
        let link = [[a, b, c, d], [e, f, g, h], [i, j, k, l]];
        Self {
            link: [u32::from_ne_bytes(link[0]), u32::from_ne_bytes(link[1]), u32::from_ne_bytes(link[2])],
            ifindex,
            tags: Tags::NONE,
        }
    }

    /// The same in a VLAN.
    #[inline(always)]
    pub const fn tagged(self, tags: Tags) -> Self {
        Self { tags, ..self }
    }

    /// The way back to where a frame came from that begins with `dst` and `src`, in the machine's order. They come in
    /// the pieces that they are turned round in.
    #[inline(always)]
    pub const fn back(dst: (u16, u32), src: (u32, u16), ifindex: u32) -> Self {
        let ([a, b], [c, d]) = (src.1.to_ne_bytes(), dst.0.to_ne_bytes());
        Self { link: [src.0, u32::from_ne_bytes([a, b, c, d]), dst.1], ifindex, tags: Tags::NONE }
    }

    /// What a frame begins with that goes this way: destination and source, in words of the machine's order.
    #[inline(always)]
    pub const fn link(&self) -> [u32; 3] {
        self.link
    }

    const fn bytes(&self) -> [[u8; 4]; 3] {
        let [a, b, c] = self.link;
        [a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes()]
    }

    /// Destination MAC address.
    pub const fn dst(&self) -> [u8; 6] {
        let [[a, b, c, d], [e, f, _, _], _] = self.bytes();
        [a, b, c, d, e, f]
    }

    /// Source MAC address: the interface's own.
    pub const fn src(&self) -> [u8; 6] {
        let [_, [_, _, a, b], [c, d, e, f]] = self.bytes();
        [a, b, c, d, e, f]
    }

    /// Whether the way is known.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        self.ifindex != 0
    }
}

impl PartialEq for Hop {
    // Derived, this would call `bcmp`, byte by byte on BPF.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c], [x, y, z]) = (self.link, other.link);
        a == x && b == y && c == z && self.ifindex == other.ifindex && self.tags == other.tags
    }
}

/// What a backend is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BackendState {
    /// New connections come to it.
    Up = 1,
    /// It keeps the connections it has.
    Draining = 2,
    /// Being removed: its slots are gone, its flows are going.
    Leaving = 3,
}

impl BackendState {
    /// The state with that number; `None` for a free place.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Up),
            2 => Some(Self::Draining),
            3 => Some(Self::Leaving),
            _ => None,
        }
    }

    /// As the command line prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Leaving => "leaving",
        }
    }
}

/// A backend of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C, align(8))]
pub struct Backend {
    /// Where it listens.
    pub addr: Addr,
    /// Where it listens.
    pub port: Port,
    /// The family of `addr` ([`crate::Family::NUMBER`]).
    pub family: u8,
    /// A [`BackendState`]; 0 while the place is free.
    pub state: u8,
    /// Index of its service.
    pub service: u32,
    /// Index of the port cursor. Backends with one address, port and protocol, of whatever service, share one: they
    /// share the space that SNAT ports are allocated from.
    pub cursor: u32,
    /// Share of new connections, relative to the service's other backends.
    pub weight: u32,
    /// Order of addition: slots and lists follow it.
    pub sequence: u64,
}

/// Packets and bytes (whole frames) in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Traffic {
    /// Frames.
    pub packets: u64,
    /// Bytes of whole frames, as received.
    pub bytes: u64,
}

/// What passed between clients and one backend, on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct BackendCounters {
    /// To the backend.
    pub requests: Traffic,
    /// From the backend.
    pub replies: Traffic,
    /// Connections made.
    pub connections: u64,
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), `Copy`, no padding, valid for any bit pattern.
    unsafe impl aya::Pod for super::Hop {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Backend {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::BackendCounters {}
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn the_way_back_turns_the_addresses_round() {
        let (word, half) = (u32::from_ne_bytes, u16::from_ne_bytes);
        let dst = (half([1, 2]), word([3, 4, 5, 6]));
        let src = (word([11, 12, 13, 14]), half([15, 16]));
        let hop = Hop::back(dst, src, 7);
        assert_eq!(hop, Hop::new([11, 12, 13, 14, 15, 16], [1, 2, 3, 4, 5, 6], 7));
        assert_eq!(hop.link().map(u32::to_ne_bytes).concat(), [11, 12, 13, 14, 15, 16, 1, 2, 3, 4, 5, 6]);
        assert_eq!((hop.dst(), hop.src()), ([11, 12, 13, 14, 15, 16], [1, 2, 3, 4, 5, 6]));
    }

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<Hop>(), 12 + 4 + 4);
        assert_eq!(size_of::<Backend>(), 16 + 2 + 1 + 1 + 4 + 4 + 4 + 8);
        assert_eq!(size_of::<BackendCounters>(), 40);
    }
}
