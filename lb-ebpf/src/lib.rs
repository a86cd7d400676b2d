//! What the kernel and the daemon share: packet logic that needs no kernel, and the types that cross the boundary.
//!
//! Built for the host it is an ordinary library with tests. The maps and the steps of the XDP program are in `kernel/`, a
//! module of `bin/balancer.rs`: whatever a library exports, each of the programs that link it would carry.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(
    clippy::cast_possible_truncation,
    reason = "the lower bits of hashes and header words are what is wanted"
)]

pub mod abi;
pub mod amplification;
pub mod backend;
pub mod challenge;
pub mod checksum;
pub mod cookie;
pub mod decap;
pub mod encap;
pub mod exact;
pub mod flow;
pub mod gcra;
pub mod handshake;
pub mod hash;
pub mod packet;
pub mod reset;
pub mod rules;
pub mod sanity;
pub mod siphash;
pub mod sketch;
pub mod sources;
pub mod vip;

#[cfg(target_arch = "bpf")]
pub mod context;
#[cfg(target_arch = "bpf")]
mod program;

/// Hides a value's origin from LLVM, so that the check which the verifier needs is not optimised away.
///
/// LLVM proves masks and bounds redundant that the verifier cannot prove by itself.
#[inline(always)]
#[must_use]
pub fn hide(value: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: the template is a move of a register to itself.
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags));
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}

/// Has the kernel's verifier forget what it knows of a value: mixed with one that it knows nothing of, and back.
///
/// It follows each way to a place anew for each value that it knows there, and once where it knows none.
#[inline(always)]
#[must_use]
pub fn forget(value: usize, unknown: usize) -> usize {
    hide(value ^ unknown) ^ unknown
}
