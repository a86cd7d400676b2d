//! Errors as RFC 9457 problem details.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{config::ConfigError, control::Refused};

/// Why a request was not done, as `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The kind of problem: the status says it all.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
    /// What is wrong: a field of the body, a parameter, a header, or a part of the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Errors of the config file.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<FileError>)]
    pub errors: Box<[FileError]>,
}

/// An error of the config file, and its place. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileError {
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub message: String,
}

/// The media type of [`Problem`].
pub(super) const CONTENT_TYPE: &str = "application/problem+json";

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or_default().into(),
            status: status.as_u16(),
            detail: detail.into(),
            field: None,
            errors: Box::default(),
        }
    }

    pub(super) fn of_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}

/// The number in a path by which one of these is named. Nothing is named by anything else.
pub(super) fn id_of(what: &str, id: &str) -> Result<u64, Problem> {
    let none = |_| Problem::new(StatusCode::NOT_FOUND, format!("there is no {what} {id}"));
    id.parse().map_err(none)
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let status = match &refused {
            Refused::NotFound(_) => StatusCode::NOT_FOUND,
            Refused::Conflict(_) => StatusCode::CONFLICT,
            Refused::Invalid { .. } | Refused::Config { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Refused::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Refused::Precondition { .. } => StatusCode::PRECONDITION_FAILED,
            Refused::Disk(_) => StatusCode::INSUFFICIENT_STORAGE,
            Refused::Busy(_) | Refused::Ended => StatusCode::SERVICE_UNAVAILABLE,
        };
        let problem = Self::new(status, refused.to_string());
        match refused {
            Refused::Invalid {
                field: Some(field), ..
            } => problem.of_field(field),
            Refused::Precondition { header, .. } => problem.of_field(header),
            Refused::Config { errors, .. } => Self {
                errors: errors.into_iter().map(FileError::from).collect(),
                ..problem
            },
            _ => problem,
        }
    }
}

impl From<ConfigError> for FileError {
    fn from(error: ConfigError) -> Self {
        Self {
            file: error.file,
            line: error.position.line,
            column: error.position.column,
            message: error.message,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self).unwrap_or_default();
        let kind = [(header::CONTENT_TYPE, CONTENT_TYPE)];
        (status, kind, body).into_response()
    }
}
