//! What `cargo xtask bench` measures with: a generator of frames, a forwarder that does nothing else, a sketch of a
//! balancer, and a sink.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[path = "program/mod.rs"]
mod program;

use aya_ebpf::{
    Global,
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX},
    helpers::{bpf_jiffies64, bpf_redirect},
    macros::{map, xdp},
    maps::{Array, HashMap, PerCpuArray},
    programs::XdpContext,
};

/// Words of a frame that the generator writes: as many as the longest headers (IPv6 and TCP) take, and two bytes.
const WORDS: usize = 19;
/// Flows that share a client address: as many as there are ports, roughly.
const PORTS: u32 = 50_000;
/// The last two bytes of the first client's address.
const FIRST_CLIENT: u32 = 0x0a02;
/// The first of those ports.
const FIRST_PORT: u32 = 10_000;

/// How many flows the generator goes through.
#[unsafe(no_mangle)]
static FLOWS: Global<u32> = Global::new(1);
/// How many flows it goes on by: 1 goes through them in the order in which they were made.
#[unsafe(no_mangle)]
static STRIDE: Global<u32> = Global::new(1);
/// Offset of the last two bytes of the source address.
#[unsafe(no_mangle)]
static SOURCE: Global<u32> = Global::new(28);
/// Offset of the source port.
#[unsafe(no_mangle)]
static PORT: Global<u32> = Global::new(34);
/// Interface that the forwarder sends through; 0: where the frame came from.
#[unsafe(no_mangle)]
static EGRESS: Global<u32> = Global::new(0);

/// The frame that the generator sends, but for its flow.
#[map]
static TEMPLATE: Array<[u32; WORDS]> = Array::with_max_entries(1, 0);
/// The MAC addresses that the forwarder writes.
#[map]
static LINK: Array<[u32; 3]> = Array::with_max_entries(1, 0);
/// The flow that comes next.
#[map]
static NEXT: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// Frames that have come to the sink.
#[map]
static SUNK: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Writes the next flow's frame and sends it. It writes all of the headers, for frames are used again, as they came out of
/// whatever is measured.
#[xdp]
pub(crate) fn generate(frame: XdpContext) -> u32 {
    try_generate(&frame).map_or(XDP_ABORTED, |()| XDP_TX)
}

#[inline(always)]
fn try_generate(frame: &XdpContext) -> Option<()> {
    let template = TEMPLATE.get(0)?;
    let head = pointer::<[u32; WORDS]>(frame, 0)?.cast::<u32>();
    for (index, word) in template.iter().enumerate() {
        // SAFETY: the verifier saw the comparison in `pointer`; a frame begins at a multiple of four. One by one, for the
        // compiler would copy them all byte by byte.
        unsafe { head.add(index).write_volatile(*word) };
    }
    let flow = next_flow()?;
    put(frame, SOURCE.load(), FIRST_CLIENT + flow / PORTS)?;
    put(frame, PORT.load(), FIRST_PORT + flow % PORTS)?;
    Some(())
}

/// Writes a big-endian word at an even offset.
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

/// Sends a frame on and does nothing else: what forwarding costs without balancing.
#[xdp]
pub(crate) fn forward(frame: XdpContext) -> u32 {
    try_forward(&frame).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn try_forward(frame: &XdpContext) -> Option<u32> {
    let link = LINK.get(0)?;
    // SAFETY: as in `try_generate`.
    unsafe { pointer::<[u32; 3]>(frame, 0)?.write(*link) };
    Some(send(EGRESS.load()))
}

/// A flow of the sketch: as many bytes as one of the balancer's has.
#[derive(Clone, Copy)]
#[repr(C)]
struct SketchFlow {
    /// Source, destination, ports.
    becomes: [u32; 3],
    /// For the checksums of both headers.
    deltas: [u16; 2],
    link: [u32; 3],
    egress: u32,
    last: u64,
    backend: u32,
    rest: [u32; 5],
}

/// The sketch's flows, by source, destination, ports and protocol; one entry each, where a balancer has a pair.
#[map]
static SKETCH_FLOWS: HashMap<[u32; 4], SketchFlow> = HashMap::with_max_entries(1 << 19, 0);
/// Packets and bytes by backend.
#[map]
static SKETCH_COUNTERS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(64, 0);

/// The least that translating takes, for IPv4 and TCP alone: one look-up, a rewriting, a redirect; no replies, states,
/// services, errors. What a product with all of them has to keep up with.
#[xdp]
pub(crate) fn sketch(frame: XdpContext) -> u32 {
    try_sketch(&frame).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn try_sketch(frame: &XdpContext) -> Option<u32> {
    let head = pointer::<[u8; 56]>(frame, 0)?.cast::<u8>();
    // SAFETY: all offsets are below the 56 that the verifier saw compared.
    let (words, halves, bytes) = unsafe { (head.add(26).cast::<u32>(), head.cast::<u16>(), head) };
    // SAFETY: as above.
    let (key, is_tcp) = unsafe {
        let key = [words.read_volatile(), words.add(1).read_volatile(), words.add(2).read_volatile(), 6];
        (
            key,
            halves.add(6).read() == 0x0800_u16.to_be()
                && bytes.add(14).read() == 0x45
                && bytes.add(23).read() == 6,
        )
    };
    if !is_tcp {
        return None;
    }
    let flow = SKETCH_FLOWS.get_ptr_mut(key).or_else(|| sketch_flow(&key))?;
    // SAFETY: as above for the frame; `flow` is map memory, not null, as are the counters.
    unsafe {
        // SAFETY: a helper without arguments.
        let now = bpf_jiffies64() >> 6;
        if (*flow).last != now {
            (*flow).last = now;
        }
        for (index, word) in (*flow).link.iter().enumerate() {
            head.cast::<u32>().add(index).write_volatile(*word);
        }
        for (index, word) in (*flow).becomes.iter().enumerate() {
            words.add(index).write_volatile(*word);
        }
        bytes.add(22).write(bytes.add(22).read().wrapping_sub(1));
        for (half, delta) in [(12, (*flow).deltas[0]), (25, (*flow).deltas[1])] {
            let sum = u32::from(!halves.add(half).read()) + u32::from(delta);
            halves.add(half).write(u16::try_from(!((sum & 0xffff) + (sum >> 16)) & 0xffff).ok()?);
        }
        let counters = SKETCH_COUNTERS.get_ptr_mut((*flow).backend)?;
        (*counters)[0] += 1;
        (*counters)[1] += (frame.data_end() - frame.data()) as u64;
        Some(send((*flow).egress))
    }
}

/// A new flow: half of what a balancer inserts.
#[inline(never)]
fn sketch_flow(key: &[u32; 4]) -> Option<*mut SketchFlow> {
    let [src, dst, ports, _] = *key;
    let flow = SketchFlow {
        becomes: [dst, src, ports],
        deltas: [0x1234, 0x4321],
        link: *LINK.get(0)?,
        egress: EGRESS.load(),
        last: 0,
        backend: ports & 31,
        rest: [0; 5],
    };
    SKETCH_FLOWS.insert(key, flow, 0).ok()?;
    SKETCH_FLOWS.get_ptr_mut(key)
}

/// Through that interface, or 0: back where the frame came from.
#[inline(always)]
fn send(egress: u32) -> u32 {
    if egress == 0 {
        return XDP_TX;
    }
    // SAFETY: a helper without pointers.
    u32::try_from(unsafe { bpf_redirect(egress, 0) }).unwrap_or(XDP_ABORTED)
}

/// Counts a frame and throws it away.
#[xdp]
pub(crate) fn sink(_frame: XdpContext) -> u32 {
    if let Some(sunk) = SUNK.get_ptr_mut(0) {
        // SAFETY: not null, this CPU's own copy.
        unsafe { *sunk += 1 }
    }
    XDP_DROP
}

#[inline(always)]
fn pointer<T>(frame: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = frame.data() + offset;
    if start + size_of::<T>() > frame.data_end() { None } else { Some(start as *mut T) }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
