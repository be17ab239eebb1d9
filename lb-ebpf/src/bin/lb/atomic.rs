//! Atomic operations on map memory, which `core` does not offer on this target. All are ordered with everything else.

/// Adds `number` to `*counter` and returns what it was.
///
/// # Safety
///
/// `counter` points to a live, aligned u64 in a map.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn fetch_add(counter: *mut u64, number: u64) -> u64 {
    let mut number = number;
    // SAFETY: the caller's promise; the verifier checks that it is map memory.
    unsafe {
        core::arch::asm!(
            "{n} = atomic_fetch_add((u64 *)({p} + 0), {n})",
            p = in(reg) counter,
            n = inout(reg) number,
            options(nostack),
        );
    }
    number
}

/// Writes `new` to `*word` if `old` is there; says whether it was.
///
/// # Safety
///
/// `word` points to a live, aligned u32 in a map.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn compare_exchange(word: *mut u32, old: u32, new: u32) -> bool {
    let found: u32;
    // SAFETY: the caller's promise; the verifier checks that it is map memory.
    unsafe {
        core::arch::asm!(
            "w0 = cmpxchg32_32(r1 + 0, w0, w2)",
            in("r1") word,
            in("w2") new,
            inout("w0") old => found,
            options(nostack),
        );
    }
    found == old
}

/// For clippy, which reads the program on the host.
///
/// # Safety
///
/// None: nothing calls it.
#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn fetch_add(_counter: *mut u64, _number: u64) -> u64 {
    unreachable!("the host has no maps")
}

/// Likewise.
///
/// # Safety
///
/// None: nothing calls it.
#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn compare_exchange(_word: *mut u32, _old: u32, _new: u32) -> bool {
    unreachable!("the host has no maps")
}
