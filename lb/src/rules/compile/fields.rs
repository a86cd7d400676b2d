//! Fields whose values are few enough for a table that has a row for each.

use std::collections::HashMap;

use sluice_ebpf::rules::{
    FIELD_CODE, FIELD_DESTINATION_PORT, FIELD_KIND, FIELD_LENGTH, FIELD_MARK, FIELD_SOURCE_PORT,
    FIELD_TTL, FIELD_VIP, RuleTables, WORDS, icmp_kind, plain_kind, tcp_kind,
};

use super::{
    Bit, Compiler, TooMany,
    rows::{Bitmap, and, set},
};
use crate::rules::{Components, NumberKind, Numbers};

impl Compiler<'_> {
    pub(super) fn numbers(&mut self) -> Result<(), TooMany> {
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

    pub(super) fn kinds(&mut self) -> Result<(), TooMany> {
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

    pub(super) fn marks(&mut self) -> Result<(), TooMany> {
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

    pub(super) fn vips(&mut self) -> Result<(), TooMany> {
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
}
