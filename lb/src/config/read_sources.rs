//! Reads `[[deny]]`, `[[allow]]` and `[geo]`: named sets of sources that hold as long as they stand in the config.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    keys,
    model::{Mode, SourceList},
    outside::Outside,
    read_policy::MODES,
    section::{Field, Section},
};
use crate::sources::{Kind, Members, OnBad, Places, SourceSpec, check_name, import, prefix_of};

/// What the tables of sets stand beside.
pub(super) struct Beside<'a> {
    /// Of `[geo]`; `None` if that is wrong.
    pub(super) databases: Option<&'a [PathBuf]>,
    pub(super) outside: Outside,
}

/// `[geo]`: files that tell where networks are, and whose.
pub(super) fn databases(file: &Section<'_>) -> Option<Vec<PathBuf>> {
    let Some(field) = file.get("geo") else {
        return Some(Vec::new());
    };
    let table = field.table(&keys::GEO)?;
    table.or("databases", Vec::new(), |field| {
        each(&field, |path| path.absolute_path())
    })
}

/// One `[[deny]]` or `[[allow]]`.
pub(super) fn sources(
    section: &Section<'_>,
    kind: Kind,
    beside: &Beside<'_>,
) -> Option<SourceList> {
    let name = section.required("name", "\"scanners\"").and_then(|field| {
        let name = field.string()?;
        field.accept(check_name(name).map(|()| name))
    });
    let given = given(section);
    let vip = section.optional("vip", |field| field.string());
    let skip_bad = section.or("skip_bad", false, |field| field.boolean());
    let mode = match kind {
        Kind::Deny => section.or("mode", Mode::Enforce, |field| field.word(MODES, &[])),
        Kind::Allow => Some(Mode::Enforce),
    };
    let (name, given, vip, skip_bad, mode) = (name?, given?, vip?, skip_bad?, mode?);
    let mut file = None;
    let members = match given {
        Given::Prefixes(prefixes) => Members::of(prefixes),
        Given::File(path, field) => {
            let on_bad = if skip_bad { OnBad::Skip } else { OnBad::Refuse };
            let members = field.accept(beside.outside.sources(&path, on_bad))?;
            file = Some(path);
            members
        }
        Given::Places(places, field) => {
            let databases = beside.databases?;
            field.accept(beside.outside.places(&places, databases))?
        }
    };
    let fingerprint = members.fingerprint();
    let spec = SourceSpec {
        vip: vip.map(str::to_owned),
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

/// Where the members of a set come from, and where that stands in the config.
enum Given<'a> {
    Prefixes(Vec<IpNet>),
    File(PathBuf, Field<'a>),
    Places(Places, Field<'a>),
}

fn given<'a>(section: &Section<'a>) -> Option<Given<'a>> {
    let file = section.optional("file", |field| {
        Some(Given::File(field.absolute_path()?, field))
    });
    let prefixes = section.optional("prefixes", |field| {
        let prefix = |field: &Field<'_>| field.accept(prefix_of(field.string()?));
        Some(Given::Prefixes(each(&field, prefix)?))
    });
    let countries = section.or("countries", Vec::new(), |field| {
        each(&field, |field| field.accept(field.string()?.parse()))
    });
    let asns = section.or("asns", Vec::new(), |field| {
        each(&field, |field| field.integer(1..=u32::MAX))
    });
    let places = Places {
        countries: countries?.into_iter().collect(),
        asns: asns?.into_iter().collect(),
    };
    let field = section.get("countries").or_else(|| section.get("asns"));
    let places = field.map(|field| Given::Places(places, field));
    let mut all = [file?, prefixes?, places].into_iter().flatten();
    match (all.next(), all.next()) {
        (Some(given), None) => Some(given),
        _ => {
            section
                .error(|| "give one of `file`, `prefixes`, or `countries` and `asns`".to_owned());
            None
        }
    }
}

/// What `read` makes of each element of an array.
fn each<'a, T>(field: &Field<'a>, read: impl Fn(&Field<'a>) -> Option<T>) -> Option<Vec<T>> {
    // All of them, so that each error is told.
    let all: Vec<Option<T>> = field.array()?.iter().map(read).collect();
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
