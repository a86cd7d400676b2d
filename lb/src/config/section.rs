//! Takes values out of parsed TOML: each is of the type and in the range asked for, or becomes an error with its place.

use std::{fmt, net::IpAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{Errors, grouped, quoted, suggestion},
    keys::Keys,
};

/// A table whose keys are all known.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    table: &'a DeTable<'a>,
    keys: &'static Keys,
    errors: &'a Errors,
    /// Byte offset of its header.
    pub(super) at: usize,
}

impl<'a> Section<'a> {
    /// Reports keys that do not belong here.
    pub(super) fn new(
        table: &'a DeTable<'a>,
        at: usize,
        keys: &'static Keys,
        errors: &'a Errors,
    ) -> Self {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if keys.later.contains(&name) {
                errors.add(key.span().start, || {
                    format!(
                        "{}{} is not available in this version; remove it",
                        quoted(name),
                        inside(keys)
                    )
                });
            } else if !keys.known.contains(&name) {
                errors.add(key.span().start, || {
                    let near = suggestion(name, keys.known.iter().copied());
                    format!("unknown key {}{}{near}", quoted(name), inside(keys))
                });
            }
        }
        Self {
            table,
            keys,
            errors,
            at,
        }
    }

    pub(super) fn get(&self, key: &'static str) -> Option<Field<'a>> {
        debug_assert!(
            self.keys.known.contains(&key),
            "`{key}` is missing from keys.rs"
        );
        let value = self.table.get(key)?;
        Some(Field {
            key,
            value: value.get_ref(),
            errors: self.errors,
            at: value.span().start,
        })
    }

    /// As `get`, but absence is an error. `example` completes "write `key = ...`".
    pub(super) fn required(&self, key: &'static str, example: &str) -> Option<Field<'a>> {
        let field = self.get(key);
        if field.is_none() {
            self.errors.add(self.at, || {
                format!(
                    "missing key `{key}`{}; write {}",
                    inside(self.keys),
                    quoted(&format!("{key} = {example}"))
                )
            });
        }
        field
    }

    /// What `read` makes of the key's value, or `default` if the key is absent.
    pub(super) fn or<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(Field<'a>) -> Option<T>,
    ) -> Option<T> {
        self.get(key).map_or(Some(default), read)
    }

    /// As `or`, for a key whose absence means something of its own: that is `Some(None)`.
    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(Field<'a>) -> Option<T>,
    ) -> Option<Option<T>> {
        self.or(key, None, |field| read(field).map(Some))
    }

    pub(super) fn error(&self, message: impl FnOnce() -> String) {
        self.errors.add(self.at, message);
    }
}

/// A value and the key it was given for. Its methods return nothing after they have reported an error.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    key: &'static str,
    value: &'a DeValue<'a>,
    errors: &'a Errors,
    /// Byte offset of the value.
    pub(super) at: usize,
}

impl<'a> Field<'a> {
    pub(super) fn error(&self, message: impl FnOnce() -> String) {
        self.errors.add(self.at, message);
    }

    /// What came of the value, or its error at this place.
    pub(super) fn accept<T>(&self, result: Result<T, String>) -> Option<T> {
        result.map_err(|wrong| self.error(|| wrong)).ok()
    }

    /// The text, if it is one; nothing is reported if not.
    pub(super) fn text(&self) -> Option<&'a str> {
        if let DeValue::String(text) = self.value {
            Some(text)
        } else {
            None
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self.value {
            DeValue::Boolean(value) => Some(*value),
            DeValue::String(text) if ["true", "false"].contains(&text.as_ref()) => {
                self.wrong_type("a boolean", "; remove the quotes");
                None
            }
            _ => {
                self.wrong_type("a boolean", "; write true or false");
                None
            }
        }
    }

    pub(super) fn is_array(&self) -> bool {
        matches!(self.value, DeValue::Array(_))
    }

    pub(super) fn string(&self) -> Option<&'a str> {
        match self.value {
            DeValue::String(text) => Some(text),
            other => {
                let hint = match other {
                    DeValue::Array(_) | DeValue::Table(_) => "",
                    _ => "; put it in quotes",
                };
                self.wrong_type("a string", hint);
                None
            }
        }
    }

    pub(super) fn integer<T>(&self, range: RangeInclusive<T>) -> Option<T>
    where
        T: Copy + Into<u64> + TryFrom<u64>,
    {
        let DeValue::Integer(number) = self.value else {
            let hint = match self.value {
                DeValue::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                    "; remove the quotes"
                }
                _ => "",
            };
            self.wrong_type("an integer", hint);
            return None;
        };
        let (low, high): (u64, u64) = ((*range.start()).into(), (*range.end()).into());
        let value = u64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .filter(|value| (low..=high).contains(value));
        if value.is_none() {
            self.error(|| {
                let (low, high) = (grouped(low), grouped(high));
                format!(
                    "`{}` is {}; it must be {low} to {high}",
                    self.key,
                    shorten(&number.to_string())
                )
            });
        }
        T::try_from(value?).ok()
    }

    /// A power of two in the range.
    pub(super) fn power_of_two(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let value = self.integer(range.clone())?;
        if !value.is_power_of_two() {
            let above = value.next_power_of_two();
            let nearest = if above - value > value - above / 2 {
                above / 2
            } else {
                above
            };
            let nearest = nearest.clamp(*range.start(), *range.end());
            self.error(|| {
                let (value, nearest) = (grouped(value.into()), grouped(nearest.into()));
                format!(
                    "`{}` is {value}; it must be a power of two, the nearest is {nearest}",
                    self.key
                )
            });
            return None;
        }
        Some(value)
    }

    /// One of `words`.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.error(|| {
            format!(
                "unknown `{}` {}{}",
                self.key,
                quoted(text),
                suggestion(text, names.iter().copied())
            )
        });
        None
    }

    /// Like "200ms" or "15m".
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let DeValue::String(text) = self.value else {
            self.wrong_type(
                "a duration",
                "; write it with its unit, like \"500ms\" or \"5s\"",
            );
            return None;
        };
        match humantime::parse_duration(text) {
            Ok(value) if range.contains(&value) => return Some(value),
            Ok(_) => self.error(|| {
                let (low, high) = (
                    humantime::format_duration(*range.start()),
                    humantime::format_duration(*range.end()),
                );
                format!(
                    "`{}` is {}; it must be {low} to {high}",
                    self.key,
                    quoted(text)
                )
            }),
            Err(_) => self.error(|| {
                format!(
                    "`{}` is {}, not a duration; write it like \"500ms\", \"5s\" or \"15m\"",
                    self.key,
                    quoted(text)
                )
            }),
        }
        None
    }

    pub(super) fn address(&self) -> Option<IpAddr> {
        let text = self.string()?;
        self.parsed(text, "an IP address", "\"192.0.2.10\" or \"2001:db8::10\"")
    }

    /// `text`, which came from this field, as a `T`.
    pub(super) fn parsed<T: std::str::FromStr>(
        &self,
        text: &str,
        what: &str,
        example: impl fmt::Display,
    ) -> Option<T> {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.error(|| {
                format!(
                    "`{}` is {}, not {what}; write it like {example}",
                    self.key,
                    quoted(text)
                )
            });
        }
        parsed
    }

    pub(super) fn absolute_path(&self) -> Option<PathBuf> {
        let text = self.string()?;
        let path = PathBuf::from(text);
        if text.contains('\0') || !path.is_absolute() {
            self.error(|| {
                format!(
                    "`{}` is {}; it must be an absolute path, one that begins with `/`",
                    self.key,
                    quoted(text)
                )
            });
            return None;
        }
        Some(path)
    }

    /// A name that fits metrics labels, commands and URLs as it is.
    pub(super) fn name(&self) -> Option<&'a str> {
        let text = self.string()?;
        let plain = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if text.is_empty() || text.len() > NAME_BYTES || !plain {
            self.error(|| {
                format!("{} cannot be a name; it must be 1 to {NAME_BYTES} letters, digits, `-`, `_` or `.`", quoted(text))
            });
            return None;
        }
        Some(text)
    }

    pub(super) fn table(&self, keys: &'static Keys) -> Option<Section<'a>> {
        match self.value {
            DeValue::Table(table) => Some(Section::new(table, self.at, keys, self.errors)),
            _ => {
                self.wrong_type("a table", &format!("; write {}", quoted(keys.place)));
                None
            }
        }
    }

    /// The elements of an array, each as a field of the same key.
    pub(super) fn array(&self) -> Option<Vec<Self>> {
        match self.value {
            DeValue::Array(array) => {
                let element = |value: &'a Spanned<DeValue<'a>>| Self {
                    value: value.get_ref(),
                    at: value.span().start,
                    ..*self
                };
                Some(array.iter().map(element).collect())
            }
            _ => {
                self.wrong_type("an array", "; put it in `[` and `]`");
                None
            }
        }
    }

    /// The tables of `[[...]]`, or of an array of inline tables.
    pub(super) fn tables(&self, keys: &'static Keys) -> Option<Vec<Section<'a>>> {
        if let DeValue::Table(_) = self.value {
            self.wrong_type(
                "a list of tables",
                &format!("; write {}", quoted(&format!("[[{}]]", self.key))),
            );
            return None;
        }
        Some(
            self.array()?
                .iter()
                .filter_map(|field| field.table(keys))
                .collect(),
        )
    }

    fn wrong_type(&self, wanted: &str, hint: &str) {
        let found = match self.value {
            DeValue::Array(_) => "an array",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Float(_) => "a float",
            DeValue::Integer(_) => "an integer",
            DeValue::String(_) => "a string",
            DeValue::Table(_) => "a table",
        };
        self.error(|| format!("`{}` must be {wanted}, not {found}{hint}", self.key));
    }
}

/// Where a key is, unless that is the file itself.
fn inside(keys: &Keys) -> String {
    if keys.place.is_empty() {
        String::new()
    } else {
        format!(" in {}", quoted(keys.place))
    }
}

const NAME_BYTES: usize = 63;

fn shorten(number: &str) -> &str {
    &number[..number.len().min(40)]
}
