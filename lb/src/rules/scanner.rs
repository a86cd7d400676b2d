//! Reads a rule's text from left to right, and knows where it is.

use crate::book::SpecError;

#[derive(Clone, Copy, Debug)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Where the next thing begins.
    pub(super) fn at(&mut self) -> usize {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
        self.at
    }

    pub(super) fn is_at_end(&mut self) -> bool {
        self.at() == self.text.len()
    }

    /// Takes this, if it is next. A word is only taken whole.
    pub(super) fn take(&mut self, token: &str) -> bool {
        self.at();
        let Some(after) = self.rest().strip_prefix(token) else {
            return false;
        };
        let goes_on = |character: char| character.is_ascii_alphanumeric() || character == '_';
        if token.ends_with(goes_on) && after.starts_with(goes_on) {
            return false;
        }
        self.at += token.len();
        true
    }

    /// Letters, digits, and what stands in names, addresses and durations.
    pub(super) fn word(&mut self) -> &'a str {
        self.run(is_word_character)
    }

    /// As [`Scanner::word`], with what else an address or prefix has in it.
    pub(super) fn address(&mut self) -> &'a str {
        self.run(|character| is_word_character(character) || matches!(character, ':' | '/' | '.'))
    }

    /// A number, decimal or hexadecimal; nothing is taken if there is none.
    pub(super) fn number(&mut self) -> Option<u64> {
        let start = self.at();
        let digits = self.run(|character| character.is_ascii_alphanumeric());
        let number = match digits.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => digits.parse().ok(),
        };
        if number.is_none() {
            self.at = start;
        }
        number
    }

    /// A text in quotes.
    pub(super) fn quoted(&mut self) -> Result<String, SpecError> {
        let start = self.at();
        if !self.take("\"") {
            return Err(self.error("a text in quotes belongs here, like \"ticket 7\""));
        }
        let mut text = String::new();
        let mut characters = self.rest().char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.at += at + 1;
                    return Ok(text);
                }
                '\\' => match characters.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, character)) => text.push(character),
                    None => break,
                },
                character => text.push(character),
            }
        }
        Err(self.error_at(start, "this text does not end; close it with a quote"))
    }

    /// What is next, for messages.
    pub(super) fn next_word(&mut self) -> String {
        self.at();
        let mut copy = *self;
        let word = copy.address();
        match (word.is_empty(), self.rest().chars().next()) {
            (false, _) => format!("`{}`", word.chars().take(40).collect::<String>()),
            (true, Some(character)) => format!("`{character}`"),
            (true, None) => "the end".to_owned(),
        }
    }

    pub(super) fn error(&mut self, message: impl Into<String>) -> SpecError {
        let at = self.at();
        self.error_at(at, message)
    }

    /// Something is wrong with what begins there.
    pub(super) fn error_at(&self, at: usize, message: impl Into<String>) -> SpecError {
        let column = self.text[..at].chars().count() + 1;
        SpecError {
            field: String::new(),
            column: Some(column),
            message: message.into(),
        }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn run(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        self.at();
        let rest = self.rest();
        let end = rest
            .find(|character| !belongs(character))
            .unwrap_or(rest.len());
        // An arrow ends every word.
        let end = rest.find("->").map_or(end, |arrow| end.min(arrow));
        self.at += end;
        &rest[..end]
    }
}

fn is_word_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.')
}
