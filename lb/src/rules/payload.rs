//! The first bytes of a packet's payload, by offset and mask: `payload 4 = 0x0102/0xff0f`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use utoipa::ToSchema;

use super::scanner::Scanner;
use crate::book::SpecError;

/// Bytes that stand at an offset behind the transport header (of UDP and ICMP: behind its first eight bytes).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    pub offset: u8,
    /// Bits outside of the mask are zero.
    #[schema(value_type = String, example = "0x1703")]
    pub value: Hex,
    /// As long as the value. Default: all bits count.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "0xffff")]
    pub mask: Hex,
}

/// Bytes, written `0x0102`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hex(pub Vec<u8>);

impl Payload {
    /// The last byte that can be asked for, less one. Samples hold these.
    pub const END: usize = 64;

    /// Whether these bytes begin a payload that matches.
    pub fn matches(&self, payload: &[u8]) -> bool {
        let bytes = payload.get(usize::from(self.offset)..);
        let bytes = bytes.and_then(|bytes| bytes.get(..self.value.0.len()));
        bytes.is_some_and(|bytes| {
            let masked = bytes
                .iter()
                .zip(&self.mask.0)
                .map(|(byte, mask)| byte & mask);
            masked.eq(self.value.0.iter().copied())
        })
    }

    /// Gives the mask its default, and says what is wrong.
    pub(super) fn complete(mut self) -> Result<Self, String> {
        let length = self.value.0.len();
        if self.mask.0.is_empty() {
            self.mask.0 = vec![0xff; length];
        }
        if length == 0 {
            return Err("the value has no bytes; write it like `0x0102`".into());
        }
        if self.mask.0.len() != length {
            let masked = self.mask.0.len();
            return Err(format!(
                "the value has {length} bytes and its mask {masked}; give both as many"
            ));
        }
        if usize::from(self.offset) + length > Self::END {
            return Err(format!(
                "reaches beyond the first {} bytes of the payload",
                Self::END
            ));
        }
        if self
            .value
            .0
            .iter()
            .zip(&self.mask.0)
            .any(|(value, mask)| value & !mask != 0)
        {
            let (value, mask) = (&self.value, &self.mask);
            return Err(format!(
                "{value} has bits outside of its mask {mask}, so nothing matches"
            ));
        }
        Ok(self)
    }

    pub(super) fn scan(scanner: &mut Scanner<'_>) -> Result<Self, SpecError> {
        const EXAMPLE: &str = "write it like `payload 4 = 0x0102` or `payload 0 = 0x17/0xff`";
        let start = scanner.at();
        let offset = scanner
            .number()
            .and_then(|number| u8::try_from(number).ok());
        let Some(offset) = offset else {
            return Err(scanner.error_at(
                start,
                format!("an offset from 0 to 63 belongs here; {EXAMPLE}"),
            ));
        };
        if !scanner.take("=") {
            return Err(scanner.error(format!("`=` belongs here; {EXAMPLE}")));
        }
        let hex = |scanner: &mut Scanner<'_>| {
            let start = scanner.at();
            let word = scanner.word();
            word.parse::<Hex>()
                .map_err(|message| scanner.error_at(start, message))
        };
        let value = hex(scanner)?;
        let mask = if scanner.take("/") {
            hex(scanner)?
        } else {
            Hex::default()
        };
        let payload = Self {
            offset,
            value,
            mask,
        };
        payload
            .complete()
            .map_err(|message| scanner.error_at(start, message))
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.offset, self.value)?;
        if self.mask.0.iter().any(|byte| *byte != 0xff) {
            write!(f, "/{}", self.mask)?;
        }
        Ok(())
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Hex {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let text: String = text.chars().take(40).collect();
            format!(
                "`{text}` is not bytes in hexadecimal, two digits each; write them like `0x0102`"
            )
        };
        let digits = text.strip_prefix("0x").unwrap_or(text);
        if digits.is_empty() || !digits.len().is_multiple_of(2) {
            return Err(wrong());
        }
        let bytes = digits.as_bytes().chunks(2).map(|pair| {
            let digits = str::from_utf8(pair).ok()?;
            let plain = pair.iter().all(u8::is_ascii_hexdigit);
            u8::from_str_radix(digits, 16).ok().filter(|_| plain)
        });
        bytes.collect::<Option<_>>().map(Self).ok_or_else(wrong)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}
