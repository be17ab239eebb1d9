//! lb's packet path, one file a stage:
//!
//! ```text
//! parse -> flow --hit--> rewrite -> forward
//!               --miss-> connect: service? -> select backend -> allocate port -> insert pair -> as a hit
//!                                 no service: the packet passes, untouched byte for byte
//! ```
//!
//! It is the path of three programs, for a program has 512 bytes of stack: [`Program::Plain`] meets every frame, and hands
//! over to the others what is not a whole TCP segment or UDP datagram right behind its network header.
//!
//! The library knows neither aya nor the kernel: frames and tables enter through the traits of [`frame`] and
//! [`tables`], so that the same path runs in XDP and, over fakes, under `cargo test`. Only [`parse`], [`rewrite`],
//! [`network`], [`transport`] and [`icmp`] ever see a header; everything between works on a [`Packet`].
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

use lb_common::{Family as _, Program, Protocol, Reason, Seen, V4, V6};
use network_types::eth::EtherType;

use crate::{
    frame::Frame,
    icmp::{Icmp, Message, Report},
    parse::{Arrival, Packet, Part},
    part::Examined,
    tables::{Flow, Flows, Tables},
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
    let verdict = match route(program, frame, tables, ingress) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict { reason, egress: 0 },
    };
    tables.count(verdict.reason);
    verdict
}

/// Chooses the family; `Ok` says how the frame leaves.
#[inline(always)]
fn route<M>(program: Program, frame: &mut impl Frame, tables: M, ingress: u32) -> Result<Verdict, Reason>
where
    M: Flows<V4> + Flows<V6>,
{
    let arrival = Arrival::of(frame, ingress)?;
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
    match program {
        Program::Plain => plain::<F, M>(frame, tables, arrival),
        Program::Unusual => unusual::<F, M>(frame, tables, arrival),
        Program::Icmp => translate_error::<F, M>(frame, tables, arrival),
    }
}

/// The path of a packet as most are: of a transport that services have, right behind the network header.
#[inline(always)]
fn plain<F: Icmp, M>(frame: &mut impl Frame, tables: M, arrival: &Arrival) -> Result<Verdict, Reason>
where
    M: Flows<V4> + Flows<V6> + Flows<F>,
{
    let other = match F::parse(frame, arrival.network) {
        Ok(header) => match Protocol::from_number(header.protocol) {
            Some(protocol) => {
                let (ports, seen) = parse::transport::<F>(frame, &header, protocol, Part::Whole)?;
                let packet = Packet::new(frame, arrival, &header, protocol, ports, seen);
                return translate_or_answer::<F, M>(Program::Plain, frame, tables, arrival, &packet);
            }
            None if header.protocol == F::ICMP => Program::Icmp,
            None => Program::Unusual,
        },
        // Also a frame that is longer than what of it lies in one piece looks so.
        Err(_) => Program::Unusual,
    };
    frame.hand_over(tables, arrival.ingress, other)
}

/// The path of all other packets.
#[inline(always)]
fn unusual<F: Icmp, M>(frame: &mut impl Frame, tables: M, arrival: &Arrival) -> Result<Verdict, Reason>
where
    M: Flows<V4> + Flows<V6> + Flows<F>,
{
    let mut packet = Packet::EMPTY;
    if frame.examine::<F, M>(tables, arrival.ingress, &mut packet)? == Examined::Icmp {
        return frame.hand_over(tables, arrival.ingress, Program::Icmp);
    }
    let result = translate_or_answer::<F, M>(Program::Unusual, frame, tables, arrival, &packet);
    if packet.part == Part::First {
        let reason = match result {
            Ok(Verdict { reason, .. }) | Err(reason) => reason,
        };
        part::note(tables, &packet, reason);
    }
    result
}

/// Writes the checksum that the sender left to its network card, if it did.
///
/// # Errors
///
/// [`Reason::UnfinishedChecksum`] where that cannot be done: in the network stack the kernel would do it once more.
#[inline(always)]
fn finish_checksum<F: Icmp, M: Tables>(
    frame: &mut impl Frame,
    tables: M,
    arrival: &Arrival,
    packet: &Packet<F>,
) -> Result<(), Reason> {
    if packet.part == Part::Whole
        && frame.is_unfinished(packet)
        && (tables.is_generic(arrival.ingress) || frame.finish(packet).is_none())
    {
        return Err(Reason::UnfinishedChecksum);
    }
    Ok(())
}

/// Sends the packet on or, where its hops end here, an answer back.
#[inline(always)]
fn translate_or_answer<F: Icmp, M>(
    program: Program,
    frame: &mut impl Frame,
    tables: M,
    arrival: &Arrival,
    packet: &Packet<F>,
) -> Result<Verdict, Reason>
where
    M: Flows<V4> + Flows<V6> + Flows<F>,
{
    match translate::<F, M>(program, frame, tables, arrival, packet) {
        Err(Reason::TtlExpired) => {
            send_answer::<F, M>(frame, tables, arrival, packet, Reason::TtlExpired, Message::TimeExceeded)
        }
        settled => settled,
    }
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

/// Finds or makes the packet's flow, rewrites the packet and sends it on.
#[inline(always)]
fn translate<F: Icmp, M>(
    program: Program,
    frame: &mut impl Frame,
    tables: M,
    arrival: &Arrival,
    packet: &Packet<F>,
) -> Result<Verdict, Reason>
where
    M: Flows<V4> + Flows<V6> + Flows<F>,
{
    let known = match tables.likely_flow(&packet.key) {
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

    let now = tables.now();
    let mut seen = flow.seen;
    if flow.last != now || !seen.has(packet.seen) {
        let ends = seen.and(packet.seen).end() != seen.end();
        // A direction's first packet tells for all: it is the sender's stack that does so, always or never.
        if !seen.has(Seen::PACKET) && program == Program::Plain && frame.is_unfinished(packet) {
            seen = seen.and(Seen::UNFINISHED);
        }
        seen = seen.and(packet.seen);
        flow.record(seen, now);
        if ends {
            pair::tell_end(tables, &packet.key, &flow, seen.end());
        }
    }
    if seen.has(Seen::UNFINISHED) && program == Program::Plain {
        return frame.hand_over(tables, arrival.ingress, Program::Unusual);
    }
    let hop = forward::hop(tables, packet, &flow)?;
    // A frame may be longer than the packet in it.
    if frame.length() > packet.network() + tables.smallest_mtu() as usize
        && let Some(mtu) = forward::too_narrow::<F, M>(tables, &flow, F::length(frame, packet.network()))
    {
        return send_answer::<F, M>(frame, tables, arrival, packet, Reason::TooBig, Message::TooBig(mtu));
    }
    if program == Program::Unusual {
        finish_checksum::<F, M>(frame, tables, arrival, packet)?;
    }
    rewrite::rewrite(frame, packet, &flow, &hop).ok_or(Reason::Malformed)?;
    tables.count_traffic(flow.backend(), flow.side(), frame.length());
    Ok(Verdict { reason: Reason::Forwarded, egress: hop.ifindex })
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
    Ok(Verdict { reason: Reason::IcmpForwarded, egress: hop.ifindex })
}
