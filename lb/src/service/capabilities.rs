//! Gives up all rights of root but those that the daemon needs while it runs.

use std::{io, sync::OnceLock};

use nix::sys::prctl;

use crate::sys;

/// A capability of the kernel's, `capabilities(7)`.
struct Capability {
    name: &'static str,
    bit: u8,
}

/// What is kept, if it was there. All of it is needed again and again: a new interface is attached to, and a control
/// loop that failed opens the data plane anew.
const KEPT: [Capability; 4] = [
    // Attach XDP, keep neighbours resolved, checks through the tunnel.
    Capability {
        name: "CAP_NET_ADMIN",
        bit: 12,
    },
    // Checks by icmp, and through the tunnel.
    Capability {
        name: "CAP_NET_RAW",
        bit: 13,
    },
    // Load programs that use pointers as numbers.
    Capability {
        name: "CAP_PERFMON",
        bit: 38,
    },
    // Maps, programs, pins.
    Capability {
        name: "CAP_BPF",
        bit: 39,
    },
];

/// Gives up the others for good, also for programs that this one might start.
///
/// The kernel does that for one thread, and for those that it starts later: so this comes before any other thread.
pub fn reduce() -> io::Result<()> {
    prctl::set_no_new_privs()?;
    let kept = KEPT
        .iter()
        .fold(0, |kept, capability| kept | 1 << capability.bit);
    sys::set_capabilities(sys::capabilities()? & kept)
}

/// What this process has, by name; read when this is asked for first.
pub fn held() -> &'static [String] {
    static HELD: OnceLock<Vec<String>> = OnceLock::new();
    HELD.get_or_init(|| {
        let held = sys::capabilities().unwrap_or_default();
        let bits = (0..64).filter(|bit| held & 1 << bit != 0);
        bits.map(name).collect()
    })
}

fn name(bit: u8) -> String {
    match KEPT.iter().find(|capability| capability.bit == bit) {
        Some(capability) => capability.name.to_owned(),
        None => format!("capability {bit}"),
    }
}
