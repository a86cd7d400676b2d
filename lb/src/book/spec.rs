//! What somebody asks for, read from JSON field by field, so that an error names the one that is wrong.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What is wrong with it, with which of its fields (empty: the whole), and where in the text of that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", place(field, *column))]
pub struct SpecError {
    pub field: String,
    /// In characters, from 1.
    pub column: Option<usize>,
    pub message: String,
}

impl SpecError {
    pub(crate) fn of(field: &str, message: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            column: None,
            message: message.into(),
        }
    }

    /// What is wrong with no single field.
    pub(crate) fn whole(message: impl Into<String>) -> Self {
        Self::of("", message)
    }

    /// The same in an array, at this index.
    pub(crate) fn at(self, index: usize) -> Self {
        let field = if self.field.is_empty() {
            format!("[{index}]")
        } else {
            format!("[{index}].{}", self.field)
        };
        Self { field, ..self }
    }
}

fn place(field: &str, column: Option<usize>) -> impl fmt::Display {
    let colon = if field.is_empty() { "" } else { ": " };
    match column {
        Some(column) => format!("{field}{colon}column {column}: "),
        None => format!("{field}{colon}"),
    }
}

/// Takes a field out of an object, if it is there.
pub(crate) fn take<T: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    field: &str,
) -> Result<Option<T>, SpecError> {
    let value = fields.remove(field).unwrap_or_default();
    serde_json::from_value(value).map_err(|wrong| SpecError::of(field, wrong.to_string()))
}
