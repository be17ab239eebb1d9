//! lb's packet path, one file a stage:
//!
//! ```text
//! parse -> flow --hit--> rewrite -> forward
//!               --miss-> connect: service? -> select backend -> allocate port -> insert pair -> as a hit
//!                                 no service: the packet passes, untouched byte for byte
//! ```
//!
//! Three programs share it, each with the 512 bytes of stack that one has: [`Program::Plain`] meets every frame, and sends on those
//! of known connections with which nothing is the matter, by far the most; the others it hands over.
//!
//! The library knows neither aya nor the kernel: frames and tables enter through the traits of [`frame`] and
//! [`tables`], so that the same path runs in XDP and, over fakes, under `cargo test`. Only [`parse`], [`part`],
//! [`rewrite`], [`unfinished`], [`network`], [`transport`] and [`icmp`] ever see a header; everything between works on a
//! [`Packet`].
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(any(test, feature = "host"))]
extern crate std;

pub mod answer;
pub mod checksum;
pub mod connect;
pub mod forward;
pub mod frame;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod icmp;
pub mod network;
pub mod pair;
pub mod parse;
pub mod part;
pub mod rewrite;
pub mod select;
pub mod tables;
pub mod transport;
pub mod unfinished;

#[cfg(test)]
mod tests;

use lb_common::{Family as _, Hop, Program, Protocol, Reason, Seen, Side, V4, V6, Vlan};
use network_types::eth::EtherType;

use crate::{
    frame::Frame,
    icmp::{Icmp, Message, Report},
    network::Header,
    parse::{Arrival, Networks, Packet, Part},
    part::Examined,
    tables::{Flow, Flows},
    unfinished::Finish,
};

/// What is to become of a frame: the reason says it all, but for where a forwarded frame leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Gives the action and the counter.
    pub reason: Reason,
    /// Interface through which a forwarded frame, or an answer, leaves; 0 for others.
    pub egress: u32,
}

/// Takes one frame, which came in through interface `ingress`, down the path of a program; counts the verdict.
#[inline(always)]
pub fn process<M>(program: Program, frame: &mut impl Frame, tables: M, ingress: u32) -> Verdict
where
    M: Flows<V4> + Flows<V6>,
{
    let result = match program {
        Program::Plain => {
            let (egress, rest) = forward_plain(frame, tables, ingress);
            // With its reason as a constant, all that depends on it is settled at compile time.
            if let Some(egress) = egress {
                tables.count(Reason::Forwarded);
                return Verdict { reason: Reason::Forwarded, egress };
            }
            frame.hand_over(tables, ingress, rest)
        }
        Program::Other | Program::Icmp => route(program, frame, tables, ingress),
    };
    let verdict = match result {
        Ok(verdict) => verdict,
        Err(reason) => Verdict { reason, egress: 0 },
    };
    tables.count(verdict.reason);
    verdict
}

/// The path of a packet as most are: one of a connection that is known, with which nothing is the matter. Rewrites it, and
/// gives the interface through which it leaves; or leaves it as it is, and gives the program that it is for.
#[inline(always)]
fn forward_plain<M>(frame: &mut impl Frame, tables: M, ingress: u32) -> (Option<u32>, Program)
where
    M: Flows<V4> + Flows<V6>,
{
    let Ok(arrival) = Arrival::of(frame, ingress) else { return (None, Program::Other) };
    if arrival.ether_type == EtherType::Ipv4 as u16 {
        forward_plain_family::<V4, M>(frame, tables, &arrival)
    } else if arrival.ether_type == EtherType::Ipv6 as u16 {
        forward_plain_family::<V6, M>(frame, tables, &arrival)
    } else {
        (None, Program::Other)
    }
}

#[inline(always)]
fn forward_plain_family<F: Icmp, M: Flows<F>>(
    frame: &mut impl Frame,
    tables: M,
    arrival: &Arrival,
) -> (Option<u32>, Program) {
    match F::parse(frame, arrival.network) {
        Ok(header) if header.protocol == F::ICMP => (None, Program::Icmp),
        Ok(header) => (translate_plain::<F, M>(frame, tables, arrival, &header), Program::Other),
        // Also a frame that is longer than what of it lies in one piece looks so.
        Err(_) => (None, Program::Other),
    }
}

/// Rewrites the packet, and gives the interface through which it leaves. `None` if there is more to it; then it is as it was.
#[inline(always)]
fn translate_plain<F: Icmp, M: Flows<F>>(
    frame: &mut impl Frame,
    tables: M,
    arrival: &Arrival,
    header: &Header,
) -> Option<u32> {
    let protocol = Protocol::from_number(header.protocol)?;
    let (ports, seen) = parse::transport::<F>(frame, header, protocol, Part::Whole).ok()?;
    let packet = Packet::new(frame, arrival, header, protocol, ports, seen);
    let flow = tables.likely_flow(&packet.key)?;
    if !packet.continues(flow.seen) || packet.may_travel().is_err() {
        return None;
    }
    let hop = forward::known_hop(tables, &flow, || arrival.back(frame))?;
    if too_narrow::<F, M>(frame, tables, &packet, &flow).is_some() {
        return None;
    }
    record(tables, &flow, packet.seen);
    send(frame, tables, &packet, &flow, &hop)
}

/// The path of a frame in the programs that others are handed over to; `Ok` says how it leaves.
#[inline(always)]
fn route<M>(program: Program, frame: &mut impl Frame, tables: M, ingress: u32) -> Result<Verdict, Reason>
where
    M: Flows<V4> + Flows<V6>,
{
    let arrival = Arrival::in_vlan(frame, ingress)?;
    if arrival.ether_type == EtherType::Ipv4 as u16 {
        route_family::<V4, M>(program, frame, tables, &arrival)
    } else if arrival.ether_type == EtherType::Ipv6 as u16 {
        route_family::<V6, M>(program, frame, tables, &arrival)
    } else {
        Err(Reason::NotIp)
    }
}

#[inline(always)]
fn route_family<F: Icmp, M>(
    program: Program,
    frame: &mut impl Frame,
    tables: M,
    arrival: &Arrival,
) -> Result<Verdict, Reason>
where
    M: Flows<V4> + Flows<V6> + Flows<F>,
{
    let networks = tables.networks_of(&Vlan { ifindex: arrival.ingress, tags: arrival.tags });
    if networks == Networks::OF_OTHERS {
        return Err(Reason::OtherVlan);
    }
    let arrival = &Arrival { networks, ..*arrival };
    if program == Program::Icmp {
        translate_error::<F, M>(frame, tables, arrival)
    } else {
        other::<F, M>(frame, tables, arrival)
    }
}

/// The path of all other packets, but those of ICMP.
#[inline(always)]
fn other<F: Icmp, M>(frame: &mut impl Frame, tables: M, arrival: &Arrival) -> Result<Verdict, Reason>
where
    M: Flows<V4> + Flows<V6> + Flows<F>,
{
    let mut packet = Packet::EMPTY;
    if frame.examine::<F, M>(tables, arrival.ingress, &mut packet)? == Examined::Icmp {
        return frame.hand_over(tables, arrival.ingress, Program::Icmp);
    }
    let result = match translate::<F, M>(frame, tables, arrival, &packet) {
        Err(Reason::TtlExpired) => {
            send_answer::<F, M>(frame, tables, arrival, &packet, Reason::TtlExpired, Message::TimeExceeded)
        }
        settled => settled,
    };
    if packet.part == Part::First {
        let reason = match result {
            Ok(Verdict { reason, .. }) | Err(reason) => reason,
        };
        part::note(tables, &packet, reason);
    }
    result
}

/// Finds or makes the packet's flow, rewrites the packet and sends it on.
#[inline(always)]
fn translate<F: Icmp, M: Flows<F>>(
    frame: &mut impl Frame,
    tables: M,
    arrival: &Arrival,
    packet: &Packet<F>,
) -> Result<Verdict, Reason> {
    let known = match tables.flow(&packet.key) {
        Some(_) if packet.is_syn() && pair::makes_way(tables, &packet.key) => None,
        other => other,
    };
    let flow = match known {
        Some(flow) => flow,
        None => {
            tables.connect(packet)?;
            // The pair may also be another CPU's, which saw a packet of the same connection at the same time.
            tables.flow(&packet.key).ok_or(Reason::TableFull)?
        }
    };
    packet.may_travel()?;

    let before = flow.seen;
    let is_first = !before.has(Seen::PACKET);
    let is_unfinished = packet.part == Part::Whole
        && (is_first || before.has(Seen::UNFINISHED))
        && frame.is_unfinished(packet, is_first);
    // A direction's first packet tells for all: it is the sender's stack that leaves checksums so, always or never.
    let mark = Seen::when(is_unfinished && is_first, Seen::UNFINISHED);
    record(tables, &flow, packet.seen.and(mark));
    if !before.has(packet.seen.end()) {
        pair::tell_end(tables, &packet.key, &flow, before.and(packet.seen).end());
    }
    let hop = forward::hop(tables, packet, &flow)?;
    if let Some(mtu) = too_narrow::<F, M>(frame, tables, packet, &flow) {
        return send_answer::<F, M>(frame, tables, arrival, packet, Reason::TooBig, Message::TooBig(mtu));
    }
    // In the network stack the kernel knows, and finishes it where it leaves.
    let in_stack = is_unfinished && tables.is_generic(arrival.ingress);
    if is_unfinished && !in_stack && frame.finish(packet, Finish::NOW).is_none() {
        return Err(Reason::UnfinishedChecksum);
    }
    let egress = send(frame, tables, packet, &flow, &hop).ok_or(Reason::Malformed)?;
    if in_stack {
        frame.finish(packet, Finish::LATER).ok_or(Reason::Malformed)?;
    }
    tag(frame, packet.network(), arrival, flow.side(), &hop)?;
    Ok(Verdict { reason: Reason::Forwarded, egress })
}

/// Writes down what a packet adds to what its direction has seen, and when; most add nothing, and come in the same tick.
#[inline(always)]
fn record<F: Icmp, M: Flows<F>>(tables: M, flow: &M::Flow, seen: Seen) {
    let now = tables.now();
    if flow.last != now || !flow.seen.has(seen) {
        flow.record(flow.seen.and(seen), now);
    }
}

/// The MTU of the packet's way, if the packet is larger.
#[inline(always)]
fn too_narrow<F: Icmp, M: Flows<F>>(
    frame: &impl Frame,
    tables: M,
    packet: &Packet<F>,
    flow: &M::Flow,
) -> Option<u16> {
    // A frame may be longer than the packet in it.
    if frame.length() <= packet.network() + tables.smallest_mtu() as usize {
        return None;
    }
    forward::too_narrow::<F, M>(tables, flow, F::length(frame, packet.network()))
}

/// Rewrites the packet, counts it, and gives the interface through which it leaves. `None` if the frame is shorter than it was
/// when it was parsed, which cannot be: the verifier asks.
#[inline(always)]
fn send<F: Icmp, M: Flows<F>>(
    frame: &mut impl Frame,
    tables: M,
    packet: &Packet<F>,
    flow: &M::Flow,
    hop: &Hop,
) -> Option<u32> {
    rewrite::rewrite(frame, packet, flow, hop)?;
    tables.count_traffic(flow.backend(), flow.side(), frame.length());
    Some(hop.ifindex)
}

/// Puts a frame of a flow, whose network header has that offset, into the VLAN of its way.
///
/// # Errors
///
/// [`Reason::NoHeadroom`] where there is no room for the tags.
#[inline(always)]
fn tag(
    frame: &mut impl Frame,
    network: usize,
    arrival: &Arrival,
    side: Side,
    hop: &Hop,
) -> Result<(), Reason> {
    let before = Arrival::tags_before(network);
    let is_as_before = hop.tags == arrival.tags && hop.tags.length() == before;
    // Of the client's way the tags are known, from where its packets come.
    if is_as_before || arrival.networks == Networks::OF_ALL && hop.tags.is_none() && side == Side::Request {
        return Ok(());
    }
    frame.tag(before, hop).ok_or(Reason::NoHeadroom)
}

/// Sends an answer back in place of the packet, which is refused for that reason.
#[inline(always)]
fn send_answer<F: Icmp, M: Flows<F>>(
    frame: &mut impl Frame,
    tables: M,
    arrival: &Arrival,
    packet: &Packet<F>,
    reason: Reason,
    message: Message,
) -> Result<Verdict, Reason> {
    // RFC 1122 section 3.2.2; RFC 4443 section 2.4 has no such rule.
    let may_be_told = packet.part != Part::Later || F::NUMBER != V4::NUMBER;
    if may_be_told && frame.answer::<F, M>(tables, message) {
        Ok(Verdict { reason, egress: arrival.ingress })
    } else {
        Err(reason.unanswered())
    }
}

/// Finds the flow that an ICMP error is about, rewrites the error and sends it on. It goes the way of the packets that would
/// answer the quoted one, but is none of them: it makes no flow, leaves no trace in one, and is no traffic of the backend, for
/// any router may have sent it.
#[inline(always)]
fn translate_error<F: Icmp, M: Flows<F>>(
    frame: &mut impl Frame,
    tables: M,
    arrival: &Arrival,
) -> Result<Verdict, Reason> {
    let report = Report::<F>::parse(frame, arrival)?;
    let flow = tables.flow(&report.key).ok_or(Reason::IcmpOfNoConnection)?;
    report.may_travel()?;
    let hop = forward::way(tables, &flow)?;
    report.rewrite(frame, &flow, &hop).ok_or(Reason::Malformed)?;
    tag(frame, report.network, arrival, flow.side(), &hop)?;
    Ok(Verdict { reason: Reason::IcmpForwarded, egress: hop.ifindex })
}
