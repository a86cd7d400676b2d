//! What is wrong with a config file: where, why, and what would be right.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    path::PathBuf,
};

/// Why a config was refused. Every error of a file is listed, not only the first.
#[derive(Debug, thiserror::Error)]
pub enum ConfigErrors {
    #[error("cannot read the config {}", file.display())]
    Unreadable { file: PathBuf, source: io::Error },
    #[error("{}", lines(errors, *more))]
    Invalid {
        /// In the order of the file; never empty.
        errors: Vec<ConfigError>,
        /// How many were found beyond those listed.
        more: usize,
    },
    #[error("cannot list the interfaces of this machine")]
    Host(#[source] io::Error),
}

impl ConfigErrors {
    /// The errors with their places; none if the file or the machine could not be looked at.
    pub fn errors(&self) -> &[ConfigError] {
        match self {
            Self::Unreadable { .. } | Self::Host(_) => &[],
            Self::Invalid { errors, .. } => errors,
        }
    }

    /// Good if nothing was found.
    pub(super) fn refuse(mut found: Vec<ConfigError>) -> Result<(), Self> {
        if found.is_empty() {
            return Ok(());
        }
        found.sort_by_key(|error| error.position);
        let more = found.len().saturating_sub(LISTED);
        found.truncate(LISTED);
        Err(Self::Invalid {
            errors: found,
            more,
        })
    }
}

/// One error and its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{position}: {message}")]
pub struct ConfigError {
    pub file: String,
    pub position: Position,
    pub message: String,
}

/// A place in a file. Both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Errors found so far, by byte offset. Shared by everything that reads one file.
///
/// Only the first `LISTED` are put into words: a hostile file must not cost minutes of looking for near names.
#[derive(Default)]
pub(super) struct Errors {
    found: RefCell<Vec<(usize, String)>>,
    more: Cell<usize>,
}

impl Errors {
    pub(super) fn add(&self, at: usize, message: impl FnOnce() -> String) {
        let mut found = self.found.borrow_mut();
        if found.len() < LISTED {
            found.push((at, message()));
        } else {
            self.more.set(self.more.get() + 1);
        }
    }

    /// `value`, if nothing was found.
    pub(super) fn into_result<T>(
        self,
        value: Option<T>,
        lines: &Lines<'_>,
        file: &str,
    ) -> Result<T, ConfigErrors> {
        let mut found = self.found.into_inner();
        match value {
            Some(value) if found.is_empty() => return Ok(value),
            _ => found.sort(),
        }
        let errors = found
            .into_iter()
            .map(|(at, message)| ConfigError {
                file: file.to_owned(),
                position: lines.position(at),
                message,
            })
            .collect();
        Err(ConfigErrors::Invalid {
            errors,
            more: self.more.get(),
        })
    }
}

const LISTED: usize = 100;

/// Finds the line and column of a byte offset.
pub(super) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let after_newlines = text
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'\n')
            .map(|(at, _)| at + 1);
        Self {
            text,
            starts: std::iter::once(0).chain(after_newlines).collect(),
        }
    }

    pub(super) fn position(&self, at: usize) -> Position {
        let at = at.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= at);
        let start = self.starts[line - 1];
        let column = self.text[start..]
            .char_indices()
            .take_while(|(offset, _)| start + offset < at)
            .count()
            + 1;
        Position { line, column }
    }
}

/// What a user wrote, in backquotes: without control characters, and not longer than a line can bear.
pub(super) fn quoted(text: &str) -> String {
    let shown: String = text
        .chars()
        .take(QUOTED_CHARS)
        .flat_map(char::escape_debug)
        .collect();
    let dots = if text.chars().nth(QUOTED_CHARS).is_some() {
        "..."
    } else {
        ""
    };
    format!(
        "`{}{dots}`",
        shown.replace("\\\"", "\"").replace("\\'", "'")
    )
}

const QUOTED_CHARS: usize = 64;

/// "; did you mean `x`?" if one of `names` is near, else the names if they are few.
pub(crate) fn suggestion<'n>(word: &str, names: impl IntoIterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    if let Some(name) = nearest(word, &names) {
        return format!("; did you mean {}?", quoted(name));
    }
    match names.len() {
        0 => String::new(),
        1 => format!("; there is only {}", quoted(names[0])),
        2..=FEW => format!("; there are {}", listed(&names)),
        _ => String::new(),
    }
}

const FEW: usize = 12;

/// "`a`, `b` and `c`".
fn listed(names: &[&str]) -> String {
    let mut quoted: Vec<String> = names.iter().map(|name| quoted(name)).collect();
    let last = quoted.pop().unwrap_or_default();
    if quoted.is_empty() {
        last
    } else {
        format!("{} and {last}", quoted.join(", "))
    }
}

fn nearest<'n>(word: &str, names: &[&'n str]) -> Option<&'n str> {
    if word.len() > QUOTED_CHARS {
        return None;
    }
    let allowed = (word.chars().count() / 3).max(1);
    names
        .iter()
        .filter(|name| name.len().abs_diff(word.len()) <= allowed)
        .map(|name| (strsim::osa_distance(word, name), *name))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name)
}

/// 1048576 as `1_048_576`, the way TOML may write it.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('_');
        }
        out.push(digit);
    }
    out
}

fn lines(errors: &[ConfigError], more: usize) -> String {
    let mut lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    if more > 0 {
        lines.push(format!("and {more} more errors"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_counts_characters_from_1() {
        let lines = Lines::new("äb\nc = ü x\n");
        assert_eq!(lines.position(0), Position { line: 1, column: 1 });
        assert_eq!(lines.position(2), Position { line: 1, column: 2 });
        assert_eq!(
            lines.position("äb\nc = ü ".len()),
            Position { line: 2, column: 7 }
        );
        assert_eq!(lines.position(9_999), Position { line: 3, column: 1 });
    }

    #[test]
    fn a_near_name_is_suggested_and_a_far_one_is_not() {
        assert_eq!(
            suggestion("adress", ["name", "address"]),
            "; did you mean `address`?"
        );
        assert_eq!(suggestion("wbe", ["web", "dns"]), "; did you mean `web`?");
        assert_eq!(
            suggestion("zebra", ["web", "dns"]),
            "; there are `web` and `dns`"
        );
        assert_eq!(suggestion("zebra", []), "");
    }

    #[test]
    fn what_a_user_wrote_is_quoted_without_control_characters() {
        assert_eq!(quoted("a\u{1b}[2J"), "`a\\u{1b}[2J`");
        assert!(quoted(&"x".repeat(1_000)).len() < 80);
    }

    #[test]
    fn numbers_are_grouped_by_threes() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_048_576), "1_048_576");
    }
}
