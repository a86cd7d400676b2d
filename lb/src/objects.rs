//! The programs for the kernel, as the build script compiled them.

/// The load balancer and filter.
pub static BALANCER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/balancer.o"));

/// Its twin, which tells what it would do.
pub static EXPLAIN: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/explain.o"));

/// Takes tunnel headers off at a backend.
pub static DECAP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap.o"));

/// Makes connections of cookies at a backend.
pub static BACKEND: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/backend.o"));

/// Programs that do next to nothing: the floors that the bench compares with, and what the far end of a veth needs.
pub static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench.o"));
