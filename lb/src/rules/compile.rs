//! From rules to the tables that packets meet: see [`sluice_ebpf::rules`].

mod fields;
mod prefixes;
mod rows;
mod sweep;
#[cfg(test)]
mod tests;
mod windows;

use std::{collections::HashMap, ops::Range};

use bytemuck::{bytes_of, zeroed_box};
use sluice_ebpf::rules::{
    BITS, BLOCKS, FIELD_CODE, FIELD_DESTINATION, FIELD_DESTINATION_PORT, FIELD_KIND, FIELD_LENGTH,
    FIELD_MARK, FIELD_SOURCE, FIELD_SOURCE_PORT, FIELD_TTL, FIELD_VIP, FIELD_WINDOW, ROWS,
    RuleAction, RuleEntry, RuleTables, WINDOWS, WORDS,
};

use super::{Action, Components, Numbers, RuleSpec};
use crate::config::Mode;

use rows::{Rows, set};

/// A rule as it shall stand in the tables.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    pub spec: &'a RuleSpec,
    /// Of its state and counters.
    pub number: u16,
    /// The number of its VIP, if it is for one.
    pub vip: Option<u16>,
}

/// One generation, and which parts of it have something in them.
pub struct Compiled {
    pub tables: Box<RuleTables>,
    rows: usize,
    blocks: usize,
}

/// Why rules do not fit the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    #[error("more than {BITS} rules are in force (one with `port` counts as two); remove some")]
    Rules,
    #[error("the rules tell more than {ROWS} classes of packets apart; remove some, or use ranges")]
    Classes,
    #[error("the rules name more than {BLOCKS} parts of IPv4 networks; use shorter prefixes")]
    Blocks,
    #[error(
        "the rules look at more than {WINDOWS} pieces of payload (offset and mask, 8 bytes each); use the same pieces for several rules"
    )]
    Windows,
    #[error("the rules look for too many different values in one piece of payload; use a mask")]
    Values,
}

/// Whether all of these fit the tables together.
pub fn fit<'a>(rules: impl IntoIterator<Item = &'a RuleSpec>) -> Result<(), TooMany> {
    let mut vips: HashMap<&str, u16> = HashMap::new();
    let placed: Vec<Placed<'_>> = rules
        .into_iter()
        .map(|spec| {
            let next = u16::try_from(vips.len()).unwrap_or(u16::MAX);
            let vip = spec.vip.as_deref();
            Placed {
                spec,
                number: 0,
                vip: vip.map(|vip| *vips.entry(vip).or_insert(next)),
            }
        })
        .collect();
    compile(&placed).map(drop)
}

/// Puts rules into tables. The first counts first.
pub fn compile(rules: &[Placed<'_>]) -> Result<Compiled, TooMany> {
    let mut bits = Vec::new();
    for rule in rules {
        expand(rule, &mut bits);
    }
    if bits.len() > BITS {
        return Err(TooMany::Rules);
    }
    let mut tables: Box<RuleTables> = zeroed_box();
    for (at, bit) in bits.iter().enumerate() {
        tables.summary |= 1 << (at / 64);
        tables.entries[at] = entry(bit);
        if bit.spec.established {
            set(&mut tables.established, at);
        }
    }
    let mut compiler = Compiler {
        bits: &bits,
        rows: Rows::default(),
        tables,
        blocks: 0,
    };
    compiler.kinds()?;
    compiler.numbers()?;
    compiler.vips()?;
    compiler.marks()?;
    compiler.prefixes()?;
    compiler.windows()?;
    let Compiler {
        rows,
        mut tables,
        blocks,
        ..
    } = compiler;
    for (row, number) in &rows.numbers {
        tables.rows[usize::from(*number)] = *row;
    }
    Ok(Compiled {
        tables,
        rows: rows.numbers.len(),
        blocks,
    })
}

impl Compiled {
    /// Bytes that must be written before packets may use these tables; the rest is never looked at.
    pub fn parts(&self) -> Vec<Range<usize>> {
        use std::mem::offset_of;
        let part = |offset: usize, bytes: usize| offset..offset + bytes;
        let fields = self.tables.fields;
        let mut parts = vec![
            part(0, offset_of!(RuleTables, kinds)),
            part(offset_of!(RuleTables, rows), self.rows * 8 * WORDS),
            part(offset_of!(RuleTables, blocks), self.blocks * 1024),
        ];
        let windows = ((1 << WINDOWS) - 1) * FIELD_WINDOW;
        macro_rules! tables {
            ($($field:expr => $table:ident,)*) => {
                $(if fields & $field != 0 {
                    parts.push(part(offset_of!(RuleTables, $table), size_of_val(&self.tables.$table)));
                })*
            };
        }
        tables! {
            FIELD_KIND => kinds,
            FIELD_MARK => marks,
            FIELD_TTL => ttls,
            FIELD_CODE => codes,
            FIELD_SOURCE_PORT => source_ports,
            FIELD_DESTINATION_PORT => destination_ports,
            FIELD_LENGTH => lengths,
            FIELD_VIP => vips,
            FIELD_SOURCE | FIELD_DESTINATION => prefixes,
            FIELD_SOURCE | FIELD_DESTINATION => starts,
            windows => window_values,
            windows => window_entries,
        }
        parts
    }

    pub fn bytes(&self) -> &[u8] {
        bytes_of(&*self.tables)
    }
}

/// A rule that has one bit; one with `port` has two, of which no packet matches both.
struct Bit<'a> {
    spec: &'a RuleSpec,
    components: Components,
    number: u16,
    vip: Option<u16>,
}

fn expand<'a>(rule: &Placed<'a>, bits: &mut Vec<Bit<'a>>) {
    let mut push = |components| {
        bits.push(Bit {
            spec: rule.spec,
            components,
            number: rule.number,
            vip: rule.vip,
        });
    };
    let mut components = rule.spec.components.clone();
    let Some(port) = components.port.take() else {
        return push(components);
    };
    let both = |one: Option<&Numbers<_>>, other: &Numbers<_>| match one {
        Some(one) => one.both(other),
        None => Some(other.clone()),
    };
    let by_source = both(components.source_port.as_ref(), &port);
    if let Some(source_port) = by_source {
        push(Components {
            source_port: Some(source_port),
            ..components.clone()
        });
    }
    let by_destination = both(components.destination_port.as_ref(), &port);
    let other_source = port.complement();
    if let (Some(destination_port), Some(other_source)) = (by_destination, other_source)
        && let Some(source_port) = both(components.source_port.as_ref(), &other_source)
    {
        push(Components {
            destination_port: Some(destination_port),
            source_port: Some(source_port),
            ..components
        });
    }
}

fn entry(bit: &Bit<'_>) -> RuleEntry {
    let action = match bit.spec.action {
        Action::Drop => RuleAction::Drop,
        Action::Limit(_) => RuleAction::Limit,
        Action::Pass => RuleAction::Pass,
        Action::Challenge => RuleAction::Challenge,
        Action::Sample => RuleAction::Sample,
    };
    RuleEntry {
        number: bit.number,
        action: action as u8,
        monitor: u8::from(bit.spec.mode == Mode::Monitor),
        pad: 0,
    }
}

/// Tables on their way.
struct Compiler<'a> {
    bits: &'a [Bit<'a>],
    rows: Rows,
    tables: Box<RuleTables>,
    blocks: usize,
}
