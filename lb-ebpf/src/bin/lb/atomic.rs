//! Atomic additions to map memory, which `core` does not offer on this target.

use core::arch::asm;

/// Adds one to `*counter` and returns what it was.
///
/// # Safety
///
/// `counter` points to a live, aligned u64 in a map.
#[inline(always)]
pub(crate) unsafe fn fetch_increment(counter: *mut u64) -> u64 {
    let mut number: u64 = 1;
    // SAFETY: the caller's promise; the verifier checks that it is map memory.
    unsafe {
        asm!(
            "{n} = atomic_fetch_add((u64 *)({p} + 0), {n})",
            p = in(reg) counter,
            n = inout(reg) number,
            options(nostack),
        );
    }
    number
}
