//! From rules to the tables that packets meet: see [`sluice_ebpf::rules`].

use std::{collections::HashMap, ops::Range};

use bytemuck::{bytes_of, zeroed_box};
use ipnet::IpNet;
use sluice_ebpf::rules::{
    BITS, BLOCK, BLOCKS, FIELD_CODE, FIELD_DESTINATION, FIELD_DESTINATION_PORT, FIELD_KIND,
    FIELD_LENGTH, FIELD_MARK, FIELD_SOURCE, FIELD_SOURCE_PORT, FIELD_TTL, FIELD_VIP, FIELD_WINDOW,
    INTERVALS, Interval, ROWS, RuleAction, RuleEntry, RuleTables, SUMMARY_SHIFT, WINDOW_BUCKETS,
    WINDOW_WAYS, WINDOWS, WORDS, Window, icmp_kind, plain_kind, tcp_kind, window_bucket,
};

use super::{Action, Components, NumberKind, Numbers, RuleSpec};
use crate::config::Mode;

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

type Bitmap = [u64; WORDS];

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

/// All different rows, by their number.
#[derive(Default)]
struct Rows {
    numbers: HashMap<Bitmap, u16, ahash::RandomState>,
}

impl Rows {
    /// The entry for a row: its number, and its summary.
    fn entry(&mut self, row: &Bitmap) -> Result<u32, TooMany> {
        let next = self.numbers.len();
        let number = match self.numbers.get(row) {
            Some(number) => *number,
            None if next < ROWS => {
                let number = u16::try_from(next).map_err(|_large| TooMany::Classes)?;
                self.numbers.insert(*row, number);
                number
            }
            None => return Err(TooMany::Classes),
        };
        let words = row.iter().enumerate();
        let summary = words.fold(0u32, |summary, (at, word)| {
            summary | u32::from(*word != 0) << at
        });
        Ok(summary << SUMMARY_SHIFT | u32::from(number))
    }
}

struct Compiler<'a> {
    bits: &'a [Bit<'a>],
    rows: Rows,
    tables: Box<RuleTables>,
    blocks: usize,
}

/// What a rule wants of a field: ranges, in order or not; `None`: anything.
type Wanted = Option<Vec<(u128, u128)>>;

impl Compiler<'_> {
    /// The bitmaps of a field's values: from where on, and which. `None` if no rule looks at it.
    fn sweep(&self, wanted: impl Fn(&Bit<'_>) -> Wanted) -> Option<(Bitmap, Vec<(u128, Bitmap)>)> {
        let mut base = [0; WORDS];
        let mut events = Vec::new();
        for (at, bit) in self.bits.iter().enumerate() {
            match wanted(bit) {
                None => set(&mut base, at),
                Some(ranges) => {
                    for (low, high) in ranges {
                        events.push((low, at));
                        events.extend(high.checked_add(1).map(|end| (end, at)));
                    }
                    // So that the field counts as looked at, also by a rule of another family.
                    events.push((0, usize::MAX));
                }
            }
        }
        if events.is_empty() {
            return None;
        }
        events.sort_unstable();
        let mut now = base;
        let mut intervals: Vec<(u128, Bitmap)> = vec![(0, base)];
        for (position, at) in events {
            if at != usize::MAX {
                // Ranges of one rule have gaps between them: it begins or ends here.
                now[at / 64] ^= 1 << (at % 64);
            }
            match intervals.last_mut() {
                Some(last) if last.0 == position => last.1 = now,
                _ => intervals.push((position, now)),
            }
        }
        intervals.dedup_by(|later, earlier| later.1 == earlier.1);
        Some((base, intervals))
    }

    fn number_sweep<K: NumberKind>(
        &self,
        of: impl Fn(&Components) -> Option<&Numbers<K>>,
    ) -> Option<(Bitmap, Vec<(u128, Bitmap)>)> {
        self.sweep(|bit| {
            let ranges = of(&bit.components)?.ranges();
            Some(
                ranges
                    .map(|range| (u128::from(*range.start()), u128::from(*range.end())))
                    .collect(),
            )
        })
    }

    /// The entries of a table of numbers, and the one of packets that have no such number.
    fn table<K: NumberKind, const N: usize>(
        &mut self,
        of: impl Fn(&Components) -> Option<&Numbers<K>>,
        table: impl Fn(&mut RuleTables) -> &mut [u32; N],
    ) -> Result<Option<u32>, TooMany> {
        let Some((base, intervals)) = self.number_sweep(of) else {
            return Ok(None);
        };
        for (at, (start, row)) in intervals.iter().enumerate() {
            let entry = self.rows.entry(row)?;
            let start = usize::try_from(*start).unwrap_or(N).min(N);
            let end = intervals
                .get(at + 1)
                .map_or(N, |(end, _)| usize::try_from(*end).unwrap_or(N).min(N));
            table(&mut self.tables)[start..end].fill(entry);
        }
        self.rows.entry(&base).map(Some)
    }

    fn numbers(&mut self) -> Result<(), TooMany> {
        if let Some(none) = self.table(|c| c.source_port.as_ref(), |t| &mut t.source_ports)? {
            self.tables.fields |= FIELD_SOURCE_PORT;
            self.tables.no_source_port = none;
        }
        if let Some(none) = self.table(
            |c| c.destination_port.as_ref(),
            |t| &mut t.destination_ports,
        )? {
            self.tables.fields |= FIELD_DESTINATION_PORT;
            self.tables.no_destination_port = none;
        }
        if self
            .table(|c| c.length.as_ref(), |t| &mut t.lengths)?
            .is_some()
        {
            self.tables.fields |= FIELD_LENGTH;
        }
        if self.table(|c| c.ttl.as_ref(), |t| &mut t.ttls)?.is_some() {
            self.tables.fields |= FIELD_TTL;
        }
        if let Some(none) = self.table(|c| c.icmp_code.as_ref(), |t| &mut t.codes)? {
            self.tables.fields |= FIELD_CODE;
            self.tables.no_code = none;
        }
        Ok(())
    }

    /// The bitmap of each value of a small field, and of packets without one.
    fn bitmaps(
        &self,
        values: u8,
        fits: impl Fn(&Components, u8) -> Option<bool>,
    ) -> (Bitmap, Vec<Bitmap>) {
        let mut none = [0; WORDS];
        let mut all = vec![[0; WORDS]; usize::from(values) + 1];
        for (at, bit) in self.bits.iter().enumerate() {
            for (value, bitmap) in (0..=values).zip(&mut all) {
                match fits(&bit.components, value) {
                    None => {
                        set(&mut none, at);
                        set(bitmap, at);
                    }
                    Some(true) => set(bitmap, at),
                    Some(false) => {}
                }
            }
        }
        (none, all)
    }

    fn kinds(&mut self) -> Result<(), TooMany> {
        let looks = |bit: &Bit<'_>| {
            let c = &bit.components;
            c.protocol.is_some() || c.tcp_flags.is_some() || c.icmp_type.is_some()
        };
        if !self.bits.iter().any(looks) {
            return Ok(());
        }
        let (_, protocols) = self.bitmaps(255, |c, value| {
            c.protocol
                .as_ref()
                .map(|wanted| wanted.contains(value.into()))
        });
        let (no_flags, flags) = self.bitmaps(255, |c, value| {
            c.tcp_flags.as_ref().map(|wanted| wanted.contains(value))
        });
        let (no_type, types) = self.bitmaps(255, |c, value| {
            c.icmp_type
                .as_ref()
                .map(|wanted| wanted.contains(value.into()))
        });
        for value in 0..=u8::MAX {
            let at = usize::from(value);
            let rows = [
                (tcp_kind(value), [protocols[6], flags[at], no_type]),
                (icmp_kind(false, value), [protocols[1], types[at], no_flags]),
                (icmp_kind(true, value), [protocols[58], types[at], no_flags]),
                (plain_kind(value), [protocols[at], no_flags, no_type]),
            ];
            for (kind, [a, b, c]) in rows {
                self.tables.kinds[kind as usize] = self.rows.entry(&and(&and(&a, &b), &c))?;
            }
        }
        self.tables.fields |= FIELD_KIND;
        Ok(())
    }

    fn marks(&mut self) -> Result<(), TooMany> {
        let looks =
            |bit: &Bit<'_>| bit.components.dscp.is_some() || bit.components.fragment.is_some();
        if !self.bits.iter().any(looks) {
            return Ok(());
        }
        let (_, dscps) = self.bitmaps(63, |c, value| {
            c.dscp.as_ref().map(|wanted| wanted.contains(value.into()))
        });
        let (_, fragments) = self.bitmaps(15, |c, value| {
            c.fragment.as_ref().map(|wanted| wanted.contains(value))
        });
        for (dscp, of_dscp) in dscps.iter().enumerate() {
            for (fragment, of_fragment) in fragments.iter().enumerate() {
                let entry = self.rows.entry(&and(of_dscp, of_fragment))?;
                self.tables.marks[dscp << 4 | fragment] = entry;
            }
        }
        self.tables.fields |= FIELD_MARK;
        Ok(())
    }

    fn vips(&mut self) -> Result<(), TooMany> {
        let mut base = [0; WORDS];
        let mut by_vip: HashMap<u16, Bitmap> = HashMap::new();
        for (at, bit) in self.bits.iter().enumerate() {
            match bit.vip {
                None => set(&mut base, at),
                Some(vip) => set(by_vip.entry(vip).or_default(), at),
            }
        }
        if by_vip.is_empty() {
            return Ok(());
        }
        let other = self.rows.entry(&base)?;
        self.tables.vips.fill(other);
        for (vip, bitmap) in by_vip {
            let mut row = base;
            row.iter_mut()
                .zip(bitmap)
                .for_each(|(to, from)| *to |= from);
            self.tables.vips[usize::from(vip)] = self.rows.entry(&row)?;
        }
        self.tables.fields |= FIELD_VIP;
        Ok(())
    }

    fn prefixes(&mut self) -> Result<(), TooMany> {
        type Of = fn(&Components) -> Option<IpNet>;
        let fields: [(u32, Of); 2] = [
            (FIELD_SOURCE, |c| c.source),
            (FIELD_DESTINATION, |c| c.destination),
        ];
        for (field, (flag, of)) in fields.into_iter().enumerate() {
            let family = |v4: bool| {
                move |bit: &Bit<'_>| {
                    let prefix = of(&bit.components)?;
                    let (first, last) = ends(prefix);
                    Some(if prefix.addr().is_ipv4() == v4 {
                        vec![(first, last)]
                    } else {
                        Vec::new()
                    })
                }
            };
            let (Some((_, v4)), Some((_, v6))) =
                (self.sweep(family(true)), self.sweep(family(false)))
            else {
                continue;
            };
            self.tables.fields |= flag;
            let v4 = self.with_entries(&v4)?;
            for cell in 0..1usize << 16 {
                self.tables.prefixes[field][cell] = self.cell(&v4, (cell as u128) << 16, 16)?;
            }
            let v6 = self.with_entries(&v6)?;
            if v6.len() > INTERVALS {
                return Err(TooMany::Classes);
            }
            self.tables.intervals[field] = u32::try_from(v6.len()).unwrap_or(u32::MAX);
            for (at, (start, entry)) in v6.iter().enumerate() {
                self.tables.starts[field][at] = Interval {
                    high: half(start >> 64),
                    low: half(*start),
                    entry: u64::from(*entry),
                };
            }
        }
        Ok(())
    }

    fn with_entries(&mut self, intervals: &[(u128, Bitmap)]) -> Result<Vec<(u128, u32)>, TooMany> {
        let entries = intervals
            .iter()
            .map(|(start, row)| Ok((*start, self.rows.entry(row)?)));
        entries.collect()
    }

    /// The entry for the 2^`bits` addresses from `first` on: a block if they are not all the same.
    fn cell(&mut self, intervals: &[(u128, u32)], first: u128, bits: u32) -> Result<u32, TooMany> {
        let last = first + ((1 << bits) - 1);
        let from = intervals.partition_point(|(start, _)| *start <= first) - 1;
        let differs = intervals
            .get(from + 1)
            .is_some_and(|(start, _)| *start <= last);
        if !differs {
            return Ok(intervals[from].1);
        }
        let block = self.blocks;
        if block == BLOCKS {
            return Err(TooMany::Blocks);
        }
        self.blocks += 1;
        for at in 0..256usize {
            let next = first + ((at as u128) << (bits - 8));
            self.tables.blocks[block][at] = self.cell(intervals, next, bits - 8)?;
        }
        Ok(BLOCK | u32::try_from(block).map_err(|_large| TooMany::Blocks)?)
    }

    fn windows(&mut self) -> Result<(), TooMany> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut wanted: Vec<Vec<(usize, u64)>> = Vec::new();
        for (at, bit) in self.bits.iter().enumerate() {
            for (piece, value) in bit.components.payload.iter().flat_map(split) {
                let window = pieces.iter().position(|known| *known == piece);
                let window = window.unwrap_or_else(|| {
                    pieces.push(piece);
                    wanted.push(Vec::new());
                    pieces.len() - 1
                });
                wanted[window].push((at, value));
            }
        }
        if pieces.len() > WINDOWS {
            return Err(TooMany::Windows);
        }
        for (at, (piece, wanted)) in pieces.iter().zip(&wanted).enumerate() {
            self.window(at, piece, wanted)?;
        }
        Ok(())
    }

    fn window(&mut self, at: usize, piece: &Piece, wanted: &[(usize, u64)]) -> Result<(), TooMany> {
        let mut base = [0; WORDS];
        (0..self.bits.len()).for_each(|bit| set(&mut base, bit));
        for (bit, _) in wanted {
            base[bit / 64] &= !(1 << (bit % 64));
        }
        let mut by_value: HashMap<u64, Bitmap> = HashMap::new();
        for (bit, value) in wanted {
            // A rule that wants two values of one piece means nothing.
            let other = wanted
                .iter()
                .any(|(same, other)| same == bit && other != value);
            if !other {
                set(by_value.entry(*value).or_insert(base), *bit);
            }
        }
        let fits = |seed: &u64| {
            let mut used = vec![0; WINDOW_BUCKETS];
            by_value.keys().all(|value| {
                let bucket = &mut used[window_bucket(*seed, *value)];
                *bucket += 1;
                *bucket <= WINDOW_WAYS
            })
        };
        let seeds = (1..200u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let seed = seeds.into_iter().find(fits).ok_or(TooMany::Values)?;
        for (value, row) in &by_value {
            let entry = self.rows.entry(row)?;
            let bucket = window_bucket(seed, *value);
            let entries = &mut self.tables.window_entries[at][bucket];
            let way = entries
                .iter()
                .position(|entry| *entry == 0)
                .ok_or(TooMany::Values)?;
            entries[way] = entry;
            self.tables.window_values[at][bucket][way] = *value;
        }
        self.tables.windows[at] = Window {
            mask: piece.mask,
            seed,
            offset: piece.offset,
            bytes: piece.bytes,
            other: self.rows.entry(&base)?,
            pad: 0,
        };
        self.tables.fields |= FIELD_WINDOW << at;
        Ok(())
    }
}

/// At most 8 bytes of payload, as they stand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    offset: u32,
    bytes: u32,
    mask: u64,
}

fn split(payload: &super::Payload) -> impl Iterator<Item = (Piece, u64)> + '_ {
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_ne_bytes(word)
    };
    let chunks = payload.value.0.chunks(8).zip(payload.mask.0.chunks(8));
    (u32::from(payload.offset)..)
        .step_by(8)
        .zip(chunks)
        .map(move |(offset, (value, mask))| {
            let bytes = u32::try_from(value.len()).unwrap_or(8);
            let piece = Piece {
                offset,
                bytes,
                mask: word(mask),
            };
            (piece, word(value))
        })
}

/// The first and the last address of a prefix.
fn ends(prefix: IpNet) -> (u128, u128) {
    match prefix {
        IpNet::V4(prefix) => (
            u32::from(prefix.network()).into(),
            u32::from(prefix.broadcast()).into(),
        ),
        IpNet::V6(prefix) => (prefix.network().into(), prefix.broadcast().into()),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half is what is wanted"
)]
const fn half(number: u128) -> u64 {
    number as u64
}

fn set(bitmap: &mut Bitmap, at: usize) {
    bitmap[at / 64] |= 1 << (at % 64);
}

fn and(a: &Bitmap, b: &Bitmap) -> Bitmap {
    std::array::from_fn(|at| a[at] & b[at])
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;
    use sluice_ebpf::{
        flow::State,
        rules::{Asked, Search, find},
    };

    use super::*;
    use crate::rules::{FragmentBits, Header, arbitrary};

    fn words(address: IpAddr) -> [u64; 2] {
        bytemuck::cast(match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        })
    }

    /// What the program learns of a packet before it asks.
    fn asked(header: &Header, vip: u16) -> Asked {
        let v6 = header.source.is_ipv6();
        let (source_port, destination_port) = header.ports.unwrap_or_default();
        let kind = match (header.tcp_flags, header.icmp) {
            (Some(flags), _) => tcp_kind(flags),
            (_, Some((kind, _))) => icmp_kind(v6, kind),
            _ => plain_kind(header.protocol),
        };
        Asked {
            source: words(header.source),
            destination: words(header.destination),
            v6: v6.into(),
            has_ports: header.ports.is_some().into(),
            source_port: source_port.into(),
            destination_port: destination_port.into(),
            has_code: header.icmp.is_some().into(),
            code: header.icmp.unwrap_or_default().1.into(),
            kind,
            length: header.length.into(),
            dscp: header.dscp.into(),
            fragment: header.fragment.into(),
            ttl: header.ttl.into(),
            vip: vip.into(),
            payload: 0,
            end: u32::try_from(header.payload.len()).unwrap(),
        }
    }

    fn piece(header: &Header, offset: u32, bytes: u32) -> Option<u64> {
        let (offset, bytes) = (offset as usize, bytes as usize);
        let piece = header.payload.get(offset..offset + bytes)?;
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(piece);
        Some(u64::from_ne_bytes(word))
    }

    /// Numbers of the rules that mean a packet, as the tables tell, each once.
    fn by_tables(compiled: &Compiled, header: &Header, vip: u16) -> Vec<u16> {
        let payload = |offset, bytes| piece(header, offset, bytes);
        let mut search = Search {
            asked: asked(header, vip),
            ..Search::default()
        };
        let words = find(&compiled.tables, &mut search, State::Unproven, payload);
        let mut found = Vec::new();
        for word in (0..WORDS).filter(|word| words >> word & 1 != 0) {
            let numbers = (0..64).filter(|bit| search.meant[word] >> bit & 1 != 0);
            found.extend(numbers.map(|bit| compiled.tables.entries[word * 64 + bit].number));
        }
        found
    }

    fn placed(rules: &[RuleSpec]) -> Vec<Placed<'_>> {
        let place = |(number, spec): (u16, _)| {
            let spec: &RuleSpec = spec;
            let vip = spec
                .vip
                .as_deref()
                .map(|vip| if vip == "a" { 1 } else { 2 });
            Placed { spec, number, vip }
        };
        (0..).zip(rules).map(place).collect()
    }

    fn by_hand(rules: &[RuleSpec], header: &Header, vip: &str) -> Vec<u16> {
        let numbered = (0..).zip(rules);
        let meant = numbered.filter(|(_, rule)| rule.matches(vip, header));
        meant.map(|(number, _)| number).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() })]

        /// One after the other, and in one sweep over a list.
        #[test]
        fn tables_and_the_plain_list_mean_the_same(
            rules in prop::collection::vec(arbitrary::rule(), 1..120),
            headers in prop::collection::vec(arbitrary::header(), 1..200),
        ) {
            let compiled = match compile(&placed(&rules)) {
                Ok(compiled) => compiled,
                // Pieces of payload are few.
                Err(error) => {
                    prop_assert_eq!(error, TooMany::Windows);
                    return Ok(());
                }
            };
            for header in &headers {
                for (number, vip) in [(1, "a"), (2, "b"), (3, "c")] {
                    prop_assert_eq!(by_tables(&compiled, header, number), by_hand(&rules, header, vip), "{:?}", header);
                }
            }
        }
    }

    fn rule(text: &str) -> RuleSpec {
        text.parse().unwrap()
    }

    #[test]
    fn a_thousand_rules_of_many_kinds_fit() {
        let rules: Vec<RuleSpec> = (0..1024u32)
            .map(|n| match n % 5 {
                0 => rule(&format!(
                    "src 10.{}.{}.{}/32; proto udp -> drop",
                    n / 64,
                    n % 64,
                    n % 7
                )),
                1 => rule(&format!("sport {n}; dport {}..65535 -> drop", n + 7)),
                2 => rule(&format!("src 2001:db8:{n:x}::/48; length {n} -> drop")),
                3 => rule(&format!("payload 0 = 0x{n:08x}; ttl {} -> drop", n % 256)),
                _ => rule(&format!(
                    "dst 192.0.{}.0/25; tcp flags 0x02/0x12; dport {n} -> drop",
                    n % 256
                )),
            })
            .collect();
        let compiled = compile(&placed(&rules)).unwrap();
        assert!(
            compiled
                .parts()
                .iter()
                .all(|part| part.end <= size_of::<RuleTables>())
        );
        let udp = Header {
            protocol: 17,
            ports: Some((1021, 5000)),
            ..header("10.15.60.5", "192.0.2.1")
        };
        assert_eq!(by_tables(&compiled, &udp, 1), by_hand(&rules, &udp, "a"));
        assert_eq!(by_tables(&compiled, &udp, 1), [1020, 1021]);
        let v6 = Header {
            length: 1022,
            ..header("2001:db8:3fe::9", "2001:db8::1")
        };
        assert_eq!(by_tables(&compiled, &v6, 1), [1022]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let many = vec![rule("ttl 1 -> drop"); 1025];
        assert_eq!(compile(&placed(&many)).err(), Some(TooMany::Rules));
        let ports = vec![rule("port 53 -> drop"); 513];
        assert_eq!(compile(&placed(&ports)).err(), Some(TooMany::Rules));
        let windows: Vec<_> = (0..9)
            .map(|n| rule(&format!("payload {n} = 0x01 -> drop")))
            .collect();
        assert_eq!(compile(&placed(&windows)).err(), Some(TooMany::Windows));
        assert!(compile(&[]).is_ok_and(|empty| empty.tables.fields == 0));
    }

    #[test]
    fn a_rule_for_either_port_counts_a_packet_once() {
        let rules = [rule("port 53 -> limit 5 pps")];
        let compiled = compile(&placed(&rules)).unwrap();
        for (ports, found) in [((53, 53), 1), ((53, 1), 1), ((1, 53), 1), ((1, 1), 0)] {
            let packet = Header {
                protocol: 17,
                ports: Some(ports),
                ..header("10.0.0.1", "10.0.0.2")
            };
            assert_eq!(by_tables(&compiled, &packet, 1).len(), found, "{ports:?}");
        }
    }

    fn header(source: &str, destination: &str) -> Header {
        Header {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: 6,
            ports: None,
            tcp_flags: None,
            icmp: None,
            length: 40,
            dscp: 0,
            fragment: FragmentBits::DONT,
            ttl: 64,
            payload: Vec::new(),
        }
    }
}
