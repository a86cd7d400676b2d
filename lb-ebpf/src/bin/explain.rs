//! The explaining twin of the XDP program: it counts nothing and changes nothing but the frame.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a program for the kernel; `sluice explain` loads it");
}

#[cfg(target_arch = "bpf")]
#[path = "../kernel/mod.rs"]
#[expect(unreachable_pub, reason = "a program has no outside")]
mod kernel;

// What `kernel` knows as `crate::`.
#[cfg(target_arch = "bpf")]
use sluice_ebpf::{
    abi, amplification, challenge, checksum, context, cookie, decap, encap, exact, flow, forget,
    gcra, handshake, hash, hide, packet, reset, rules, sanity, sketch, sources, vip,
};

/// This program tells what its twin in `balancer.rs` would do.
#[cfg(target_arch = "bpf")]
const EXPLAINING: bool = true;
