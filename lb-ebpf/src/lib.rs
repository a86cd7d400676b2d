//! What the kernel and the daemon share: packet logic without a kernel, and the types that cross the boundary.
#![cfg_attr(target_arch = "bpf", no_std)]
