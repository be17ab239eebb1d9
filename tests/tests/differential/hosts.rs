//! Who there is: clients and a router on one side, servers and a router on the other, the balancer between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::Protocol;
use lb_tests::topology::{VIP, VIP_V6};

use crate::packet::Mac;

/// A side of the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// The balancer's interface on it.
    pub(crate) const fn interface(self) -> &'static str {
        match self {
            Self::Client => "eth0",
            Self::Server => "eth1",
        }
    }

    /// The MAC address of that interface.
    pub(crate) const fn balancer_mac(self) -> Mac {
        [2, 0, 0, 0, 0, self as u8 + 1]
    }

    /// The balancer's address on it.
    pub(crate) fn balancer(self, family: Family) -> IpAddr {
        match (self, family) {
            (Self::Client, Family::V4) => VIP.into(),
            (Self::Client, Family::V6) => VIP_V6.into(),
            (Self::Server, Family::V4) => Ipv4Addr::new(192, 168, 1, 254).into(),
            (Self::Server, Family::V6) => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xfe).into(),
        }
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub(crate) fn vip(self) -> IpAddr {
        Side::Client.balancer(self)
    }
}

/// A host, or the router of a side, which is also who forwards what comes from further away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// The even ones are on the balancer's link, the odd ones behind the router.
    Client(u8),
    Server(u8),
    Router(Side),
}

/// How many clients there are.
pub(crate) const CLIENTS: u8 = 6;

/// How many servers there are: not a power of two, so that turns show.
pub(crate) const SERVERS: u8 = 3;

impl Host {
    pub(crate) const fn side(self) -> Side {
        match self {
            Self::Client(_) => Side::Client,
            Self::Server(_) => Side::Server,
            Self::Router(side) => side,
        }
    }

    pub(crate) fn address(self, family: Family) -> IpAddr {
        match (self, family) {
            (Self::Client(n), Family::V4) if is_remote(n) => Ipv4Addr::new(198, 51, 100, n).into(),
            (Self::Client(n), Family::V6) if is_remote(n) => v6(0x66, n),
            (Self::Client(n), Family::V4) => Ipv4Addr::new(10, 10, 10, 0x10 + n).into(),
            (Self::Client(n), Family::V6) => v6(0x10, 0x10 + n),
            (Self::Server(n), Family::V4) => Ipv4Addr::new(192, 168, 1, n + 1).into(),
            (Self::Server(n), Family::V6) => v6(1, n + 1),
            // Not those of the interfaces that the balancer knows them by: errors come from anywhere.
            (Self::Router(Side::Client), Family::V4) => Ipv4Addr::new(203, 0, 113, 9).into(),
            (Self::Router(Side::Client), Family::V6) => v6(0x77, 9),
            (Self::Router(Side::Server), Family::V4) => Ipv4Addr::new(172, 16, 9, 9).into(),
            (Self::Router(Side::Server), Family::V6) => v6(0x99, 9),
        }
    }

    /// The MAC address that its frames come from, and that frames for it go to.
    pub(crate) const fn mac(self) -> Mac {
        match self {
            Self::Client(n) if is_remote(n) => Self::Router(Side::Client).mac(),
            Self::Client(n) => [2, 0, 0, 0, 0x0c, n],
            Self::Server(n) => [2, 0, 0, 0, 0x05, n],
            Self::Router(side) => [2, 0, 0, 0, 0xff, side as u8],
        }
    }
}

const fn is_remote(client: u8) -> bool {
    client % 2 == 1
}

fn v6(network: u16, host: u8) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, host.into()).into()
}

/// The balancer's next hop towards everything that is on no link of it.
pub(crate) fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 10, 10, 254).into(),
        Family::V6 => v6(0x10, 0xfe),
    }
}

/// The port that a service of that protocol has at the VIP.
pub(crate) const fn service_port(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 80,
        Protocol::Udp => 53,
    }
}

/// The port that its servers have: translated for one protocol, the same for the other.
pub(crate) const fn server_port(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 8080,
        Protocol::Udp => 53,
    }
}

/// The service's address at the VIP.
pub(crate) fn service(family: Family, protocol: Protocol) -> SocketAddr {
    SocketAddr::new(family.vip(), service_port(protocol))
}

/// The service's address at a server.
pub(crate) fn backend(family: Family, protocol: Protocol, server: u8) -> SocketAddr {
    SocketAddr::new(Host::Server(server).address(family), server_port(protocol))
}
