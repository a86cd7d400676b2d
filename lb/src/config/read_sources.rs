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

/// The sets of these tables, and of their members what the databases of `[geo]` tell, which are read once for all of them.
pub(super) fn sources<'a>(
    file: &Section<'_>,
    tables: impl Iterator<Item = (Kind, &'a Section<'a>)>,
    outside: Outside,
) -> Vec<SourceList> {
    let sets: Vec<Set<'_>> = tables
        .filter_map(|(kind, table)| set(kind, table))
        .collect();
    let asked = sets.iter().filter_map(|set| match &set.given {
        Given::Places(places, _) => Some(places.clone()),
        Given::Prefixes(_) | Given::File(..) => None,
    });
    let asked: Vec<Places> = asked.collect();
    let mut told = told(file, &asked, outside).map(Vec::into_iter);
    let lists = sets.into_iter().filter_map(|set| {
        let members = match &set.given {
            Given::Prefixes(prefixes) => Members::of(prefixes.iter().copied()),
            Given::File(path, field) => field.accept(outside.sources(path, set.on_bad))?,
            Given::Places(_, field) => field.accept(told.as_mut()?.next()?)?,
        };
        Some(set.of(members))
    });
    lists.collect()
}

/// One `[[deny]]` or `[[allow]]`, before its members are known.
struct Set<'a> {
    spec: SourceSpec,
    given: Given<'a>,
    on_bad: OnBad,
}

/// Where the members of a set come from, and where that stands in the config.
enum Given<'a> {
    Prefixes(Vec<IpNet>),
    File(PathBuf, Field<'a>),
    Places(Places, Field<'a>),
}

impl Set<'_> {
    fn of(self, members: Members) -> SourceList {
        let file = match self.given {
            Given::File(path, _) => Some(path),
            Given::Prefixes(_) | Given::Places(..) => None,
        };
        SourceList {
            file,
            fingerprint: members.fingerprint(),
            spec: SourceSpec {
                members: Arc::new(members),
                ..self.spec
            },
        }
    }
}

fn set<'a>(kind: Kind, section: &Section<'a>) -> Option<Set<'a>> {
    let name = section.required("name", "\"scanners\"").and_then(|field| {
        let name = field.string()?;
        field.accept(check_name(name).map(|()| name))
    });
    let given = given(section);
    let vip = section.optional("vip", |field| field.string());
    let skip_bad = section.or("skip_bad", false, |field| field.boolean());
    let mode = match kind {
        Kind::Deny => section.or("mode", Mode::Enforce, |field| field.word(MODES)),
        Kind::Allow => Some(Mode::Enforce),
    };
    let spec = SourceSpec {
        vip: vip?.map(str::to_owned),
        mode: mode?,
        ..SourceSpec::named(kind, name?, Arc::default())
    };
    if let Err(wrong) = spec.validate() {
        section.error(|| wrong.to_string());
        return None;
    }
    Some(Set {
        spec,
        given: given?,
        on_bad: if skip_bad? {
            OnBad::Skip
        } else {
            OnBad::Refuse
        },
    })
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

/// What the databases of `[geo]` tell of each of these; they are files that tell where networks are, and whose.
fn told(
    file: &Section<'_>,
    asked: &[Places],
    outside: Outside,
) -> Option<Vec<Result<Members, String>>> {
    let table = match file.get("geo") {
        Some(field) => Some(field.table(&keys::GEO)?),
        None => None,
    };
    let field = table.and_then(|table| table.get("databases"));
    let databases = field.map_or(Some(Vec::new()), |field| {
        each(&field, |path| path.absolute_path())
    })?;
    match field.filter(|_| !databases.is_empty()) {
        Some(field) => field.accept(outside.places(asked, &databases)),
        None => Some(asked.iter().map(|_| Err(NO_DATABASE.to_owned())).collect()),
    }
}

const NO_DATABASE: &str = "countries and ASNs need an MMDB file; write `databases = [\"/var/lib/GeoIP/GeoLite2-Country.mmdb\"]` in [geo]";

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
