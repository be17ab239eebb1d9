//! Where things are in a packet, however little of it there is: ICMP errors quote beginnings of packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Length of IPv6's header and of its fragment header, least length of IPv4's.
pub(crate) const IPV4: usize = 20;
pub(crate) const IPV6: usize = 40;
pub(crate) const FRAGMENT_HEADER: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Offsets from the start of the network header. Nothing from `transport` on need be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// IP protocol number of what is at `transport`.
    pub(crate) protocol: u8,
    pub(crate) transport: usize,
    /// Where the packet ends, as its header says.
    pub(crate) end: usize,
    pub(crate) fragment: Option<Fragment>,
}

/// What a fragment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) id: u32,
    /// In bytes.
    pub(crate) offset: usize,
    pub(crate) more: bool,
    /// Of IPv6: where its header is, and the byte that announces it.
    pub(crate) header: Option<(usize, usize)>,
}

impl Layout {
    /// Reads a packet's headers. `None` if they are cut off or are no IP.
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::of_v4(packet),
            6 => Self::of_v6(packet),
            _ => None,
        }
    }

    fn of_v4(packet: &[u8]) -> Option<Self> {
        const MORE: u16 = 0x2000;
        const OFFSET: u16 = 0x1fff;
        let transport = usize::from(packet.first()? & 0x0f) * 4;
        if transport < IPV4 || packet.len() < transport {
            return None;
        }
        let flags = word(packet, 6)?;
        let (offset, more) = (usize::from(flags & OFFSET) * 8, flags & MORE != 0);
        let id = word(packet, 4)?.into();
        Some(Self {
            src: Ipv4Addr::from(*packet.get(12..)?.first_chunk::<4>()?).into(),
            dst: Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?).into(),
            protocol: *packet.get(9)?,
            transport,
            end: word(packet, 2)?.into(),
            fragment: (more || offset != 0).then_some(Fragment { id, offset, more, header: None }),
        })
    }

    fn of_v6(packet: &[u8]) -> Option<Self> {
        const MORE: u16 = 1;
        let mut layout = Self {
            src: Ipv6Addr::from(*packet.get(8..)?.first_chunk::<16>()?).into(),
            dst: Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?).into(),
            protocol: *packet.get(6)?,
            transport: IPV6,
            end: IPV6 + usize::from(word(packet, 4)?),
            fragment: None,
        };
        let mut announced = 6;
        loop {
            let at = layout.transport;
            let length = match layout.protocol {
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (usize::from(*packet.get(at + 1)?) + 1) * 8,
                FRAGMENT => {
                    let field = word(packet, at + 2)?;
                    let id = u32::from_be_bytes(*packet.get(at + 4..)?.first_chunk()?);
                    let (offset, more) = (usize::from(field & !7), field & MORE != 0);
                    layout.fragment = Some(Fragment { id, offset, more, header: Some((at, announced)) });
                    FRAGMENT_HEADER
                }
                _ => return Some(layout),
            };
            announced = at;
            layout.protocol = *packet.get(at)?;
            layout.transport = at + length;
            // What follows the header of a later fragment is the middle of something.
            if layout.fragment.is_some_and(|fragment| fragment.offset != 0) {
                return Some(layout);
            }
        }
    }

    /// Whether a transport header, or the beginning of one, is at `transport`.
    pub(crate) fn has_transport(&self) -> bool {
        self.fragment.is_none_or(|fragment| fragment.offset == 0)
    }
}

/// The 16 bits at an offset.
pub(crate) fn word(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(offset..)?.first_chunk()?))
}
