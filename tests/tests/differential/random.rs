//! Scripts out of a seed.

use lb_common::Protocol;

use crate::hosts::{CLIENTS, Family, Side};
use crate::icmp;
use crate::packet::{ACK, Carriage, Cut, FIN, PSH, RST, SYN};
use crate::script::{Event, Script, Sends, Session};

/// A small generator (Marsaglia's xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // The state must not be zero, and near seeds should not look alike.
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap_or(u64::MAX)).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or_default()
    }

    pub(crate) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn one_of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// What a script is made of. Chances are percentages of its events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mixture {
    pub(crate) families: &'static [Family],
    pub(crate) protocols: &'static [Protocol],
    pub(crate) events: usize,
    /// Sessions at the same time.
    pub(crate) sessions: usize,
    /// IPv4 options and IPv6 extension headers.
    pub(crate) options: usize,
    pub(crate) errors: usize,
    /// Of UDP datagrams.
    pub(crate) fragments: usize,
    /// A TTL or hop limit that ends at the balancer.
    pub(crate) expiring: usize,
    /// IPv4 packets that nobody may fragment.
    pub(crate) dont_fragment: usize,
    /// The longest payload in one packet of a server: veth takes none that is longer than its MTU.
    pub(crate) most_from_server: usize,
}

impl Mixture {
    /// Nothing that a router has to look at twice.
    pub(crate) const PLAIN: Self = Self {
        families: &Family::ALL,
        protocols: &[Protocol::Tcp, Protocol::Udp],
        events: 700,
        sessions: 6,
        options: 0,
        errors: 0,
        fragments: 0,
        expiring: 0,
        dont_fragment: 70,
        most_from_server: MOST_PAYLOAD,
    };
}

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    /// TCP: SYN sent, SYN answered.
    Opening,
    Answered,
    Open,
    /// TCP: one side has said FIN; both have, and who did last.
    Closing(Side),
    Closed(Side),
    /// Nothing more comes.
    Over,
}

/// A session in the making.
struct Course {
    /// Index in the script.
    session: usize,
    protocol: Protocol,
    family: Family,
    phase: Phase,
    /// TCP: bytes on their way to the client and to the server that nobody has acknowledged.
    unanswered: [usize; 2],
    /// The longest payload that either side can send in one packet.
    most: [usize; 2],
}

/// Less than the window, whatever the segment.
const MOST_UNANSWERED: usize = 60_000;

/// The first of the clients' ports. Scripts for one pair of balancers each have their own.
pub(crate) const FIRST_PORT: u16 = 33_000;

/// A script from a seed; its clients' ports begin with `first_port`.
pub(crate) fn script(seed: u64, first_port: u16, mixture: &Mixture) -> Script {
    let mut random = Random::new(seed);
    let mut script = Script::default();
    let mut courses: Vec<Course> = Vec::new();
    while script.events.len() < mixture.events {
        courses.retain(|course| course.phase != Phase::Over);
        if courses.len() < mixture.sessions {
            courses.push(begin(&mut random, &mut script, first_port, mixture));
        }
        let which = random.below(courses.len());
        let event = next(&mut random, &mut courses[which], mixture);
        script.events.push(event);
    }
    script
}

fn begin(random: &mut Random, script: &mut Script, first_port: u16, mixture: &Mixture) -> Course {
    let session = script.sessions.len();
    let (family, protocol) = (*random.one_of(mixture.families), *random.one_of(mixture.protocols));
    script.sessions.push(Session {
        family,
        protocol,
        client: u8::try_from(random.below(CLIENTS.into())).unwrap_or_default(),
        port: first_port + u16::try_from(session).unwrap_or_default(),
    });
    Course {
        session,
        protocol,
        family,
        phase: Phase::New,
        unanswered: [0; 2],
        most: [MOST_PAYLOAD, mixture.most_from_server],
    }
}

fn next(random: &mut Random, course: &mut Course, mixture: &Mixture) -> Event {
    if course.phase != Phase::New && random.percent(mixture.errors) {
        let error = icmp::any_error(random, course.session, course.family);
        let mut carriage = carriage(random, course.family, mixture);
        expire(random, &mut carriage, mixture);
        return error.carried(carriage);
    }
    let before = course.phase;
    let (from, sends) = match course.protocol {
        Protocol::Tcp => tcp(random, course),
        Protocol::Udp => udp(random, course, mixture),
    };
    let mut carriage = carriage(random, course.family, mixture);
    let small = matches!(&sends, Sends::Segment { length, .. } if *length < 6);
    if small && course.family == Family::V4 && carriage.options.is_empty() {
        // Ethernet's least frame is longer.
        carriage.padding = 6;
    }
    if let Sends::Datagrams { lengths, .. } = &sends {
        let longest = lengths.iter().copied().max().unwrap_or_default();
        let most = course.most[from as usize];
        if longest > most || lengths.len() > 1 || random.percent(mixture.fragments) {
            carriage.cut = Some(cut(random, longest, most));
            // Where fragments have options, what is copied into which one is another matter.
            carriage.options.clear();
            carriage.extensions.clear();
        }
    }
    // A first packet that goes no further takes a turn in the kernel, and none in lb; one that ends a connection ends it in
    // the kernel.
    if (before, course.phase) == (Phase::Open, Phase::Open) {
        expire(random, &mut carriage, mixture);
    }
    Event { session: course.session, from, sends, carriage }
}

fn expire(random: &mut Random, carriage: &mut Carriage, mixture: &Mixture) {
    // Of a fragment whose hops end, the kernel's answer quotes the whole datagram.
    if carriage.cut.is_none() && random.percent(mixture.expiring) {
        carriage.hops = u8::try_from(random.below(2)).unwrap_or_default();
    }
}

/// A payload that fits a frame under headers with all their options.
const MOST_PAYLOAD: usize = 1_380;

fn length(random: &mut Random, most: usize) -> usize {
    match random.below(4) {
        0 => random.below(9),
        1 => random.below(120),
        2 => random.below(most),
        _ => *random.one_of(&[1, 2, 536, 1_000, most]),
    }
}

fn udp(random: &mut Random, course: &mut Course, mixture: &Mixture) -> (Side, Sends) {
    let from = if course.phase == Phase::New || random.percent(50) { Side::Client } else { Side::Server };
    let first = course.phase == Phase::New;
    course.phase = if random.percent(5) { Phase::Over } else { Phase::Open };
    if first {
        // Whatever is in the way of later ones, this one passes.
        return (from, Sends::datagram(random.below(100)));
    }
    if random.percent(mixture.fragments) {
        let count = 1 + random.below(2);
        let scale = *random.one_of(&[100, 3_000, 9_000]);
        let lengths = (0..count).map(|_| 1 + random.below(scale)).collect();
        return (from, Sends::Datagrams { lengths, checksum: true });
    }
    let checksum = course.family == Family::V6 || !random.percent(20);
    (from, Sends::Datagrams { lengths: vec![length(random, course.most[from as usize])], checksum })
}

fn tcp(random: &mut Random, course: &mut Course) -> (Side, Sends) {
    let either = if random.percent(50) { Side::Client } else { Side::Server };
    let handshake = |random: &mut Random, control| {
        let options = random.one_of(HANDSHAKE_OPTIONS).to_vec();
        Sends::Segment { control, length: 0, options, skew: 0 }
    };
    match course.phase {
        Phase::New => {
            course.phase = Phase::Opening;
            (Side::Client, handshake(random, SYN))
        }
        Phase::Opening if random.percent(20) => (Side::Client, Sends::Again),
        Phase::Opening => {
            course.phase = Phase::Answered;
            (Side::Server, handshake(random, SYN | ACK))
        }
        Phase::Answered if random.percent(20) => (Side::Server, Sends::Again),
        Phase::Answered => {
            course.phase = Phase::Open;
            let length = if random.percent(20) { length(random, course.most[0]) } else { 0 };
            (Side::Client, Sends::segment(ACK, length))
        }
        Phase::Open => match random.below(20) {
            0 => {
                course.phase = Phase::Closing(either);
                (either, Sends::segment(FIN | ACK, 0))
            }
            1 if random.percent(50) => {
                course.phase = Phase::Over;
                (either, Sends::segment(RST | ACK, 0))
            }
            2 | 3 => (either, Sends::Again),
            4..7 => acknowledge(course, either),
            _ => talk(random, course, either),
        },
        Phase::Closing(closed) => match random.below(4) {
            0 => {
                course.phase = Phase::Closed(closed.other());
                (closed.other(), Sends::segment(FIN | ACK, 0))
            }
            1 => acknowledge(course, either),
            _ => talk(random, course, closed.other()),
        },
        Phase::Closed(last) => {
            // Sometimes the client begins anew from the same port.
            course.phase = if random.percent(30) && last == Side::Server { Phase::New } else { Phase::Over };
            course.unanswered = [0; 2];
            (last.other(), Sends::segment(ACK, 0))
        }
        Phase::Over => (either, Sends::Again),
    }
}

fn acknowledge(course: &mut Course, from: Side) -> (Side, Sends) {
    course.unanswered[from.other() as usize] = 0;
    (from, Sends::segment(ACK, 0))
}

fn talk(random: &mut Random, course: &mut Course, from: Side) -> (Side, Sends) {
    if course.unanswered[from as usize] > MOST_UNANSWERED - MOST_PAYLOAD {
        return acknowledge(course, from.other());
    }
    let length = length(random, course.most[from as usize]);
    course.unanswered[from as usize] += length;
    course.unanswered[from.other() as usize] = 0;
    (from, Sends::segment(PSH | ACK, length))
}

/// Maximum segment size; that, selective acknowledgements permitted and timestamps; with a window scale too.
const HANDSHAKE_OPTIONS: &[&[u8]] = &[
    &[],
    &[2, 4, 0x05, 0xb4],
    &[2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 1, 2, 3, 0, 0, 0, 0],
    &[2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 1, 2, 3, 0, 0, 0, 0, 1, 3, 3, 7],
];

fn carriage(random: &mut Random, family: Family, mixture: &Mixture) -> Carriage {
    let mut carriage = Carriage {
        hops: *random.one_of(&[2, 3, 64, 128, 255]),
        traffic_class: random.byte(),
        dont_fragment: random.percent(mixture.dont_fragment),
        ..Carriage::default()
    };
    if random.percent(mixture.options) {
        match family {
            Family::V4 => carriage.options = random.one_of(OPTIONS).to_vec(),
            Family::V6 => {
                let extensions = random.one_of(EXTENSIONS);
                carriage.extensions =
                    extensions.iter().map(|(number, body)| (*number, body.to_vec())).collect();
            }
        }
    }
    carriage
}

/// IPv4 options that a router has nothing to do with (RFC 791 section 3.1), and router alert (RFC 2113).
const OPTIONS: &[&[u8]] = &[
    &[1, 1, 1, 1],
    &[1, 1, 1, 0],
    // Security (RFC 1108), stream identifier, and one that nobody knows.
    &[130, 11, 0xab, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    &[136, 4, 0x12, 0x34],
    &[0x5e, 6, 1, 2, 3, 4, 1, 0],
    &[148, 4, 0, 0],
    &[
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 0,
    ],
];

/// IPv6 extension headers (RFC 8200 section 4), with options that whoever does not know them skips: padding, router alert
/// (RFC 2711), an unknown one, and one that only the destination may complain of. A router has nothing to do with
/// routing headers that are not for it, at their end (RFC 8754) or not (RFC 5095).
const EXTENSIONS: &[&[(u8, &[u8])]] = &[
    &[(HOP_BY_HOP, &[1, 4, 0, 0, 0, 0])],
    &[(HOP_BY_HOP, &[5, 2, 0, 0, 1, 0])],
    &[(HOP_BY_HOP, &[0x1e, 4, 0, 0, 0, 0])],
    &[(DESTINATION, &[1, 4, 0, 0, 0, 0])],
    &[(DESTINATION, &[0x9e, 4, 0, 0, 0, 0])],
    &[(DESTINATION, &[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])],
    &[(ROUTING, &[4, 0, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])],
    &[(ROUTING, &[0, 1, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])],
    &[(HOP_BY_HOP, &[1, 4, 0, 0, 0, 0]), (DESTINATION, &[1, 4, 0, 0, 0, 0])],
    &[
        (HOP_BY_HOP, &[1, 4, 0, 0, 0, 0]),
        (DESTINATION, &[1, 4, 0, 0, 0, 0]),
        (ROUTING, &[4, 0, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        (DESTINATION, &[1, 4, 0, 0, 0, 0]),
    ],
];

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;

/// Fragments of a datagram with so many bytes of payload, in order or not.
fn cut(random: &mut Random, length: usize, most: usize) -> Cut {
    // Few enough for the ring of a veth device.
    let least = (length / 8 / 40).max(1);
    let size = 8 * (least + random.below((most / 8).min(length / 8 + 1)));
    let size = size.min(most / 8 * 8);
    let pieces = (length + 8).div_ceil(size);
    let in_order = random.percent(40);
    let order = (0..pieces).map(|_| if in_order { 0 } else { random.below(pieces) }).collect();
    Cut { size, order, lost: 0 }
}
