//! What the program of `sluice backend` and its loader share.

use bytemuck::{Pod, Zeroable};

use crate::cookie::Clock;

/// Prefixes of VIPs that one agent can have.
pub const MAX_VIPS: u32 = 64;
/// Secrets that one agent can have: the fleet's, and the one before or after it.
pub const MAX_KEYS: u32 = 2;

/// What can change while the program runs. The only element of `SETTINGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    pub clock: Clock,
    pub keys: [[u64; 2]; MAX_KEYS as usize],
}

/// What became of packets with a good cookie. The only element of `STATS`, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Stats {
    /// The kernel took it: there is a connection, unless its listener's queue is full.
    pub accepted: u64,
    /// There is a connection already, or a socket that is about to be one: such a packet comes again when an answer got lost.
    pub known: u64,
    /// Nobody listens there.
    pub no_listener: u64,
    /// The kernel refuses what the cookie says: see [`Stats::refused_with`].
    pub refused: u64,
    /// The kernel's last refusal, as a positive error number.
    pub refused_with: u64,
}

/// What `bpf_sk_assign_tcp_reqsk` wants to know of a handshake (the kernel's `struct bpf_tcp_req_attrs`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Request {
    pub rcv_tsval: u32,
    pub rcv_tsecr: u32,
    pub mss: u16,
    pub rcv_wscale: u8,
    pub snd_wscale: u8,
    pub ecn_ok: u8,
    pub wscale_ok: u8,
    pub sack_ok: u8,
    pub tstamp_ok: u8,
    pub usec_ts_ok: u8,
    pub reserved: [u8; 3],
}
