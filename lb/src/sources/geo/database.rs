//! An MMDB file by the `maxminddb` crate, held to what a file of this length can need.
//!
//! A file may hold anything, and not all of the crate ends then. What is done here instead:
//! - **The walk over networks.** The crate's goes on for ever in a tree that leads back to itself, and panics for a record
//!   of a network around IPv4. Its look-ups of one address end, but all networks by them took nine times as long.
//! - **What nobody asked for in a record.** The crate skips it by recursion, to the end of the stack where a pointer leads to
//!   itself. So all values go through a visitor that counts them.
//! - **Metadata.** The crate reads them likewise; so they are looked at before, as a record of a file of ours.

use std::{
    cell::Cell,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    panic::{AssertUnwindSafe, catch_unwind},
};

use maxminddb::{MaxMindDbError, Reader};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("this is no MMDB file, or its end is missing")]
    NoMetadata,
    #[error("the file is damaged: {0}")]
    Broken(MaxMindDbError),
    #[error("the file is damaged: {0}")]
    Shape(&'static str),
    #[error("this MMDB file is of a version or kind that is not read here: {0}")]
    Unknown(&'static str),
}

/// First and last address of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    V4(u32, u32),
    V6(u128, u128),
}

/// A file in memory.
pub(super) struct Database<'a> {
    file: &'a [u8],
    reader: Reader<&'a [u8]>,
    /// Values that records may still have.
    values_left: Cell<usize>,
}

impl<'a> Database<'a> {
    /// Opens a file and has it read. The crate adds up some bytes unchecked, which panics where overflows are: that is damage too.
    pub(super) fn read<T>(
        file: &'a [u8],
        read: impl FnOnce(&Self) -> Result<T, Damage>,
    ) -> Result<T, Damage> {
        catch_unwind(AssertUnwindSafe(|| read(&Self::open(file)?)))
            .unwrap_or(Err(Damage::Shape("it cannot be decoded")))
    }

    fn open(file: &'a [u8]) -> Result<Self, Damage> {
        check_metadata(file)?;
        let reader = Reader::from_source(file)?;
        if reader.metadata.binary_format_major_version != 2 {
            return Err(Damage::Unknown("`binary_format_major_version` is not 2"));
        }
        if ![4, 6].contains(&reader.metadata.ip_version) {
            return Err(Damage::Unknown("`ip_version` is not 4 or 6"));
        }
        Ok(Self {
            file,
            reader,
            values_left: Cell::new(file.len().saturating_mul(VALUES_PER_BYTE)),
        })
    }

    /// As its maker calls what it tells, like `GeoLite2-Country`.
    pub(super) fn kind(&self) -> &str {
        &self.reader.metadata.database_type
    }

    /// Tells each network of which anything is known, and where its record begins; those of a family in order.
    ///
    /// IPv4 networks lie under ::/96 of an IPv6 tree, and a record of a network around that is theirs too. Other places that
    /// lead there are aliases, and left out.
    pub(super) fn networks(
        &self,
        mut tell: impl FnMut(Range, u32) -> Result<(), Damage>,
    ) -> Result<(), Damage> {
        let nodes = self.reader.metadata.node_count;
        let mut seen = vec![false; nodes as usize];
        if self.reader.metadata.ip_version == 4 {
            return self.walk(0, Family::V4, None, &mut seen, &mut tell);
        }
        let mut v4_root = 0;
        for _ in 0..V6_BITS - V4_BITS {
            if v4_root < nodes {
                [v4_root, _] = self.children(v4_root);
            }
        }
        self.walk(v4_root, Family::V4, None, &mut seen, &mut tell)?;
        let left_out = Some(v4_root).filter(|root| *root < nodes);
        self.walk(0, Family::V6, left_out, &mut seen, &mut tell)
    }

    fn walk(
        &self,
        root: u32,
        family: Family,
        left_out: Option<u32>,
        seen: &mut [bool],
        tell: &mut impl FnMut(Range, u32) -> Result<(), Damage>,
    ) -> Result<(), Damage> {
        let bits = match family {
            Family::V4 => V4_BITS,
            Family::V6 => V6_BITS,
        };
        let nodes = self.reader.metadata.node_count;
        // Addresses begin at the highest bit, of IPv4 too.
        let mut left = vec![(root, 0u128, 0)];
        while let Some((node, first, length)) = left.pop() {
            if Some(node) == left_out || node == nodes {
                continue;
            }
            if let Some(seen) = seen.get_mut(node as usize) {
                if length == bits {
                    return Err(Damage::Shape("its search tree is deeper than addresses"));
                }
                if std::mem::replace(seen, true) {
                    return Err(Damage::Shape("two ways in its search tree meet"));
                }
                let [zero, one] = self.children(node);
                let bit = 1 << (V6_BITS - 1 - length);
                left.push((one, first | bit, length + 1));
                left.push((zero, first, length + 1));
                continue;
            }
            let last = first | u128::MAX.checked_shr(length).unwrap_or(0);
            let range = match family {
                Family::V4 => Range::V4(upper(first), upper(last)),
                Family::V6 => Range::V6(first, last),
            };
            tell(range, node)?;
        }
        Ok(())
    }

    /// Where a node leads for a bit that is zero, and for one that is one.
    fn children(&self, node: u32) -> [u32; 2] {
        let bytes = usize::from(self.reader.metadata.record_size) / 4;
        let at = node as usize * bytes;
        match self.file[at..at + bytes] {
            [a, b, c, d, e, f] => [[0, a, b, c], [0, d, e, f]],
            [a, b, c, both, d, e, f] => [[both >> 4, a, b, c], [both & 15, d, e, f]],
            [a, b, c, d, e, f, g, h] => [[a, b, c, d], [e, f, g, h]],
            _ => unreachable!("records of other sizes are refused"),
        }
        .map(u32::from_be_bytes)
    }

    /// What is known of a network.
    pub(super) fn value(&self, of: Range) -> Result<Value<'_>, Damage> {
        let first: IpAddr = match of {
            Range::V4(first, _) => Ipv4Addr::from_bits(first).into(),
            Range::V6(first, _) => Ipv6Addr::from_bits(first).into(),
        };
        let Some(Counted { value, values }) = self.reader.lookup(first)?.decode()? else {
            return Ok(Value::Other);
        };
        let left = self.values_left.get().checked_sub(values);
        let left = left.ok_or(Damage::Shape("its records are entangled"))?;
        self.values_left.set(left);
        Ok(value)
    }
}

const V4_BITS: u32 = 32;
const V6_BITS: u32 = 128;

const fn upper(address: u128) -> u32 {
    (address >> (V6_BITS - V4_BITS)) as u32
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl From<MaxMindDbError> for Damage {
    fn from(error: MaxMindDbError) -> Self {
        Self::Broken(error)
    }
}

/// Refuses metadata that the crate would not come to an end with.
fn check_metadata(file: &[u8]) -> Result<(), Damage> {
    let searched = &file[file.len().saturating_sub(METADATA_BYTES)..];
    let mut ends = searched.windows(MARKER.len());
    let at = ends.rposition(|bytes| bytes == MARKER);
    let metadata = &searched[at.ok_or(Damage::NoMetadata)? + MARKER.len()..];
    let file = [ONE_RECORD, metadata, MARKER, OF_ONE_RECORD].concat();
    let reader = Reader::from_source(file)?;
    let metadata = reader.lookup(Ipv4Addr::UNSPECIFIED.into())?;
    metadata.decode::<Counted<'_>>()?;
    Ok(())
}

/// What metadata begin with.
const MARKER: &[u8] = b"\xab\xcd\xefMaxMind.com";
/// Far more than any have. Texts in them may be told many times.
const METADATA_BYTES: usize = 16 << 10;
/// A node with 24 bits a side that both lead to the first record, which comes after 16 zeros.
const ONE_RECORD: &[u8] = b"\0\0\x11\0\0\x11\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const OF_ONE_RECORD: &[u8] = b"\xe9\
    \x5bbinary_format_major_version\xa1\x02\
    \x5bbinary_format_minor_version\xa0\
    \x4bbuild_epoch\x00\x02\
    \x4ddatabase_type\x40\
    \x4bdescription\xe0\
    \x4aip_version\xa1\x04\
    \x49languages\x00\x04\
    \x4anode_count\xc1\x01\
    \x4brecord_size\xa1\x18";

/// A value, as far as anybody here asks for it.
#[derive(Debug)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Number(u64),
    /// Entries of [`KEYS`].
    Map(Vec<(&'a str, Self)>),
    Other,
}

const KEYS: [&str; 5] = [
    "country_code",
    "country",
    "iso_code",
    "autonomous_system_number",
    "asn",
];

impl<'a> Value<'a> {
    /// The value of a key; `None` if this is no map, or has no such key.
    pub(super) fn find(&self, key: &str) -> Option<&Self> {
        let Self::Map(entries) = self else {
            return None;
        };
        let entry = entries.iter().find(|(of, _)| *of == key);
        entry.map(|(_, value)| value)
    }

    pub(super) const fn text(&self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(*text),
            _ => None,
        }
    }

    pub(super) const fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }
}

/// A value, and how many there are within it, those behind pointers too.
struct Counted<'a> {
    value: Value<'a>,
    values: usize,
}

/// Cities with all their names have some hundred.
const MOST_VALUES: usize = 4_096;
/// Of all records. Many of them point to the same, like the names of their country.
const VALUES_PER_BYTE: usize = 4;

impl<'de> Deserialize<'de> for Counted<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let left = Cell::new(MOST_VALUES);
        let value = Part { left: &left }.deserialize(deserializer)?;
        Ok(Self {
            value,
            values: MOST_VALUES - left.get(),
        })
    }
}

/// Takes a value within a record, while some are left.
#[derive(Clone, Copy)]
struct Part<'c> {
    left: &'c Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        let left = self.left.get().checked_sub(1);
        let left = left.ok_or_else(|| D::Error::custom("a record is entangled"));
        self.left.set(left?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(text))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value<'de>, E> {
        Ok(Value::Number(number))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(self)? {
            let value = map.next_value_seed(self)?;
            if let Value::Text(key) = key
                && KEYS.contains(&key)
            {
                entries.push((key, value));
            }
        }
        Ok(Value::Map(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value<'de>, A::Error> {
        while list.next_element_seed(self)?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }
}
