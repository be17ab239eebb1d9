//! Atomic additions to map memory, which `core` does not offer on this target.

/// Adds one to `*counter` and returns what it was.
///
/// # Safety
///
/// `counter` points to a live, aligned u64 in a map.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn fetch_increment(counter: *mut u64) -> u64 {
    let mut number: u64 = 1;
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

/// For clippy, which reads the program on the host.
///
/// # Safety
///
/// None: nothing calls it.
#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn fetch_increment(_counter: *mut u64) -> u64 {
    unreachable!("the host has no maps")
}
