//! VLAN tags (IEEE 802.1Q, 802.1ad): which of a link's networks a frame is in.

/// Tags of a frame at the most: a service provider's and a customer's.
pub const MOST_TAGS: usize = 2;

/// Bytes of a tag.
pub const TAG: usize = 4;

/// Says, in place of a frame's type, that a customer's tag follows (IEEE 802.1Q), in the machine's order as on the wire.
const CUSTOMER: u16 = 0x8100_u16.to_be();
/// Likewise that a service provider's tag follows (IEEE 802.1ad).
const SERVICE: u16 = 0x88a8_u16.to_be();

/// A tag that names a VLAN: never 0, which is where there is no tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(u16);

impl Tag {
    /// The VLAN's identifier; the rest is priority and eligibility to be dropped.
    const VLAN: u16 = 0x0fff;
    const OF_SERVICE: u16 = 0x1000;

    /// Whether a tag follows that type, as it stands on the wire.
    #[inline(always)]
    pub const fn follows(ether_type: u16) -> bool {
        ether_type == CUSTOMER || ether_type == SERVICE
    }

    /// The tag of such a type whose control information that is, both as on the wire. `None` if it says a priority and nothing else.
    #[inline(always)]
    pub const fn from_wire(ether_type: u16, control: u16) -> Option<Self> {
        Self::new(u16::from_be(control), ether_type == SERVICE)
    }

    /// The tag of the VLAN of which that are the lower twelve bits, a customer's or a service provider's; `None` for 0, which is none.
    #[inline(always)]
    pub const fn new(vlan: u16, of_service: bool) -> Option<Self> {
        match vlan & Self::VLAN {
            0 => None,
            vlan if of_service => Some(Self(vlan | Self::OF_SERVICE)),
            vlan => Some(Self(vlan)),
        }
    }

    /// Type and control information as on the wire, in the machine's order: no priority.
    #[inline(always)]
    pub const fn wire(self) -> u32 {
        let ether_type = if self.0 & Self::OF_SERVICE == 0 { CUSTOMER } else { SERVICE };
        let ([a, b], [c, d]) = (ether_type.to_ne_bytes(), (self.0 & Self::VLAN).to_be_bytes());
        u32::from_ne_bytes([a, b, c, d])
    }
}

/// The tags of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Tags(u32);

impl Tags {
    /// None.
    pub const NONE: Self = Self(0);

    /// Whether there are none.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Bytes of all of them.
    #[inline(always)]
    pub const fn length(self) -> usize {
        match self.0 {
            0 => 0,
            1..=0xffff => TAG,
            _ => 2 * TAG,
        }
    }

    /// With one more, inside of the others; `None` if there are as many as there may be.
    #[inline(always)]
    pub const fn and(self, tag: Tag) -> Option<Self> {
        match self.0 {
            0 => Some(Self(tag.0 as u32)),
            outer @ 1..=0xffff => Some(Self(outer | (tag.0 as u32) << 16)),
            _ => None,
        }
    }

    /// The first on the wire.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "one half")]
    pub const fn outer(self) -> Option<Tag> {
        match self.0 as u16 {
            0 => None,
            tag => Some(Tag(tag)),
        }
    }

    /// The one behind it.
    #[inline(always)]
    pub const fn inner(self) -> Option<Tag> {
        match (self.0 >> 16) as u16 {
            0 => None,
            tag => Some(Tag(tag)),
        }
    }
}

/// VLANs that the host has devices for, at the most.
pub const MAX_VLANS: u32 = 16_384;

/// A VLAN of an interface; without tags, stands for all that the host has devices for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Vlan {
    /// Index of the interface.
    pub ifindex: u32,
    /// The tags of its frames there.
    pub tags: Tags,
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), `Copy`, no padding, valid for any bit pattern.
    unsafe impl aya::Pod for super::Vlan {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_what_stands_on_the_wire() {
        // IEEE 802.1Q clause 9.6: 3 bits of priority, one of eligibility to be dropped, 12 of the VLAN.
        for (bytes, tag) in [
            ([0x81, 0x00, 0x00, 0x64], Tag::new(100, false)),
            ([0x81, 0x00, 0x0f, 0xfe], Tag::new(4094, false)),
            ([0x88, 0xa8, 0x00, 0x01], Tag::new(1, true)),
        ] {
            let [a, b, c, d] = bytes;
            let read = |control| Tag::from_wire(u16::from_ne_bytes([a, b]), u16::from_ne_bytes(control));
            assert!(Tag::follows(u16::from_ne_bytes([a, b])));
            assert_eq!(read([c, d]), tag);
            assert_eq!(read([c | 0xf0, d]), tag, "priority is no part of it");
            assert_eq!(tag.map(|tag| tag.wire().to_ne_bytes()), Some(bytes));
            assert_eq!(read([0xe0, 0]), None, "a priority alone is no VLAN");
        }
        assert!(!Tag::follows(0x0800_u16.to_be()));
    }

    #[test]
    fn two_tags_keep_their_order() {
        let (outer, inner) = (Tag::new(7, true).unwrap(), Tag::new(4094, false).unwrap());
        let one = Tags::NONE.and(outer).unwrap();
        let two = one.and(inner).unwrap();
        assert_eq!((two.outer(), two.inner()), (Some(outer), Some(inner)));
        assert_eq!((one.outer(), one.inner()), (Some(outer), None));
        assert_eq!([Tags::NONE, one, two].map(Tags::length), [0, 4, 8]);
        assert!(Tags::NONE.is_none() && !one.is_none());
        assert_eq!(two.and(inner), None);
    }
}
