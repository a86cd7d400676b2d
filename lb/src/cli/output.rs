//! What goes to stdout.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::Failed;

/// Prints what a command found, for people or for programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    pub(super) json: bool,
    pub(super) ink: Ink,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            ink: Ink::of(&io::stdout()),
        }
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
        self.raw(&format!("{text}\n"))
    }

    /// What comes next takes the place of what a terminal shows.
    pub(super) fn clear(self) -> Result<(), Failed> {
        if self.ink == Ink::Colours && !self.json {
            // To the top, and what was there is gone.
            self.raw("\x1b[H\x1b[2J")?;
        }
        Ok(())
    }

    /// As it is.
    pub(super) fn raw(self, text: &str) -> Result<(), Failed> {
        let mut stdout = io::stdout().lock();
        let written = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush());
        match written {
            // The reader has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            result => Ok(result?),
        }
    }
}

/// Whether words have colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Plain,
    Colours,
}

impl Ink {
    /// Colours on a terminal only, and never if `NO_COLOR` is set (no-color.org) or the terminal cannot.
    pub(super) fn of(stream: &impl IsTerminal) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if stream.is_terminal() && !set("NO_COLOR") && !dumb {
            Self::Colours
        } else {
            Self::Plain
        }
    }

    pub(super) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(super) fn doubtful(self, text: &str) -> String {
        self.with("33", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    pub(super) fn head(self, text: &str) -> String {
        self.with("1", text)
    }

    /// A cell, whose blanks are there already: states have their colours.
    pub(super) fn cell(self, cell: &str) -> String {
        match cell.trim() {
            "up" | "pass" | "tx" | "redirect" => self.good(cell),
            "down" | "drop" | "REFUSED" => self.bad(cell),
            "draining" | "drained" | "unknown" | "monitor" => self.doubtful(cell),
            _ => cell.to_owned(),
        }
    }

    fn with(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Colours => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}
