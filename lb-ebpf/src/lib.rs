//! lb's packet path, one file a stage:
//!
//! ```text
//! parse -> flow --hit--> rewrite -> forward
//!               --miss-> connect: service? -> select backend -> allocate port -> insert pair -> as a hit
//!                                 no service: the packet passes, untouched byte for byte
//! ```
//!
//! The library knows neither aya nor the kernel: frames and tables enter through the traits of [`frame`] and
//! [`tables`], so that the same path runs in XDP and, over fakes, under `cargo test`. Only [`parse`], [`rewrite`],
//! [`network`], [`transport`] and [`icmp`] ever see a header; everything between works on a [`Packet`].
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(any(test, feature = "host"))]
extern crate std;

pub mod answer;
pub mod connect;
pub mod forward;
pub mod frame;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod icmp;
pub mod network;
pub mod pair;
pub mod parse;
pub mod rewrite;
pub mod select;
pub mod tables;
pub mod transport;

#[cfg(test)]
mod tests;

use lb_common::{Protocol, Reason, V4, V6};
use network_types::eth::EtherType;

use crate::{
    frame::Frame,
    icmp::{Icmp, Message, Report},
    parse::{Arrival, Packet},
    tables::{Flow, Flows},
};

/// What is to become of a frame: the reason says it all, but for where a forwarded frame leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Gives the action and the counter.
    pub reason: Reason,
    /// Interface through which a forwarded frame, or an answer, leaves; 0 for others.
    pub egress: u32,
}

/// Takes one frame, which came in through interface `ingress`, down the whole path; counts the verdict.
#[inline(always)]
pub fn process<M>(frame: &mut impl Frame, tables: M, ingress: u32) -> Verdict
where
    M: Flows<V4> + Flows<V6>,
{
    let verdict = match route(frame, tables, ingress) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict { reason, egress: 0 },
    };
    tables.count(verdict.reason);
    verdict
}

/// Chooses the family; `Ok` says how the frame leaves.
#[inline(always)]
fn route<M>(frame: &mut impl Frame, tables: M, ingress: u32) -> Result<Verdict, Reason>
where
    M: Flows<V4> + Flows<V6>,
{
    let arrival = Arrival::of(frame, ingress)?;
    if arrival.ether_type == EtherType::Ipv4 as u16 {
        translate_or_answer::<V4, M>(frame, tables, &arrival)
    } else if arrival.ether_type == EtherType::Ipv6 as u16 {
        translate_or_answer::<V6, M>(frame, tables, &arrival)
    } else {
        Err(Reason::NotIp)
    }
}

/// Sends the packet on or, where its hops end here, an answer back.
#[inline(always)]
fn translate_or_answer<F: Icmp, M: Flows<F>>(
    frame: &mut impl Frame,
    tables: M,
    arrival: &Arrival,
) -> Result<Verdict, Reason> {
    match translate::<F, M>(frame, tables, arrival) {
        Err(Reason::TtlExpired) => {
            send_answer::<F, M>(frame, tables, arrival, Reason::TtlExpired, Message::TimeExceeded)
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
    reason: Reason,
    message: Message,
) -> Result<Verdict, Reason> {
    let ingress = arrival.ingress;
    if frame.apart(move |frame| answer::answer::<F, M>(frame, tables, ingress, message).is_some()) {
        Ok(Verdict { reason, egress: ingress })
    } else {
        Err(reason.unanswered())
    }
}

/// Finds or makes the packet's flow, rewrites the packet and sends it on.
#[inline(always)]
fn translate<F: Icmp, M: Flows<F>>(
    frame: &mut impl Frame,
    tables: M,
    arrival: &Arrival,
) -> Result<Verdict, Reason> {
    let network = F::parse(frame, arrival.network)?;
    let Some(protocol) = Protocol::from_number(network.protocol) else {
        if network.protocol != F::ICMP {
            return Err(Reason::OtherProtocol);
        }
        let ingress = arrival.ingress;
        let egress = frame.apart(move |frame| translate_error::<F, M>(frame, tables, ingress))?;
        return Ok(Verdict { reason: Reason::IcmpForwarded, egress });
    };
    let (ports, seen) = parse::transport::<F>(frame, &network, protocol)?;
    let packet = Packet::new(frame, arrival, &network, protocol, ports, seen);
    let known = match tables.likely_flow(&packet.key) {
        Some(_) if packet.is_syn() && pair::makes_way(tables, &packet.key) => None,
        other => other,
    };
    let flow = match known {
        Some(flow) => flow,
        None => {
            connect::connect(tables, &packet)?;
            // The pair may also be another CPU's, which saw a packet of the same connection at the same time.
            tables.flow(&packet.key).ok_or(Reason::TableFull)?
        }
    };
    packet.may_travel()?;

    let now = tables.now();
    if flow.last != now || !flow.seen.has(packet.seen) {
        let seen = flow.seen.and(packet.seen);
        let ends = seen.end() != flow.seen.end();
        flow.record(seen, now);
        if ends {
            pair::tell_end(tables, &packet.key, &flow, seen.end());
        }
    }
    let hop = forward::hop(tables, &packet, &flow)?;
    // A frame may be longer than the packet in it.
    if frame.length() > packet.network + tables.smallest_mtu() as usize
        && let Some(mtu) = forward::too_narrow(tables, &flow, F::length(frame, packet.network))
    {
        return send_answer::<F, M>(frame, tables, arrival, Reason::TooBig, Message::TooBig(mtu));
    }
    rewrite::rewrite(frame, &packet, &flow, &hop).ok_or(Reason::Malformed)?;
    tables.count_traffic(flow.backend(), flow.side(), frame.length());
    Ok(Verdict { reason: Reason::Forwarded, egress: hop.ifindex })
}

/// Finds the flow that an ICMP error is about, rewrites the error and sends it on; `Ok` holds the interface to leave
/// through. It goes the way of the packets that would answer the quoted one, but is none of them: it makes no flow, leaves no
/// trace in one, and is no traffic of the backend, for any router may have sent it.
#[inline(always)]
fn translate_error<F: Icmp, M: Flows<F>>(
    frame: &mut impl Frame,
    tables: M,
    ingress: u32,
) -> Result<u32, Reason> {
    let arrival = Arrival::of(frame, ingress)?;
    let report = Report::<F>::parse(frame, &arrival)?;
    let flow = tables.flow(&report.key).ok_or(Reason::IcmpOfNoConnection)?;
    report.may_travel()?;
    let hop = forward::way(tables, &flow)?;
    report.rewrite(frame, &flow, &hop).ok_or(Reason::Malformed)?;
    Ok(hop.ifindex)
}
