//! Where the kernel enters the program.

use aya_ebpf::{macros::xdp, programs::XdpContext};

use super::pipeline;

#[xdp]
#[inline(always)]
fn sluice(context: XdpContext) -> u32 {
    pipeline::run(context.ctx)
}
