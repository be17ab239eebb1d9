//! lb's XDP program: lays the packet path of `lb_ebpf` over packet memory and maps.
//!
//! On the host it is an empty program, there only to be read by clippy.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod atomic;
mod flows;
mod maps;
mod packet;
#[path = "../program/mod.rs"]
mod program;

use core::hint::black_box;

use aya_ebpf::{Global, bindings::xdp_action, helpers::bpf_redirect, macros::xdp, programs::XdpContext};
use aya_log_ebpf::{debug, warn};
use lb_common::{Action, Program, Reason};

use crate::{maps::Maps, packet::XdpFrame};

/// 1 where what `XDP_TX` sends back would not arrive and what is redirected does; userspace sets it at load.
#[unsafe(no_mangle)]
static SEND_BACK_BY_REDIRECT: Global<u8> = Global::new(0);

/// Meets every frame.
#[xdp(frags)]
pub(crate) fn lb(context: XdpContext) -> u32 {
    run::<false>(&context, Program::Plain)
}

/// Takes over all others but ICMP.
#[xdp(frags)]
pub(crate) fn lb_other(context: XdpContext) -> u32 {
    run::<true>(&context, Program::Other)
}

/// Takes over the frames of ICMP.
#[xdp(frags)]
pub(crate) fn lb_icmp(context: XdpContext) -> u32 {
    run::<true>(&context, Program::Icmp)
}

/// Takes one frame down the program's path, and does what the verdict says.
#[inline(always)]
fn run<const WHOLE: bool>(context: &XdpContext, program: Program) -> u32 {
    let ingress = ingress(context);
    let verdict = lb_ebpf::process(program, &mut XdpFrame::<WHOLE>::new(context), Maps, ingress);
    report(verdict.reason, ingress);
    match verdict.reason.action() {
        Action::Forward | Action::Answer
            if verdict.egress == ingress && SEND_BACK_BY_REDIRECT.load() == 0 =>
        {
            xdp_action::XDP_TX
        }
        Action::Forward | Action::Answer => redirect(verdict.egress),
        Action::Pass => xdp_action::XDP_PASS,
        Action::Drop => xdp_action::XDP_DROP,
    }
}

#[inline(always)]
fn ingress(context: &XdpContext) -> u32 {
    // SAFETY: the kernel hands every XDP program a valid context; the verifier checks the access.
    unsafe { (*context.ctx).ingress_ifindex }
}

#[inline(always)]
fn redirect(ifindex: u32) -> u32 {
    // SAFETY: a helper without pointers.
    let action = unsafe { bpf_redirect(ifindex, 0) };
    u32::try_from(action).unwrap_or(xdp_action::XDP_ABORTED)
}

/// Logs what is rare.
#[inline(always)]
fn report(reason: Reason, ingress: u32) {
    match reason {
        Reason::TableFull | Reason::PortsExhausted | Reason::NoBackend | Reason::NoNextHop => {
            black_box(lb_refused(reason as u64, ingress));
        }
        Reason::Stray
        | Reason::Malformed
        | Reason::NoChecksum
        | Reason::TtlExpired
        | Reason::TtlExpiredUnanswered
        | Reason::TooBig
        | Reason::TooBigUnanswered
        | Reason::Fragment
        | Reason::FragmentEarly
        | Reason::FragmentDropped
        | Reason::Extension
        | Reason::UnfinishedChecksum
        | Reason::ProgramMissing
        | Reason::OtherVlan
        | Reason::NoHeadroom
        | Reason::Martian => {
            black_box(lb_odd(reason as u64, ingress));
        }
        Reason::Forwarded
        | Reason::IcmpForwarded
        | Reason::NotIp
        | Reason::OtherProtocol
        | Reason::NoService
        | Reason::IcmpOfNoConnection => {}
    }
}

/// Logs a connection that was not made.
// A function of its own, for logging takes stack; one that is global, for the verifier follows it once, and so with a result, which
// somebody has to use. `--log-level` is a constant to it: with it off, nothing of this stays.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_refused(reason: u64, ingress: u32) -> u64 {
    warn!(&(), "connection refused on interface {}: {}", ingress, name(reason));
    0
}

/// Logs a packet that should not have come.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_odd(reason: u64, ingress: u32) -> u64 {
    debug!(&(), "odd packet on interface {}: {}", ingress, name(reason));
    0
}

#[inline(always)]
fn name(code: u64) -> &'static str {
    Reason::from_code(code).map_or("", Reason::name)
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
