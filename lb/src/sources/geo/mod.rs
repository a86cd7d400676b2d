//! Networks by country and autonomous system, as databases tell them that the operator brings.

mod mmdb;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod writer;

use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use ipnet::Ipv6Subnets;

use super::Members;
use mmdb::{Mmdb, Range, Values};

pub use mmdb::Damage;

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

/// Why databases do not tell what is asked for.
#[derive(Debug, thiserror::Error)]
pub enum GeoError {
    #[error("cannot read {}: {source}", file.display())]
    Unreadable { file: PathBuf, source: io::Error },
    #[error("{}: {source}", file.display())]
    Damaged { file: PathBuf, source: Damage },
    #[error("{what} are in none of the databases that were given: {databases}")]
    OtherKind {
        what: &'static str,
        /// Each with what its maker calls it.
        databases: String,
    },
    #[error("there is no network of {missing} in {databases}")]
    Nothing { missing: String, databases: String },
}

impl Places {
    /// The networks that databases tell for any of this. It is an error if one of the countries or systems has none.
    pub fn networks(&self, databases: &[PathBuf]) -> Result<Members, GeoError> {
        let mut found = Found::default();
        for file in databases {
            let bytes = fs::read(file).map_err(|source| GeoError::Unreadable {
                file: file.clone(),
                source,
            })?;
            let damaged = |source| GeoError::Damaged {
                file: file.clone(),
                source,
            };
            found.take(self, file, &bytes).map_err(damaged)?;
        }
        found.members(self)
    }

    /// Whether a record is of any of these; what it has is noted.
    fn holds(&self, of: &Values<'_>, record: usize, told: &mut Told) -> Result<bool, Damage> {
        let mut is_one = false;
        if !self.countries.is_empty()
            && let Some(country) = country(of, record)?
        {
            told.countries.insert(country);
            is_one |= self.countries.contains(&country);
        }
        if !self.asns.is_empty()
            && let Some(asn) = asn(of, record)?
        {
            told.asns.insert(asn);
            is_one |= self.asns.contains(&asn);
        }
        Ok(is_one)
    }
}

/// What records have.
#[derive(Default)]
struct Told {
    countries: BTreeSet<Country>,
    asns: BTreeSet<u32>,
}

/// What was found so far.
#[derive(Default)]
struct Found {
    told: Told,
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
    databases: Vec<String>,
}

impl Found {
    fn take(&mut self, wanted: &Places, file: &Path, bytes: &[u8]) -> Result<(), Damage> {
        let database = Mmdb::open(bytes)?;
        let kind = database.kind.chars().take(MOST_SHOWN);
        let kind: String = kind.flat_map(char::escape_debug).collect();
        self.databases.push(format!("{} ({kind})", file.display()));
        // Many networks share a record.
        let mut known: HashMap<usize, bool> = HashMap::new();
        let (told, v4, v6) = (&mut self.told, &mut self.v4, &mut self.v6);
        database.networks(|range, record| {
            let is_one = match known.get(&record) {
                Some(is_one) => *is_one,
                None => {
                    let is_one = wanted.holds(&database.records, record, told)?;
                    known.insert(record, is_one);
                    is_one
                }
            };
            match range {
                _ if !is_one => {}
                Range::V6(first, _) if first >> 32 == V4_MAPPED => {}
                Range::V4(first, last) => v4.push((first, last)),
                Range::V6(first, last) => v6.push((first, last)),
            }
            Ok(())
        })
    }

    fn members(self, wanted: &Places) -> Result<Members, GeoError> {
        let databases = self.databases.join(", ");
        let (countries, asns) = (&wanted.countries, &wanted.asns);
        let told = &self.told;
        let kinds = [
            (
                "countries",
                countries.is_empty() || !told.countries.is_empty(),
            ),
            (
                "autonomous systems",
                asns.is_empty() || !told.asns.is_empty(),
            ),
        ];
        if let Some((what, _)) = kinds.into_iter().find(|(_, is_told)| !is_told) {
            return Err(GeoError::OtherKind { what, databases });
        }
        let countries = countries.difference(&told.countries);
        let asns = asns.difference(&told.asns);
        let missing: Vec<String> = countries
            .map(ToString::to_string)
            .chain(asns.map(|asn| format!("AS{asn}")))
            .collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(GeoError::Nothing { missing, databases });
        }
        let v6 = joined(self.v6).into_iter();
        let v6 = v6.flat_map(|(first, last)| Ipv6Subnets::new(first.into(), last.into(), 0));
        Ok(Members::new(self.v4, v6))
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
fn country(of: &Values<'_>, record: usize) -> Result<Option<Country>, Damage> {
    let code = match of.find(record, "country_code")? {
        Some(code) => Some(code),
        None => match of.find(record, "country")? {
            Some(country) => of.find(country, "iso_code")?.or(Some(country)),
            None => None,
        },
    };
    let text = match code {
        Some(code) => of.text(code)?,
        None => None,
    };
    Ok(text.and_then(|text| text.as_bytes().try_into().ok().map(Country)))
}

/// The autonomous system of a record, likewise.
fn asn(of: &Values<'_>, record: usize) -> Result<Option<u32>, Damage> {
    if let Some(number) = of.find(record, "autonomous_system_number")? {
        let number = of.number(number)?;
        return Ok(number.and_then(|number| u32::try_from(number).ok()));
    }
    let text = match of.find(record, "asn")? {
        Some(text) => of.text(text)?,
        None => None,
    };
    Ok(text.and_then(|text| asn_of(text).ok()))
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
