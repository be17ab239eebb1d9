//! The axes: what runs, where, and on what.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The port of the first service; others follow it.
pub(crate) const SERVICE_PORT: u16 = 20_000;
/// The port that servers listen on.
pub(crate) const SERVER_PORT: u16 = 8080;

/// The low half of the virtual address.
const VIP: u16 = 0x0a01;

/// Which way frames go: back through the interface that they came in through, or on through another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arms {
    One,
    Two,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Requests,
    Replies,
}

/// What forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forwarder {
    /// Nothing but forwarding.
    Bare,
    /// The least that translating takes.
    Sketch,
    /// `lb run`.
    Balancer,
    /// The kernel, by the rules that people start with: four for each server.
    Recipe,
    /// The kernel, by one nftables rule that deals connections out of a map.
    NftMap,
}

impl Arms {
    /// The forwarder's interface that servers are behind.
    pub(crate) const fn way_out(self) -> &'static str {
        match self {
            Self::One => "eth0",
            Self::Two => "eth1",
        }
    }
}

/// How large frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frames {
    /// As small as the longest headers let them be.
    Small,
    /// Seven small ones, four of 594 bytes and one of 1514: what is called an internet mix.
    Mix,
}

/// One forwarder at one place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) forwarder: Forwarder,
    pub(crate) arms: Arms,
    pub(crate) family: Family,
    pub(crate) transport: Transport,
    pub(crate) direction: Direction,
    pub(crate) frames: Frames,
    pub(crate) flows: u32,
    /// By how many flows the generator goes on: 1 goes through them in the order in which they were made.
    pub(crate) stride: u32,
    pub(crate) services: u16,
    /// Of each service.
    pub(crate) backends: u16,
    /// Of each interface: as many as cores that are to work at the same time.
    pub(crate) queues: usize,
}

impl Setting {
    /// The usual place of a forwarder: requests over TCP and IPv4, from one interface to another.
    pub(crate) const fn new(forwarder: Forwarder) -> Self {
        Self {
            forwarder,
            arms: Arms::Two,
            family: Family::V4,
            transport: Transport::Tcp,
            direction: Direction::Requests,
            frames: Frames::Small,
            flows: 10_000,
            stride: 1,
            services: 1,
            backends: 32,
            queues: 1,
        }
    }

    /// The virtual address.
    pub(crate) fn vip(&self) -> IpAddr {
        self.family.client_network(VIP)
    }

    /// Server `number`, from 0.
    pub(crate) fn server(&self, number: u16) -> IpAddr {
        let [high, low] =
            [1 + number / 250, 1 + number % 250].map(|byte| u8::try_from(byte).unwrap_or(u8::MAX));
        match self.family {
            Family::V4 => Ipv4Addr::new(192, 168, high, low).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from_be_bytes([high, low])).into(),
        }
    }

    /// Whether it is the kernel that forwards.
    pub(crate) fn is_kernel(&self) -> bool {
        matches!(self.forwarder, Forwarder::Recipe | Forwarder::NftMap)
    }

    /// Whether addresses and ports are translated, so that there are connections with two directions.
    pub(crate) fn translates(&self) -> bool {
        self.is_kernel() || self.forwarder == Forwarder::Balancer
    }
}

impl Family {
    /// An address on the clients' side, by its low half.
    pub(crate) fn client_network(self, low: u16) -> IpAddr {
        let [high_byte, low_byte] = low.to_be_bytes();
        match self {
            Self::V4 => Ipv4Addr::new(10, 10, high_byte, low_byte).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, low).into(),
        }
    }
}

impl Display for Forwarder {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bare => "bare",
            Self::Sketch => "sketch",
            Self::Balancer => "lb",
            Self::Recipe => "iptables",
            Self::NftMap => "nft map",
        })
    }
}
