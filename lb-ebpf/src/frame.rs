//! Frames: the only way to the bytes of a packet.
//!
//! Headers are arrays of bytes, at offsets that are even and no more. The compiler would take them apart byte by byte
//! on BPF, and put them together with shifts, though the kernel lets packets be read at any alignment where the
//! machine does ([`Field`] asks it to).

use lb_common::{DatagramKey, Hop, Program, Reason, Tick, V4, V6, checksum::Sum};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::{
    Verdict, answer, checksum,
    icmp::{Icmp, Message},
    parse::Packet,
    part::{self, End, Examined, Parts},
    rewrite, route,
    tables::{Flows, Tables},
    unfinished::{self, Finish},
};

/// A type that may be laid over bytes of a frame.
///
/// # Safety
///
/// No padding, valid for every bit pattern, and an alignment of at most two: headers start at even offsets.
pub unsafe trait Wire: Copy {}

// SAFETY: two arrays of bytes and a u16, 14 bytes in all.
unsafe impl Wire for EthHdr {}
// SAFETY: bytes and arrays of bytes only.
unsafe impl Wire for Ipv4Hdr {}
// SAFETY: bytes and arrays of bytes only.
unsafe impl Wire for Ipv6Hdr {}
// SAFETY: arrays of bytes only.
unsafe impl Wire for TcpHdr {}
// SAFETY: arrays of bytes only.
unsafe impl Wire for UdpHdr {}
// SAFETY: bytes only.
unsafe impl<const N: usize> Wire for [u8; N] {}
// SAFETY: arrays of bytes only.
unsafe impl Wire for Link {}

// SAFETY: bytes and arrays of bytes only.
unsafe impl Wire for Extension {}

/// What IPv6's extension headers begin with (RFC 8200 sections 4.3 to 4.6).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Extension {
    /// IP protocol number of what follows.
    pub next: u8,
    /// Of all but the fragment header: its length in units of 8 bytes, without the first.
    pub length: u8,
    /// Of a fragment header: offset in units of 8 bytes, two reserved bits, 'more fragments'.
    pub fragment: [u8; 2],
    /// Of a fragment header: the identification.
    pub id: [u8; 4],
}

/// The addresses of an Ethernet header, in the pieces that they are turned round in.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Link {
    /// First bytes of the destination address.
    pub dst_head: [u8; 2],
    /// The rest of it.
    pub dst_tail: [u8; 4],
    /// First bytes of the source address.
    pub src_head: [u8; 4],
    /// The rest of it.
    pub src_tail: [u8; 2],
}

/// The bytes of one frame, from the Ethernet header on.
pub trait Frame {
    /// How many bytes there are.
    fn length(&self) -> usize;

    /// The `T` at `offset` (even, from the frame's start), or `None` if the frame ends before its end.
    fn at<T: Wire>(&self, offset: usize) -> Option<&T>;

    /// Like [`Frame::at`], to be written.
    fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T>;

    /// Puts `bytes` more before the frame's start, with anything in them. `None` if there is no room.
    fn extend_front(&mut self, bytes: usize) -> Option<()>;

    /// Takes that many bytes off the frame's start. `None` if there are fewer.
    fn shorten_front(&mut self, bytes: usize) -> Option<()>;

    /// Cuts off what is beyond `length` bytes. `None` if there are fewer.
    fn truncate(&mut self, length: usize) -> Option<()>;

    /// Goes on in another program; returns where that is a part of this one, or is missing.
    #[inline(always)]
    fn hand_over<M>(&mut self, tables: M, ingress: u32, to: Program) -> Result<Verdict, Reason>
    where
        Self: Sized,
        M: Flows<V4> + Flows<V6>,
    {
        route(to, self, tables, ingress)
    }

    /// Calls [`rewrite::tag`], in the kernel a function of its own that the verifier follows once.
    #[inline(always)]
    fn tag(&mut self, before: usize, hop: &Hop) -> Option<()>
    where
        Self: Sized,
    {
        rewrite::tag(self, before, hop)
    }

    /// Calls [`part::find_end`], in the kernel a function of its own that the verifier follows once.
    #[inline(always)]
    fn find_end<F: Parts>(&mut self, offset: usize, to: &mut End) -> bool
    where
        Self: Sized,
    {
        part::find_end::<F>(self, offset, to)
    }

    /// Calls [`part::examine`], in the kernel a function of its own that the verifier follows once: what it has found is
    /// then unknown to it, and not followed further one by one.
    ///
    /// # Errors
    ///
    /// Those of the function.
    #[inline(always)]
    fn examine<F: Parts, M: Tables>(
        &mut self,
        tables: M,
        ingress: u32,
        packet: &mut Packet<F>,
    ) -> Result<Examined, Reason>
    where
        Self: Sized,
    {
        part::examine::<F, M>(self, tables, ingress, packet)
    }

    /// Calls [`checksum::sum`], in the kernel a function of its own that the verifier follows once.
    #[inline(always)]
    fn sum(&self, from: usize, to: usize) -> Option<Sum>
    where
        Self: Sized,
    {
        checksum::sum(self, from, to)
    }

    /// Calls [`unfinished::is_unfinished`], in the kernel a function of its own: it is asked rarely.
    #[inline(always)]
    fn is_unfinished<F: Icmp>(&self, packet: &Packet<F>, closely: bool) -> bool
    where
        Self: Sized,
    {
        unfinished::is_unfinished::<F>(self, packet, closely)
    }

    /// Calls [`unfinished::finish`], in the kernel a function of its own that the verifier follows once.
    #[inline(always)]
    fn finish<F: Icmp>(&mut self, packet: &Packet<F>, when: Finish) -> Option<()>
    where
        Self: Sized,
    {
        unfinished::finish::<F>(self, packet, when)
    }

    /// Calls [`answer::answer`], in the kernel a function of its own that the verifier follows once; says whether there is an
    /// answer.
    #[inline(always)]
    fn answer<F: Icmp, M: Tables>(&mut self, tables: M, message: Message) -> bool
    where
        Self: Sized,
    {
        answer::answer::<F, M>(self, tables, message).is_some()
    }

    /// Keeps the frame, which came in through interface `ingress` at `now`, back until the first fragment of its datagram has
    /// come; then it comes in again. `false` if it cannot be kept.
    fn keep_back(&mut self, key: &DatagramKey, ingress: u32, now: Tick) -> bool;
}

/// The number as it is, of which the compiler then knows nothing: what it knows, and spares comparisons for, the verifier need
/// not know.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn opaque(number: usize) -> usize {
    let mut number = number;
    // SAFETY: moves a register to itself. No instruction at all would do for the compiler, but would leave a line of its own in
    // the debugging information, which the kernel then refuses.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack, preserves_flags));
    }
    number
}

/// Likewise; the host has no verifier.
#[cfg(not(target_arch = "bpf"))]
pub const fn opaque(number: usize) -> usize {
    number
}

/// A field of a header, in words of the machine's order, each read and written by one instruction.
pub trait Field {
    /// The word, or the words.
    type Words;

    /// Reads the field.
    fn load(&self) -> Self::Words;
    /// Overwrites the field.
    fn store(&mut self, words: Self::Words);
}

macro_rules! field {
    ($size:literal, $word:ty, $load:literal, $store:literal) => {
        impl Field for [u8; $size] {
            type Words = $word;

            #[cfg(target_arch = "bpf")]
            #[inline(always)]
            #[expect(clippy::cast_possible_truncation, reason = "the load clears the bits beyond its size")]
            fn load(&self) -> $word {
                let word: u64;
                // SAFETY: reads the bytes of `self` and no other.
                unsafe {
                    core::arch::asm!(
                        $load,
                        p = in(reg) self,
                        w = out(reg) word,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                word as $word
            }

            #[cfg(target_arch = "bpf")]
            #[inline(always)]
            fn store(&mut self, word: $word) {
                // SAFETY: writes the bytes of `self` and no other.
                unsafe {
                    core::arch::asm!(
                        $store,
                        p = in(reg) self,
                        w = in(reg) u64::from(word),
                        options(nostack, preserves_flags),
                    );
                }
            }

            #[cfg(not(target_arch = "bpf"))]
            fn load(&self) -> $word {
                <$word>::from_ne_bytes(*self)
            }

            #[cfg(not(target_arch = "bpf"))]
            fn store(&mut self, word: $word) {
                *self = word.to_ne_bytes();
            }
        }
    };
}

field!(2, u16, "{w} = *(u16 *)({p} + 0)", "*(u16 *)({p} + 0) = {w}");
field!(4, u32, "{w} = *(u32 *)({p} + 0)", "*(u32 *)({p} + 0) = {w}");

/// Four words behind one pointer: with one for each, the compiler would keep them all, from reading to writing.
impl Field for [u8; 16] {
    type Words = [u32; 4];

    #[cfg(target_arch = "bpf")]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a load clears the bits beyond its size")]
    fn load(&self) -> [u32; 4] {
        let (a, b, c, d): (u64, u64, u64, u64);
        // SAFETY: reads the bytes of `self` and no other.
        unsafe {
            core::arch::asm!(
                "{a} = *(u32 *)({p} + 0)",
                "{b} = *(u32 *)({p} + 4)",
                "{c} = *(u32 *)({p} + 8)",
                "{d} = *(u32 *)({p} + 12)",
                p = in(reg) self,
                a = out(reg) a,
                b = out(reg) b,
                c = out(reg) c,
                d = lateout(reg) d,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        [a as u32, b as u32, c as u32, d as u32]
    }

    #[cfg(target_arch = "bpf")]
    #[inline(always)]
    fn store(&mut self, words: [u32; 4]) {
        let [a, b, c, d] = words.map(u64::from);
        // SAFETY: writes the bytes of `self` and no other.
        unsafe {
            core::arch::asm!(
                "*(u32 *)({p} + 0) = {a}",
                "*(u32 *)({p} + 4) = {b}",
                "*(u32 *)({p} + 8) = {c}",
                "*(u32 *)({p} + 12) = {d}",
                p = in(reg) self,
                a = in(reg) a,
                b = in(reg) b,
                c = in(reg) c,
                d = in(reg) d,
                options(nostack, preserves_flags),
            );
        }
    }

    #[cfg(not(target_arch = "bpf"))]
    fn load(&self) -> [u32; 4] {
        match self.as_chunks::<4>() {
            ([a, b, c, d], []) => [a.load(), b.load(), c.load(), d.load()],
            _ => unreachable!("sixteen bytes are four words"),
        }
    }

    #[cfg(not(target_arch = "bpf"))]
    fn store(&mut self, words: [u32; 4]) {
        for (bytes, word) in self.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            bytes.store(word);
        }
    }
}
