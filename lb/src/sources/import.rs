//! Reads lists of prefixes in the formats that they are given away in: one a line, with comments; netsets and what ipset
//! saves; the first column of CSV; JSON objects a line, as Spamhaus' DROP lists.

use std::{fmt, net::IpAddr};

use ipnet::{IpNet, Ipv6Net, Ipv6Subnets};
use serde::Deserialize;

use super::{Members, spec::prefix_of};

/// What becomes of a list with a line that is no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBad {
    /// Nothing of it is taken.
    Refuse,
    /// The others are taken.
    Skip,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    pub members: Members,
    pub lines: Lines,
}

/// The lines of a list, but for those that hold nothing by right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// Those with prefixes.
    pub taken: usize,
    pub skipped: usize,
    /// The first of those that were skipped.
    pub bad: Vec<BadLine>,
}

/// A line that is no prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// From 1.
    pub number: usize,
    pub why: String,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.number, self.why)
    }
}

/// Why nothing of a list is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    #[error("{0}")]
    Bad(BadLine),
    #[error("there is no prefix in it")]
    Empty,
}

/// Reads a list. An empty one is refused: it is rather a download that failed.
pub fn import(text: &[u8], on_bad: OnBad) -> Result<Imported, ImportError> {
    let mut lines = Lines::default();
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        match line_of(line, lines.taken == 0 && lines.skipped == 0) {
            Ok(None) => {}
            Ok(Some(Line::V4(first, last))) => {
                v4.push((first, last));
                lines.taken += 1;
            }
            Ok(Some(Line::V6(prefixes))) => {
                v6.extend(prefixes);
                lines.taken += 1;
            }
            Err(why) => {
                let bad = BadLine { number, why };
                if on_bad == OnBad::Refuse {
                    return Err(ImportError::Bad(bad));
                }
                lines.skipped += 1;
                if lines.bad.len() < MOST_TOLD {
                    lines.bad.push(bad);
                }
            }
        }
    }
    if lines.taken == 0 {
        return Err(ImportError::Empty);
    }
    Ok(Imported {
        members: Members::new(v4, v6),
        lines,
    })
}

/// Bad lines that are told.
const MOST_TOLD: usize = 20;

/// What stands in a line.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    V4(u32, u32),
    V6(Vec<Ipv6Net>),
}

/// `None` for a line without a prefix that is none by right: empty, a comment, a header.
fn line_of(line: &[u8], may_be_header: bool) -> Result<Option<Line>, String> {
    let line = std::str::from_utf8(line).map_err(|_not_utf8| "it is no text (UTF-8)".to_owned())?;
    let line = line.trim();
    if line.starts_with("//") {
        return Ok(None);
    }
    if line.starts_with('{') {
        return json(line);
    }
    let content = line.split(['#', ';']).next().unwrap_or_default().trim();
    if content.is_empty() {
        return Ok(None);
    }
    let mut words = content.split_ascii_whitespace();
    // What `ipset save` writes: `create NAME hash:net ...`, then `add NAME PREFIX` for each.
    let first = match words.next() {
        Some("create") => return Ok(None),
        Some("add") => {
            let prefix = words.nth(1).unwrap_or_default();
            if words.any(|word| word == "nomatch") {
                return Err(format!(
                    "{prefix} is an exception (`nomatch`), which lists have not; make the others smaller"
                ));
            }
            prefix
        }
        Some(first) if words.clone().next() == Some("-") => {
            let last = words.nth(1).unwrap_or_default();
            return range(first, last).map(Some);
        }
        first => first.unwrap_or_default(),
    };
    let column = first.split(',').next().unwrap_or_default();
    let column = column.trim_matches(|c| matches!(c, '"' | '\''));
    let is_word =
        |text: &str| text.starts_with(|c: char| c.is_ascii_alphabetic()) && !text.contains(':');
    if may_be_header && content.contains(',') && is_word(column) {
        return Ok(None);
    }
    if let Some((first, last)) = column.split_once('-') {
        return range(first, last).map(Some);
    }
    prefix_of(column).and_then(of_prefix).map(Some)
}

fn of_prefix(prefix: IpNet) -> Result<Line, String> {
    let line = match prefix {
        IpNet::V4(prefix) => Line::V4(prefix.network().to_bits(), prefix.broadcast().to_bits()),
        IpNet::V6(prefix) => Line::V6(vec![prefix]),
    };
    unless_everybody(line, prefix)
}

/// Everybody in a list is a mistake.
fn unless_everybody(line: Line, shown: impl fmt::Display) -> Result<Line, String> {
    let is_everybody = match &line {
        Line::V4(first, last) => (*first, *last) == (0, u32::MAX),
        Line::V6(prefixes) => prefixes.iter().any(|prefix| prefix.prefix_len() == 0),
    };
    if is_everybody {
        return Err(format!(
            "{shown} is everybody; if that is meant, add it by itself"
        ));
    }
    Ok(line)
}

/// An object of a JSON list. Spamhaus' last line tells of the list, not of a prefix.
fn json(line: &str) -> Result<Option<Line>, String> {
    #[derive(Deserialize)]
    struct Object {
        #[serde(alias = "prefix", alias = "network", alias = "ip")]
        cidr: Option<String>,
        r#type: Option<String>,
    }
    let line = line.strip_suffix(',').unwrap_or(line);
    let object: Object =
        serde_json::from_str(line).map_err(|wrong| format!("it is no JSON object: {wrong}"))?;
    match (object.cidr, object.r#type.as_deref()) {
        (Some(cidr), _) => prefix_of(&cidr).and_then(of_prefix).map(Some),
        (None, Some("metadata")) => Ok(None),
        (None, _) => Err("the object has no `cidr`".to_owned()),
    }
}

fn range(first: &str, last: &str) -> Result<Line, String> {
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(IpAddr::V4(first)), Ok(IpAddr::V4(last))) if first <= last => {
            let line = Line::V4(first.to_bits(), last.to_bits());
            unless_everybody(line, format_args!("{first}-{last}"))
        }
        (Ok(IpAddr::V6(first)), Ok(IpAddr::V6(last))) if first <= last => {
            let line = Line::V6(Ipv6Subnets::new(first, last, 0).collect());
            unless_everybody(line, format_args!("{first}-{last}"))
        }
        (Ok(_), Ok(_)) => Err(format!("{first}-{last} is no range of one family in order")),
        _ => {
            let shown: String = format!("{first}-{last}").chars().take(60).collect();
            Err(format!("{shown:?} is no IP prefix or range"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn read(text: &str) -> Imported {
        import(text.as_bytes(), OnBad::Refuse).unwrap()
    }

    fn holds(text: &str, addresses: &[&str]) {
        let read = read(text);
        for address in addresses {
            assert!(
                read.members.contains(address.parse().unwrap()),
                "{address} by {text:?}"
            );
        }
        assert!(!read.members.contains("8.8.8.8".parse().unwrap()));
    }

    #[test]
    fn the_common_formats_are_read() {
        let all = ["192.0.2.7", "198.51.100.1", "2001:db8::1"];
        for text in [
            "192.0.2.0/24\n198.51.100.1\n2001:db8::/32\n",
            "# a list\r\n192.0.2.7 # one\r\n\r\n198.51.100.0/24 ; another\r\n2001:db8::1\r\n",
            "; Spamhaus DROP List\n192.0.2.0/24 ; SBL1\n198.51.100.0/24 ; SBL2\n2001:db8::/32 ; SBL3",
            "network,country,asn\n192.0.2.0/24,AQ,1\n\"198.51.100.0/24\",\"AQ\",2\n2001:db8::/32,AQ,3\n",
            "create x hash:net family inet\nadd x 192.0.2.0/24\nadd x 198.51.100.1 timeout 0\nadd y 2001:db8::/32",
            "192.0.2.0-192.0.2.255\n198.51.100.1 - 198.51.100.9\n2001:db8::-2001:db8::ff",
            "{\"cidr\":\"192.0.2.0/24\",\"sblid\":\"SBL1\",\"rir\":\"x\"}\n{\"cidr\":\"198.51.100.0/24\",\"sblid\":\"SBL2\"}\n{\"cidr\":\"2001:db8::/32\"}\n{\"type\":\"metadata\",\"timestamp\":1,\"size\":2,\"records\":3}\n",
        ] {
            holds(text, &all);
        }
    }

    #[test]
    fn a_bad_line_in_the_middle_refuses_all_or_is_skipped() {
        let mut text = String::new();
        for n in 0..1_000_000u32 {
            text += &format!("{}\n", Ipv4Addr::from_bits(0x0100_0001 + n * 7));
            if n == 500_000 {
                text += "192.0.2.1/33\n";
            }
        }
        let refused = import(text.as_bytes(), OnBad::Refuse).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "line 500002: \"192.0.2.1/33\" is no IP prefix like 192.0.2.0/24 or 2001:db8::/64"
        );
        let read = import(text.as_bytes(), OnBad::Skip).unwrap();
        assert_eq!((read.lines.taken, read.lines.skipped), (1_000_000, 1));
        assert_eq!(read.lines.bad[0].number, 500_002);
        assert_eq!(read.members.v4().len(), 1_000_000);
    }

    #[test]
    fn what_is_no_prefix_is_told() {
        for (text, part) in [
            ("192.0.2.1/24", "line 1: 192.0.2.1/24 has bits beyond"),
            ("10.0.0.0/8\n0.0.0.0/0", "line 2: 0.0.0.0/0 is everybody"),
            ("10.0.0.0/8\nnetwork,asn", "line 2: \"network\" is no IP"),
            ("{\"asn\": 7}", "line 1: the object has no `cidr`"),
            ("{\"cidr\": 7}", "line 1: it is no JSON object"),
            ("192.0.2.9-192.0.2.1", "no range"),
            ("0.0.0.0-255.255.255.255", "is everybody"),
            ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "is everybody"),
            (
                "create x hash:net\nadd x 10.0.0.0/8\nadd x 10.1.0.0/16 nomatch",
                "line 3: 10.1.0.0/16 is an exception",
            ),
            ("<html>", "line 1: \"<html>\" is no IP"),
            ("# nothing", "there is no prefix in it"),
            ("", "there is no prefix in it"),
        ] {
            let refused = import(text.as_bytes(), OnBad::Refuse)
                .unwrap_err()
                .to_string();
            assert!(refused.contains(part), "{text:?}: {refused}");
        }
        let binary = import(b"\xff\xfe1", OnBad::Refuse).unwrap_err();
        assert_eq!(binary.to_string(), "line 1: it is no text (UTF-8)");
    }
}
