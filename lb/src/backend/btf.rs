//! Reads what the kernel says of its own types and functions (Documentation/bpf/btf.rst), as far as it is wanted here.

use std::{fs, io, path::Path};

/// The kernel's types, one after the other.
#[derive(Debug)]
pub(super) struct Btf {
    bytes: Vec<u8>,
    types: usize,
    types_end: usize,
    strings: usize,
}

/// Why nothing can be learned.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error(
        "cannot read /sys/kernel/btf/vmlinux; a kernel with CONFIG_DEBUG_INFO_BTF is needed, and /sys must be mounted"
    )]
    Unreadable(#[source] io::Error),
    #[error("/sys/kernel/btf/vmlinux is not what it should be")]
    Malformed,
}

impl Btf {
    pub(super) fn of_kernel() -> Result<Self, BtfError> {
        let bytes = fs::read(Path::new("/sys/kernel/btf/vmlinux")).map_err(BtfError::Unreadable)?;
        Self::new(bytes).ok_or(BtfError::Malformed)
    }

    fn new(bytes: Vec<u8>) -> Option<Self> {
        if bytes.get(..2)? != MAGIC {
            return None;
        }
        let [header, types, types_bytes, strings] = [4, 8, 12, 16].map(|at| word(&bytes, at));
        let types = header?.checked_add(types?)?;
        Some(Self {
            types,
            types_end: types.checked_add(types_bytes?)?,
            strings: header?.checked_add(strings?)?,
            bytes,
        })
    }

    /// The number of the function with this name.
    pub(super) fn function(&self, name: &str) -> Option<u32> {
        let mut at = self.types;
        let mut id = 1;
        while at < self.types_end {
            let info = word(&self.bytes, at + 4)?;
            let kind = info >> 24 & 31;
            if kind == FUNCTION && self.name(word(&self.bytes, at)?) == Some(name.as_bytes()) {
                return Some(id);
            }
            at += HEAD_BYTES + tail_bytes(kind, info & 0xffff)?;
            id += 1;
        }
        None
    }

    fn name(&self, offset: usize) -> Option<&[u8]> {
        let rest = self.bytes.get(self.strings.checked_add(offset)?..)?;
        rest.split(|&byte| byte == 0).next()
    }
}

const MAGIC: [u8; 2] = 0xeb9f_u16.to_ne_bytes();
/// Name, info, and size or type.
const HEAD_BYTES: usize = 12;
const FUNCTION: usize = 12;

/// How much follows the head of a type of this kind. None of a kind that did not exist when this was written.
const fn tail_bytes(kind: usize, elements: usize) -> Option<usize> {
    Some(match kind {
        1 | 14 | 17 => 4,
        2 | 7..=12 | 16 | 18 => 0,
        3 => 12,
        4 | 5 | 15 | 19 => 12 * elements,
        6 | 13 => 8 * elements,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(u32::from_ne_bytes(word.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function after one type of each kind that has something behind its head.
    fn example() -> Vec<u8> {
        let strings = b"\0x\0wanted\0";
        let mut types: Vec<u32> = Vec::new();
        for (kind, elements, tail) in [
            (1, 0, 1),
            (3, 0, 3),
            (4, 2, 6),
            (6, 3, 6),
            (13, 1, 2),
            (19, 1, 3),
        ] {
            types.extend([1, kind << 24 | elements, 0]);
            types.extend(vec![0; tail]);
        }
        types.extend([3, 12 << 24, 5]);
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let lengths = [24, 0, types.len(), types.len(), strings.len()];
        let mut bytes = [&MAGIC[..], &[1, 0]].concat();
        bytes.extend(
            lengths
                .iter()
                .flat_map(|&length| u32::try_from(length).unwrap().to_ne_bytes()),
        );
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn a_function_is_found_by_its_name() {
        let btf = Btf::new(example()).unwrap();
        assert_eq!(btf.function("wanted"), Some(7));
        assert_eq!(btf.function("x"), None, "a type, but no function");
        assert_eq!(btf.function("want"), None);
    }

    #[test]
    fn what_is_cut_off_anywhere_finds_nothing_and_does_no_harm() {
        let whole = example();
        for length in 0..whole.len() - 1 {
            let found = Btf::new(whole[..length].to_vec()).and_then(|btf| btf.function("wanted"));
            assert!(found.is_none() || length >= whole.len() - 1, "{length}");
        }
    }
}
