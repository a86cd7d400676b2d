//! What goes to stdout.

use std::io::{self, Write};

use serde::Serialize;

use super::Failed;

/// Prints what a command found, for people or for programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    pub(super) json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// `value` as JSON, or else what `text` makes for people.
    pub(super) fn show<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failed> {
        if self.json {
            self.line(&serde_json::to_string(value)?)
        } else {
            self.line(text(value).trim_end())
        }
    }

    pub(super) fn line(self, text: &str) -> Result<(), Failed> {
        match writeln!(io::stdout().lock(), "{text}") {
            // The reader has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result?),
        }
    }
}
