//! `GET /`: the live page. All of it is in one answer; its script asks this API, and nobody else.

use std::sync::LazyLock;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use ring::digest;

/// Where the page is.
pub(super) const PATH: &str = "/";

/// The live page
///
/// Status, VIPs, backends, flows, drops, limits, rules and events, as they are now. Everybody may have the page; by TCP it asks
/// for a token, which it keeps no longer than it is open.
#[utoipa::path(get, path = PATH, tag = "daemon", responses((status = 200, description = "For a browser", content_type = "text/html", body = String)))]
pub(super) async fn page() -> Response {
    static PAGE: LazyLock<String> = LazyLock::new(|| {
        let page = include_str!("page/page.html").replace("{style}", STYLE);
        page.replace("{script}", SCRIPT)
    });
    static POLICY: LazyLock<String> = LazyLock::new(policy);
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE.as_str()).into_response()
}

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// This style and this script and no other, and no host but this one.
fn policy() -> String {
    let (style, script) = (hash(STYLE), hash(SCRIPT));
    format!(
        "default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// As a policy names what it lets through.
pub(super) fn hash(text: &str) -> String {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    format!("sha256-{}", base64(hash.as_ref()))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |bytes: &[u8]| {
        let word = bytes
            .iter()
            .fold(0, |word, byte| word << 8 | usize::from(*byte));
        let word = word << (8 * (3 - bytes.len()));
        let digit = move |at: usize| match at <= bytes.len() {
            true => char::from(DIGITS[word >> (18 - 6 * at) & 63]),
            false => '=',
        };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_others_write_it() {
        for (bytes, text) in [
            ("", ""),
            ("M", "TQ=="),
            ("Ma", "TWE="),
            ("Man", "TWFu"),
            ("light w", "bGlnaHQgdw=="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        let empty = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(hash(""), empty);
    }
}
