//! What a driver can do for XDP, as the kernel tells by generic netlink (family `netdev`, Linux 6.3).

use std::io::{self, Read, Write};

use socket2::{Domain, Protocol, Socket, Type};

/// Bits of `enum netdev_xdp_act`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    /// Programs run in the driver, may send a frame back, and to another interface: BASIC and REDIRECT.
    pub const NATIVE: Self = Self(0b11);
    /// It sends what was redirected to it: NDO_XMIT.
    pub const SENDS_REDIRECTED: Self = Self(0b100);

    #[must_use]
    pub const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

/// Asks for one interface of the calling thread's network namespace.
pub fn xdp_features(ifindex: u32) -> io::Result<XdpFeatures> {
    let domain = Domain::from(libc::AF_NETLINK);
    let protocol = Protocol::from(libc::NETLINK_GENERIC);
    let mut socket = Socket::new(domain, Type::RAW.cloexec(), Some(protocol))?;
    let mut name = b"netdev\0".to_vec();
    name.resize(8, 0);
    let family = ask(
        &mut socket,
        CONTROL,
        GET_FAMILY,
        (FAMILY_NAME, 7, &name),
        FAMILY_ID,
    )?;
    let family = u16::from_ne_bytes(family.try_into().map_err(|_longer| malformed())?);
    let features = ask(
        &mut socket,
        family,
        GET_DEVICE,
        (IFINDEX, 4, &ifindex.to_ne_bytes()),
        XDP_FEATURES,
    )?;
    let features = features.try_into().map_err(|_longer| malformed())?;
    Ok(XdpFeatures(u64::from_ne_bytes(features)))
}

// From linux/genetlink.h and linux/netdev.h.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const GET_DEVICE: u8 = 1;
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
/// Of a message, and of generic netlink in it.
const HEADERS_BYTES: usize = 20;

/// Sends a request with one attribute (its kind, its length, its bytes with padding), and returns one of the answer's.
fn ask(
    socket: &mut Socket,
    family: u16,
    command: u8,
    (kind, length, padded): (u16, u16, &[u8]),
    wanted: u16,
) -> io::Result<Vec<u8>> {
    let total = u32::try_from(HEADERS_BYTES + 4 + padded.len()).map_err(io::Error::other)?;
    let request = u16::try_from(libc::NLM_F_REQUEST).map_err(io::Error::other)?;
    let mut message = Vec::new();
    message.extend(total.to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(request.to_ne_bytes());
    // Sequence and port: there is one request at a time.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend((length + 4).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(padded);
    socket.write_all(&message)?;
    let mut answer = vec![0; 16384];
    let length = socket.read(&mut answer)?;
    attribute(&answer[..length], wanted)
}

/// An attribute of the first message.
fn attribute(answer: &[u8], wanted: u16) -> io::Result<Vec<u8>> {
    let u16_at = |at: usize| {
        let bytes = answer.get(at..at + 2)?;
        Some(u16::from_ne_bytes([bytes[0], bytes[1]]))
    };
    let kind = u16_at(4).ok_or_else(malformed)?;
    if i32::from(kind) == libc::NLMSG_ERROR {
        let code = answer.get(16..20).ok_or_else(malformed)?;
        let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
        return Err(io::Error::from_raw_os_error(-code));
    }
    let mut at = HEADERS_BYTES;
    while let (Some(length), Some(kind)) = (u16_at(at), u16_at(at + 2)) {
        let length = usize::from(length);
        if kind == wanted {
            let value = answer.get(at + 4..at + length).ok_or_else(malformed)?;
            return Ok(value.to_vec());
        }
        at += length.max(4).next_multiple_of(4);
    }
    Err(malformed())
}

fn malformed() -> io::Error {
    io::Error::other("the kernel's answer makes no sense")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_found_behind_others() {
        let mut answer = vec![0; HEADERS_BYTES];
        answer.extend([5, 0, 1, 0, b'x', 0, 0, 0]);
        answer.extend([6, 0, 3, 0, 7, 8, 0, 0]);
        assert_eq!(attribute(&answer, 3).unwrap(), [7, 8]);
        assert!(attribute(&answer, 4).is_err());
        for length in 0..answer.len() {
            let _cut = attribute(&answer[..length], 3);
        }
    }

    #[test]
    fn an_error_of_the_kernel_is_one() {
        let mut answer = vec![0; HEADERS_BYTES];
        answer[4] = 2;
        answer[16..20].copy_from_slice(&(-libc::ENODEV).to_ne_bytes());
        let error = attribute(&answer, 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn the_loopback_has_no_native_xdp() {
        // An older kernel does not know the question.
        if let Ok(features) = xdp_features(1) {
            assert!(!features.contains(XdpFeatures::NATIVE));
        }
    }
}
