//! Entries that are set at run time: how they are answered, each with an entity tag, under which condition they are
//! changed, and what is wrong with those asked for.

use axum::{
    Json,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    Problem,
    model::{LimitItem, RuleItem, SourceDone, SourceItem},
};
use crate::{
    book::{BodyError, IF_MATCH, IF_NONE_MATCH, NoEtags, Precondition},
    control::{Novelty, Refused},
};

/// An entry that says what it is now.
pub(super) trait Entry: Serialize {
    fn etag(&self) -> &str;
}

/// An entry, with its entity tag in the header.
pub(super) fn tagged(entry: impl Entry) -> Response {
    let etag = HeaderValue::from_str(entry.etag()).expect("made of digits");
    ([(header::ETAG, etag)], Json(entry)).into_response()
}

/// The same for one that was set.
pub(super) fn set(novelty: Novelty, entry: impl Entry) -> Response {
    let status = match novelty {
        Novelty::New => StatusCode::CREATED,
        Novelty::Replaced => StatusCode::OK,
    };
    (status, tagged(entry)).into_response()
}

/// What is wrong with a body: with one of its fields, or it cannot be read at all.
pub(super) fn wrong(error: BodyError) -> Problem {
    let wrong = match error {
        BodyError::Malformed { field, message } => {
            let problem = Problem::new(StatusCode::BAD_REQUEST, message);
            return Problem { field, ..problem };
        }
        BodyError::Wrong(wrong) => wrong,
    };
    match Refused::from(wrong) {
        Refused::Invalid {
            message,
            field: None,
        } => Problem::new(StatusCode::BAD_REQUEST, message),
        refused => refused.into(),
    }
}

/// What `If-Match` or `If-None-Match` ask for.
pub(super) fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    let bad = |name: &str, why: String| {
        Problem::new(StatusCode::BAD_REQUEST, format!("{name}: {why}")).of_field(name)
    };
    let mut tags = headers.get_all(IF_MATCH).into_iter().peekable();
    if tags.peek().is_some() {
        if headers.contains_key(IF_NONE_MATCH) {
            let why = format!("one of this and {IF_MATCH}, not both");
            return Err(bad(IF_NONE_MATCH, why));
        }
        let tags: Vec<_> = tags
            .map(|value| value.to_str().unwrap_or_default())
            .collect();
        return tags
            .join(",")
            .parse()
            .map_err(|wrong: NoEtags| bad(IF_MATCH, wrong.to_string()));
    }
    match headers.get(IF_NONE_MATCH).map(HeaderValue::as_bytes) {
        None => Ok(Precondition::None),
        Some(b"*") => Ok(Precondition::Absent),
        Some(_) => Err(bad(IF_NONE_MATCH, "only `*` is of use here".into())),
    }
}

/// Who sends a condition counts on it: where none is looked at, that is said.
pub(super) fn refuse_condition(headers: &HeaderMap, why: &str) -> Result<(), Problem> {
    let mut names = [IF_MATCH, IF_NONE_MATCH].into_iter();
    match names.find(|name| headers.contains_key(*name)) {
        None => Ok(()),
        Some(name) => Err(Problem::new(StatusCode::BAD_REQUEST, why).of_field(name)),
    }
}

impl Entry for LimitItem {
    fn etag(&self) -> &str {
        &self.etag
    }
}

impl Entry for RuleItem {
    fn etag(&self) -> &str {
        &self.etag
    }
}

impl Entry for SourceItem {
    fn etag(&self) -> &str {
        &self.etag
    }
}

impl Entry for SourceDone {
    fn etag(&self) -> &str {
        self.entry.etag()
    }
}
