//! A rule on one line, as FlowSpec is written in BIRD:
//! `dst 192.0.2.0/24; proto 17; sport 53,123; length > 1000 -> limit 1000 pps; priority 10; expire 10m`.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

use super::{Action, Bits, Components, Limit, Numbers, Payload, RuleSpec, scanner::Scanner};
use crate::{
    book::SpecError,
    config::{Mode, suggestion},
};

/// What can stand before the arrow.
const COMPONENTS: [&str; 15] = [
    "dst",
    "src",
    "vip",
    "proto",
    "port",
    "dport",
    "sport",
    "icmp type",
    "icmp code",
    "tcp flags",
    "length",
    "dscp",
    "fragment",
    "ttl",
    "payload",
];
const ACTIONS: [&str; 5] = ["drop", "limit", "pass", "challenge", "sample"];
/// What can stand behind the action.
const OPTIONS: [&str; 5] = ["monitor", "established", "priority", "expire", "comment"];

impl FromStr for RuleSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut scanner = Scanner::new(text);
        let scanner = &mut scanner;
        let mut vip = None;
        let mut components = Components::default();
        while !scanner.take("->") {
            if scanner.is_at_end() {
                let message = "an action is missing; end with one like `-> drop`";
                return Err(scanner.error(message));
            }
            // Between components, and behind the last of them.
            if scanner.take(";") {
                continue;
            }
            component(scanner, &mut components, &mut vip)?;
            let mut next = *scanner;
            if !next.take(";") && !next.take("->") {
                let found = scanner.next_word();
                let message = format!(
                    "{found} does not belong here; end a component with `;`, and the last with an action like `-> drop`"
                );
                return Err(scanner.error(message));
            }
        }
        let action = action(scanner)?;
        let mut spec = Self::new(components, action);
        spec.vip = vip;
        loop {
            if scanner.is_at_end() {
                break;
            }
            if !scanner.take(";") {
                let found = scanner.next_word();
                let message = format!("{found} does not belong here; options come behind `;`");
                return Err(scanner.error(message));
            }
            if !scanner.is_at_end() {
                option(scanner, &mut spec)?;
            }
        }
        spec.validate()?;
        Ok(spec)
    }
}

fn component(
    scanner: &mut Scanner<'_>,
    components: &mut Components,
    vip: &mut Option<String>,
) -> Result<(), SpecError> {
    let start = scanner.at();
    let once = |scanner: &mut Scanner<'_>, taken: bool, name: &str| {
        if taken {
            let message = format!("a second `{name}`; join what it may be by `,` or `||`");
            return Err(scanner.error_at(start, message));
        }
        Ok(())
    };
    macro_rules! read {
        ($name:literal, $field:ident, $read:expr) => {
            if scanner.take($name) {
                once(scanner, components.$field.is_some(), $name)?;
                components.$field = Some($read(scanner)?);
                return Ok(());
            }
        };
    }
    read!("dst", destination, prefix);
    read!("src", source, prefix);
    read!("proto", protocol, Numbers::scan);
    read!("next header", protocol, Numbers::scan);
    read!("port", port, Numbers::scan);
    read!("dport", destination_port, Numbers::scan);
    read!("sport", source_port, Numbers::scan);
    read!("icmp type", icmp_type, Numbers::scan);
    read!("icmp code", icmp_code, Numbers::scan);
    read!("tcp flags", tcp_flags, Bits::scan);
    read!("length", length, Numbers::scan);
    read!("dscp", dscp, Numbers::scan);
    read!("fragment", fragment, Bits::scan);
    read!("ttl", ttl, Numbers::scan);
    if scanner.take("vip") {
        once(scanner, vip.is_some(), "vip")?;
        let name = scanner.word();
        if name.is_empty() {
            return Err(scanner.error("the name of a VIP belongs here"));
        }
        *vip = Some(name.to_owned());
        return Ok(());
    }
    if scanner.take("payload") {
        components.payload.push(Payload::scan(scanner)?);
        return Ok(());
    }
    let found = scanner.next_word();
    let near = suggestion(found.trim_matches('`'), COMPONENTS);
    Err(scanner.error(format!("{found} is no component{near}")))
}

fn prefix(scanner: &mut Scanner<'_>) -> Result<IpNet, SpecError> {
    let start = scanner.at();
    let text = scanner.address();
    let prefix = match text.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address)),
        Err(_) => text.parse().ok(),
    };
    prefix.ok_or_else(|| {
        let found = if text.is_empty() {
            scanner.next_word()
        } else {
            format!("`{text}`")
        };
        let message =
            format!("{found} is no prefix; write it like `192.0.2.0/24` or `2001:db8::/64`");
        scanner.error_at(start, message)
    })
}

fn action(scanner: &mut Scanner<'_>) -> Result<Action, SpecError> {
    for (word, action) in [
        ("drop", Action::Drop),
        ("pass", Action::Pass),
        ("challenge", Action::Challenge),
        ("sample", Action::Sample),
    ] {
        if scanner.take(word) {
            return Ok(action);
        }
    }
    if scanner.take("limit") {
        return limit(scanner).map(Action::Limit);
    }
    let found = scanner.next_word();
    let near = suggestion(found.trim_matches('`'), ACTIONS);
    Err(scanner.error(format!("{found} is no action{near}")))
}

fn limit(scanner: &mut Scanner<'_>) -> Result<Limit, SpecError> {
    const EXAMPLE: &str = "write it like `limit 1000 pps, 8000000 bps, burst 200`";
    let mut limit = Limit::default();
    loop {
        if scanner.take("burst") {
            let start = scanner.at();
            let burst = scanner.number().and_then(|burst| u32::try_from(burst).ok());
            let burst = burst.ok_or_else(|| {
                scanner.error_at(
                    start,
                    format!("a number of packets belongs here; {EXAMPLE}"),
                )
            })?;
            limit.burst = Some(burst);
        } else {
            let start = scanner.at();
            let Some(rate) = scanner.number() else {
                let found = scanner.next_word();
                return Err(scanner.error(format!("{found} is no rate; {EXAMPLE}")));
            };
            let to = if scanner.take("pps") {
                &mut limit.pps
            } else if scanner.take("bps") {
                &mut limit.bps
            } else {
                let message = format!("a rate needs its unit, `pps` or `bps`; {EXAMPLE}");
                return Err(scanner.error_at(start, message));
            };
            if to.replace(rate).is_some() {
                let message = format!("a second rate of the same unit; {EXAMPLE}");
                return Err(scanner.error_at(start, message));
            }
        }
        if !scanner.take(",") {
            return Ok(limit);
        }
    }
}

fn option(scanner: &mut Scanner<'_>, spec: &mut RuleSpec) -> Result<(), SpecError> {
    if scanner.take("monitor") {
        spec.mode = Mode::Monitor;
    } else if scanner.take("established") {
        spec.established = true;
    } else if scanner.take("priority") {
        let start = scanner.at();
        let priority = scanner
            .number()
            .and_then(|number| u16::try_from(number).ok());
        spec.priority = priority.ok_or_else(|| {
            scanner.error_at(
                start,
                "a priority is a number from 0 to 65535, the lowest first",
            )
        })?;
    } else if scanner.take("expire") {
        let start = scanner.at();
        let time = humantime::parse_duration(scanner.word());
        let seconds = time
            .map(|time| time.as_secs())
            .ok()
            .filter(|time| *time > 0);
        let seconds = seconds.ok_or_else(|| {
            scanner.error_at(
                start,
                "a time belongs here, of a second at least, like `90s` or `10m`",
            )
        })?;
        spec.ttl_seconds = Some(seconds);
    } else if scanner.take("comment") {
        spec.comment = scanner.quoted()?;
    } else {
        let found = scanner.next_word();
        let near = suggestion(found.trim_matches('`'), OPTIONS);
        return Err(scanner.error(format!("{found} is no option of a rule{near}")));
    }
    Ok(())
}

impl fmt::Display for RuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let components = self.components.to_string();
        f.write_str(&components)?;
        if let Some(vip) = &self.vip {
            if !components.is_empty() {
                f.write_str("; ")?;
            }
            write!(f, "vip {vip}")?;
        }
        write!(f, " -> {}", self.action)?;
        if self.mode == Mode::Monitor {
            f.write_str("; monitor")?;
        }
        if self.established {
            f.write_str("; established")?;
        }
        if self.priority != super::spec::DEFAULT_PRIORITY {
            write!(f, "; priority {}", self.priority)?;
        }
        if let Some(seconds) = self.ttl_seconds {
            write!(f, "; expire {seconds}s")?;
        }
        if !self.comment.is_empty() {
            let comment = self.comment.replace('\\', "\\\\");
            let comment = comment.replace('"', "\\\"").replace('\n', "\\n");
            write!(f, "; comment \"{comment}\"")?;
        }
        Ok(())
    }
}

impl fmt::Display for Components {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        let mut write = |name: &str, value: Option<&dyn fmt::Display>| match value {
            Some(value) => {
                write!(f, "{between}{name} {value}")?;
                between = "; ";
                Ok(())
            }
            None => Ok(()),
        };
        macro_rules! write {
            ($($name:literal $field:ident,)*) => {
                $(write($name, self.$field.as_ref().map(|value| value as &dyn fmt::Display))?;)*
            };
        }
        write! {
            "dst" destination,
            "src" source,
            "proto" protocol,
            "port" port,
            "dport" destination_port,
            "sport" source_port,
            "icmp type" icmp_type,
            "icmp code" icmp_code,
            "tcp flags" tcp_flags,
            "length" length,
            "dscp" dscp,
            "fragment" fragment,
            "ttl" ttl,
        }
        self.payload
            .iter()
            .try_for_each(|payload| write("payload", Some(payload)))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        let Self::Limit(limit) = self else {
            return Ok(());
        };
        let mut between = " ";
        let rates = [(limit.pps, "pps"), (limit.bps, "bps")];
        for (rate, unit) in rates {
            if let Some(rate) = rate {
                write!(f, "{between}{rate} {unit}")?;
                between = ", ";
            }
        }
        limit
            .burst
            .map_or(Ok(()), |burst| write!(f, "{between}burst {burst}"))
    }
}
