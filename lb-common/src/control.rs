//! What the control path keeps in maps for itself: which balancer this is, and where it is attached.

use crate::{
    family::Addr,
    service::{MAX_SERVICES, MAX_SNAT},
};

/// Version of every map's layout. A pin directory of another version is not adopted.
pub const LAYOUT_VERSION: u32 = 5;

/// The XDP programs that share the path of packets. The first meets every frame, and hands some over to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Program {
    /// Of packets as most are: of a known connection, and with nothing about them.
    Plain,
    /// Of others: first and last ones of connections, fragments, packets with extension headers or in several pieces.
    Other,
    /// Of ICMP errors.
    Icmp,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Other, Self::Icmp];

    /// Its place in the map of programs.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// Its name in the object and in the kernel.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "lb",
            Self::Other => "lb_other",
            Self::Icmp => "lb_icmp",
        }
    }
}

/// The balancer behind a pin directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Meta {
    /// [`LAYOUT_VERSION`] of who made the maps.
    pub layout_version: u32,
    /// Process of `lb run`; 0 when none.
    pub pid: u32,
    /// Counts edits, so that the daemon notices them.
    pub generation: u64,
    /// Order number of the next service or backend.
    pub next_sequence: u64,
    /// When `lb run` was ready, seconds since 1970.
    pub since: u64,
    /// First port for SNAT of new services.
    pub first_port: u16,
    /// How many ports for SNAT.
    pub ports: u16,
    /// Begins every hash of a flow's key.
    pub secret: u64,
    /// Entries that each family's flow table takes.
    pub flow_entries: u32,
    /// Where the search for a free service index begins. Going round, what has just been given up rests the longest.
    pub next_service: u32,
    /// Where the search for a free backend index begins.
    pub next_backend: u32,
    /// Where the search for free slots begins.
    pub next_slot: u32,
    /// One more than the place of the service that is being edited; 0 while none is. Where it is not 0 and nobody has the
    /// lock for edits, one was killed.
    pub edited: u32,
    /// SNAT addresses of services that name none of their own, either family mixed.
    pub snat: [Addr; MAX_SNAT],
    /// The family of each of `snat` ([`crate::Family::NUMBER`]); 0 where there is none.
    pub snat_family: [u8; MAX_SNAT],
}

/// The program runs in the driver.
pub const NATIVE: u32 = 1;
/// The program runs in the network stack.
pub const GENERIC: u32 = 2;

/// An interface that the program is attached to; its index is the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Interface {
    /// When it was attached, seconds since 1970.
    pub since: u64,
    /// [`NATIVE`] or [`GENERIC`].
    pub mode: u32,
    /// The largest IP packet that leaves through it; 0 while unknown.
    pub mtu: u32,
}

/// Addresses of services and those for SNAT at the most: some services have several, most share theirs.
pub const MAX_OWN_ADDRESSES: u32 = 4 * MAX_SERVICES;

/// An address that clients or backends send to: a service's or one for SNAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct OwnAddress {
    /// The address.
    pub addr: Addr,
    /// Its family ([`crate::Family::NUMBER`]); a whole word, so that there is no padding.
    pub family: u32,
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), `Copy`, no padding, valid for any bit pattern.
    unsafe impl aya::Pod for super::OwnAddress {}
    // SAFETY: repr(C), `Copy`, no padding, valid for any bit pattern.
    unsafe impl aya::Pod for super::Meta {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Interface {}
}
