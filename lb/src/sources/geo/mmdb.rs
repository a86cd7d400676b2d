//! Reads MMDB files, version 2 of the MaxMind DB file format: a binary tree of networks, and records of what is told of them.
//!
//! A file may hold anything. Each node of the tree is visited once, values are skipped without recursion, and how many of
//! them are looked at is bounded by the length of the file.

use std::cell::Cell;

/// Why a file is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("this is no MMDB file, or its end is missing")]
    NoMetadata,
    #[error("the file is damaged: {0}")]
    Broken(&'static str),
    #[error("this MMDB file is of a version or kind that is not read here: {0}")]
    Unknown(&'static str),
}

/// A file in memory.
pub(super) struct Mmdb<'a> {
    /// As its maker calls what it tells, like `GeoLite2-Country`.
    pub(super) kind: &'a str,
    /// What is told of networks.
    pub(super) records: Values<'a>,
    tree: &'a [u8],
    node_bytes: usize,
    nodes: u32,
    is_v6: bool,
}

/// First and last address of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    V4(u32, u32),
    V6(u128, u128),
}

impl<'a> Mmdb<'a> {
    pub(super) fn open(file: &'a [u8]) -> Result<Self, Damage> {
        let searched = file.len().saturating_sub(METADATA_BYTES);
        let mut ends = file[searched..].windows(MARKER.len());
        let at = ends.rposition(|bytes| bytes == MARKER);
        let (rest, metadata) = file.split_at(searched + at.ok_or(Damage::NoMetadata)?);
        let metadata = Values::new(&metadata[MARKER.len()..]);
        let number = |name: &str| match metadata.find(0, name)? {
            Some(at) => metadata.number(at),
            None => Ok(None),
        };
        if number("binary_format_major_version")? != Some(2) {
            return Err(Damage::Unknown("`binary_format_major_version` is not 2"));
        }
        let node_bytes = match number("record_size")? {
            Some(24) => 6,
            Some(28) => 7,
            Some(32) => 8,
            _ => return Err(Damage::Unknown("`record_size` is not 24, 28 or 32")),
        };
        let is_v6 = match number("ip_version")? {
            Some(4) => false,
            Some(6) => true,
            _ => return Err(Damage::Unknown("`ip_version` is not 4 or 6")),
        };
        let nodes = number("node_count")?.and_then(|nodes| u32::try_from(nodes).ok());
        let nodes = nodes.ok_or(Damage::Broken("`node_count` is no number of 32 bits"))?;
        let kind = match metadata.find(0, "database_type")? {
            Some(at) => metadata.text(at)?,
            None => None,
        };
        let (tree, rest) = (nodes as usize)
            .checked_mul(node_bytes)
            .and_then(|bytes| rest.split_at_checked(bytes))
            .ok_or(Damage::Broken("its search tree is longer than the file"))?;
        let records = rest.get(SEPARATOR_BYTES..).unwrap_or_default();
        Ok(Self {
            kind: kind.unwrap_or("unknown"),
            records: Values::new(records),
            tree,
            node_bytes,
            nodes,
            is_v6,
        })
    }

    /// Tells each network of which anything is known, and where its record begins; those of a family in order.
    ///
    /// IPv4 networks lie under ::/96 of an IPv6 tree, and a record of a network around that is theirs too. Other places that
    /// lead there are aliases, and left out.
    pub(super) fn networks(
        &self,
        mut tell: impl FnMut(Range, usize) -> Result<(), Damage>,
    ) -> Result<(), Damage> {
        let mut seen = vec![false; self.nodes as usize];
        if !self.is_v6 {
            return self.walk(0, Family::V4, None, &mut seen, &mut tell);
        }
        let mut v4_root = 0;
        for _ in 0..V6_BITS - V4_BITS {
            if v4_root < self.nodes {
                [v4_root, _] = self.children(v4_root);
            }
        }
        self.walk(v4_root, Family::V4, None, &mut seen, &mut tell)?;
        let left_out = Some(v4_root).filter(|root| *root < self.nodes);
        self.walk(0, Family::V6, left_out, &mut seen, &mut tell)
    }

    fn walk(
        &self,
        root: u32,
        family: Family,
        left_out: Option<u32>,
        seen: &mut [bool],
        tell: &mut impl FnMut(Range, usize) -> Result<(), Damage>,
    ) -> Result<(), Damage> {
        let bits = match family {
            Family::V4 => V4_BITS,
            Family::V6 => V6_BITS,
        };
        // Addresses begin at the highest bit, of IPv4 too.
        let mut left = vec![(root, 0u128, 0)];
        while let Some((node, first, length)) = left.pop() {
            if Some(node) == left_out || node == self.nodes {
                continue;
            }
            if let Some(seen) = seen.get_mut(node as usize) {
                if length == bits {
                    return Err(Damage::Broken("its search tree is deeper than addresses"));
                }
                if std::mem::replace(seen, true) {
                    return Err(Damage::Broken("two ways in its search tree meet"));
                }
                let [zero, one] = self.children(node);
                let bit = 1 << (V6_BITS - 1 - length);
                left.push((one, first | bit, length + 1));
                left.push((zero, first, length + 1));
                continue;
            }
            let record = (node - self.nodes) as usize;
            let record = record
                .checked_sub(SEPARATOR_BYTES)
                .ok_or(Damage::Broken("a network has no record"))?;
            let last = first | u128::MAX.checked_shr(length).unwrap_or(0);
            let range = match family {
                Family::V4 => Range::V4(upper(first), upper(last)),
                Family::V6 => Range::V6(first, last),
            };
            tell(range, record)?;
        }
        Ok(())
    }

    /// Where a node leads for a bit that is zero, and for one that is one.
    fn children(&self, node: u32) -> [u32; 2] {
        let at = node as usize * self.node_bytes;
        match self.tree[at..at + self.node_bytes] {
            [a, b, c, d, e, f] => [[0, a, b, c], [0, d, e, f]],
            [a, b, c, both, d, e, f] => [[both >> 4, a, b, c], [both & 15, d, e, f]],
            [a, b, c, d, e, f, g, h] => [[a, b, c, d], [e, f, g, h]],
            _ => unreachable!("nodes have 6, 7 or 8 bytes"),
        }
        .map(u32::from_be_bytes)
    }
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

const V4_BITS: u32 = 32;
const V6_BITS: u32 = 128;
/// What metadata begin with, within the last bytes of a file.
const MARKER: &[u8] = b"\xab\xcd\xefMaxMind.com";
const METADATA_BYTES: usize = 128 << 10;
/// Zeros between tree and records.
const SEPARATOR_BYTES: usize = 16;

const fn upper(address: u128) -> u32 {
    (address >> (V6_BITS - V4_BITS)) as u32
}

/// Values one after the other, each with a head that tells its type and size.
pub(super) struct Values<'a> {
    bytes: &'a [u8],
    /// Heads that may still be read.
    left: Cell<usize>,
}

/// The head of a value: what it is, and where the content begins.
struct Head {
    kind: u8,
    /// Bytes of the content; of a map and an array, entries; of a pointer, where it leads.
    size: usize,
    content: usize,
}

const POINTER: u8 = 1;
const TEXT: u8 = 2;
const MAP: u8 = 7;
const ARRAY: u8 = 11;
const BOOLEAN: u8 = 14;
/// Unsigned numbers of 16, 32 and 64 bits.
const NUMBERS: [u8; 3] = [5, 6, 9];
/// Records that do not overlap have fewer heads than bytes; these may, for what many of them share.
const HEADS_PER_BYTE: usize = 8;
const ENDS: Damage = Damage::Broken("a record is longer than the file");

impl<'a> Values<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let left = Cell::new(bytes.len().saturating_mul(HEADS_PER_BYTE));
        Self { bytes, left }
    }

    /// Where the value of a key begins in the map at `at`; `None` if that is no map, or has no such key.
    pub(super) fn find(&self, at: usize, key: &str) -> Result<Option<usize>, Damage> {
        let map = self.resolve(at)?;
        if map.kind != MAP {
            return Ok(None);
        }
        let mut at = map.content;
        for _ in 0..map.size {
            let value = self.skip(at)?;
            if self.text(at)? == Some(key) {
                return Ok(Some(value));
            }
            at = self.skip(value)?;
        }
        Ok(None)
    }

    /// The text at `at`; `None` if something else stands there.
    pub(super) fn text(&self, at: usize) -> Result<Option<&'a str>, Damage> {
        let head = self.resolve(at)?;
        if head.kind != TEXT {
            return Ok(None);
        }
        Ok(std::str::from_utf8(self.content(&head)?).ok())
    }

    /// The number at `at`; `None` if something else stands there.
    pub(super) fn number(&self, at: usize) -> Result<Option<u64>, Damage> {
        let head = self.resolve(at)?;
        if !NUMBERS.contains(&head.kind) || head.size > size_of::<u64>() {
            return Ok(None);
        }
        Ok(Some(big_endian(self.content(&head)?)))
    }

    fn content(&self, head: &Head) -> Result<&'a [u8], Damage> {
        let content = self.bytes.get(head.content..);
        content.and_then(|bytes| bytes.get(..head.size)).ok_or(ENDS)
    }

    /// The head of the value at `at`, or of the one that a pointer there leads to.
    fn resolve(&self, at: usize) -> Result<Head, Damage> {
        let head = self.head(at)?;
        if head.kind != POINTER {
            return Ok(head);
        }
        let head = self.head(head.size)?;
        if head.kind == POINTER {
            return Err(Damage::Broken("a pointer leads to a pointer"));
        }
        Ok(head)
    }

    /// Where the value after the one at `at` begins.
    fn skip(&self, mut at: usize) -> Result<usize, Damage> {
        let mut values = 1usize;
        while values > 0 {
            let head = self.head(at)?;
            values -= 1;
            at = head.content;
            match head.kind {
                POINTER | BOOLEAN => {}
                MAP => values += 2 * head.size,
                ARRAY => values += head.size,
                _ => at += head.size,
            }
        }
        Ok(at)
    }

    fn head(&self, at: usize) -> Result<Head, Damage> {
        let left = self.left.get().checked_sub(1);
        self.left
            .set(left.ok_or(Damage::Broken("its records are entangled"))?);
        let mut rest = self.bytes.get(at..).ok_or(ENDS)?;
        let mut take = |number: usize| {
            let (taken, others) = rest.split_at_checked(number).ok_or(ENDS)?;
            rest = others;
            Ok(usize::try_from(big_endian(taken)).unwrap_or(usize::MAX))
        };
        let control = take(1)?;
        let (mut kind, low) = (control >> 5, control & 31);
        let size = if kind == usize::from(POINTER) {
            let (bytes, high) = (low >> 3, low & 7);
            match bytes {
                0 => high << 8 | take(1)?,
                1 => 2_048 + (high << 16 | take(2)?),
                2 => 526_336 + (high << 24 | take(3)?),
                _ => take(4)?,
            }
        } else {
            if kind == 0 {
                kind = usize::from(MAP) + take(1)?;
            }
            match low {
                29 => 29 + take(1)?,
                30 => 285 + take(2)?,
                31 => 65_821 + take(3)?,
                size => size,
            }
        };
        Ok(Head {
            kind: u8::try_from(kind).unwrap_or(u8::MAX),
            size,
            content: self.bytes.len() - rest.len(),
        })
    }
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}
