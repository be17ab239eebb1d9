//! Services: a virtual address and port, and the slots that its connections are dealt to.

use crate::{control::OwnAddress, family::Addr, flow::Port};

/// Services at the most.
pub const MAX_SERVICES: u32 = 4_096;
/// Slots of all services together.
pub const MAX_SLOTS: u32 = 1 << 20;
/// SNAT addresses of one service.
pub const MAX_SNAT: usize = 16;

/// The transports that services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// RFC 9293.
    Tcp = 6,
    /// RFC 768.
    Udp = 17,
}

impl Protocol {
    /// The IP protocol number.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The transport with that IP protocol number.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// As the command line writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What packets for a service are addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct ServiceKey {
    /// The virtual address.
    pub addr: Addr,
    /// The service's port.
    pub port: Port,
    /// IP protocol number ([`Protocol::number`]).
    pub protocol: u8,
    /// The family of `addr` ([`crate::Family::NUMBER`]).
    pub family: u8,
}

/// A service's part of the slot array. One 64-bit word, so that a new table is published by one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct SlotTable(u64);

impl SlotTable {
    /// `len` slots from `offset` on.
    pub const fn new(offset: u32, len: u32) -> Self {
        Self((offset as u64) << 32 | len as u64)
    }

    /// Index of the first slot.
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// How many slots.
    #[inline(always)]
    pub const fn len(self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half of a word")]
        {
            self.0 as u32
        }
    }

    /// Whether there is no slot, and so no backend to choose.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The slot of the `turn`-th connection: exact round robin.
    #[inline(always)]
    pub const fn slot(self, turn: u64) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "smaller than `len`")]
        {
            self.offset() + (turn % self.len() as u64) as u32
        }
    }
}

/// A service, as the data path reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Service {
    /// Slots that hold indices of backends.
    pub table: SlotTable,
    /// What it is addressed by, also for lists.
    pub key: ServiceKey,
    /// First port for SNAT.
    pub first_port: u16,
    /// How many ports for SNAT, at each address.
    pub ports: u16,
    /// How many of `snat` are used; at least one.
    pub snat_len: u32,
    /// 1 while the service exists.
    pub in_use: u32,
    /// Source addresses towards the backends.
    pub snat: [Addr; MAX_SNAT],
    /// Order of addition: lists follow it.
    pub sequence: u64,
}

impl Service {
    /// Source addresses and ports that one backend's connections can have.
    #[inline(always)]
    pub const fn port_space(&self) -> u32 {
        self.snat_len * self.ports as u32
    }

    /// The addresses that its clients and its backends send to.
    pub fn own_addresses(&self) -> impl Iterator<Item = OwnAddress> + use<> {
        let family = self.key.family.into();
        let snat = self.snat.into_iter().take(self.snat_len as usize);
        core::iter::once(self.key.addr).chain(snat).map(move |addr| OwnAddress { addr, family })
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), `Copy`, no padding, valid for any bit pattern.
    unsafe impl aya::Pod for super::ServiceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Service {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<ServiceKey>(), 16 + 2 + 1 + 1);
        assert_eq!(size_of::<Service>(), 8 + 20 + 2 + 2 + 4 + 4 + 16 * MAX_SNAT + 8);
    }

    #[test]
    fn turns_go_round_the_table() {
        let table = SlotTable::new(100, 4);
        let slots: [u32; 8] = core::array::from_fn(|turn| table.slot(turn as u64));
        assert_eq!(slots, [100, 101, 102, 103, 100, 101, 102, 103]);
    }
}
