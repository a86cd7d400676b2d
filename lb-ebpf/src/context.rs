//! Where the kernel put the frame.

use aya_ebpf::bindings::xdp_md;

use crate::packet::Frame;

/// The frame as it is now. Pointers into what it was before an `adjust` are dead.
#[inline(always)]
#[must_use]
pub fn frame(context: *mut xdp_md) -> Frame {
    // Volatile: or LLVM would read them in the caller and pass the halves that they are declared as.
    // SAFETY: the context is the program's own.
    let start = unsafe { (&raw const (*context).data).read_volatile() } as usize;
    // SAFETY: as above.
    let end = unsafe { (&raw const (*context).data_end).read_volatile() } as usize;
    // SAFETY: the kernel says where the frame lies.
    unsafe { Frame::new(start, end) }
}
