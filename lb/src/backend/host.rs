//! What the kernel of a backend must allow, so that a connection can be made of a cookie.

use std::{fs, io};

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(
        "net.ipv4.tcp_syncookies is 0, and the kernel takes no cookies then; set it to 1 (`sysctl -w net.ipv4.tcp_syncookies=1`)"
    )]
    CookiesOff,
    #[error(
        "there is no net.ipv4.tcp_syncookies; a kernel with CONFIG_SYN_COOKIES is needed, and /proc must be mounted"
    )]
    NoCookies(#[source] io::Error),
}

/// Whether the kernel takes cookies, in the network namespace of the calling thread.
pub(super) fn takes_cookies() -> Result<(), HostError> {
    match sysctl("tcp_syncookies")
        .map_err(HostError::NoCookies)?
        .as_str()
    {
        "0" => Err(HostError::CookiesOff),
        _ => Ok(()),
    }
}

/// What is off here that load balancers may agree on with clients.
pub(super) fn is_off() -> Vec<String> {
    ["tcp_sack", "tcp_timestamps", "tcp_window_scaling", "tcp_ecn"]
        .into_iter()
        .filter(|name| sysctl(name).is_ok_and(|value| value == "0"))
        .map(|name| {
            format!(
                "net.ipv4.{name} is 0 here: set it to 1, or have the load balancers' answers not offer it"
            )
        })
        .collect()
}

fn sysctl(name: &str) -> io::Result<String> {
    fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).map(|value| value.trim().to_owned())
}
