//! Packet memory as a [`Frame`].

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, generated::bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use lb_common::{
    DatagramKey, Family as _, Hop, Program, Reason, Tick, V4, V6, checksum::Sum, datagram::Early,
};
use lb_ebpf::{
    Verdict, answer, checksum,
    frame::{Frame, Wire},
    icmp::{Icmp, Message},
    parse::Packet,
    part::{self, End, Examined, Parts},
    rewrite,
    tables::Tables,
    unfinished::{self, Finish},
};

use crate::maps::{self, Maps};

/// An XDP frame. Reads and writes the first piece of it, where headers are; `WHOLE` says whether its length is that of all
/// pieces, or also of the first, which costs nothing.
pub(crate) struct XdpFrame<const WHOLE: bool> {
    context: *mut xdp_md,
    start: usize,
    end: usize,
}

impl<const WHOLE: bool> XdpFrame<WHOLE> {
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

impl<const WHOLE: bool> Frame for XdpFrame<WHOLE> {
    #[inline(always)]
    fn length(&self) -> usize {
        if WHOLE {
            // SAFETY: the context is the one that the kernel handed over.
            usize::try_from(unsafe { bpf_xdp_get_buff_len(self.context) }).unwrap_or(0)
        } else {
            self.end - self.start
        }
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
    fn shorten_front(&mut self, bytes: usize) -> Option<()> {
        let delta = i32::try_from(bytes).ok()?;
        // SAFETY: as in `extend_front`.
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
    fn hand_over<M>(&mut self, _tables: M, _ingress: u32, to: Program) -> Result<Verdict, Reason> {
        maps::go_on_in(&XdpContext::new(self.context), to);
        // It would not have returned.
        Err(Reason::ProgramMissing)
    }

    #[inline(always)]
    fn tag(&mut self, before: usize, hop: &Hop) -> Option<()> {
        let tagged = tag(self.context, before, hop);
        *self = Self::new(&XdpContext::new(self.context));
        (tagged != 0).then_some(())
    }

    #[inline(always)]
    fn find_end<F: Parts>(&mut self, offset: usize, to: &mut End) -> bool {
        let context = self.context;
        let found =
            if F::NUMBER == V4::NUMBER { end_v4(context, offset, to) } else { end_v6(context, offset, to) };
        *self = Self::new(&XdpContext::new(self.context));
        found != 0
    }

    #[inline(always)]
    fn examine<F: Parts, M: Tables>(
        &mut self,
        _tables: M,
        ingress: u32,
        packet: &mut Packet<F>,
    ) -> Result<Examined, Reason> {
        let (context, to) = (self.context, &raw mut *packet);
        let code = if F::NUMBER == V4::NUMBER {
            examine_v4(context, ingress, to.cast())
        } else {
            examine_v6(context, ingress, to.cast())
        };
        *self = Self::new(&XdpContext::new(self.context));
        match Reason::from_code(code) {
            Some(reason) => Err(reason),
            None if code == IS_ICMP => Ok(Examined::Icmp),
            None => Ok(Examined::Packet),
        }
    }

    #[inline(always)]
    fn sum(&self, from: usize, to: usize) -> Option<Sum> {
        u32::try_from(sum_between(self.context, from, to)).ok().map(Sum::from_number)
    }

    #[inline(always)]
    fn is_unfinished<F: Icmp>(&self, packet: &Packet<F>, closely: bool) -> bool {
        let (context, packet, closely) = (self.context, &raw const *packet, closely.into());
        let is_unfinished = if F::NUMBER == V4::NUMBER {
            is_unfinished_v4(context, packet.cast(), closely)
        } else {
            is_unfinished_v6(context, packet.cast(), closely)
        };
        is_unfinished != 0
    }

    #[inline(always)]
    fn finish<F: Icmp>(&mut self, packet: &Packet<F>, when: Finish) -> Option<()> {
        let (context, packet) = (self.context, &raw const *packet);
        let finished = if F::NUMBER == V4::NUMBER {
            finish_v4(context, packet.cast(), when.0)
        } else {
            finish_v6(context, packet.cast(), when.0)
        };
        *self = Self::new(&XdpContext::new(self.context));
        (finished != 0).then_some(())
    }

    #[inline(always)]
    fn answer<F: Icmp, M: Tables>(&mut self, _tables: M, message: Message) -> bool {
        let mtu = match message {
            Message::TimeExceeded => NO_MTU,
            Message::TooBig(mtu) => mtu.into(),
        };
        let context = self.context;
        let answered =
            if F::NUMBER == V4::NUMBER { answer_v4(context, mtu) } else { answer_v6(context, mtu) };
        *self = Self::new(&XdpContext::new(self.context));
        answered != 0
    }

    #[inline(always)]
    fn keep_back(&mut self, key: &DatagramKey, ingress: u32, now: Tick) -> bool {
        let early = Early { key: *key, ingress, at: now, length: u32::try_from(self.length()).unwrap_or(0) };
        maps::keep_back(&XdpContext::new(self.context), &early)
    }
}

/// Gives a frame with tags of `before` bytes those of its way; see [`rewrite::tag`]. Returns whether it could be done.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tag(context: *mut xdp_md, before: usize, hop: *const Hop) -> u64 {
    let mut frame = XdpFrame::<false>::new(&XdpContext::new(context));
    // SAFETY: null, or a caller's reference: the verifier compares what it points to with the type in the program's BTF.
    let hop = unsafe { hop.as_ref() };
    hop.and_then(|hop| rewrite::tag(&mut frame, before, hop)).is_some().into()
}

/// Finds what is behind the network header at an offset; see [`part::find_end`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn end_v4(context: *mut xdp_md, offset: usize, to: *mut End) -> u64 {
    end_for_caller::<V4>(context, offset, to)
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn end_v6(context: *mut xdp_md, offset: usize, to: *mut End) -> u64 {
    end_for_caller::<V6>(context, offset, to)
}

#[inline(always)]
fn end_for_caller<F: Parts>(context: *mut xdp_md, offset: usize, to: *mut End) -> u64 {
    let frame = XdpFrame::<true>::new(&XdpContext::new(context));
    // SAFETY: null, or a caller's reference: the verifier compares what it points to with the type in the program's BTF.
    let Some(to) = (unsafe { to.as_mut() }) else { return 0 };
    part::find_end::<F>(&frame, offset, to).into()
}

/// Examines the packet in a frame; returns the code of the reason why it goes with no connection, or of none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn examine_v4(context: *mut xdp_md, ingress: u32, to: *mut Packet<V4>) -> u64 {
    examine_for_caller::<V4>(context, ingress, to)
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn examine_v6(context: *mut xdp_md, ingress: u32, to: *mut Packet<V6>) -> u64 {
    examine_for_caller::<V6>(context, ingress, to)
}

/// The code of no reason, but that the packet is one of ICMP.
const IS_ICMP: u64 = u64::MAX;

#[inline(always)]
fn examine_for_caller<F: Parts>(context: *mut xdp_md, ingress: u32, to: *mut Packet<F>) -> u64 {
    let mut frame = XdpFrame::<true>::new(&XdpContext::new(context));
    // SAFETY: null, or a caller's reference: the verifier compares what it points to with the type in the program's BTF.
    let Some(to) = (unsafe { to.as_mut() }) else { return IS_ICMP };
    match part::examine::<F, Maps>(&mut frame, Maps, ingress, to) {
        Ok(Examined::Packet) => Reason::code(None),
        Ok(Examined::Icmp) => IS_ICMP,
        Err(reason) => Reason::code(Some(reason)),
    }
}

/// The sum of what is between two offsets of a frame; no sum is that large if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sum_between(context: *mut xdp_md, from: usize, to: usize) -> u64 {
    let frame = XdpFrame::<false>::new(&XdpContext::new(context));
    checksum::sum(&frame, from, to).map_or(u64::MAX, |sum| sum.number().into())
}

/// Whether the packet in a frame has an unfinished checksum.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_unfinished_v4(context: *mut xdp_md, packet: *const Packet<V4>, closely: u64) -> u64 {
    is_unfinished_for_caller(context, packet, closely)
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_unfinished_v6(context: *mut xdp_md, packet: *const Packet<V6>, closely: u64) -> u64 {
    is_unfinished_for_caller(context, packet, closely)
}

#[inline(always)]
fn is_unfinished_for_caller<F: Icmp>(context: *mut xdp_md, packet: *const Packet<F>, closely: u64) -> u64 {
    let frame = XdpFrame::<false>::new(&XdpContext::new(context));
    // SAFETY: null, or a caller's reference: the verifier compares what it points to with the type in the program's BTF.
    let packet = unsafe { packet.as_ref() };
    packet.is_some_and(|packet| unfinished::is_unfinished(&frame, packet, closely != 0)).into()
}

/// Finishes the checksum of the packet in a frame; returns whether it could be done.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn finish_v4(context: *mut xdp_md, packet: *const Packet<V4>, when: u64) -> u64 {
    finish_for_caller(context, packet, when)
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn finish_v6(context: *mut xdp_md, packet: *const Packet<V6>, when: u64) -> u64 {
    finish_for_caller(context, packet, when)
}

#[inline(always)]
fn finish_for_caller<F: Icmp>(context: *mut xdp_md, packet: *const Packet<F>, when: u64) -> u64 {
    let mut frame = XdpFrame::<false>::new(&XdpContext::new(context));
    // SAFETY: null, or a caller's reference: the verifier compares what it points to with the type in the program's BTF.
    let packet = unsafe { packet.as_ref() };
    packet.and_then(|packet| unfinished::finish(&mut frame, packet, Finish(when))).is_some().into()
}

/// Makes of the frame the answer to it: that its packet is too big for that MTU or, with [`NO_MTU`], that its time is exceeded.
/// Returns whether there is one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer_v4(context: *mut xdp_md, mtu: u32) -> u32 {
    answer_for_caller::<V4>(context, mtu)
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer_v6(context: *mut xdp_md, mtu: u32) -> u32 {
    answer_for_caller::<V6>(context, mtu)
}

/// More than any MTU that an answer tells of.
const NO_MTU: u32 = u32::MAX;

#[inline(always)]
fn answer_for_caller<F: Icmp>(context: *mut xdp_md, mtu: u32) -> u32 {
    let message = u16::try_from(mtu).map_or(Message::TimeExceeded, Message::TooBig);
    let mut frame = XdpFrame::<true>::new(&XdpContext::new(context));
    answer::answer::<F, Maps>(&mut frame, Maps, message).is_some().into()
}
