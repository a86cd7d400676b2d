//! Reads `[[deny]]` and `[[allow]]`: named sets of sources that hold as long as they stand in the config.

use std::{path::Path, sync::Arc};

use ipnet::IpNet;

use super::{
    model::{Mode, SourceList},
    outside::Outside,
    read_policy::MODES,
    section::{Field, Section},
};
use crate::sources::{Kind, Members, OnBad, SourceSpec, check_name, import, prefix_of};

/// One `[[deny]]` or `[[allow]]`.
pub(super) fn sources(section: &Section<'_>, kind: Kind, outside: Outside) -> Option<SourceList> {
    let name = section.required("name", "\"scanners\"").and_then(|field| {
        let name = field.string()?;
        match check_name(name) {
            Ok(()) => Some(name),
            Err(wrong) => {
                field.error(|| wrong);
                None
            }
        }
    });
    let file = section.optional("file", |field| {
        let path = field.absolute_path()?;
        Some((path, field))
    });
    let prefixes = section.optional("prefixes", |field| prefixes(&field));
    let skip_bad = section.or("skip_bad", false, |field| field.boolean());
    let mode = match kind {
        Kind::Deny => section.or("mode", Mode::Enforce, |field| field.word(MODES, &[])),
        Kind::Allow => Some(Mode::Enforce),
    };
    let (name, file, prefixes, skip_bad, mode) = (name?, file?, prefixes?, skip_bad?, mode?);
    let (members, file) = match (file, prefixes) {
        (Some((path, field)), None) => {
            let on_bad = if skip_bad { OnBad::Skip } else { OnBad::Refuse };
            match outside.sources(&path, on_bad) {
                Ok(members) => (members, Some(path)),
                Err(wrong) => {
                    field.error(|| wrong);
                    return None;
                }
            }
        }
        (None, Some(prefixes)) => (Members::of(prefixes), None),
        _ => {
            section.error(|| "give one of `file` and `prefixes`".to_owned());
            return None;
        }
    };
    let fingerprint = members.fingerprint();
    let spec = SourceSpec {
        mode,
        ..SourceSpec::named(kind, name, Arc::new(members))
    };
    if let Err(wrong) = spec.validate() {
        section.error(|| wrong.to_string());
        return None;
    }
    Some(SourceList {
        spec,
        file,
        fingerprint,
    })
}

fn prefixes(field: &Field<'_>) -> Option<Vec<IpNet>> {
    let elements = field.array()?;
    let all: Vec<Option<IpNet>> = elements
        .iter()
        .map(|element| match prefix_of(element.string()?) {
            Ok(prefix) => Some(prefix),
            Err(wrong) => {
                element.error(|| wrong);
                None
            }
        })
        .collect();
    all.into_iter().collect()
}

/// What a file of the config holds.
pub(super) fn read(path: &Path, on_bad: OnBad) -> Result<Members, String> {
    let shown = path.display();
    let text = std::fs::read(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let read = import(&text, on_bad).map_err(|error| format!("{shown}: {error}"))?;
    let lines = read.lines;
    if lines.skipped > 0 {
        let first = lines
            .bad
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::warn!(file = %shown, skipped = lines.skipped, first, "lines that are no prefixes");
    }
    Ok(read.members)
}
