//! JSON that clients send, read strictly: which of two values counts that one field is given is nobody's to guess.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use super::SpecError;

/// Why what a client sent is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It cannot be read: it is no JSON, or one of its objects gives this field twice.
    #[error("{message}")]
    Malformed {
        field: Option<String>,
        message: String,
    },
    /// It can, and something in it is wrong.
    #[error(transparent)]
    Wrong(#[from] SpecError),
}

/// Reads one thing.
pub(crate) fn one<T>(
    json: &[u8],
    read: impl FnOnce(Value) -> Result<T, SpecError>,
) -> Result<T, BodyError> {
    let mut path = String::new();
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = Strict(&mut path)
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|error| malformed(&error, path))?;
    Ok(read(value)?)
}

/// Reads an array, one after the other: as JSON values, all of a large one would need ten times the memory.
pub(crate) fn list<T>(
    json: &[u8],
    read: impl Fn(Value) -> Result<T, SpecError>,
) -> Result<Vec<T>, BodyError> {
    let (mut path, mut wrong) = (String::new(), None);
    let mut reader = serde_json::Deserializer::from_slice(json);
    let list = reader
        .deserialize_seq(List {
            path: &mut path,
            read,
            wrong: &mut wrong,
        })
        .and_then(|list| reader.end().map(|()| list));
    match wrong {
        Some(wrong) => Err(wrong.into()),
        None => list.map_err(|error| malformed(&error, path)),
    }
}

fn malformed(error: &serde_json::Error, path: String) -> BodyError {
    // JSON takes all types, so data that is wrong is a field that was given twice.
    let field = Some(path).filter(|path| error.is_data() && !path.is_empty());
    let message = match &field {
        Some(field) => format!("`{field}` is given twice"),
        None => format!("this cannot be read as JSON: {error}"),
    };
    BodyError::Malformed { field, message }
}

#[cfg(test)]
impl BodyError {
    /// The field that it names; empty if it names none.
    pub(crate) fn field(self) -> String {
        match self {
            Self::Malformed { field, .. } => field.unwrap_or_default(),
            Self::Wrong(wrong) => wrong.field,
        }
    }
}

struct List<'a, R> {
    path: &'a mut String,
    read: R,
    /// What is wrong with one of them; no error of JSON could hold it.
    wrong: &'a mut Option<SpecError>,
}

impl<'de, T, R> Visitor<'de> for List<'_, R>
where
    R: Fn(Value) -> Result<T, SpecError>,
{
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = next_item(self.path, list.len(), &mut items)? {
            match (self.read)(value) {
                Ok(item) => list.push(item),
                Err(wrong) => {
                    *self.wrong = Some(wrong.at(list.len()));
                    return Err(A::Error::custom("an item is wrong"));
                }
            }
        }
        Ok(list)
    }
}

/// Any value, without a field that is given twice; one that is leaves its path here.
struct Strict<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = next_item(self.0, list.len(), &mut items)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        let outer = self.0.len();
        while let Some(field) = fields.next_key::<String>()? {
            if outer > 0 {
                self.0.push('.');
            }
            self.0.push_str(&field);
            if map.contains_key(&field) {
                return Err(A::Error::custom("a field is given twice"));
            }
            let value = fields.next_value_seed(Strict(self.0))?;
            map.insert(field, value);
            self.0.truncate(outer);
        }
        Ok(Value::Object(map))
    }
}

fn next_item<'de, A: SeqAccess<'de>>(
    path: &mut String,
    at: usize,
    items: &mut A,
) -> Result<Option<Value>, A::Error> {
    let outer = path.len();
    path.push_str(&format!("[{at}]"));
    let value = items.next_element_seed(Strict(path))?;
    path.truncate(outer);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(json: &str) -> Result<Value, BodyError> {
        one(json.as_bytes(), Ok)
    }

    fn values(json: &str) -> Result<Value, BodyError> {
        list(json.as_bytes(), Ok).map(Value::Array)
    }

    #[test]
    fn a_field_that_is_given_twice_is_named() {
        let cases = [
            (r#"[{"pps": 1, "pps": 1}]"#, "[0].pps"),
            (r#"[{"a": {"pps": 1}, "a": 1}]"#, "[0].a"),
            (
                r#"[1, {"match": {"ttl": 1, "tt\u006c": 2}}]"#,
                "[1].match.ttl",
            ),
            (
                r#"[{"a": 1, "b": [{"c": 1}, {"c": 1, "c": 1}]}]"#,
                "[0].b[1].c",
            ),
        ];
        for (json, field) in cases {
            for read in [value(json), values(json)] {
                let named = match &read {
                    Err(BodyError::Malformed { field, .. }) => field.as_deref(),
                    _ => None,
                };
                assert_eq!(named, Some(field), "{json}: {read:?}");
            }
        }
        let twice = value(r#"{"pps": 1, "pps": 1}"#).unwrap_err();
        assert_eq!(twice.to_string(), "`pps` is given twice");
    }

    #[test]
    fn what_is_no_json_names_no_field() {
        for json in ["", "[", "{\"a\": 1", "{\"a\": x}", "{} 1", "[1,]"] {
            for read in [value(json), values(json)] {
                assert!(
                    matches!(read, Err(BodyError::Malformed { field: None, .. })),
                    "{json}: {read:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_wrong_in_an_array_tells_where() {
        let read = |value: Value| match value.as_u64() {
            Some(number) => Ok(number),
            None => Err(SpecError::of("pps", "no number")),
        };
        assert_eq!(list(b"[1, 2]", read).unwrap(), [1, 2]);
        let wrong = list(b"[1, \"x\"]", read).unwrap_err();
        assert_eq!(wrong.field(), "[1].pps");
    }

    proptest! {
        #[test]
        fn what_has_no_field_twice_is_what_others_read(json in any_json()) {
            let text = json.to_string();
            prop_assert_eq!(value(&text).unwrap(), json);
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i32>().prop_map(|number| Value::from(f64::from(number) / 8.0)),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".*", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }
}
