//! What `cargo xtask bench` measures with: a generator of frames, a forwarder that does nothing else, a sketch of a
//! balancer, and the hosts at either end.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod endpoint;
mod forward;
mod generate;
#[path = "../program/mod.rs"]
mod program;
mod sketch;

use aya_ebpf::{
    Global, bindings::xdp_action::XDP_TX, helpers::bpf_redirect, macros::map, maps::Array,
    programs::XdpContext,
};

/// Interface that a forwarder sends through; 0: where the frame came from.
#[unsafe(no_mangle)]
static EGRESS: Global<u32> = Global::new(0);

/// The MAC addresses that a forwarder writes.
#[map]
static LINK: Array<[u32; 3]> = Array::with_max_entries(1, 0);

/// Connections that an endpoint has been offered, in order: the low half of its own address, and the other's port. A
/// generator of replies answers them in this order.
#[map]
static OFFERED: Array<u32> = Array::with_max_entries(1 << 20, 0);

/// Through that interface, or 0: back where the frame came from.
#[inline(always)]
fn send(egress: u32) -> u32 {
    if egress == 0 { XDP_TX } else { redirect(egress) }
}

#[inline(always)]
fn redirect(egress: u32) -> u32 {
    // SAFETY: a helper without pointers.
    u32::try_from(unsafe { bpf_redirect(egress, 0) }).unwrap_or(aya_ebpf::bindings::xdp_action::XDP_ABORTED)
}

/// Where a `T` lies in a frame that is long enough.
#[inline(always)]
fn pointer<T>(frame: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = frame.data() + offset;
    if start + size_of::<T>() > frame.data_end() { None } else { Some(start as *mut T) }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
