//! ICMP errors about packets of balanced connections: from whom, of which type, quoting how much.

use crate::canonical::extensible;
use crate::hosts::{Family, Side};
use crate::random::Random;
use crate::script::{Event, Quote, Reporter, Sends};

/// An error's type, code and the four bytes after its checksum.
type Error = (u8, u8, [u8; 4]);

/// RFC 792, RFC 1122 section 3.2.2.1, RFC 1191 (the MTU), RFC 1812 section 5.2.7.1.
pub(crate) const V4: &[Error] = &[
    (3, 0, [0; 4]),
    (3, 1, [0; 4]),
    (3, 2, [0; 4]),
    (3, 3, [0; 4]),
    (3, 4, [0, 0, 0x05, 0x78]),
    (3, 4, [0, 0, 0x02, 0x40]),
    (3, 9, [0; 4]),
    (3, 10, [0; 4]),
    (3, 13, [0; 4]),
    // Source quench, deprecated by RFC 6633.
    (4, 0, [0; 4]),
    (11, 0, [0; 4]),
    (11, 1, [0; 4]),
    (12, 0, [20, 0, 0, 0]),
    (12, 1, [0; 4]),
];

/// RFC 4443.
pub(crate) const V6: &[Error] = &[
    (1, 0, [0; 4]),
    (1, 1, [0; 4]),
    (1, 3, [0; 4]),
    (1, 4, [0; 4]),
    (1, 5, [0; 4]),
    (1, 6, [0; 4]),
    (2, 0, [0, 0, 0x05, 0x78]),
    (2, 0, [0, 0, 0x05, 0x00]),
    (3, 0, [0; 4]),
    (3, 1, [0; 4]),
    (4, 0, [0, 0, 0, 40]),
    (4, 1, [0, 0, 0, 6]),
];

/// From the least that RFC 792 asks for, over where a TCP header is cut, to as much as fits. Not 17 to 19 bytes: there a
/// TCP checksum is quoted, or half of it, and the kernel translates one only with all of its header.
const QUOTES: &[Quote] = &[
    Quote::Bytes(8),
    Quote::Bytes(8),
    Quote::Bytes(9),
    Quote::Bytes(12),
    Quote::Bytes(16),
    Quote::Bytes(20),
    Quote::Bytes(21),
    Quote::Bytes(64),
    Quote::Most,
    Quote::Most,
    Quote::Extended,
];

/// The errors of a family.
pub(crate) const fn errors(family: Family) -> &'static [Error] {
    match family {
        Family::V4 => V4,
        Family::V6 => V6,
    }
}

pub(crate) fn any_error(random: &mut Random, session: usize, family: Family) -> Event {
    let (kind, code, rest) = *random.one_of(errors(family));
    let from = *random.one_of(&[Side::Client, Side::Server]);
    let by = *random.one_of(&[Reporter::Receiver, Reporter::Router]);
    let quote = match *random.one_of(QUOTES) {
        Quote::Extended if !extensible(family == Family::V6, kind) => Quote::Most,
        quote => quote,
    };
    Event::new(session, from, Sends::Error { by, kind, code, rest, quote })
}
