//! Packet memory as a [`Frame`].

use core::hint::black_box;

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use lb_ebpf::frame::{Frame, Wire};

/// The linear part of an XDP frame.
pub(crate) struct XdpFrame {
    context: *mut xdp_md,
    start: usize,
    end: usize,
}

impl XdpFrame {
    #[inline(always)]
    pub(crate) fn new(context: &XdpContext) -> Self {
        Self { context: context.ctx, start: context.data(), end: context.data_end() }
    }

    /// Takes the frame as it is after its bounds have moved; `moved` is what the kernel said to that.
    #[inline(always)]
    fn look_again(&mut self, moved: i64) -> Option<()> {
        *self = Self::new(&XdpContext::new(self.context));
        (moved == 0).then_some(())
    }

    #[inline(always)]
    fn pointer<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        let start = self.start + offset;
        if start + size_of::<T>() > self.end { None } else { Some(start as *mut T) }
    }
}

/// Does the work on the frame of its own.
#[inline(never)]
fn out_of_line<T>(context: *mut xdp_md, work: impl FnOnce(&mut XdpFrame) -> T) -> T {
    // Else the compiler would have the caller read the frame's bounds and pass them as numbers, 32 bits wide.
    let context = black_box(context);
    work(&mut XdpFrame::new(&XdpContext::new(context)))
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn length(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        // SAFETY: `pointer` compared its end with the packet's, which the verifier insists on; `Wire` allows any bytes.
        self.pointer(offset).map(|pointer| unsafe { &*pointer })
    }

    #[inline(always)]
    fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as in `at`; `&mut self` keeps other references to the frame away.
        self.pointer(offset).map(|pointer| unsafe { &mut *pointer })
    }

    #[inline(always)]
    fn extend_front(&mut self, bytes: usize) -> Option<()> {
        let delta = i32::try_from(bytes).ok()?.wrapping_neg();
        // SAFETY: the context is the one that the kernel handed over; pointers into the frame are made anew.
        let moved = unsafe { bpf_xdp_adjust_head(self.context, delta) };
        self.look_again(moved)
    }

    #[inline(always)]
    fn truncate(&mut self, length: usize) -> Option<()> {
        let delta = i32::try_from(self.length().checked_sub(length)?).ok()?.wrapping_neg();
        // SAFETY: as in `extend_front`.
        let moved = unsafe { bpf_xdp_adjust_tail(self.context, delta) };
        self.look_again(moved)
    }

    #[inline(always)]
    fn apart<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let done = out_of_line(self.context, work);
        *self = Self::new(&XdpContext::new(self.context));
        done
    }
}
