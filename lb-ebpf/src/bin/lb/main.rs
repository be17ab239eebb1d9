//! lb's XDP program: lays the packet path of `lb_ebpf` over packet memory and maps.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod maps;
mod packet;

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, macros::xdp, programs::XdpContext};
use aya_log_ebpf::warn;
use lb_common::{Action, Reason};
use lb_ebpf::Verdict;

use crate::{maps::Maps, packet::XdpFrame};

/// Takes one frame down the packet path, and does what the verdict says.
#[xdp]
pub(crate) fn lb(context: XdpContext) -> u32 {
    let ingress = ingress(&context);
    let verdict = lb_ebpf::process(&mut XdpFrame::new(&context), Maps, ingress);
    report(&context, verdict, ingress);
    match verdict.reason.action() {
        Action::Forward if verdict.egress == ingress => xdp_action::XDP_TX,
        Action::Forward => redirect(verdict.egress),
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

/// Logs what is rare. `--log-level` is a constant to the verifier: with it off, none of this is left in the program.
#[inline(always)]
fn report(context: &XdpContext, verdict: Verdict, ingress: u32) {
    match verdict.reason {
        Reason::TableFull | Reason::PortsExhausted | Reason::NoBackend | Reason::NoNextHop => {
            refused(XdpContext::new(context.ctx), verdict.reason as u32, ingress);
        }
        Reason::Stray
        | Reason::Malformed
        | Reason::NoChecksum
        | Reason::TtlExpired
        | Reason::Fragment
        | Reason::Forwarded
        | Reason::NotIp
        | Reason::OtherProtocol
        | Reason::NoService => {}
    }
}

/// A connection that was not made.
// Out of line: logging takes stack, which the packet path needs.
#[inline(never)]
fn refused(context: XdpContext, reason: u32, ingress: u32) {
    warn!(&context, "connection refused: reason {} interface {}", reason, ingress);
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lets a program use helpers that are for GPL code only if its licence is compatible.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
