//! An XDP program that returns the time, read as the packet path reads it. It is never attached: userspace runs it
//! (`BPF_PROG_TEST_RUN`), so that who expires flows reads the clock that stamps them.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[path = "program/mod.rs"]
mod program;

use aya_ebpf::{helpers::bpf_jiffies64, macros::xdp, programs::XdpContext};
use lb_common::Tick;

/// The present tick, in place of an action.
#[xdp]
pub(crate) fn clock(_frame: XdpContext) -> u32 {
    // SAFETY: a helper without arguments.
    Tick::from_jiffies(unsafe { bpf_jiffies64() }).number()
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
