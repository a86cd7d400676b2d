//! Where the kernel enters the program.

use aya_ebpf::{macros::xdp, programs::XdpContext};

use super::pipeline;

#[xdp]
#[inline(always)]
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
