//! Reads `amplification` of a policy: a list of presets, or a table with one and what holds for all of them.

use ipnet::IpNet;
use sluice_ebpf::{abi::MAX_REPLIES, amplification::Preset};

use super::{
    addresses, keys,
    model::{Amplified, Mode},
    read_policy::MODES,
    section::{Field, Section},
};

/// What a policy does about answers that nobody asked for.
pub(super) fn amplification(field: &Field<'_>) -> Option<Vec<Amplified>> {
    if field.is_array() {
        return presets(field, Mode::Enforce, &[]);
    }
    let table = field.table(&keys::AMPLIFICATION)?;
    let mode = table.or("mode", Mode::Enforce, |field| field.word(MODES));
    let replies_from = replies_from(&table);
    let list = table.required("presets", "[\"dns\", \"ntp\"]")?;
    presets(&list, mode?, &replies_from?)
}

/// In place of a word for each.
const ALL: &str = "all";

fn presets(field: &Field<'_>, mode: Mode, replies: &[IpNet]) -> Option<Vec<Amplified>> {
    let mut all: Vec<Amplified> = Vec::new();
    let mut good = true;
    for item in field.array()? {
        let Some(found) = entry(&item, mode, replies) else {
            good = false;
            continue;
        };
        for amplified in found {
            if all.iter().any(|held| held.preset == amplified.preset) {
                item.error(|| {
                    let word = amplified.preset.word();
                    format!("`{word}` is there twice; keep one of the two")
                });
                good = false;
                break;
            }
            all.push(amplified);
        }
    }
    let mut prefixes: Vec<&IpNet> = all.iter().flat_map(|one| &one.replies_from).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    if prefixes.len() > MAX_REPLIES {
        let count = prefixes.len();
        field.error(|| {
            format!("{count} different prefixes in `replies_from` are too many; {MAX_REPLIES} is the most of a policy: write shorter prefixes")
        });
        return None;
    }
    good.then_some(all)
}

/// A preset's word, `all`, or a table for one.
fn entry(item: &Field<'_>, mode: Mode, replies: &[IpNet]) -> Option<Vec<Amplified>> {
    let with = |preset| Amplified {
        preset,
        mode,
        replies_from: replies.to_vec(),
    };
    if let Some(text) = item.text() {
        if text == ALL {
            return Some(Preset::ALL.iter().copied().map(with).collect());
        }
        return Some(vec![with(word(item)?)]);
    }
    let table = item.table(&keys::PRESET)?;
    let preset = table.required("preset", "\"dns\"");
    let preset = preset.and_then(|field| word(&field));
    let mode = table.or("mode", mode, |field| field.word(MODES));
    let own = replies_from(&table);
    let mut amplified = with(preset?);
    amplified.mode = mode?;
    amplified.replies_from.extend(own?);
    Some(vec![amplified])
}

fn word(field: &Field<'_>) -> Option<Preset> {
    let words: Vec<(&str, Preset)> = Preset::ALL
        .iter()
        .map(|preset| (preset.word(), *preset))
        .collect();
    field.word(&words)
}

fn replies_from(table: &Section<'_>) -> Option<Vec<IpNet>> {
    table.or("replies_from", Vec::new(), |field| {
        let fields = field.array()?;
        let prefixes: Vec<_> = fields.iter().map(addresses::prefix).collect();
        prefixes.into_iter().collect()
    })
}
