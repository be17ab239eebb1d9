//! Packets that nobody thought of: frames of all [`cases`], and what the balancer itself sends, with bytes and lengths
//! changed, cut off, put in and put together, one after another over one set of tables. Nothing makes the library panic,
//! lets a frame or a table outgrow its bound, or gives a wrong checksum to what came with right ones.
//!
//! A seed says all of it: which services and backends there are, and every frame.

use core::{fmt, net::SocketAddr, time::Duration};
use std::{
    borrow::ToOwned as _,
    env, format,
    panic::{AssertUnwindSafe, catch_unwind},
    string::String,
    sync::LazyLock,
    vec::Vec,
};

use lb_common::{Action, Hop, Reason, Tags, Vlan};

use super::{
    HostTables,
    cases::{self, CLIENTS, ELSEWHERE, Ip, Kind, Outcome, PORT, SERVERS, hop, process, tags},
    packet::{
        Control, ETHERNET, Extension, IcmpError, Places, checksums_hold, error_checksums_hold, extended,
        finished, fit_lengths, is_translation, leave_unfinished, mend_checksums, tagged, turned_back,
        untagged,
    },
    random::Random,
};

/// Another first seed than 1.
pub const SEED_VARIABLE: &str = "LB_SEED";

/// Packets over one set of tables. UDP's flows are never over, and fill the tables in time.
pub const SEQUENCE: usize = 10_000;

/// Room for flow entries of each family: little enough that the tables are full at times.
const FLOW_ENTRIES: usize = 64;

/// The shortest frame that the kernel runs a program on, an Ethernet header, and the longest of a fuzzer. A test run has room
/// for that in one page, with an answer's headers before it.
const KERNELS_LEAST: usize = ETHERNET;
const MOST: usize = 2_048;

/// The first seed; those that follow it are those of the next sequences. Other tests take several from the same variable,
/// separated by commas.
///
/// # Panics
///
/// If the variable begins with no number.
pub fn first_seed() -> u64 {
    let seeds = env::var(SEED_VARIABLE).unwrap_or_else(|_| "1".into());
    let first = seeds.split(',').next().and_then(|seed| seed.trim().parse().ok());
    first.unwrap_or_else(|| panic!("{SEED_VARIABLE} begins with no number: {seeds}"))
}

/// A frame, and the interface that it came in through, or leaves through.
type Seen = (u32, Vec<u8>);

/// The frames of all cases: those that leave, and those that do not.
static OF_CASES: LazyLock<(Vec<Seen>, Vec<Seen>)> = LazyLock::new(|| {
    macro_rules! all {
        ($($rule:ident),* $(,)?) => { [$(cases::$rule()),*] };
    }
    let cases: Vec<_> = crate::every_case!(all).into_iter().flatten().collect();
    let frames = cases.iter().flat_map(|case| case.frames());
    let (leave, stay): (Vec<_>, Vec<_>) =
        frames.partition(|(.., reason)| matches!(reason.action(), Action::Forward | Action::Answer));
    let own = |frames: Vec<(u32, &[u8], Reason)>| {
        frames.into_iter().map(|(ingress, frame, _)| (ingress, frame.to_owned())).collect()
    };
    (own(leave), own(stay))
});

/// A sequence of packets, and the library's tables that they go over.
#[derive(Debug)]
pub struct Fuzzer {
    seed: u64,
    number: usize,
    random: Random,
    tables: HostTables,
    /// Some of the frames that were sent on last.
    sent: Vec<Seen>,
}

/// A packet of a sequence, and what the library made of it.
#[derive(Clone, Debug)]
pub struct Step {
    seed: u64,
    number: usize,
    /// The interface that it came in through.
    pub ingress: u32,
    /// The frame.
    pub frame: Vec<u8>,
    /// What became of it.
    pub outcome: Outcome,
}

/// How to see it again.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, number, ingress, frame, outcome } = self;
        let (reason, egress, out) = (outcome.reason, outcome.egress, &outcome.frame);
        write!(
            f,
            "{SEED_VARIABLE}={seed}: packet {number} of the sequence, on interface {ingress}:\n{frame:02x?}\n\
             is {reason:?} to the library, leaves through {egress} as\n{out:02x?}"
        )
    }
}

impl Fuzzer {
    /// The sequence with that seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let tables = tables(&mut random);
        Self { seed, number: 0, random, tables, sent: Vec::new() }
    }

    /// The tables as the sequence has left them so far.
    pub const fn tables(&self) -> &HostTables {
        &self.tables
    }

    /// Takes the next packet down the library's path. The panics' messages have the seed, which begins with this sequence.
    ///
    /// # Panics
    ///
    /// If the library does, or what it made of the packet breaks a rule; with the seed and the frame.
    pub fn step(&mut self) -> Step {
        self.take(0)
    }

    /// As [`Fuzzer::step`], with a packet that the kernel, too, would run a program on.
    ///
    /// # Panics
    ///
    /// As [`Fuzzer::step`].
    pub fn step_of_kernel(&mut self) -> Step {
        self.take(KERNELS_LEAST)
    }

    /// Does what the control path does meanwhile: a backend's way or MTU is another one, or gets lost, and a service has
    /// other backends.
    pub fn reconfigure(&mut self) {
        let (random, tables) = (&mut self.random, &self.tables);
        let backends = tables.backends();
        let (index, backend) =
            (0..).zip(&backends).nth(random.below(backends.len())).expect("there are some");
        match random.below(4) {
            0 => tables.set_next_hop(index, Hop::default()),
            1 => {
                let number = 1 + random.byte() % 3;
                tables.set_next_hop(index, way(random, number));
            }
            2 => tables.set_path_mtu(index, mtu(random)),
            _ => {
                let of_service = (0..).zip(&backends).filter(|(_, other)| other.service == backend.service);
                let some: Vec<_> =
                    of_service.map(|(index, _)| index).filter(|_| !random.once_in(3)).collect();
                tables.publish(backend.service, &some);
            }
        }
    }

    /// Leaves all answers of a tick to be sent, and no datagram of which fragments may still come: those last for some ticks.
    pub fn forget_answers(&self) {
        const SOME_TICKS: Duration = Duration::from_secs(1);
        self.tables.advance(SOME_TICKS);
        self.tables.forget_datagrams();
    }

    fn take(&mut self, least: usize) -> Step {
        let (ingress, mut frame) = self.packet();
        frame.resize(frame.len().clamp(least, MOST), 0);
        self.number += 1;
        let (seed, number) = (self.seed, self.number);
        // What is in the tables after a panic is of no interest: another one follows.
        let outcome = catch_unwind(AssertUnwindSafe(|| process(&self.tables, ingress, &frame)));
        let outcome = outcome.unwrap_or_else(|_| {
            panic!("{SEED_VARIABLE}={seed}: packet {number} of the sequence, on interface {ingress}:\n{frame:02x?}")
        });
        let step = Step { seed, number, ingress, frame, outcome };
        if let Err(what) = step.judge().and_then(|()| self.judge_tables()) {
            panic!("{what}; {step}");
        }
        if step.outcome.reason.action() == Action::Forward {
            self.remember((step.outcome.egress, step.outcome.frame.clone()));
        }
        step
    }

    fn judge_tables(&self) -> Result<(), String> {
        // That each table keeps its own bound is `HostTables`' doing; that nothing goes round it shows in the sum.
        let entries = self.tables.flow_count();
        rule(entries <= 2 * self.tables.capacity(), || format!("there are {entries} flow entries"))?;
        let counted = self.tables.count_of_all();
        rule(counted == self.number as u64, || format!("{counted} verdicts for {} packets", self.number))
    }

    fn remember(&mut self, sent: Seen) {
        const ENOUGH: usize = 32;
        if self.sent.len() < ENOUGH {
            self.sent.push(sent);
        } else {
            let place = self.random.below(ENOUGH);
            self.sent[place] = sent;
        }
    }

    /// A packet: a good one, or made of one.
    fn packet(&mut self) -> Seen {
        let (mut ingress, mut frame) = self.good();
        let mutations = self.random.choose(&[0, 0, 0, 1, 1, 1, 2, 5]);
        for _ in 0..mutations {
            self.mutate(&mut frame);
        }
        // Otherwise most would be thrown away for their lengths, and no checksum would show whether it was kept.
        if !self.random.once_in(3) {
            fit_lengths(&mut frame);
        }
        if !self.random.once_in(3) {
            mend_checksums(&mut frame);
        }
        if self.random.once_in(16) {
            leave_unfinished(&mut frame);
        }
        if self.random.once_in(16) {
            ingress = self.random.choose(&[CLIENTS, SERVERS, ELSEWHERE]);
        }
        if frame.len() >= ETHERNET && self.random.once_in(8) {
            frame = tagged(&frame, self.random.choose(&VLANS));
        }
        (ingress, frame)
    }

    /// A frame as one of the cases has it, or that follows what was sent on.
    fn good(&mut self) -> Seen {
        let (leave, stay) = &*OF_CASES;
        match self.random.below(8) {
            0 => self.random.one_of(stay).clone(),
            1..4 if !self.sent.is_empty() => {
                let (egress, frame) = self.random.one_of(&self.sent).clone();
                let next =
                    if self.random.once_in(3) { self.error_about(&frame) } else { turned_back(&frame) };
                (egress, next)
            }
            _ => self.random.one_of(leave).clone(),
        }
    }

    /// An ICMP error from a router on the way of a frame that was sent on.
    fn error_about(&mut self, frame: &[u8]) -> Vec<u8> {
        /// What a quotation begins with: network header, ports and four bytes more.
        const HEADERS: [usize; 2] = [20 + 8, 40 + 8];
        /// More than enough to quote: an error is no longer than the minimum MTU.
        const QUOTE: usize = 1_200;
        let random = &mut self.random;
        let Some(src) = Places::of(frame).and_then(|places| places.source(frame)) else {
            return frame.to_owned();
        };
        let (ip, headers) = if src.is_ipv4() { (Ip::V4, HEADERS[0]) } else { (Ip::V6, HEADERS[1]) };
        let quote = &frame[ETHERNET..];
        let end = if random.once_in(2) { quote.len() } else { headers + random.below(64) };
        let kinds: &[_] = match ip {
            Ip::V4 => &[(3, 1), (3, 4), (4, 0), (11, 0), (12, 0), (5, 0)],
            Ip::V6 => &[(1, 0), (2, 0), (3, 0), (4, 1), (128, 0)],
        };
        IcmpError {
            from: cases::client_mac(9),
            to: frame[6..12].try_into().expect("six bytes"),
            src: random.address(ip),
            dst: src,
            hops: random.choose(&[64, 2, 1]),
            traffic_class: 0,
            may_fragment: false,
            kind: random.choose(kinds),
            word: [0, 0, 5, 0],
            quote: quote[..end.min(quote.len()).min(QUOTE)].to_owned(),
        }
        .frame()
    }

    fn mutate(&mut self, frame: &mut Vec<u8>) {
        /// Where all headers are, but for what an error quotes after many options.
        const HEADERS: usize = 120;
        /// Ports of the cases, and beside them; addresses' ends and lengths are such numbers too.
        const NUMBERS: [u16; 18] =
            [0, 1, 7, 8, 19, 20, 28, 40, 80, 81, 1_024, 1_025, 5_000, 8_080, 40_000, 40_001, 0x7fff, 0xffff];
        const CONTROLS: [Control; 8] = [
            Control::SYN,
            Control::SYN.or(Control::ACK),
            Control::ACK,
            Control::FIN.or(Control::ACK),
            Control::RST,
            Control::RST.or(Control::ACK),
            Control::SYN.or(Control::FIN),
            Control::NONE,
        ];
        const EXTENSIONS: [Extension; 6] = [
            Extension::HopByHop(6),
            Extension::Destination(14),
            Extension::Routing(0, 22),
            Extension::Routing(1, 22),
            Extension::Atomic(1),
            Extension::Destination(254),
        ];
        let random = &mut self.random;
        let (length, places) = (frame.len(), Places::of(frame));
        if length == 0 {
            frame.extend(random.bytes(64));
            return;
        }
        let end = if random.once_in(8) { length } else { length.min(HEADERS) };
        let at = random.below(end);
        match random.below(14) {
            0 => frame[at] = random.byte(),
            1 => frame[at] ^= 1 << random.below(8),
            2 => {
                let number = if random.once_in(4) { random.port() } else { random.choose(&NUMBERS) };
                set(frame, Some(at & !1), &number.to_be_bytes());
            }
            3 => frame.truncate(random.below(length + 1)),
            4 => {
                let more = if random.once_in(4) { 1_500 } else { 64 };
                let more = random.below(more);
                frame.extend(random.bytes(more));
            }
            5 => {
                // As options are.
                let words = 1 + random.below(10);
                let inserted =
                    if random.once_in(2) { random.bytes(4 * words) } else { std::vec![1; 4 * words] };
                drop(frame.splice(at..at, inserted));
            }
            6 => drop(frame.drain(at..length.min(at + 4 * (1 + random.below(10))))),
            7 => {
                let (leave, stay) = &*OF_CASES;
                let from = if random.once_in(4) { stay } else { leave };
                let (_, other) = random.one_of(from);
                let from = if random.once_in(2) { at } else { random.below(other.len() + 1) };
                frame.truncate(at);
                frame.extend(other.get(from..).unwrap_or_default());
            }
            8 => {
                let hops = random.choose(&[0, 1, 2, 255]);
                set(frame, places.map(|places| places.hops), &[hops]);
            }
            9 => {
                let control = random.choose(&CONTROLS).bits();
                set(frame, places.map(Places::control), &[control]);
            }
            10 => {
                let port = random.choose(&NUMBERS).to_be_bytes();
                let which = random.choose(&[0, 2]);
                set(frame, places.map(|places| places.transport + which), &port);
            }
            11 => make_part(random, frame),
            12 => {
                let extension = random.choose(&EXTENSIONS);
                if can_be_extended(frame) {
                    *frame = extended(frame, &[extension]);
                }
            }
            // IPv4's header length, which says how many options there are.
            _ => {
                let version = frame.get(ETHERNET).map_or(0, |first| first & 0xf0);
                set(frame, Some(ETHERNET), &[version | (random.byte() & 0x0f)]);
            }
        }
    }
}

impl Step {
    fn judge(&self) -> Result<(), String> {
        let (before, after) = (&untagged(&self.frame), &untagged(&self.outcome.frame));
        match self.outcome.reason.action() {
            Action::Forward => {
                rule(self.outcome.egress != 0, || "a forwarded frame leaves nowhere".into())?;
                rule(after.len() == before.len(), || "a forwarded frame has another length".into())?;
                if self.outcome.reason == Reason::IcmpForwarded {
                    let hold = error_checksums_hold;
                    return rule(!hold(before) || hold(after), || "right checksums became wrong".into());
                }
                let hold = checksums_hold;
                rule(!hold(before) || hold(after), || "right checksums became wrong".into())?;
                // Which packets of a connection are finished depends on its first ones.
                let whole = finished(before);
                let is_right = is_translation(before, after)
                    || is_translation(&whole, after)
                    // In generic mode the kernel does that.
                    || is_translation(&whole, &finished(after));
                rule(is_right, || "a forwarded frame is no translation".into())
            }
            Action::Answer => {
                /// RFC 1812 section 4.3.2.3, RFC 4443 section 2.4(c).
                const LIMITS: [usize; 2] = [576, 1_280];
                let limit = ETHERNET + LIMITS[usize::from(after[ETHERNET] >> 4 == 6)];
                rule(self.outcome.egress == self.ingress, || "an answer leaves elsewhere".into())?;
                rule(after.len() <= limit, || format!("an answer has {} bytes", after.len()))?;
                rule(checksums_hold(after), || "an answer has wrong checksums".into())
            }
            Action::Pass | Action::Drop => {
                rule(self.outcome.egress == 0, || "what is not sent leaves".into())?;
                rule(self.outcome.frame == self.frame, || "what is not sent was touched".into())
            }
        }
    }
}

/// Whether there is an IPv6 header, of a packet that is not too long already.
fn can_be_extended(frame: &[u8]) -> bool {
    frame.len() >= ETHERNET + 40 && frame[ETHERNET] >> 4 == 6 && frame[ETHERNET + 4] < 0xf0
}

/// Makes a fragment of what is not too short for one, with one of few identifications.
fn make_part(random: &mut Random, frame: &mut Vec<u8>) {
    let id = random.byte() % 4;
    let (offset, more) = random.choose(&[(0, 1), (0, 1), (1, 0), (1, 1), (0x1fff, 0), (0, 0)]);
    let of_v4: u16 = more << 13 | offset;
    let of_v6: u16 = offset << 3 | more;
    match frame.get(ETHERNET).map(|first| first >> 4) {
        Some(4) => {
            set(frame, Some(ETHERNET + 4), &[0, id]);
            set(frame, Some(ETHERNET + 6), &of_v4.to_be_bytes());
        }
        Some(6) if can_be_extended(frame) => {
            *frame = extended(frame, &[Extension::Atomic(id.into())]);
            set(frame, Some(ETHERNET + 40 + 2), &of_v6.to_be_bytes());
        }
        _ => {}
    }
}

/// Writes the bytes, where there is room for them.
fn set(frame: &mut [u8], at: Option<usize>, bytes: &[u8]) {
    let place = at.and_then(|at| frame.get_mut(at..)).and_then(|rest| rest.get_mut(..bytes.len()));
    if let Some(place) = place {
        place.copy_from_slice(bytes);
    }
}

fn rule(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Where a backend is: mostly as in the cases.
fn interface(random: &mut Random) -> u32 {
    random.choose(&[SERVERS, SERVERS, SERVERS, CLIENTS, ELSEWHERE])
}

/// Unknown, smaller than what follows, the least that hosts have to take, IPv6's minimum, Ethernet's.
fn mtu(random: &mut Random) -> u32 {
    random.choose(&[0, 0, 68, 576, 1_280, 1_500])
}

/// A customer's VLAN, one in a service provider's, a priority, and more tags than are looked at.
const VLANS: [&[(u16, u16)]; 4] = [
    &[(0x8100, 100)],
    &[(0x88a8, 7), (0x8100, 100)],
    &[(0x8100, 0xe000)],
    &[(0x88a8, 7), (0x8100, 0), (0x8100, 100)],
];

/// The way to a server, in a VLAN or in none.
fn way(random: &mut Random, number: u8) -> Hop {
    let ifindex = interface(random);
    hop(number, ifindex).tagged(tags(random.choose(&[&[], &[], VLANS[0], VLANS[1]])))
}

/// Services of every kind with up to three backends, and others with none.
fn tables(random: &mut Random) -> HostTables {
    let tables = HostTables::new();
    tables.set_capacity(FLOW_ENTRIES);
    for kind in Kind::ALL {
        let backends = 1 + random.choose(&[0, 1, 2]);
        let backends: Vec<_> =
            (1..=backends).map(|number| (kind.backend(number), way(random, number))).collect();
        let service = tables.add_service(kind.protocol, SocketAddr::new(kind.vip(), PORT), &backends);
        let ports = random.choose(&[3, 20, super::PORTS.1]);
        tables.edit_service(service, |service| service.ports = ports);
        tables.add_service(kind.protocol, SocketAddr::new(kind.vip(), PORT + 1), &[]);
    }
    for backend in (0..).take(tables.backends().len()) {
        tables.set_path_mtu(backend, mtu(random));
        if random.once_in(6) {
            tables.set_next_hop(backend, Hop::default());
        }
    }
    tables.set_generic(ELSEWHERE);
    tables.add_vlan(Vlan { ifindex: CLIENTS, tags: Tags::NONE }, 0);
    tables.add_vlan(Vlan { ifindex: CLIENTS, tags: tags(VLANS[0]) }, mtu(random));
    tables.add_vlan(Vlan { ifindex: SERVERS, tags: tags(VLANS[1]) }, 0);
    for ifindex in [CLIENTS, SERVERS, ELSEWHERE] {
        tables.set_interface_mtu(ifindex, mtu(random));
    }
    tables
}
