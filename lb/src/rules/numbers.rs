//! Sets of numbers, as FlowSpec's operators describe them: `53,123`, `> 1023 && < 5000 || 80`.

use std::{fmt, marker::PhantomData, ops::RangeInclusive, str::FromStr};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor},
};

use super::scanner::Scanner;
use crate::book::SpecError;

/// The values that a component may have. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Numbers<K> {
    /// In order, with gaps between them.
    ranges: Vec<(u16, u16)>,
    kind: PhantomData<fn() -> K>,
}

/// What numbers are of.
pub trait NumberKind: fmt::Debug + 'static {
    const MOST: u16;
    /// What stands for a number.
    const WORDS: &'static [(&'static str, u16)] = &[];
    const EXAMPLE: &'static str;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident: $most:expr, $words:expr, $example:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {}

        impl NumberKind for $name {
            const MOST: u16 = $most;
            const WORDS: &'static [(&'static str, u16)] = $words;
            const EXAMPLE: &'static str = $example;
        }
    )*};
}

kinds! {
    /// A port of TCP or UDP.
    Port: u16::MAX, &[], "53,123,1024..2047";
    /// A protocol, with names for those that VIPs have.
    Protocol: 255, &[("icmp", 1), ("tcp", 6), ("udp", 17), ("icmp6", 58)], "17";
    /// Bytes from the IP header on.
    Length: u16::MAX, &[], "> 1000 && < 1200";
    /// The upper six bits of the type of service or traffic class.
    Dscp: 63, &[], "0,46";
    /// A number of one byte: ICMP's type and code, TTL.
    Byte: 255, &[], "8";
}

impl<K: NumberKind> Numbers<K> {
    /// Exactly these; `None` if there are none.
    pub fn new(ranges: impl IntoIterator<Item = RangeInclusive<u16>>) -> Option<Self> {
        let ranges = ranges
            .into_iter()
            .map(|range| (*range.start(), *range.end()));
        let numbers = Self::union(ranges.filter(|(low, high)| low <= high).collect());
        (!numbers.ranges.is_empty()).then_some(numbers)
    }

    /// In order, with gaps between them.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u16>> + '_ {
        self.ranges.iter().map(|(low, high)| *low..=*high)
    }

    pub fn contains(&self, value: u16) -> bool {
        let after = self.ranges.partition_point(|(low, _)| *low <= value);
        after > 0 && value <= self.ranges[after - 1].1
    }

    /// All values but these; `None` if these are all.
    pub fn complement(&self) -> Option<Self> {
        let mut ranges = Vec::with_capacity(self.ranges.len() + 1);
        let mut next = Some(0);
        for (low, high) in &self.ranges {
            if let Some(next) = next
                && next < *low
            {
                ranges.push(next..=*low - 1);
            }
            next = high.checked_add(1).filter(|next| *next <= K::MOST);
        }
        ranges.extend(next.map(|next| next..=K::MOST));
        Self::new(ranges)
    }

    /// What both have; `None` if that is nothing.
    pub fn both(&self, other: &Self) -> Option<Self> {
        let both = self.intersection(other);
        (!both.ranges.is_empty()).then_some(both)
    }

    fn union(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (low, high) in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(low) <= u32::from(last.1) + 1 => last.1 = last.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        Self {
            ranges: merged,
            kind: PhantomData,
        }
    }

    fn intersection(&self, other: &Self) -> Self {
        let mut ranges = Vec::new();
        for (low, high) in &self.ranges {
            for (other_low, other_high) in &other.ranges {
                let (low, high) = (*low.max(other_low), *high.min(other_high));
                if low <= high {
                    ranges.push((low, high));
                }
            }
        }
        Self::union(ranges)
    }

    /// Reads alternatives: `,` and `||` add values, `&&` binds more tightly and keeps what both sides have.
    pub(super) fn scan(scanner: &mut Scanner<'_>) -> Result<Self, SpecError> {
        let start = scanner.at();
        let mut ranges = Vec::new();
        loop {
            let mut all = Self::scan_term(scanner)?;
            while scanner.take("&&") {
                all = all.intersection(&Self::scan_term(scanner)?);
            }
            ranges.extend(all.ranges);
            if !scanner.take("||") && !scanner.take(",") {
                break;
            }
        }
        let numbers = Self::union(ranges);
        if numbers.ranges.is_empty() {
            return Err(scanner.error_at(start, "no number is all of this at once"));
        }
        Ok(numbers)
    }

    fn scan_term(scanner: &mut Scanner<'_>) -> Result<Self, SpecError> {
        const OPERATORS: [&str; 7] = ["!=", ">=", "<=", "==", "=", ">", "<"];
        let operator = OPERATORS.into_iter().find(|sign| scanner.take(sign));
        let start = scanner.at();
        let value = Self::scan_value(scanner)?;
        let ranges = match operator {
            None if scanner.take("..") => {
                let end = Self::scan_value(scanner)?;
                if end < value {
                    let message = format!("a range from {value} to {end} has nothing in it");
                    return Err(scanner.error_at(start, message));
                }
                vec![(value, end)]
            }
            None | Some("=" | "==") => vec![(value, value)],
            Some("!=") => [
                value.checked_sub(1).map(|below| (0, below)),
                (value < K::MOST).then(|| (value + 1, K::MOST)),
            ]
            .into_iter()
            .flatten()
            .collect(),
            Some(">=") => vec![(value, K::MOST)],
            Some("<=") => vec![(0, value)],
            Some(">") if value < K::MOST => vec![(value + 1, K::MOST)],
            Some("<") if value > 0 => vec![(0, value - 1)],
            Some(_) => Vec::new(),
        };
        Ok(Self::union(ranges))
    }

    fn scan_value(scanner: &mut Scanner<'_>) -> Result<u16, SpecError> {
        let start = scanner.at();
        for (word, number) in K::WORDS {
            if scanner.take(word) {
                return Ok(*number);
            }
        }
        let Some(number) = scanner.number() else {
            let found = scanner.next_word();
            let words: Vec<&str> = K::WORDS.iter().map(|(word, _)| *word).collect();
            let words = if words.is_empty() {
                String::new()
            } else {
                format!(" or one of {}", words.join(", "))
            };
            let message = format!(
                "{found} is no number; write numbers{words} like `{}`",
                K::EXAMPLE
            );
            return Err(scanner.error(message));
        };
        match u16::try_from(number) {
            Ok(value) if value <= K::MOST => Ok(value),
            _ => {
                let message = format!("{number} is too large; the largest here is {}", K::MOST);
                Err(scanner.error_at(start, message))
            }
        }
    }
}

impl<K: NumberKind> fmt::Display for Numbers<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [(low, high)] = self.ranges[..]
            && low < high
            && (low == 0) != (high == K::MOST)
        {
            return if low == 0 {
                write!(f, "<= {high}")
            } else {
                write!(f, ">= {low}")
            };
        }
        for (at, (low, high)) in self.ranges.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            if low == high {
                write!(f, "{low}")?;
            } else {
                write!(f, "{low}..{high}")?;
            }
        }
        Ok(())
    }
}

impl<K: NumberKind> FromStr for Numbers<K> {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut scanner = Scanner::new(text);
        let numbers = Self::scan(&mut scanner)?;
        if !scanner.is_at_end() {
            let found = scanner.next_word();
            return Err(scanner.error(format!(
                "{found} does not belong here; join numbers like `{}`",
                K::EXAMPLE
            )));
        }
        Ok(numbers)
    }
}

impl<K: NumberKind> Serialize for Numbers<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A number, a text, or an array of these.
impl<'de, K: NumberKind> Deserialize<'de> for Numbers<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any(PhantomData))
    }
}

struct Any<K>(PhantomData<fn() -> K>);

impl<'de, K: NumberKind> Visitor<'de> for Any<K> {
    type Value = Numbers<K>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a number, a text like {:?}, or an array of these",
            K::EXAMPLE
        )
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut ranges = Vec::new();
        while let Some(numbers) = items.next_element::<Numbers<K>>()? {
            ranges.extend(numbers.ranges);
        }
        if ranges.is_empty() {
            return Err(A::Error::custom(
                "an empty array matches nothing; leave it out",
            ));
        }
        Ok(Numbers::union(ranges))
    }
}
