//! What load balancers and backends must agree on for SYN cookies: a key, and the time.

use std::time::{SystemTime, UNIX_EPOCH};

use ring::hmac;
use sluice_ebpf::cookie::Clock;

use crate::dataplane::jiffies_now;

/// The key of a fleet's cookies, from its secret. Derived, so that who learns the one does not know the other.
#[must_use]
pub fn key(secret: &[u8; 32]) -> [u64; 2] {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&secret, b"sluice syn cookie 1");
    let mut key = [0; 2];
    for (word, bytes) in key.iter_mut().zip(tag.as_ref().chunks_exact(8)) {
        *word = bytes
            .iter()
            .rev()
            .fold(0, |word, &byte| word << 8 | u64::from(byte));
    }
    key
}

/// The time of day, told by the kernel's clock of `hz`.
#[must_use]
pub fn clock(hz: u32) -> Clock {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX >> 16);
    Clock::new(now_ms, jiffies_now(hz), hz)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Load balancers and backends of different versions must agree.
    #[test]
    fn the_key_of_a_secret_never_changes() {
        assert_eq!(
            key(&[7; 32]),
            [0xfb5c_ae12_21ae_4176, 0xb0ec_a9e6_618f_13b1]
        );
    }

    #[test]
    fn the_clock_tells_the_time_of_day() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        for hz in [100, 250, 300, 1000] {
            let told = clock(hz).ms(jiffies_now(hz));
            let now_ms = u64::try_from(now.as_millis()).unwrap();
            assert!(told.abs_diff(now_ms) < 1000, "{hz}: {told}");
        }
    }
}
