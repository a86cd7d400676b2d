//! How entries are answered that are set at run time, each with an entity tag, and what is wrong with those asked for.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    Problem,
    model::{LimitItem, RuleItem, SourceDone, SourceItem},
};
use crate::control::{Novelty, Refused};

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
pub(super) fn wrong(error: impl Into<Refused>) -> Problem {
    match error.into() {
        Refused::Invalid {
            message,
            field: None,
        } => Problem::new(StatusCode::BAD_REQUEST, message),
        refused => refused.into(),
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
