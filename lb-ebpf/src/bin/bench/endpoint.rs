//! The hosts at either end: one that answers, and one that throws away.

use aya_ebpf::{
    Global,
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP},
    macros::{map, xdp},
    maps::PerCpuArray,
    programs::XdpContext,
};

use crate::{
    OFFERED,
    generate::{STAMP, time},
    pointer, redirect,
};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Sequence number of a server's SYN, and of the byte after it.
const SERVERS_SYN: u32 = 5_000;

/// 1 where connections are of TCP.
#[unsafe(no_mangle)]
static TCP: Global<u32> = Global::new(1);
/// Offset of the transport's header.
#[unsafe(no_mangle)]
static TRANSPORT: Global<u32> = Global::new(34);
/// The port that servers listen on.
#[unsafe(no_mangle)]
pub(crate) static SERVER_PORT: Global<u32> = Global::new(0);

/// Frames that have come to their end.
#[map]
static SUNK: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// How many connections servers have been offered.
#[map]
static OFFERS: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// Counts a frame and throws it away.
#[xdp]
pub(crate) fn sink(_frame: XdpContext) -> u32 {
    count();
    XDP_DROP
}

/// How many paced frames were so long under way: by 32 nanoseconds.
#[map]
static DELAYS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DELAYS_LENGTH, 0);
const DELAYS_LENGTH: u32 = 1 << 16;

/// Counts a frame by how long it was under way, and throws it away.
#[xdp]
pub(crate) fn sink_paced(frame: XdpContext) -> u32 {
    count();
    let _short = try_sink_paced(&frame);
    XDP_DROP
}

#[inline(always)]
fn try_sink_paced(frame: &XdpContext) -> Option<()> {
    let halves = pointer::<[u16; 4]>(frame, STAMP)?.cast::<u16>();
    let mut made = 0;
    for index in 0..4_usize {
        // SAFETY: the verifier saw the comparison in `pointer`.
        made |= u64::from(u16::from_be(unsafe { halves.add(index).read() })) << (16 * index);
    }
    let index = ((time() - made) >> 5).min(u64::from(DELAYS_LENGTH) - 1);
    let delays = DELAYS.get_ptr_mut(u32::try_from(index).ok()?)?;
    // SAFETY: not null, this CPU's own copy.
    unsafe { *delays += 1 };
    Some(())
}

/// Client and server of connections: a server notes and answers the first packet of each, a client answers what servers
/// answer to a SYN. What ends a beginning at a server, the third packet of TCP and the first of UDP, is counted.
#[xdp]
pub(crate) fn endpoint(frame: XdpContext) -> u32 {
    try_endpoint(&frame).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn count() {
    if let Some(sunk) = SUNK.get_ptr_mut(0) {
        // SAFETY: not null, this CPU's own copy.
        unsafe { *sunk += 1 }
    }
}

/// The first bytes of TCP's header, and UDP's ports.
#[repr(C)]
struct Transport {
    ports: [u16; 2],
    sequence: [u16; 2],
    acknowledged: [u16; 2],
    offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
}

#[inline(always)]
fn try_endpoint(frame: &XdpContext) -> Option<u32> {
    let transport = pointer::<Transport>(frame, (TRANSPORT.load() & 0x7e) as usize)?;
    // SAFETY: the verifier saw the comparison in `pointer`. All bytes are there for UDP too: no frame is shorter.
    let transport = unsafe { &mut *transport };
    let at_server = u32::from(u16::from_be(transport.ports[1])) == SERVER_PORT.load();
    if TCP.load() == 0 {
        if at_server {
            note(frame, transport)?;
            count();
            return turn_round(frame, transport);
        }
        return Some(XDP_DROP);
    }
    match (at_server, transport.flags) {
        (true, SYN) => {
            note(frame, transport)?;
            answer(transport, SYN | ACK, SERVERS_SYN);
            turn_round(frame, transport)
        }
        (false, flags) if flags == SYN | ACK => {
            let sequence = number(transport.acknowledged);
            answer(transport, ACK, sequence);
            turn_round(frame, transport)
        }
        (true, _) => {
            count();
            Some(XDP_DROP)
        }
        _ => Some(XDP_DROP),
    }
}

/// Notes that a connection was offered: where, and from which port.
#[inline(always)]
fn note(frame: &XdpContext, transport: &Transport) -> Option<()> {
    // The destination's low half lies before the transport's header, in both families.
    let address = pointer::<u16>(frame, ((TRANSPORT.load() - 2) & 0x7e) as usize)?;
    let offers = OFFERS.get_ptr_mut(0)?;
    // SAFETY: the verifier saw the comparison in `pointer`; not null, this CPU's own copy.
    let (address, number) = unsafe { (address.read(), *offers) };
    // SAFETY: as above.
    unsafe { *offers += 1 };
    if let Some(offered) = OFFERED.get_ptr_mut(number) {
        let value = u32::from(u16::from_be(address)) << 16 | u32::from(u16::from_be(transport.ports[0]));
        // SAFETY: not null, an element of an array.
        unsafe { *offered = value };
    }
    Some(())
}

/// Makes a segment the answer to itself, but for addresses and ports.
#[inline(always)]
fn answer(transport: &mut Transport, flags: u8, sequence: u32) {
    let (sequence, acknowledged) = (halves(sequence), halves(number(transport.sequence) + 1));
    let flags_change = u32::from(!u16::from(transport.flags).to_be()) + u32::from(u16::from(flags).to_be());
    let sum = u32::from(!transport.checksum)
        + change(transport.sequence, sequence)
        + change(transport.acknowledged, acknowledged)
        + flags_change;
    let sum = (sum & 0xffff) + (sum >> 16);
    transport.checksum = !low_half((sum & 0xffff) + (sum >> 16));
    (transport.sequence, transport.acknowledged, transport.flags) = (sequence, acknowledged, flags);
}

/// What replacing a word adds to a sum of halves (RFC 1624).
#[inline(always)]
fn change(old: [u16; 2], new: [u16; 2]) -> u32 {
    u32::from(!old[0]) + u32::from(!old[1]) + u32::from(new[0]) + u32::from(new[1])
}

#[inline(always)]
fn number([high, low]: [u16; 2]) -> u32 {
    u32::from(u16::from_be(high)) << 16 | u32::from(u16::from_be(low))
}

#[inline(always)]
fn halves(number: u32) -> [u16; 2] {
    [low_half(number >> 16).to_be(), low_half(number).to_be()]
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
fn low_half(number: u32) -> u16 {
    number as u16
}

/// Sends a frame back to where it came from: checksums stay as they are.
#[inline(always)]
fn turn_round(frame: &XdpContext, transport: &mut Transport) -> Option<u32> {
    transport.ports.swap(0, 1);
    // SAFETY: the verifier saw the comparison in `pointer`.
    unsafe { swap(pointer::<[[u16; 3]; 2]>(frame, 0)?) };
    // Both addresses lie before the transport's header.
    if TRANSPORT.load() == 34 {
        // SAFETY: as above.
        unsafe { swap(pointer::<[[u16; 2]; 2]>(frame, 26)?) };
    } else {
        // SAFETY: as above.
        unsafe { swap(pointer::<[[u16; 8]; 2]>(frame, 22)?) };
    }
    // SAFETY: the kernel hands every XDP program a valid context; the verifier checks the access.
    Some(redirect(unsafe { (*frame.ctx).ingress_ifindex }))
}

/// Exchanges two neighbours, halfword by halfword: nothing in a frame is aligned to more.
///
/// # Safety
///
/// `pair` points to live packet memory.
#[inline(always)]
unsafe fn swap<const N: usize>(pair: *mut [[u16; N]; 2]) {
    let (left, right) = (pair.cast::<u16>(), pair.cast::<[u16; N]>().wrapping_add(1).cast::<u16>());
    for index in 0..N {
        // SAFETY: the caller's promise, and `index` is below the length of each half.
        unsafe {
            let kept = left.add(index).read_volatile();
            left.add(index).write_volatile(right.add(index).read_volatile());
            right.add(index).write_volatile(kept);
        }
    }
}
