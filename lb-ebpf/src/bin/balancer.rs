//! The XDP program. What it does is in `kernel/pipeline.rs`.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a program for the kernel; `sluice run` loads it");
}

#[cfg(target_arch = "bpf")]
#[path = "../kernel/mod.rs"]
#[expect(unreachable_pub, reason = "a program has no outside")]
mod kernel;

// What `kernel` knows as `crate::`.
#[cfg(target_arch = "bpf")]
use sluice_ebpf::{abi, checksum, encap, exact, flow, gcra, hash, hide, packet, vip};

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{macros::xdp, programs::XdpContext};

    use crate::kernel::pipeline;

    #[xdp]
    fn sluice(context: XdpContext) -> u32 {
        pipeline::run(context.ctx)
    }

    /// The kernel lets only programs under a GPL-compatible licence call some helpers.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        unsafe extern "C" {
            /// Nowhere defined: a panic that can be reached fails the build.
            fn a_panic_can_be_reached() -> !;
        }
        // SAFETY: never linked.
        unsafe { a_panic_can_be_reached() }
    }
}
