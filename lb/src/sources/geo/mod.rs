//! Networks by country and autonomous system, as databases tell them that the operator brings.

mod database;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod writer;

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use ipnet::Ipv6Subnets;

use super::Members;
use database::{Database, Range, Value};

pub use database::Damage;

/// Whose networks are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    pub countries: BTreeSet<Country>,
    /// Autonomous systems, by their numbers.
    pub asns: BTreeSet<u32>,
}

/// A code of ISO 3166-1, or `XK`, which databases have for Kosovo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Country([u8; 2]);

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("cannot read {}: {source}", file.display())]
    Unreadable { file: PathBuf, source: io::Error },
    #[error("{}: {source}", file.display())]
    Damaged { file: PathBuf, source: Damage },
}

/// Why databases do not tell all of what is asked for.
#[derive(Debug, thiserror::Error)]
pub enum NotTold {
    #[error("{what} are in none of the databases that were given: {databases}")]
    OtherKind {
        what: &'static str,
        /// Each with what its maker calls it.
        databases: String,
    },
    #[error("there is no network of {missing} in {databases}")]
    Nothing { missing: String, databases: String },
}

/// The networks that databases tell for each of these, or which of its countries and systems have none.
///
/// Each database is read once, however much is asked.
pub fn networks(
    wanted: &[Places],
    databases: &[PathBuf],
) -> Result<Vec<Result<Members, NotTold>>, DatabaseError> {
    let mut found = Found::of(wanted);
    for file in databases {
        let bytes = fs::read(file).map_err(|source| DatabaseError::Unreadable {
            file: file.clone(),
            source,
        })?;
        let damaged = |source| DatabaseError::Damaged {
            file: file.clone(),
            source,
        };
        found.take(file, &bytes).map_err(damaged)?;
    }
    Ok(found.members())
}

/// What was found so far.
struct Found<'a> {
    wanted: &'a [Places],
    /// For each of them.
    ranges: Vec<Ranges>,
    told: Told,
    databases: Vec<String>,
}

#[derive(Clone, Default)]
struct Ranges {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

/// What records have, of the kinds that are wanted.
#[derive(Default)]
struct Told {
    countries: BTreeSet<Country>,
    asns: BTreeSet<u32>,
}

impl<'a> Found<'a> {
    fn of(wanted: &'a [Places]) -> Self {
        Self {
            wanted,
            ranges: vec![Ranges::default(); wanted.len()],
            told: Told::default(),
            databases: Vec::new(),
        }
    }

    fn take(&mut self, file: &Path, bytes: &[u8]) -> Result<(), Damage> {
        Database::read(bytes, |database| {
            let kind = database.kind().chars().take(MOST_SHOWN);
            let kind: String = kind.flat_map(char::escape_debug).collect();
            self.databases.push(format!("{} ({kind})", file.display()));
            // Many networks share a record.
            let mut known: HashMap<u32, Vec<usize>> = HashMap::new();
            database.networks(|range, record| {
                let holders = match known.entry(record) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        let value = database.value(range)?;
                        new.insert(self.told.holders(self.wanted, &value))
                    }
                };
                for at in holders {
                    self.ranges[*at].add(range);
                }
                Ok(())
            })
        })
    }

    fn members(self) -> Vec<Result<Members, NotTold>> {
        let databases = self.databases.join(", ");
        let found = self.wanted.iter().zip(self.ranges);
        let members = found.map(|(wanted, ranges)| {
            self.told.check(wanted, &databases)?;
            Ok(ranges.members())
        });
        members.collect()
    }
}

impl Told {
    /// Who wants the networks of a record, by their places among all; what the record has is noted.
    fn holders(&mut self, wanted: &[Places], record: &Value<'_>) -> Vec<usize> {
        let (country, asn) = (country_in(record), asn_in(record));
        self.countries.extend(country);
        self.asns.extend(asn);
        let holds = |places: &Places| {
            country.is_some_and(|country| places.countries.contains(&country))
                || asn.is_some_and(|asn| places.asns.contains(&asn))
        };
        let holders = wanted.iter().enumerate();
        holders
            .filter(|(_, places)| holds(places))
            .map(|(at, _)| at)
            .collect()
    }

    /// Whether there are networks of all of this.
    fn check(&self, wanted: &Places, databases: &str) -> Result<(), NotTold> {
        let kinds = [
            (
                "countries",
                wanted.countries.is_empty() || !self.countries.is_empty(),
            ),
            (
                "autonomous systems",
                wanted.asns.is_empty() || !self.asns.is_empty(),
            ),
        ];
        if let Some((what, _)) = kinds.into_iter().find(|(_, is_told)| !is_told) {
            return Err(NotTold::OtherKind {
                what,
                databases: databases.to_owned(),
            });
        }
        let countries = wanted.countries.difference(&self.countries);
        let asns = wanted.asns.difference(&self.asns);
        let missing: Vec<String> = countries
            .map(ToString::to_string)
            .chain(asns.map(|asn| format!("AS{asn}")))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(NotTold::Nothing {
            missing: missing.join(", "),
            databases: databases.to_owned(),
        })
    }
}

impl Ranges {
    fn add(&mut self, range: Range) {
        match range {
            Range::V6(first, _) if first >> 32 == V4_MAPPED => {}
            Range::V4(first, last) => self.v4.push((first, last)),
            Range::V6(first, last) => self.v6.push((first, last)),
        }
    }

    fn members(self) -> Members {
        let v6 = joined(self.v6).into_iter();
        let v6 = v6.flat_map(|(first, last)| Ipv6Subnets::new(first.into(), last.into(), 0));
        Members::new(self.v4, v6)
    }
}

/// Letters of what a maker calls its database.
const MOST_SHOWN: usize = 60;
/// The first 96 bits of an IPv4 address that is written as IPv6.
const V4_MAPPED: u128 = 0xffff;

/// The same addresses, in as few ranges as can be.
fn joined(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, before| {
        let touches = next.0 <= before.1.saturating_add(1);
        if touches {
            before.1 = before.1.max(next.1);
        }
        touches
    });
    ranges
}

/// The country of a record: as GeoIP2 and DB-IP have it, or as IPinfo.
fn country_in(record: &Value<'_>) -> Option<Country> {
    let code = record.find("country_code").or_else(|| {
        let country = record.find("country")?;
        country.find("iso_code").or(Some(country))
    });
    code?.text()?.as_bytes().try_into().ok().map(Country)
}

/// The autonomous system of a record, likewise.
fn asn_in(record: &Value<'_>) -> Option<u32> {
    match record.find("autonomous_system_number") {
        Some(number) => number.number()?.try_into().ok(),
        None => asn_of(record.find("asn")?.text()?).ok(),
    }
}

/// The number of an autonomous system, like `64500` or `AS64500`.
pub(crate) fn asn_of(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("AS").unwrap_or(text);
    let number = digits.parse().ok().filter(|number| *number != 0);
    number.ok_or_else(|| {
        format!(
            "{text:?} is no number of an autonomous system, from 1 to {}",
            u32::MAX
        )
    })
}

impl FromStr for Country {
    type Err = String;

    /// In upper or lower case.
    fn from_str(text: &str) -> Result<Self, String> {
        let code = text.to_ascii_uppercase();
        let known = ISO_3166.split_ascii_whitespace().any(|known| known == code);
        match code.as_bytes().try_into() {
            Ok(code) if known => Ok(Self(code)),
            _ => Err(format!(
                "{text:?} is no country code of ISO 3166, two letters like \"KP\""
            )),
        }
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).unwrap_or_default())
    }
}

const ISO_3166: &str = "\
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ CA CC CD CF CG CH CI \
    CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ \
    GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS \
    LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG \
    PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK \
    TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW";
