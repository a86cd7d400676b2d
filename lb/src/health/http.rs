//! The request of an HTTP check, and what its answer means. Pure: bytes in, verdict out.

use std::net::{IpAddr, SocketAddr};

use super::check::CheckError;
use crate::config::{HttpCheck, Tls};

/// What is sent.
pub(super) fn request(check: &HttpCheck, peer: SocketAddr) -> Vec<u8> {
    let host = match &check.host {
        Some(host) => host.clone(),
        None => host_of(peer, &check.tls),
    };
    format!(
        "GET {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: sluice-health\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        check.path
    )
    .into_bytes()
}

/// Whether more of an answer is coming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Open,
    Ended,
}

/// What is known of an answer so far: `Ok(true)` it is good, `Ok(false)` more is needed.
///
/// Interim answers (100 to 199, but not 101) are skipped.
pub(super) fn judge(
    check: &HttpCheck,
    mut received: &[u8],
    stream: Stream,
) -> Result<bool, CheckError> {
    let limit = received.len() >= LIMIT_BYTES;
    let (status, header, body) = loop {
        let known = received.len().min(PREFIX.len());
        if received[..known] != PREFIX[..known] {
            return Err(CheckError::NotHttp);
        }
        let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            return match stream {
                Stream::Ended => Err(CheckError::Closed),
                Stream::Open if limit => Err(CheckError::HeaderTooLong),
                Stream::Open => Ok(false),
            };
        };
        let (header, body) = (&received[..end], &received[end + 4..]);
        let status = status(header).ok_or(CheckError::NotHttp)?;
        if !(100..200).contains(&status) || status == 101 {
            break (status, header, body);
        }
        received = body;
    };
    if !check.status.contain(status) {
        return Err(CheckError::Status {
            got: status,
            expected: check.status.clone(),
        });
    }
    let Some(wanted) = &check.body else {
        return Ok(true);
    };
    let (body, complete) = content(header, body);
    let found = body
        .windows(wanted.len())
        .any(|bytes| bytes == wanted.as_bytes());
    if !found && (complete || limit || stream == Stream::Ended) {
        return Err(CheckError::Body {
            expected: wanted.clone(),
        });
    }
    Ok(found)
}

/// As much of an answer is looked at.
pub(super) const LIMIT_BYTES: usize = 64 * 1024;
const PREFIX: &[u8] = b"HTTP/1.";

/// "HTTP/1.1 200 OK": the status is at 9 to 12.
fn status(header: &[u8]) -> Option<u16> {
    std::str::from_utf8(header.get(9..12)?).ok()?.parse().ok()
}

/// The body as its sender meant it, and whether that is all of it.
fn content(header: &[u8], body: &[u8]) -> (Vec<u8>, bool) {
    if field(header, "transfer-encoding").is_some_and(|value| value.ends_with("chunked")) {
        return unchunked(body);
    }
    let length = field(header, "content-length").and_then(|value| value.parse::<usize>().ok());
    (body.to_vec(), length.is_some_and(|all| body.len() >= all))
}

/// A header field's value, in small letters.
fn field(header: &[u8], name: &str) -> Option<String> {
    let mut lines = header.split(|byte| *byte == b'\n').skip(1);
    lines.find_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name)
            .then(|| value.trim().to_ascii_lowercase())
    })
}

/// Takes the chunked transfer coding off (RFC 9112, 7.1), as far as the bytes go.
fn unchunked(mut body: &[u8]) -> (Vec<u8>, bool) {
    let mut all = Vec::with_capacity(body.len());
    loop {
        let Some(end) = body.windows(2).position(|bytes| bytes == b"\r\n") else {
            return (all, false);
        };
        let size = std::str::from_utf8(&body[..end])
            .ok()
            .and_then(|line| line.split(';').next())
            .and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
        match size {
            // What makes no sense ends the body.
            None | Some(0) => return (all, true),
            Some(size) => {
                let chunk = &body[end + 2..];
                all.extend_from_slice(&chunk[..size.min(chunk.len())]);
                let Some(rest) = size.checked_add(2).and_then(|next| chunk.get(next..)) else {
                    return (all, false);
                };
                body = rest;
            }
        }
    }
}

/// What a client would put into `Host` for this address.
fn host_of(peer: SocketAddr, tls: &Tls) -> String {
    let usual = if *tls == Tls::Off { 80 } else { 443 };
    match (peer.port() == usual, peer.ip()) {
        (true, IpAddr::V4(address)) => address.to_string(),
        (true, IpAddr::V6(address)) => format!("[{address}]"),
        _ => peer.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::config::Statuses;

    fn check(status: Statuses, body: Option<&str>) -> HttpCheck {
        HttpCheck {
            tls: Tls::Off,
            port: 80,
            path: "/health".into(),
            host: None,
            status,
            body: body.map(str::to_owned),
        }
    }

    fn ok() -> Statuses {
        Statuses::new(vec![200..=200])
    }

    fn whole(check: &HttpCheck, answer: &str) -> Result<(), String> {
        judge(check, answer.as_bytes(), Stream::Ended)
            .map(|good| assert!(good, "an answer that ended is good or bad"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_status_may_be_one_of_many() {
        let check = check(Statuses::new(vec![200..=299, 404..=404]), None);
        for good in [200, 204, 299, 404] {
            whole(&check, &format!("HTTP/1.1 {good} X\r\n\r\n")).unwrap();
        }
        assert_eq!(
            whole(&check, "HTTP/1.1 403 X\r\n\r\n").unwrap_err(),
            "status 403, expected 200-299, 404"
        );
    }

    #[test]
    fn interim_answers_are_skipped() {
        let answer = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
        assert!(judge(&check(ok(), None), answer, Stream::Open).unwrap());
        whole(&check(ok(), None), "HTTP/1.1 101 Switching\r\n\r\n").unwrap_err();
    }

    #[test]
    fn the_body_must_hold_what_is_expected() {
        let check = check(ok(), Some("all good"));
        for good in [
            "HTTP/1.1 200 OK\r\n\r\nwe are all good here",
            "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nall good",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n4;x=y\r\nall \r\n4\r\ngood\r\n0\r\n\r\n",
        ] {
            whole(&check, good).unwrap();
        }
        for bad in [
            "HTTP/1.1 200 OK\r\nX: all good\r\n\r\nno",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nall \r\n0\r\n\r\ngood",
        ] {
            assert_eq!(
                whole(&check, bad).unwrap_err(),
                "the body does not hold \"all good\""
            );
        }
        let whole_by_length = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno";
        judge(&check, whole_by_length, Stream::Open).unwrap_err();
        let open = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nall goo";
        assert!(!judge(&check, open, Stream::Open).unwrap());
    }

    #[test]
    fn an_answer_without_end_is_given_up() {
        let mut header = b"HTTP/1.1 200 OK\r\n".to_vec();
        header.resize(LIMIT_BYTES, b'x');
        let error = judge(&check(ok(), None), &header, Stream::Open).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the answer's header is longer than 64 KiB"
        );
        let mut body = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        body.resize(LIMIT_BYTES, b'x');
        judge(&check(ok(), Some("y")), &body, Stream::Open).unwrap_err();
    }

    #[test]
    fn the_host_header_is_written_as_a_client_would() {
        let host = |peer: &str, tls: &Tls| host_of(peer.parse().unwrap(), tls);
        assert_eq!(host("192.0.2.1:80", &Tls::Off), "192.0.2.1");
        assert_eq!(host("192.0.2.1:443", &Tls::Unverified), "192.0.2.1");
        assert_eq!(host("[2001:db8::1]:80", &Tls::Off), "[2001:db8::1]");
        assert_eq!(
            host("[2001:db8::1]:80", &Tls::Unverified),
            "[2001:db8::1]:80"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let check = check(ok(), Some("x"));
            let _verdict = judge(&check, &bytes, Stream::Open);
            let answer = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &bytes[..]].concat();
            let _verdict = judge(&check, &answer, Stream::Ended);
        }

        #[test]
        fn what_is_good_in_pieces_is_good_as_a_whole(cut in 0..100_usize) {
            let check = check(ok(), Some("good"));
            let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ngo\r\n2\r\nod\r\n0\r\n\r\n";
            let part = &answer[..cut.min(answer.len())];
            let early = judge(&check, part, Stream::Open);
            prop_assert!(early.is_ok());
            prop_assert_eq!(judge(&check, answer, Stream::Ended).unwrap(), true);
        }
    }
}
