//! The least that translating takes, for IPv4 and TCP alone: one look-up, a rewriting, a redirect; no replies, states,
//! services, errors. What a product with all of them has to keep up with.

use aya_ebpf::{
    bindings::xdp_action::XDP_ABORTED,
    helpers::bpf_jiffies64,
    macros::{map, xdp},
    maps::{HashMap, PerCpuArray},
    programs::XdpContext,
};

use crate::{EGRESS, LINK, pointer, send};

/// A flow: as many bytes as one of the balancer's first table had.
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

/// The flows, by source, destination, ports and protocol; one entry each, where a balancer has a pair.
#[map]
static SKETCH_FLOWS: HashMap<[u32; 4], SketchFlow> = HashMap::with_max_entries(1 << 19, 0);
/// Packets and bytes by backend.
#[map]
static SKETCH_COUNTERS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(64, 0);

/// Translates a frame.
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
