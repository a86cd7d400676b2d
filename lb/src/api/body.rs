//! Reads a limit out of a request's body, field by field, so that an error names its field.

use axum::{body::Bytes, extract::rejection::BytesRejection, http::StatusCode};
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{
    Problem,
    model::{LimitBody, LimitClass},
};
use crate::config::Mode;

/// The limit that a body describes. Whether it fits the data plane is not looked at.
pub(super) fn limit(body: Result<Bytes, BytesRejection>) -> Result<LimitBody, Problem> {
    let mut fields = Fields(object(body)?);
    let limit = LimitBody {
        prefix: fields.required("prefix", "an address prefix like \"198.51.100.0/24\"")?,
        vip: fields.optional("vip", "the name of a VIP, or null for any")?,
        class: fields
            .optional(
                "class",
                "one of \"syn\", \"udp\", \"icmp\", \"other\", \"established\" and \"all\"",
            )?
            .unwrap_or(LimitClass::All),
        pps: fields.optional("pps", "a number of packets a second")?,
        bps: fields.optional("bps", "a number of bits a second")?,
        burst: fields.optional("burst", "a number of packets")?,
        mode: fields
            .optional("mode", "\"enforce\" or \"monitor\"")?
            .unwrap_or(Mode::Enforce),
        ttl_seconds: fields.optional("ttl_seconds", "a number of seconds, or null for ever")?,
        comment: fields.optional("comment", "a text")?.unwrap_or_default(),
    };
    if let Some(unknown) = fields.0.keys().next() {
        let known = "prefix, vip, class, pps, bps, burst, mode, ttl_seconds, comment";
        let why = format!("a limit has no field `{unknown}`; it has {known}");
        return Err(invalid(unknown, why));
    }
    check(&limit)?;
    Ok(limit)
}

fn check(limit: &LimitBody) -> Result<(), Problem> {
    let prefix: IpNet = limit.prefix;
    if prefix != prefix.trunc() {
        let right = prefix.trunc();
        let why = format!("{prefix} has bits beyond its length; the prefix is {right}");
        return Err(invalid("prefix", why));
    }
    if limit.pps.is_none() && limit.bps.is_none() {
        return Err(invalid("pps", "give `pps`, `bps` or both".into()));
    }
    for (field, value, most) in [
        ("pps", limit.pps, MOST_PPS),
        ("bps", limit.bps, MOST_BPS),
        ("burst", limit.burst.map(u64::from), MOST_BURST),
        ("ttl_seconds", limit.ttl_seconds, MOST_TTL_SECONDS),
    ] {
        if value.is_some_and(|value| !(1..=most).contains(&value)) {
            return Err(invalid(field, format!("`{field}` must be 1 to {most}")));
        }
    }
    if limit.comment.len() > MOST_COMMENT_BYTES || limit.comment.contains(char::is_control) {
        let why =
            format!("a comment has at most {MOST_COMMENT_BYTES} bytes, and no control characters");
        return Err(invalid("comment", why));
    }
    Ok(())
}

/// As in the config.
const MOST_PPS: u64 = 100_000_000;
const MOST_BPS: u64 = 10_000_000_000_000;
const MOST_BURST: u64 = 10_000_000;
/// Ten years.
const MOST_TTL_SECONDS: u64 = 315_360_000;
const MOST_COMMENT_BYTES: usize = 256;

fn object(body: Result<Bytes, BytesRejection>) -> Result<Map<String, Value>, Problem> {
    let body = body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    match serde_json::from_slice(&body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "the body must be a JSON object",
        )),
        Err(error) => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            format!("the body is not JSON: {error}"),
        )),
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn required<T: DeserializeOwned>(&mut self, name: &str, right: &str) -> Result<T, Problem> {
        self.optional(name, right)?
            .ok_or_else(|| invalid(name, format!("`{name}` is missing; it is {right}")))
    }

    fn optional<T: DeserializeOwned>(
        &mut self,
        name: &str,
        right: &str,
    ) -> Result<Option<T>, Problem> {
        let value = self.0.remove(name).unwrap_or_default();
        serde_json::from_value(value)
            .map_err(|_wrong| invalid(name, format!("`{name}` must be {right}")))
    }
}

fn invalid(field: &str, why: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why).of_field(field)
}
