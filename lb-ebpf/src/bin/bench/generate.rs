//! The generator of frames.

use aya_ebpf::{
    Global,
    bindings::xdp_action::{XDP_ABORTED, XDP_TX},
    helpers::bpf_ktime_get_ns,
    macros::{map, xdp},
    maps::{Array, PerCpuArray},
    programs::XdpContext,
};

use crate::{OFFERED, endpoint::SERVER_PORT, pointer};

/// Words of a frame that the generator writes: as many as the longest headers (IPv6 and TCP) and a checksum's balance take.
const WORDS: usize = 19;
/// Flows that share a client address: about as many as there are ports, and a prime, so that not all clients' connections
/// from one port go to one server.
const PORTS: u32 = 49_999;
/// The low half of the first client's address.
const FIRST_CLIENT: u32 = 0x0a02;
/// The first of those ports.
const FIRST_PORT: u32 = 10_000;
/// Where frames have the halfword that makes up for what is written into them, so that their checksums stay right.
const BALANCE: u32 = 74;

/// How many flows the generator goes through.
#[unsafe(no_mangle)]
static FLOWS: Global<u32> = Global::new(1);
/// How many flows it goes on by: 1 goes through them in the order in which they were made.
#[unsafe(no_mangle)]
static STRIDE: Global<u32> = Global::new(1);
/// To how many services, which have successive ports, the flows go in turn.
#[unsafe(no_mangle)]
static SERVICES: Global<u32> = Global::new(1);
/// The port of the first.
#[unsafe(no_mangle)]
static FIRST_SERVICE: Global<u32> = Global::new(0);
/// Offset of the low half of the source address.
#[unsafe(no_mangle)]
static SOURCE: Global<u32> = Global::new(28);
/// Offset of the ports.
#[unsafe(no_mangle)]
static SOURCE_PORT: Global<u32> = Global::new(34);
/// Offset of IPv4's identification, which makes up for the source in the header's checksum; 0: there is none.
#[unsafe(no_mangle)]
static IDENTIFICATION: Global<u32> = Global::new(18);

/// The frame that the generator sends, but for its flow. What the flow decides is zero, and as if it were zero the
/// checksums are right.
#[map]
static TEMPLATE: Array<[u32; WORDS]> = Array::with_max_entries(1, 0);
/// The flow that comes next.
#[map]
static NEXT: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// Where a paced frame has the time at which it was made, in a part of its payload: only in TCP over IPv4.
pub(crate) const STAMP: usize = 66;

/// Frames of a burst, and how many nanoseconds there are between two bursts' beginnings.
#[unsafe(no_mangle)]
static BURST: Global<u32> = Global::new(1);
#[map]
static INTERVAL: Array<u64> = Array::with_max_entries(1, 0);
/// When the next burst is due, and how many frames of the last are still to come.
#[map]
static PACE: PerCpuArray<Pace> = PerCpuArray::with_max_entries(1, 0);

struct Pace {
    due: u64,
    left: u32,
    _padding: u32,
}

/// Writes the next flow's frame, of a request, and sends it. It writes all of the headers, for frames are used again, as
/// they came out of whatever is measured.
#[xdp]
pub(crate) fn generate(frame: XdpContext) -> u32 {
    request().and_then(|varied| write(&frame, varied, 0)).map_or(XDP_ABORTED, |()| XDP_TX)
}

/// The same for replies to what endpoints were offered.
#[xdp]
pub(crate) fn generate_replies(frame: XdpContext) -> u32 {
    reply().and_then(|varied| write(&frame, varied, 0)).map_or(XDP_ABORTED, |()| XDP_TX)
}

/// The same for requests, in bursts with time between them; frames tell when they were made.
#[xdp]
pub(crate) fn generate_paced(frame: XdpContext) -> u32 {
    try_generate_paced(&frame).map_or(XDP_ABORTED, |()| XDP_TX)
}

#[inline(always)]
fn try_generate_paced(frame: &XdpContext) -> Option<()> {
    wait_for_turn()?;
    let now = time();
    let halves = pointer::<[u16; 4]>(frame, STAMP)?.cast::<u16>();
    let varied = request()?;
    let mut sum = 0;
    for index in 0..4 {
        sum += low_half(now >> (16 * index));
    }
    write(frame, varied, sum)?;
    for index in 0..4_usize {
        let half = u16::try_from(low_half(now >> (16 * index))).ok()?.to_be();
        // SAFETY: the verifier saw the comparison in `pointer`.
        unsafe { halves.add(index).write(half) };
    }
    Some(())
}

/// Where a burst begins, until it is due.
#[inline(always)]
fn wait_for_turn() -> Option<()> {
    /// More than a tenth of a millisecond is not waited.
    const LOOKS: u32 = 4_096;
    let pace = PACE.get_ptr_mut(0)?;
    // SAFETY: not null, this CPU's own copy.
    let pace = unsafe { &mut *pace };
    if pace.left == 0 {
        let mut now = time();
        for _ in 0..LOOKS {
            if now >= pace.due {
                break;
            }
            now = time();
        }
        pace.due = now + *INTERVAL.get(0)?;
        pace.left = BURST.load();
    }
    pace.left -= 1;
    Some(())
}

#[inline(always)]
pub(crate) fn time() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn low_half(number: u64) -> u32 {
    (number & 0xffff) as u32
}

/// Writes a frame out of the template, what it has of its own and what makes up for that; `rest` is the sum of what will be
/// written beyond that.
#[inline(always)]
fn write(frame: &XdpContext, (source, ports): (u32, [u32; 2]), rest: u32) -> Option<()> {
    let template = TEMPLATE.get(0)?;
    let head = pointer::<[u32; WORDS]>(frame, 0)?.cast::<u32>();
    for (index, word) in template.iter().enumerate() {
        // SAFETY: the verifier saw the comparison in `pointer`; a frame begins at a multiple of four. One by one, for the
        // compiler would copy them all byte by byte.
        unsafe { head.add(index).write_volatile(*word) };
    }
    put(frame, SOURCE.load(), source)?;
    if IDENTIFICATION.load() != 0 {
        put(frame, IDENTIFICATION.load(), !source)?;
    }
    put(frame, SOURCE_PORT.load(), ports[0])?;
    put(frame, SOURCE_PORT.load() + 2, ports[1])?;
    let sum = source + ports[0] + ports[1] + rest;
    let sum = (sum & 0xffff) + (sum >> 16);
    put(frame, BALANCE, !((sum & 0xffff) + (sum >> 16)))
}

/// What the next flow's request has of its own: the low half of the source address, and both ports.
#[inline(always)]
fn request() -> Option<(u32, [u32; 2])> {
    let flow = next_flow()?;
    let service = if SERVICES.load() == 1 { 0 } else { flow.checked_rem(SERVICES.load())? };
    Some((FIRST_CLIENT + flow / PORTS, [FIRST_PORT + flow % PORTS, FIRST_SERVICE.load() + service]))
}

/// What its reply has.
#[inline(always)]
fn reply() -> Option<(u32, [u32; 2])> {
    let offered = *OFFERED.get(next_flow()?)?;
    Some((offered >> 16, [SERVER_PORT.load(), offered & 0xffff]))
}

/// Writes the low half of a number, big-endian, at an even offset.
#[inline(always)]
fn put(frame: &XdpContext, offset: u32, number: u32) -> Option<()> {
    let word = u16::try_from(number & 0xffff).ok()?.to_be();
    // SAFETY: the verifier saw the comparison in `pointer`.
    unsafe { pointer::<u16>(frame, (offset & 0x7e) as usize)?.write(word) };
    Some(())
}

#[inline(always)]
fn next_flow() -> Option<u32> {
    let next = NEXT.get_ptr_mut(0)?;
    // SAFETY: not null, this CPU's own copy.
    unsafe {
        let flow = *next;
        let following = flow + STRIDE.load();
        *next = if following >= FLOWS.load() { following - FLOWS.load() } else { following };
        Some(flow)
    }
}
