//! What the host itself must get, whatever the filter says: sources that its operator named, to VIPs that it serves itself.

use core::hint::cold_path;

use super::maps::PROTECTED;
use crate::{
    abi::{FILTER_PROTECTED, MAX_PROTECTED, Vip},
    packet::Ip,
};

/// Whether a packet passes to the host before anything of the filter. If no source is named, this is a branch.
#[inline(always)]
pub fn takes(ip: &Ip, vip: &Vip) -> bool {
    if vip.filter & FILTER_PROTECTED == 0 {
        return false;
    }
    cold_path();
    sluice_protected(ip.source[0], ip.source[1])
}

/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_protected(high: u64, low: u64) -> bool {
    for at in 0..MAX_PROTECTED {
        if PROTECTED
            .get(at)
            .is_some_and(|prefix| prefix.holds([high, low]))
        {
            return true;
        }
    }
    false
}
