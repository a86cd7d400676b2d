//! Puts what LLVM writes in no certain order into one.
//!
//! LLVM emits the forward types of BTF in the order of a table by address, so that their numbers differ from build to
//! build, and so does the order of their names. The records are of the same size, and the names stand side by side: they
//! can take each other's places, and what refers to them follows. Format: the kernel's Documentation/bpf/btf.rst.

const RECORD: usize = 12;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FORWARD: u32 = 7;
const FUNCTION_PROTOTYPE: u32 = 13;
const SECTION: u32 = 15;
const ENUM_64: u32 = 19;

/// Orders the forward types of an object by name. `None`: it has no BTF that can be read, and stays as it is.
pub(crate) fn order_forward_types(object: &mut [u8]) -> Option<()> {
    let (start, size) = section(object, ".BTF")?;
    let btf = object.get_mut(start..start + size)?;
    let types = word(btf, 4)? as usize + word(btf, 8)? as usize;
    let end = types + word(btf, 12)? as usize;
    let strings = word(btf, 4)? as usize + word(btf, 16)? as usize;

    // Where numbers of types are written, and offsets of names; and where each forward type stands.
    let (mut references, mut names, mut forwards) = (Vec::new(), Vec::new(), Vec::new());
    let (mut at, mut number) = (types, 1);
    while at < end {
        let info = word(btf, at + 4)?;
        let (kind, members) = (info >> 24 & 31, (info & 0xffff) as usize);
        let after = at + RECORD;
        names.push(at);
        let fields =
            |bytes: usize, within: usize| (0..members).map(move |nth| after + nth * bytes + within);
        let extra = match kind {
            // Pointer, alias, qualifiers, function, variable, tags: their type stands in the record.
            2 | 8..=12 | 18 => {
                references.push(at + 8);
                0
            }
            14 | 17 => {
                references.push(at + 8);
                4
            }
            1 => 4,
            ARRAY => {
                references.extend([after, after + 4]);
                12
            }
            STRUCT | UNION => {
                references.extend(fields(12, 4));
                names.extend(fields(12, 0));
                12 * members
            }
            FUNCTION_PROTOTYPE => {
                references.push(at + 8);
                references.extend(fields(8, 4));
                names.extend(fields(8, 0));
                8 * members
            }
            SECTION => {
                references.extend(fields(12, 0));
                12 * members
            }
            ENUM => {
                names.extend(fields(8, 0));
                8 * members
            }
            ENUM_64 => {
                names.extend(fields(12, 0));
                12 * members
            }
            FORWARD => {
                forwards.push((number, at));
                0
            }
            _ => 0,
        };
        at = after + extra;
        number += 1;
    }

    let mut sorted = Vec::new();
    for (number, at) in &forwards {
        let record: [u8; RECORD] = btf.get(*at..at + RECORD)?.try_into().ok()?;
        let name = name_at(btf, strings + word(btf, *at)? as usize)?;
        sorted.push((name, record[4..].to_vec(), *number, record));
    }
    sorted.sort();
    let mut moved = Vec::new();
    for ((number, at), (_, _, old, record)) in forwards.iter().zip(&sorted) {
        btf[*at..at + RECORD].copy_from_slice(record);
        moved.push((*old, *number));
    }
    replace(btf, &references, &moved)?;

    // Their names, from the last one backwards as far as they stand side by side.
    let mut own: Vec<u32> = forwards
        .iter()
        .map(|(_, at)| word(btf, *at))
        .collect::<Option<_>>()?;
    own.sort_unstable();
    own.dedup();
    let mut side_by_side: Vec<(Vec<u8>, u32)> = Vec::new();
    for offset in own.into_iter().rev() {
        let name = name_at(btf, strings + offset as usize)?;
        let next = offset as usize + name.len() + 1;
        if side_by_side
            .last()
            .is_some_and(|(_, other)| *other as usize != next)
        {
            break;
        }
        side_by_side.push((name, offset));
    }
    let Some((_, mut to)) = side_by_side.last().cloned() else {
        return Some(());
    };
    side_by_side.sort();
    let mut moved = Vec::new();
    for (name, from) in side_by_side {
        let start = strings + to as usize;
        let (place, end) = btf
            .get_mut(start..=start + name.len())?
            .split_at_mut(name.len());
        place.copy_from_slice(&name);
        end.fill(0);
        moved.push((from, to));
        to += u32::try_from(name.len()).ok()? + 1;
    }
    replace(btf, &names, &moved)
}

/// Replaces the words at these places that are the first of a pair by the second.
fn replace(btf: &mut [u8], places: &[usize], moved: &[(u32, u32)]) -> Option<()> {
    for at in places {
        let old = word(btf, *at)?;
        if let Some((_, new)) = moved.iter().find(|(from, _)| *from == old) {
            btf[*at..at + 4].copy_from_slice(&u32::to_le_bytes(*new));
        }
    }
    Some(())
}

fn name_at(btf: &[u8], at: usize) -> Option<Vec<u8>> {
    let name = btf.get(at..)?.iter().take_while(|byte| **byte != 0);
    Some(name.copied().collect())
}

/// Offset and size of a section of a 64-bit little-endian ELF file.
fn section(object: &[u8], name: &str) -> Option<(usize, usize)> {
    let half = |at: usize| {
        Some(usize::from(u16::from_le_bytes([
            *object.get(at)?,
            *object.get(at + 1)?,
        ])))
    };
    let long = |at: usize| {
        let bytes = object.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let (table, entry, count) = (long(0x28)?, half(0x3a)?, half(0x3c)?);
    let header = |nth: usize| table + nth * entry;
    let names = long(header(half(0x3e)?) + 0x18)?;
    (0..count).map(header).find_map(|at| {
        let its = object.get(names + word(object, at)? as usize..)?;
        let found = its.starts_with(name.as_bytes()) && its.get(name.len()) == Some(&0);
        found.then_some((long(at + 0x18)?, long(at + 0x20)?))
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(bytes))
}
