//! What only the kernel's build has: the maps, and the steps that a packet goes through.

pub mod amplification;
pub mod answer;
pub mod challenge;
pub mod cookie;
pub mod count;
pub mod echo;
pub mod entry;
pub mod flows;
pub mod forward;
pub mod fragments;
pub mod host;
pub mod limits;
pub mod maps;
pub mod out_of_state;
pub mod pipeline;
pub mod reset;
pub mod rules;
pub mod sample;
pub mod sanity;
pub mod sources;
pub mod too_big;
pub mod vips;

use core::arch::asm;

/// How a packet ended, if it was not sent to a backend.
#[derive(Clone, Copy)]
pub enum Verdict {
    /// To the host's stack, untouched.
    Pass,
    Drop(crate::abi::DropReason),
    /// An answer to its sender, on the interface where it came from.
    Reply,
}

/// The kernel's jiffies. Under 1 ns: the kernel replaces the call by a load.
#[inline(always)]
#[must_use]
pub fn jiffies() -> u64 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() }
}

/// The same reference, read through anew: what LLVM loaded before is not kept on the stack for it, which is small.
#[inline(always)]
#[must_use]
pub fn again<T>(reference: &T) -> &T {
    let mut pointer = core::ptr::from_ref(reference);
    // SAFETY: the template is a move of a register to itself; not `pure`, so that it stays where it is.
    unsafe { asm!("{0} = {0}", inout(reg) pointer, options(nomem, nostack, preserves_flags)) };
    // SAFETY: it is what it was.
    unsafe { &*pointer }
}

/// The element at `index` of a value whose number of elements is a power of two.
#[inline(always)]
#[must_use]
pub fn element<T: Copy, const N: usize>(value: &[T; N], index: u32) -> T {
    const { assert!(N.is_power_of_two()) };
    // SAFETY: the mask keeps the index below `N`.
    unsafe {
        value
            .as_ptr()
            .add(crate::hide(index as usize) & (N - 1))
            .read()
    }
}

/// Adds to a word that other CPUs add to as well.
///
/// # Safety
/// `word` must point into a map value.
#[inline(always)]
pub unsafe fn atomic_add(word: *mut u64, amount: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("lock *(u64*)({word} + 0) += {amount}", word = in(reg) word, amount = in(reg) amount, options(nostack));
    }
}

/// Replaces `old` by `new`, and returns what was there.
///
/// # Safety
/// `word` must point into a map value.
#[inline(always)]
pub unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    let found;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("r0 = cmpxchg_64({word} + 0, r0, {new})", word = in(reg) word, new = in(reg) new, inout("r0") old => found, options(nostack));
    }
    found
}
