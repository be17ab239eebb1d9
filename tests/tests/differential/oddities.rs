//! Traffic that is not as it should be, case by case: what lb does as the kernel does, and where it differs on purpose.
//! The latter are the lines of a table in README.md, each with its reason there.

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::Protocol;

use crate::dut::Emitted;
use crate::hosts::{Family, Host, Side};
use crate::layout::{IPV4, Layout};
use crate::packet::{ACK, Carriage, Cut, ETHERNET, FIN, PSH, RST, SYN};
use crate::pair::{Pair, Setting};
use crate::report::explain;
use crate::script::{Event, Script, Sends, Session};

/// What happens in one session. What comes of the last event counts.
struct Case {
    name: &'static str,
    families: &'static [Family],
    protocol: Protocol,
    events: Vec<Event>,
}

impl Case {
    fn tcp(name: &'static str, events: impl Into<Vec<Event>>) -> Self {
        Self { name, families: &Family::ALL, protocol: Protocol::Tcp, events: events.into() }
    }

    fn udp(name: &'static str, events: impl Into<Vec<Event>>) -> Self {
        Self { protocol: Protocol::Udp, ..Self::tcp(name, events) }
    }

    /// A request with IPv4 options.
    fn optional(name: &'static str, options: &[u8]) -> Self {
        let carriage = Carriage { options: options.to_vec(), ..Carriage::default() };
        let events = talked(&[client(Sends::datagram(9)).carried(carriage)]);
        Self { families: &[Family::V4], ..Self::udp(name, events) }
    }

    /// A request with an IPv6 extension header.
    fn extended(name: &'static str, number: u8, body: &[u8]) -> Self {
        let carriage = Carriage { extensions: vec![(number, body.to_vec())], ..Carriage::default() };
        let events = talked(&[client(Sends::datagram(9)).carried(carriage)]);
        Self { families: &[Family::V6], ..Self::udp(name, events) }
    }

    /// The case in a family, as a session of its own: its client has that port.
    fn script(&self, family: Family, port: u16) -> Script {
        let session = Session { family, protocol: self.protocol, client: 0, port };
        Script { sessions: vec![session], events: self.events.clone() }
    }
}

fn client(sends: Sends) -> Event {
    Event::new(0, Side::Client, sends)
}

fn server(sends: Sends) -> Event {
    Event::new(0, Side::Server, sends)
}

const fn bare(control: u8) -> Sends {
    Sends::segment(control, 0)
}

/// A segment that far from where the sequence numbers are.
const fn stray(control: u8, length: usize, skew: u32) -> Sends {
    Sends::Segment { control, length, options: Vec::new(), skew }
}

/// Farther than any window.
const FAR: u32 = 1_000_000;

/// A TCP connection, and then that.
fn opened(then: &[Event]) -> Vec<Event> {
    [&[client(bare(SYN)), server(bare(SYN | ACK)), client(bare(ACK))], then].concat()
}

/// A TCP connection that the client, or the server, has closed first, and then that.
fn closed(first: Side, then: &[Event]) -> Vec<Event> {
    let close = [(first, FIN | ACK), (first.other(), FIN | ACK), (first, ACK)];
    let close = close.map(|(side, control)| Event::new(0, side, bare(control)));
    opened(&[&close, then].concat())
}

/// A datagram and its answer, and then that.
fn talked(then: &[Event]) -> Vec<Event> {
    [&[client(Sends::datagram(10)), server(Sends::datagram(10))], then].concat()
}

fn spoilt() -> Carriage {
    Carriage { spoilt: true, ..Carriage::default() }
}

/// What became of the last event: on to the other side, back to who sent it, or nothing.
fn outcome(from: Side, emitted: &Emitted) -> Result<String> {
    let mut outcomes = Vec::new();
    for frame in emitted.on(from.other()) {
        let Some(layout) = frame.get(ETHERNET..).and_then(Layout::of) else { continue };
        outcomes.push(format!("on to {}", layout.dst));
    }
    for frame in emitted.on(from) {
        outcomes.push(format!("back: {}", answer(frame)?));
    }
    Ok(if outcomes.is_empty() { "nothing".to_owned() } else { outcomes.join(", ") })
}

/// Like [`outcome`], whichever server it is.
fn way(from: Side, emitted: &Emitted) -> Result<String> {
    let outcome = outcome(from, emitted)?;
    Ok(if outcome.starts_with("on to ") { "on".to_owned() } else { outcome })
}

fn answer(frame: &[u8]) -> Result<String> {
    const TCP: u8 = 6;
    let packet = frame.get(ETHERNET..).context("a frame is too short")?;
    let layout = Layout::of(packet).context("an answer is no IP")?;
    let byte =
        |offset: usize| packet.get(layout.transport + offset).copied().context("an answer is too short");
    Ok(match layout.protocol {
        TCP if byte(13)? & RST != 0 => "RST".to_owned(),
        TCP => format!("TCP with control bits {:02x}", byte(13)?),
        _ => format!("ICMP {}/{}", byte(0)?, byte(1)?),
    })
}

/// The first client port; each case has its own.
const FIRST_PORT: u16 = 50_000;

#[test]
fn oddities_come_out_as_from_the_kernel() -> Result<()> {
    let cases = [
        Case::tcp("RST of no connection", [client(bare(RST))]),
        Case::tcp("FIN of no connection", [client(bare(FIN | ACK))]),
        Case::tcp("SYN ACK of no connection", [client(bare(SYN | ACK))]),
        Case::tcp("no control bit, of no connection", [client(bare(0))]),
        Case::tcp("FIN PSH URG of no connection", [client(bare(FIN | PSH | 0x20))]),
        Case::tcp("SYN FIN", [client(bare(SYN | FIN))]),
        Case::tcp("SYN RST", [client(bare(SYN | RST))]),
        Case::tcp("SYN with data", [client(Sends::segment(SYN, 10)), server(bare(SYN | ACK))]),
        Case::tcp("SYN in a connection", opened(&[client(bare(SYN))])),
        Case::tcp("RST in the window, but not at its edge", opened(&[client(stray(RST, 0, 100))])),
        Case::tcp("data long acknowledged", opened(&[client(stray(ACK, 10, 0u32.wrapping_sub(FAR)))])),
        Case::tcp(
            "data after the client's RST",
            opened(&[client(bare(RST | ACK)), client(Sends::segment(ACK, 3))]),
        ),
        Case::tcp(
            "answer after the client's RST",
            opened(&[client(bare(RST | ACK)), server(Sends::segment(ACK, 3))]),
        ),
        Case::tcp(
            "data after the server's RST",
            opened(&[server(bare(RST | ACK)), client(Sends::segment(ACK, 3))]),
        ),
        Case::tcp("data after the end", closed(Side::Client, &[client(Sends::segment(ACK, 3))])),
        Case::tcp("answer after the end", closed(Side::Client, &[server(Sends::segment(ACK, 3))])),
        Case::tcp("SYN after an end that the client began", closed(Side::Client, &[client(bare(SYN))])),
        Case::tcp("SYN after an end that the server began", closed(Side::Server, &[client(bare(SYN))])),
        Case::tcp("SYN after the client's RST", opened(&[client(bare(RST | ACK)), client(bare(SYN))])),
        Case::tcp("SYN after a refused one", [client(bare(SYN)), server(bare(RST | ACK)), client(bare(SYN))]),
        Case::tcp("SYN after the client's FIN", opened(&[client(bare(FIN | ACK)), client(bare(SYN))])),
        Case::tcp("both begin", [client(bare(SYN)), server(bare(SYN)), client(bare(SYN | ACK))]),
        Case::tcp("ACK in answer to a SYN", [client(bare(SYN)), server(bare(ACK))]),
        Case::extended("a mobility header", 135, &[0; 6]),
    ];
    let mut pair = Pair::new(Setting::default())?;
    for (case, port) in cases.iter().zip(FIRST_PORT..) {
        for family in case.families {
            let script = case.script(*family, port);
            if let Err(difference) = pair.play(&script)? {
                bail!("{}, {family:?}: {}", case.name, explain(&script, &difference, Setting::default())?);
            }
        }
    }
    Ok(())
}

#[test]
fn the_differences_from_the_kernel_are_those_in_the_readme() -> Result<()> {
    let cases = [
        (Case::tcp("data of no connection", [client(Sends::segment(ACK, 5))]), "on", "back: RST"),
        (Case::tcp("no control bit in a connection", opened(&[client(bare(0))])), "back: RST", "on"),
        (Case::tcp("RST far from the window", opened(&[client(stray(RST, 0, FAR))])), "nothing", "on"),
        (
            Case::tcp("its RST far from the window", opened(&[server(stray(RST | ACK, 0, FAR))])),
            "nothing",
            "on",
        ),
        (Case::tcp("data far from the window", opened(&[client(stray(ACK, 10, FAR))])), "back: RST", "on"),
        (
            Case::tcp("its data far from the window", opened(&[server(stray(ACK, 10, FAR))])),
            "back: RST",
            "on",
        ),
        (
            Case::tcp("answer to a SYN in a connection", opened(&[client(bare(SYN)), server(bare(ACK))])),
            "back: RST",
            "on",
        ),
        (Case::tcp("wrong checksum of a SYN", [client(bare(SYN)).carried(spoilt())]), "nothing", "on"),
        (Case::tcp("wrong checksum", opened(&[client(bare(ACK)).carried(spoilt())])), "nothing", "on"),
        (
            Case::udp("wrong checksum", talked(&[server(Sends::datagram(3)).carried(spoilt())])),
            "nothing",
            "on",
        ),
        (
            Case {
                families: &[Family::V6],
                ..Case::udp("no checksum", [client(Sends::Datagrams { lengths: vec![3], checksum: false })])
            },
            "on",
            "nothing",
        ),
        (Case::optional("loose source route", &[131, 7, 4, 10, 10, 10, 99, 0]), "nothing", "on"),
        (
            Case::extended("a hop-by-hop option that forbids forwarding", 0, &[0x5e, 4, 0, 0, 0, 0]),
            "nothing",
            "on",
        ),
        (
            Case::extended("a hop-by-hop option that asks for a report", 0, &[0x9e, 4, 0, 0, 0, 0]),
            "back: ICMP 4/2",
            "on",
        ),
        (Case::optional("an option longer than the header", &[0x5e, 40, 0, 0]), "back: ICMP 12/0", "on"),
    ];
    let mut pair = Pair::new(Setting::default())?;
    for ((case, kernel, lb), port) in cases.iter().zip(FIRST_PORT..) {
        for family in case.families {
            let played = pair.play_through(&case.script(*family, port))?;
            let last = played.last().context("nothing was played")?;
            let found =
                (way(last.event.from, &last.kernel.emitted)?, way(last.event.from, &last.other.emitted)?);
            let expected = ((*kernel).to_owned(), (*lb).to_owned());
            ensure!(found == expected, "{}, {family:?}: {found:?} from the kernel and lb", case.name);
        }
    }
    Ok(())
}

#[test]
fn fragments_are_passed_on_whether_or_not_the_others_come() -> Result<()> {
    let mut pair = Pair::new(Setting::default())?;
    for family in Family::ALL {
        let cut = Some(Cut { size: 48, order: Vec::new(), lost: 1 });
        let carriage = Carriage { cut, ..Carriage::default() };
        let case = Case::udp("", talked(&[client(Sends::datagram(80)).carried(carriage)]));
        let played = pair.play_through(&case.script(family, FIRST_PORT))?;
        let last = played.last().context("nothing was played")?;
        ensure!(
            way(Side::Client, &last.kernel.emitted)? == "nothing",
            "the kernel has not waited, {family:?}"
        );
        ensure!(way(Side::Client, &last.other.emitted)? == "on", "lb has not passed it on, {family:?}");
    }
    Ok(())
}

/// The options of the first packet that came out at the servers.
fn options(emitted: &Emitted) -> Result<Vec<u8>> {
    let packet =
        emitted.server.first().and_then(|frame| frame.get(ETHERNET..)).context("nothing came out")?;
    let layout = Layout::of(packet).context("what came out is no IP")?;
    Ok(packet[IPV4..layout.transport].to_vec())
}

#[test]
fn options_that_routers_are_to_write_into_are_passed_on_unwritten() -> Result<()> {
    let record_route = [7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let timestamp = [68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut pair = Pair::new(Setting::default())?;
    for (sent, port) in [record_route, timestamp].iter().zip(FIRST_PORT..) {
        let played = pair.play_through(&Case::optional("", sent).script(Family::V4, port))?;
        let last = played.last().context("nothing was played")?;
        ensure!(options(&last.other.emitted)? == sent, "lb has written into {sent:?}");
        ensure!(options(&last.kernel.emitted)? != sent, "the kernel has not written into {sent:?}");
    }
    Ok(())
}

#[test]
fn a_connection_after_an_unclean_end_gets_the_next_server_and_in_the_kernel_the_same() -> Result<()> {
    let cases = [
        Case::tcp("after the server's RST", opened(&[server(bare(RST | ACK)), client(bare(SYN))])),
        Case::tcp(
            "without the last ACK",
            opened(&[client(bare(FIN | ACK)), server(bare(FIN | ACK)), client(bare(SYN))]),
        ),
    ];
    let mut pair = Pair::new(Setting::default())?;
    for (case, port) in cases.iter().zip(FIRST_PORT..) {
        for family in case.families {
            let played = pair.play_through(&case.script(*family, port))?;
            let [first, .., last] = &played[..] else { bail!("too little was played") };
            let same = |first: &Emitted, last: &Emitted| {
                anyhow::Ok(outcome(Side::Client, first)? == outcome(Side::Client, last)?)
            };
            ensure!(
                same(&first.kernel.emitted, &last.kernel.emitted)?,
                "the kernel, {}, {family:?}",
                case.name
            );
            ensure!(!same(&first.other.emitted, &last.other.emitted)?, "lb, {}, {family:?}", case.name);
        }
    }
    Ok(())
}

#[test]
fn a_connection_whose_first_packet_dies_here_takes_no_turn_but_in_the_kernel() -> Result<()> {
    let mut pair = Pair::new(Setting::default())?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for family in Family::ALL {
            let first = if protocol == Protocol::Tcp { bare(SYN) } else { Sends::datagram(9) };
            let dying = client(first.clone()).carried(Carriage { hops: 1, ..Carriage::default() });
            let case = Case { protocol, families: &[], name: "", events: vec![dying, client(first)] };
            let played = pair.play_through(&case.script(family, FIRST_PORT))?;
            let last = played.last().context("nothing was played")?;
            let server = |number: u8| format!("on to {}", Host::Server(number).address(family));
            ensure!(
                outcome(Side::Client, &last.kernel.emitted)? == server(1),
                "the kernel, {protocol:?} {family:?}"
            );
            ensure!(outcome(Side::Client, &last.other.emitted)? == server(0), "lb, {protocol:?} {family:?}");
        }
    }
    Ok(())
}

#[test]
fn an_end_that_dies_here_ends_nothing_but_in_the_kernel() -> Result<()> {
    let mut pair = Pair::new(Setting::default())?;
    let dying = client(bare(RST | ACK)).carried(Carriage { hops: 1, ..Carriage::default() });
    let case = Case::tcp("", opened(&[dying, client(bare(SYN))]));
    for family in Family::ALL {
        let played = pair.play_through(&case.script(family, FIRST_PORT))?;
        let [first, .., last] = &played[..] else { bail!("too little was played") };
        let server = |emitted: &Emitted| outcome(Side::Client, emitted);
        ensure!(
            server(&first.kernel.emitted)? != server(&last.kernel.emitted)?,
            "the kernel has gone on with the connection, {family:?}"
        );
        ensure!(
            server(&first.other.emitted)? == server(&last.other.emitted)?,
            "lb has begun a new connection, {family:?}"
        );
    }
    Ok(())
}
