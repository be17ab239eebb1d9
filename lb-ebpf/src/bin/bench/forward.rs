//! What forwarding costs without balancing.

use aya_ebpf::{bindings::xdp_action::XDP_ABORTED, macros::xdp, programs::XdpContext};

use crate::{EGRESS, LINK, pointer, send};

/// Sends a frame on and does nothing else.
#[xdp]
pub(crate) fn forward(frame: XdpContext) -> u32 {
    try_forward(&frame).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn try_forward(frame: &XdpContext) -> Option<u32> {
    let link = LINK.get(0)?;
    // SAFETY: the verifier saw the comparison in `pointer`; a frame begins at a multiple of four.
    unsafe { pointer::<[u32; 3]>(frame, 0)?.write(*link) };
    Some(send(EGRESS.load()))
}
