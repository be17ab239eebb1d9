//! An XDP program that passes every frame: veth wants some program on the peer of an interface that sends by XDP.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[path = "program/mod.rs"]
mod program;

use aya_ebpf::{bindings::xdp_action::XDP_PASS, macros::xdp, programs::XdpContext};

/// Leaves every frame to the kernel.
#[xdp]
pub(crate) fn pass(_frame: XdpContext) -> u32 {
    XDP_PASS
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
