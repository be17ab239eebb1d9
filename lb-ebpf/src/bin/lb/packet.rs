//! Packet memory as a [`Frame`].

use aya_ebpf::programs::XdpContext;
use lb_ebpf::frame::{Frame, Wire};

/// The linear part of an XDP frame.
#[derive(Clone, Copy)]
pub(crate) struct XdpFrame {
    start: usize,
    end: usize,
}

impl XdpFrame {
    #[inline(always)]
    pub(crate) fn new(context: &XdpContext) -> Self {
        Self { start: context.data(), end: context.data_end() }
    }

    #[inline(always)]
    fn pointer<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        let start = self.start + offset;
        if start + size_of::<T>() > self.end { None } else { Some(start as *mut T) }
    }
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
    fn lend<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let mut copy = *self;
        let done = work(&mut copy);
        *self = copy;
        done
    }
}
