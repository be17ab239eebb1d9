//! Backends: who serves, how to reach them, and what they have been sent.

use crate::{family::Addr, flow::Port};

/// Backends of all services together.
pub const MAX_BACKENDS: u32 = 16_384;

/// The layer-2 way to somebody: what to write into a frame and where to send it.
///
/// Eight-byte words: the destination address lies in the first one, so that a neighbour's new address is seen whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C, align(8))]
pub struct Hop {
    /// Destination MAC address.
    pub dst: [u8; 6],
    /// Source MAC address: the interface's own.
    pub src: [u8; 6],
    /// Index of the interface to send through; 0 while unknown.
    pub ifindex: u32,
}

impl Hop {
    /// Whether the way is known.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        self.ifindex != 0
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
    use super::*;

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<Hop>(), 16);
        assert_eq!(size_of::<Backend>(), 16 + 2 + 1 + 1 + 4 + 4 + 4 + 8);
        assert_eq!(size_of::<BackendCounters>(), 40);
    }
}
