//! The kernel and another balancer side by side: both get the same events, and what comes out is compared.

use std::collections::HashMap;
use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use lb_ebpf::answer::BUDGET;

use crate::canonical::{Canonical, Names, Tuple, reassemble};
use crate::dut::{Balancing, Dut, Emitted};
use crate::hosts::{Family, Host, Side};
use crate::layout::{IPV4, Layout};
use crate::packet::{Content, ETHERNET, ICMP, Mac, Packet, sum};
use crate::script::{Event, Quote, Reporter, Script, Sends, Session, Talks};

/// What is late is waited for before it counts as missing: so often, for so long.
const GRACES: usize = 25;
const GRACE: Duration = Duration::from_millis(20);

/// Whom the kernel is compared with, and in which surroundings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) other: Balancing,
    /// MTU of the balancers' interfaces on the servers' side.
    pub(crate) server_mtu: u16,
}

/// MTU of Ethernet.
const MTU: u16 = 1_500;

impl Default for Setting {
    fn default() -> Self {
        Self { other: Balancing::Lb, server_mtu: MTU }
    }
}

/// A balancer, and what the hosts around it know of the sessions that go through it.
struct Party {
    dut: Dut,
    names: Names,
    sessions: HashMap<usize, Known>,
}

/// What is known of a session from what came out.
#[derive(Clone, Debug, Default)]
struct Known {
    /// As the server sees it.
    server: Option<(Mac, Tuple)>,
    /// The last packets that came out at the server and at the client.
    request: Option<Vec<u8>>,
    reply: Option<Vec<u8>>,
}

/// What went in and what came out at one event.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) sent: Vec<Vec<u8>>,
    pub(crate) emitted: Emitted,
}

/// An event at both balancers.
#[derive(Clone, Debug)]
pub(crate) struct Played {
    pub(crate) event: Event,
    pub(crate) kernel: Exchange,
    pub(crate) other: Exchange,
}

/// Where the two part: the last of the events that were played.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    pub(crate) played: Vec<Played>,
    pub(crate) side: Side,
    pub(crate) what: What,
}

/// What is different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// How many packets came out.
    Count { kernel: usize, other: usize },
    /// How long one is.
    Length { kernel: usize, other: usize },
    /// Bytes of the canonical form: offset in the frame, the kernel's, the other's.
    Bytes(Vec<(usize, u8, u8)>),
    /// Which checksums do not hold.
    Checksums { kernel: Vec<&'static str>, other: Vec<&'static str> },
}

impl Display for What {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count { kernel, other } => {
                write!(f, "{kernel} packets came out of the kernel, {other} out of the other")
            }
            Self::Length { kernel, other } => {
                write!(f, "{kernel} bytes came out of the kernel, {other} out of the other")
            }
            Self::Checksums { kernel, other } => {
                write!(f, "wrong checksums: {kernel:?} of the kernel, {other:?} of the other")
            }
            Self::Bytes(bytes) => {
                write!(
                    f,
                    "the kernel's bytes are not the other's, with ports by number and sums for checksums:"
                )?;
                for (at, kernel, other) in bytes {
                    write!(f, " {kernel:02x} and {other:02x} at {at};")?;
                }
                Ok(())
            }
        }
    }
}

impl Difference {
    /// Whether another one shows the same, as far as can be told: what hosts say after something was left out may
    /// lead to a difference of another kind.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let event = |difference: &Self| difference.played.last().map(|played| played.event.clone());
        let same = match (&self.what, &other.what) {
            (What::Bytes(_), What::Bytes(_)) => true,
            (what, other) => what == other,
        };
        same && self.side == other.side && event(self) == event(other)
    }
}

/// An event that was played, and where and in what the balancers differ.
struct Step {
    played: Played,
    difference: Option<(Side, What)>,
}

pub(crate) struct Pair {
    kernel: Party,
    other: Party,
    /// Packets that have come back to where they were sent, since the last pause.
    answers: usize,
}

impl Pair {
    pub(crate) fn new(setting: Setting) -> Result<Self> {
        Ok(Self {
            kernel: Party::new(Balancing::Kernel, setting.server_mtu)?,
            other: Party::new(setting.other, setting.server_mtu)?,
            answers: 0,
        })
    }

    /// Plays a script up to its end or the first difference.
    pub(crate) fn play(&mut self, script: &Script) -> Result<Result<Vec<Played>, Difference>> {
        let mut talks = self.begin(script);
        let mut played = Vec::new();
        for event in &script.events {
            let Some(step) = self.step(&mut talks, script, event)? else { continue };
            played.push(step.played);
            if let Some((side, what)) = step.difference {
                return Ok(Err(Difference { played, side, what }));
            }
        }
        Ok(Ok(played))
    }

    /// Plays a script up to its end, whatever comes out.
    pub(crate) fn play_through(&mut self, script: &Script) -> Result<Vec<Played>> {
        let mut talks = self.begin(script);
        let steps = script.events.iter().map(|event| self.step(&mut talks, script, event));
        steps.filter_map(|step| Some(step.transpose()?.map(|step| step.played))).collect()
    }

    fn begin(&mut self, script: &Script) -> Talks {
        self.kernel.sessions.clear();
        self.other.sessions.clear();
        Talks::of(script)
    }

    /// Plays an event, unless there is nothing to answer, or to complain about: that says the kernel.
    fn step(&mut self, talks: &mut Talks, script: &Script, event: &Event) -> Result<Option<Step>> {
        if !self.kernel.may(event) {
            return Ok(None);
        }
        let session = &script.sessions[event.session];
        let contents = talks.contents(event);
        // One for each packet, and one for an error.
        let ids: Vec<_> = (0..=contents.len()).map(|_| talks.next_id()).collect();
        let kernel = self.kernel.play(event, session, &contents, &ids)?;
        let other = self.other.play(event, session, &contents, &ids)?;
        self.pace(kernel.emitted.on(event.from).len());
        let mut played = Played { event: event.clone(), kernel, other };
        let mut difference = self.compare(&played, &ids);
        for _ in 0..GRACES {
            if difference.is_none() {
                break;
            }
            thread::sleep(GRACE);
            played.kernel.emitted.append(self.kernel.dut.settle(event.from)?);
            played.other.emitted.append(self.other.dut.settle(event.from)?);
            difference = self.compare(&played, &ids);
        }
        self.kernel.learn(&played.event, &played.kernel.emitted);
        self.other.learn(&played.event, &played.other.emitted);
        Ok(Some(Step { played, difference }))
    }

    /// Pauses before lb has given as many answers as it may in one tick.
    fn pace(&mut self, answers: usize) {
        /// 64 jiffies of a kernel that has the fewest in a second.
        const TICK: Duration = Duration::from_millis(640);
        const FEW: usize = 50;
        const { assert!(BUDGET > 50, "lb answers fewer") };

        self.answers += answers;
        if self.answers >= FEW {
            thread::sleep(TICK);
            self.answers = 0;
        }
    }

    /// What is different, if anything is, and where.
    fn compare(&mut self, played: &Played, ids: &[u16]) -> Option<(Side, What)> {
        [Side::Client, Side::Server].into_iter().find_map(|side| {
            let kernel = self.kernel.canonical(played, played.kernel.emitted.on(side), side, ids);
            let other = self.other.canonical(played, played.other.emitted.on(side), side, ids);
            if kernel.len() != other.len() {
                return Some((side, What::Count { kernel: kernel.len(), other: other.len() }));
            }
            kernel.iter().zip(&other).find_map(|(kernel, other)| Some((side, difference(kernel, other)?)))
        })
    }
}

fn difference(kernel: &Canonical, other: &Canonical) -> Option<What> {
    if kernel.bytes.len() != other.bytes.len() {
        return Some(What::Length { kernel: kernel.bytes.len(), other: other.bytes.len() });
    }
    let bytes: Vec<_> = (0..)
        .zip(kernel.bytes.iter().zip(&other.bytes))
        .filter(|(_, (kernel, other))| kernel != other)
        .map(|(at, (kernel, other))| (at, *kernel, *other))
        .collect();
    if !bytes.is_empty() {
        return Some(What::Bytes(bytes));
    }
    // That both are wrong in the same way is no excuse: nothing wrong went in.
    let wrong = !kernel.wrong.is_empty() || !other.wrong.is_empty();
    wrong.then(|| What::Checksums { kernel: kernel.wrong.clone(), other: other.wrong.clone() })
}

impl Party {
    fn new(balancing: Balancing, server_mtu: u16) -> Result<Self> {
        let dut = Dut::new(balancing, server_mtu)?;
        Ok(Self { dut, names: Names::default(), sessions: HashMap::new() })
    }

    /// Whether the event's sender has what it needs: a client can always speak.
    fn may(&self, event: &Event) -> bool {
        let known = self.sessions.get(&event.session);
        match (&event.sends, event.from) {
            (Sends::Error { .. }, Side::Client) => known.is_some_and(|known| known.reply.is_some()),
            (Sends::Error { .. }, Side::Server) => known.is_some_and(|known| known.request.is_some()),
            (_, Side::Client) => true,
            (_, Side::Server) => known.is_some_and(|known| known.server.is_some()),
        }
    }

    fn play(
        &mut self,
        event: &Event,
        session: &Session,
        contents: &[Content],
        ids: &[u16],
    ) -> Result<Exchange> {
        let known = self.sessions.get(&event.session).cloned().unwrap_or_default();
        if event.opens()
            && let Some((_, tuple)) = &known.server
        {
            self.names.forget(tuple);
        }
        let mut sent = Vec::new();
        for (content, id) in contents.iter().zip(ids) {
            let (mac, src, dst) = match event.from {
                Side::Client => (Host::Client(session.client).mac(), session.client(), session.service()),
                Side::Server => {
                    // The other party may have let through what this one did not.
                    let Some((mac, tuple)) = known.server else { continue };
                    (mac, tuple.dst, tuple.src)
                }
            };
            let packet =
                Packet { src, dst, id: *id, carriage: event.carriage.clone(), content: content.clone() };
            sent.push(packet.frames(mac, event.from.balancer_mac())?);
        }
        // Fragments of several packets: one of each in turn.
        let longest = sent.iter().map(Vec::len).max().unwrap_or_default();
        let mut sent: Vec<_> = (0..longest)
            .flat_map(|round| {
                sent.iter().filter_map(move |frames| frames.get(round)).cloned().collect::<Vec<_>>()
            })
            .collect();
        if let (Sends::Error { .. }, [.., id]) = (&event.sends, ids) {
            sent.extend(error(event, session, &known, *id)?);
        }
        let emitted = self.dut.exchange(event.from, &sent)?;
        Ok(Exchange { sent, emitted })
    }

    fn canonical(&mut self, played: &Played, frames: &[Vec<u8>], side: Side, ids: &[u16]) -> Vec<Canonical> {
        let is_cut = played.event.carriage.cut.is_some();
        let frames = if is_cut { reassemble(frames) } else { frames.to_vec() };
        if side == Side::Server {
            for packet in frames.iter().filter_map(|frame| frame.get(ETHERNET..)) {
                self.names.learn(packet);
            }
        }
        frames.iter().map(|frame| Canonical::of(frame, side, &self.names, ids)).collect()
    }

    /// What the hosts learn of the session from the packets that reach them.
    fn learn(&mut self, event: &Event, emitted: &Emitted) {
        if matches!(event.sends, Sends::Error { .. }) {
            return;
        }
        let known = self.sessions.entry(event.session).or_default();
        for side in [Side::Client, Side::Server] {
            for frame in emitted.on(side) {
                let Some(packet) = frame.get(ETHERNET..) else { continue };
                let (Some(tuple), Some(layout)) = (Tuple::of(packet), Layout::of(packet)) else { continue };
                // Where one balancer passes fragments on and the other one does not, errors would quote different ones.
                let whole = event.carriage.cut.is_none();
                let packet = whole.then(|| packet[..layout.end.min(packet.len())].to_vec());
                match side {
                    Side::Client if event.from == Side::Server => known.reply = packet.or(known.reply.take()),
                    Side::Server if event.from == Side::Client => {
                        known.request = packet.or(known.request.take());
                        known.server = frame.first_chunk().map(|mac| (*mac, tuple));
                    }
                    // An answer of the balancer itself.
                    _ => {}
                }
            }
        }
    }
}

/// An ICMP error in its frame.
fn error(event: &Event, session: &Session, known: &Known, id: u16) -> Result<Vec<Vec<u8>>> {
    let Sends::Error { by, kind, code, rest, quote } = &event.sends else { return Ok(Vec::new()) };
    let quoted = match event.from {
        Side::Client => known.reply.as_ref(),
        Side::Server => known.request.as_ref(),
    };
    let Some((quoted, layout)) = quoted.and_then(|packet| Some((packet, Layout::of(packet)?))) else {
        return Ok(Vec::new());
    };
    let v6 = layout.src.is_ipv6();
    let mut rest = *rest;
    // What an error with its own headers may have in all: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4.
    let most = if v6 { 1_280 - crate::layout::IPV6 - ICMP } else { 576 - IPV4 - ICMP };
    let payload = match *quote {
        Quote::Bytes(bytes) => quoted[..(layout.transport + bytes).min(quoted.len())].to_vec(),
        Quote::Most => quoted[..most.min(quoted.len())].to_vec(),
        Quote::Extended => {
            const QUOTED: usize = 128;
            let mut payload = quoted[..QUOTED.min(quoted.len())].to_vec();
            payload.resize(QUOTED, 0);
            // In 32-bit words, or 64-bit ones for ICMPv6.
            rest[usize::from(!v6)] = if v6 { 16 } else { 32 };
            payload.extend(mpls_label());
            payload
        }
    };
    let (host, address) = match (by, event.from) {
        (Reporter::Router, side) => (Host::Router(side), Host::Router(side).address(session.family)),
        (Reporter::Receiver, Side::Client) => {
            let client = Host::Client(session.client);
            (client, client.address(session.family))
        }
        (Reporter::Receiver, Side::Server) => {
            let Some((mac, tuple)) = known.server else { bail!("an error about a request that nobody saw") };
            let packet = icmp(tuple.dst.ip(), &layout, id, event, (*kind, *code, rest, payload));
            return packet.frames(mac, event.from.balancer_mac());
        }
    };
    debug_assert_eq!(Family::of(address), session.family, "an error is of its packet's family");
    let packet = icmp(address, &layout, id, event, (*kind, *code, rest, payload));
    packet.frames(host.mac(), event.from.balancer_mac())
}

/// An ICMP message to whom the quoted packet came from.
fn icmp(
    from: std::net::IpAddr,
    quoted: &Layout,
    id: u16,
    event: &Event,
    (kind, code, rest, payload): (u8, u8, [u8; 4], Vec<u8>),
) -> Packet {
    Packet {
        src: SocketAddr::new(from, 0),
        dst: SocketAddr::new(quoted.src, 0),
        id,
        carriage: event.carriage.clone(),
        content: Content::Icmp { kind, code, rest, payload },
    }
}

/// An extension structure (RFC 4884 section 7) with one object, a label stack of one label (RFC 4950).
fn mpls_label() -> Vec<u8> {
    let mut bytes = vec![0x20, 0, 0, 0, 0, 8, 1, 1, 0x00, 0x3e, 0x81, 0x40];
    let checksum = !sum(&[&bytes]);
    bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
    bytes
}
