//! Ending TCP connections whose backend is removed: both peers get a reset at once, not only when they send next.
//!
//! A reset has to carry the sequence number that its receiver expects (RFC 9293 section 3.10.7.4), and the data path keeps
//! none. But the peers know them: a SYN within a connection, whatever its numbers, is answered with an ACK that has them
//! (RFC 5961 section 4.2, the 'challenge ACK'). So each peer is sent a SYN in the name of the other. Its answer belongs to no
//! connection any more, is left to this host's own TCP, which knows none either, and that answers it with the reset.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::Context as _;
use lb_common::{Protocol, checksum::Sum};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use crate::{flows, maps::Maps};

/// A segment to be sent, in the name of somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Syn {
    from: SocketAddr,
    to: SocketAddr,
}

/// Connections that are about to be ended.
#[derive(Debug, Default)]
pub(crate) struct Ending(Vec<Syn>);

impl Ending {
    /// The TCP connections of these backends that are not over yet.
    pub(crate) fn of(maps: &Maps, backends: &HashSet<u32>) -> anyhow::Result<Self> {
        let mut syns = Vec::new();
        flows::for_each(maps, |connection| {
            let lasts = connection.protocol == Protocol::Tcp && !connection.state.is_over();
            if lasts && backends.contains(&connection.backend_index) {
                syns.push(Syn { from: connection.service, to: connection.client });
                syns.push(Syn { from: connection.snat, to: connection.backend });
            }
        })?;
        Ok(Self(syns))
    }

    /// Has both peers of each reset, now that the connections are not known any more. What cannot be sent is not worth
    /// an error: those peers are reset when they send next.
    pub(crate) fn provoke(&self) -> anyhow::Result<()> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let own = |syn: &&Syn| syn.to.is_ipv4() == (family == AddressFamily::Inet);
            let mut syns = self.0.iter().filter(own).peekable();
            if syns.peek().is_none() {
                continue;
            }
            let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
                .context("cannot open a socket to have peers reset")?;
            let unsent = syns.filter(|syn| send(&socket, **syn).is_err()).count();
            if unsent > 0 {
                log::debug!("{unsent} peers are reset only when they send next");
            }
        }
        Ok(())
    }
}

fn send(socket: &OwnedFd, syn: Syn) -> nix::Result<()> {
    // Raw sockets know no ports.
    let to = SockaddrStorage::from(SocketAddr::new(syn.to.ip(), 0));
    sendto(socket.as_raw_fd(), &packet(syn), &to, MsgFlags::empty()).map(drop)
}

/// A TCP header without options.
const TCP: u16 = 20;

/// The whole packet, without what the kernel fills in: an IPv4 header's length, identification and checksum (raw(7)).
fn packet(syn: Syn) -> Vec<u8> {
    const HOPS: u8 = 64;
    let protocol = Protocol::Tcp.number();
    let mut packet = match (syn.from.ip(), syn.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // RFC 791: version and header length, service, length, identification, fragment, TTL, protocol, checksum.
            let head = [0x45, 0, 0, 0, 0, 0, 0, 0, HOPS, protocol, 0, 0];
            [&head[..], &from.octets(), &to.octets()].concat()
        }
        (from, to) => {
            // RFC 8200: version, class and flow label, length, next header, hop limit.
            let [high, low] = TCP.to_be_bytes();
            let head = [0x60, 0, 0, 0, high, low, protocol, HOPS];
            [&head[..], &six(from).octets(), &six(to).octets()].concat()
        }
    };
    packet.extend(segment(syn));
    packet
}

/// RFC 9293 section 3.1: a SYN. Which sequence number it has does not matter.
fn segment(syn: Syn) -> [u8; TCP as usize] {
    const OFFSET: u8 = 5 << 4;
    const SYN: u8 = 0x02;
    let ([a, b], [c, d]) = (syn.from.port().to_be_bytes(), syn.to.port().to_be_bytes());
    let mut segment = [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, OFFSET, SYN, 0, 0, 0, 0, 0, 0];
    [segment[16], segment[17]] = checksum(syn, &segment).to_ne_bytes();
    segment
}

/// RFC 9293 section 3.1, over a pseudo-header whose words are the same in IPv4 and IPv6 but for zeros.
fn checksum(syn: Syn, segment: &[u8]) -> u16 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut bytes = [octets(syn.from.ip()), octets(syn.to.ip()), vec![0, Protocol::Tcp.number()]].concat();
    bytes.extend(TCP.to_be_bytes());
    bytes.extend(segment);
    let words = bytes.chunks_exact(2).map(|word| u16::from_ne_bytes([word[0], word[1]]));
    words.fold(Sum::default(), |sum, word| sum.plus(Sum::of_word(word))).checksum()
}

fn six(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::to_ipv6_mapped(&ip),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_in_somebodys_name_has_his_address_and_a_checksum_over_it() {
        // By hand after RFC 1071.
        for (from, to, length, checksum) in [
            ("10.10.10.1:80", "10.10.10.2:40000", 20, 0xeb3b),
            ("[2001:db8:10::1]:80", "[2001:db8:10::2]:40000", 40, 0xb7bd),
        ] {
            let packet = packet(Syn { from: from.parse().unwrap(), to: to.parse().unwrap() });
            let (_, segment) = packet.split_at(length);
            assert_eq!(segment.len(), usize::from(TCP));
            assert_eq!(segment[..4], [0, 80, 0x9c, 0x40], "ports");
            assert_eq!(segment[12..14], [0x50, 0x02], "a SYN");
            assert_eq!(segment[16..18], u16::to_be_bytes(checksum), "{from}");
        }
    }
}
