//! Rules in JSON, read field by field, so that an error names the one that is wrong.

use serde_json::{Map, Value};

use super::{Action, Components, Origin, Payload, RuleSpec};
use crate::book::{BodyError, SpecError, json, take};

const FIELDS: &str = "`rule`, `match`, `vip`, `action`, `mode`, `priority`, `established`, `ttl_seconds`, `comment` and `origin`";
const COMPONENTS: &str = "`destination`, `source`, `protocol`, `port`, `destination_port`, `source_port`, `icmp_type`, `icmp_code`, \
     `tcp_flags`, `length`, `dscp`, `fragment`, `ttl` and `payload`";

impl RuleSpec {
    /// Reads one from JSON, and checks it: with `match` and `action`, or with `rule`, its text; other fields count for
    /// more than what the text says.
    pub fn from_json(json: &[u8]) -> Result<Self, BodyError> {
        json::one(json, Self::from_value)
    }

    /// Reads an array of them, and checks each.
    pub fn list_from_json(json: &[u8]) -> Result<Vec<Self>, BodyError> {
        json::list(json, Self::from_value)
    }

    /// From an object, or from the text of a rule alone.
    fn from_value(value: Value) -> Result<Self, SpecError> {
        let mut fields = match value {
            Value::Object(fields) => fields,
            Value::String(text) => return of_text(&text),
            _ => return Err(SpecError::whole("a rule is a JSON object, or a text")),
        };
        let mut spec = match take::<String>(&mut fields, "rule")? {
            Some(text) => {
                for field in ["match", "action"] {
                    if fields.contains_key(field) {
                        let message = "`rule` says that already; give one of them";
                        return Err(SpecError::of(field, message));
                    }
                }
                of_text(&text)?
            }
            None => {
                let components = take_components(&mut fields)?;
                let Some(action) = take::<Action>(&mut fields, "action")? else {
                    let message = "give `action` (drop, pass, challenge, sample, or a limit), or the whole as text in `rule`";
                    return Err(SpecError::of("action", message));
                };
                Self::new(components, action)
            }
        };
        macro_rules! replace {
            ($($name:ident,)*) => {
                $(if let Some(value) = take(&mut fields, stringify!($name))? {
                    spec.$name = value;
                })*
            };
        }
        if let Some(vip) = take(&mut fields, "vip")? {
            spec.vip = Some(vip);
        }
        if let Some(seconds) = take(&mut fields, "ttl_seconds")? {
            spec.ttl_seconds = Some(seconds);
        }
        replace!(mode, priority, established, comment,);
        spec.origin = take(&mut fields, "origin")?.unwrap_or(Origin::Operator);
        if let Some(unknown) = fields.keys().next() {
            let message = format!("no such field; there are {FIELDS}");
            return Err(SpecError::of(unknown, message));
        }
        spec.validate()?;
        Ok(spec)
    }
}

/// From the text of one, whose errors are those of the field `rule`.
fn of_text(text: &str) -> Result<RuleSpec, SpecError> {
    text.parse().map_err(|error| SpecError {
        field: "rule".into(),
        ..error
    })
}

fn take_components(fields: &mut Map<String, Value>) -> Result<Components, SpecError> {
    let inner = |error: SpecError| SpecError {
        field: format!("match.{}", error.field),
        ..error
    };
    let mut components = Components::default();
    let Some(mut given) = take::<Map<String, Value>>(fields, "match")? else {
        return Ok(components);
    };
    let given = &mut given;
    macro_rules! read {
        ($($name:ident,)*) => {
            $(components.$name = take(given, stringify!($name)).map_err(inner)?;)*
        };
    }
    for name in ["destination", "source"] {
        // An address alone is the prefix of it.
        if let Some(Value::String(text)) = given.get_mut(name)
            && let Ok(address) = text.parse::<std::net::IpAddr>()
        {
            *text = ipnet::IpNet::from(address).to_string();
        }
    }
    read! {
        destination, source, protocol, port, destination_port, source_port, icmp_type, icmp_code,
        tcp_flags, length, dscp, fragment, ttl,
    }
    let payload: Vec<Payload> = take(given, "payload").map_err(inner)?.unwrap_or_default();
    for piece in payload {
        let piece = piece
            .complete()
            .map_err(|message| SpecError::of("match.payload", message))?;
        components.payload.push(piece);
    }
    if let Some(unknown) = given.keys().next() {
        let message = format!("no such component; there are {COMPONENTS}");
        return Err(SpecError::of(&format!("match.{unknown}"), message));
    }
    Ok(components)
}
