//! Bits of one byte, as FlowSpec's bitmask operators describe them: `0x02/0x12`, `is_fragment && !last_fragment`.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::scanner::Scanner;
use crate::book::SpecError;

/// Alternatives, each of terms that must all be true.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bits<K> {
    alternatives: Vec<Vec<Term>>,
    kind: PhantomData<fn() -> K>,
}

/// True where the bits of `mask` are those of `value`; or, negated, where they are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Term {
    pub value: u8,
    pub mask: u8,
    pub negated: bool,
}

/// What bits are of.
pub trait BitKind: fmt::Debug + 'static {
    const WORDS: &'static [(&'static str, u8)];
    /// All bits that there are.
    const ALL: u8;
    const EXAMPLE: &'static str;
    /// Whether single bits are written as words.
    const IN_WORDS: bool;
}

/// The flags of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TcpFlags {}

impl BitKind for TcpFlags {
    const WORDS: &'static [(&'static str, u8)] = &[
        ("fin", 1),
        ("syn", 2),
        ("rst", 4),
        ("psh", 8),
        ("ack", 16),
        ("urg", 32),
        ("ece", 64),
        ("cwr", 128),
    ];
    const ALL: u8 = 0xff;
    const EXAMPLE: &'static str = "0x02/0x12";
    const IN_WORDS: bool = false;
}

/// Which part of a datagram a packet is (RFC 8955, 4.2.2.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FragmentBits {}

impl FragmentBits {
    pub const DONT: u8 = 1;
    /// Not the first.
    pub const IS: u8 = 2;
    pub const FIRST: u8 = 4;
    pub const LAST: u8 = 8;
}

impl BitKind for FragmentBits {
    const WORDS: &'static [(&'static str, u8)] = &[
        ("dont_fragment", Self::DONT),
        ("is_fragment", Self::IS),
        ("first_fragment", Self::FIRST),
        ("last_fragment", Self::LAST),
    ];
    const ALL: u8 = 0x0f;
    const EXAMPLE: &'static str = "is_fragment && !last_fragment";
    const IN_WORDS: bool = true;
}

/// So many alternatives, and so many terms in each.
const TERMS_MOST: usize = 32;

impl<K: BitKind> Bits<K> {
    /// `None` if there is no alternative, or one without terms.
    pub fn new(alternatives: Vec<Vec<Term>>) -> Option<Self> {
        let whole = !alternatives.is_empty() && alternatives.iter().all(|terms| !terms.is_empty());
        whole.then_some(Self {
            alternatives,
            kind: PhantomData,
        })
    }

    /// Where the bits of `mask` are those of `value`.
    pub fn of(value: u8, mask: u8) -> Self {
        let term = Term {
            value: value & mask,
            mask,
            negated: false,
        };
        Self {
            alternatives: vec![vec![term]],
            kind: PhantomData,
        }
    }

    pub fn contains(&self, byte: u8) -> bool {
        let holds = |term: &Term| (byte & term.mask == term.value) != term.negated;
        let mut alternatives = self.alternatives.iter();
        alternatives.any(|terms| terms.iter().all(holds))
    }

    /// As [`super::Numbers::scan`].
    pub(super) fn scan(scanner: &mut Scanner<'_>) -> Result<Self, SpecError> {
        let start = scanner.at();
        let mut alternatives = Vec::new();
        loop {
            let mut terms = vec![Self::scan_term(scanner)?];
            while scanner.take("&&") {
                terms.push(Self::scan_term(scanner)?);
            }
            let too_many = terms.len() > TERMS_MOST || alternatives.len() == TERMS_MOST;
            if too_many {
                let message = format!("longer than {TERMS_MOST} terms");
                return Err(scanner.error_at(start, message));
            }
            alternatives.push(terms);
            if !scanner.take("||") && !scanner.take(",") {
                break;
            }
        }
        let bits = Self {
            alternatives,
            kind: PhantomData,
        };
        if !(0..=K::ALL).any(|byte| bits.contains(byte)) {
            return Err(scanner.error_at(start, "no packet is all of this at once"));
        }
        Ok(bits)
    }

    fn scan_term(scanner: &mut Scanner<'_>) -> Result<Term, SpecError> {
        let negated = scanner.take("!");
        for (word, bit) in K::WORDS {
            if scanner.take(word) {
                return Ok(Term {
                    value: *bit,
                    mask: *bit,
                    negated,
                });
            }
        }
        let start = scanner.at();
        let value = Self::scan_byte(scanner)?;
        let mask = if scanner.take("/") {
            Self::scan_byte(scanner)?
        } else {
            K::ALL
        };
        if value & !mask != 0 {
            let message = format!(
                "{value:#04x} has bits outside of its mask {mask:#04x}, so nothing matches"
            );
            return Err(scanner.error_at(start, message));
        }
        Ok(Term {
            value,
            mask,
            negated,
        })
    }

    fn scan_byte(scanner: &mut Scanner<'_>) -> Result<u8, SpecError> {
        let start = scanner.at();
        let Some(number) = scanner.number() else {
            let found = scanner.next_word();
            let words: Vec<&str> = K::WORDS.iter().map(|(word, _)| *word).collect();
            let message = format!(
                "{found} is neither a value with its mask nor one of {}; write it like `{}`",
                words.join(", "),
                K::EXAMPLE
            );
            return Err(scanner.error(message));
        };
        match u8::try_from(number) {
            Ok(byte) if byte & !K::ALL == 0 => Ok(byte),
            _ => {
                let message = format!("{number:#x} has more bits than there are ({:#04x})", K::ALL);
                Err(scanner.error_at(start, message))
            }
        }
    }
}

impl<K: BitKind> fmt::Display for Bits<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, terms) in self.alternatives.iter().enumerate() {
            if at > 0 {
                f.write_str(" || ")?;
            }
            for (at, term) in terms.iter().enumerate() {
                if at > 0 {
                    f.write_str(" && ")?;
                }
                if term.negated {
                    f.write_str("!")?;
                }
                let word = K::WORDS
                    .iter()
                    .find(|(_, bit)| K::IN_WORDS && *bit == term.mask && *bit == term.value);
                match word {
                    Some((word, _)) => f.write_str(word)?,
                    None => write!(f, "{:#04x}/{:#04x}", term.value, term.mask)?,
                }
            }
        }
        Ok(())
    }
}

impl<K: BitKind> FromStr for Bits<K> {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut scanner = Scanner::new(text);
        let bits = Self::scan(&mut scanner)?;
        if !scanner.is_at_end() {
            let found = scanner.next_word();
            return Err(scanner.error(format!(
                "{found} does not belong here; join terms by `&&` and `||`"
            )));
        }
        Ok(bits)
    }
}

impl<K: BitKind> Serialize for Bits<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: BitKind> Deserialize<'de> for Bits<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}
