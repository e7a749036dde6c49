//! JSON from outside, read strictly: no key twice, bounded depth, wrong types named with their place.
//!
//! Manifests and configs are read by other programs too, and some of those take the first of two equal keys, some the last, and some
//! do not mind the case of a key. A document that two readers could understand differently is refused. This module does not know what
//! a document means; it gives [`crate::oci`] and [`crate::kit`] values and says where one was not what was asked for.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

use crate::limits;

/// A JSON value in which no object has a key twice.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Array(Vec<Json>),
    /// In the document's order.
    Object(Vec<(String, Json)>),
}

/// Why a document could not be read.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// It is no JSON, has a key twice, is too deep, or goes on after its end.
    #[error("not the JSON that it should be")]
    Syntax(#[source] serde_json::Error),
    /// A value has another type than the format gives it.
    #[error("`{at}` should be {expected}, it is {got}")]
    Type {
        /// Where the value stands: `layers[3].size`.
        at: String,
        /// What the format asks for.
        expected: &'static str,
        /// What stands there.
        got: &'static str,
    },
    /// Something that the format requires is not there.
    #[error("`{at}` is missing")]
    Missing {
        /// Where it should stand.
        at: String,
    },
    /// A key that some readers take for a known one, because they ignore the case.
    #[error("`{at}` is spelled like `{known}` but for the case")]
    Case {
        /// The key as it stands there.
        at: String,
        /// The key of the format.
        known: &'static str,
    },
}

impl Json {
    /// Reads one whole document.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let value = Value { depth: 0 }.deserialize(&mut deserializer).map_err(JsonError::Syntax)?;
        deserializer.end().map_err(JsonError::Syntax)?;
        Ok(value)
    }

    /// The value as an object with the keys `known`; others are left alone, as both specs demand. `null` is an object without keys.
    pub(crate) fn object<'a>(&'a self, at: &str, known: &[&'static str]) -> Result<Object<'a>, JsonError> {
        let entries = match self {
            Self::Object(entries) => entries.as_slice(),
            Self::Null => &[],
            other => return Err(other.is_not("an object", at)),
        };
        for (key, _) in entries {
            if let Some(known) = known.iter().find(|known| key != *known && folded(key) == folded(known)) {
                return Err(JsonError::Case { at: join(at, key), known });
            }
        }
        Ok(Object { entries, at: at.to_owned() })
    }

    pub(crate) fn string(&self, at: &str) -> Result<&str, JsonError> {
        match self {
            Self::String(text) => Ok(text),
            other => Err(other.is_not("a string", at)),
        }
    }

    fn is_not(&self, expected: &'static str, at: &str) -> JsonError {
        let got = match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        };
        JsonError::Type { at: if at.is_empty() { "the document".to_owned() } else { at.to_owned() }, expected, got }
    }
}

/// An object and where it stands. In all of it `null` counts as absent, as for the programs that write these documents.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    entries: &'a [(String, Json)],
    at: String,
}

impl<'a> Object<'a> {
    pub(crate) fn get(&self, key: &str) -> Option<&'a Json> {
        self.entries.iter().find(|(name, value)| name == key && *value != Json::Null).map(|(_, value)| value)
    }

    /// Where `key` of this object stands.
    pub(crate) fn place(&self, key: &str) -> String {
        join(&self.at, key)
    }

    pub(crate) fn missing(&self, key: &str) -> JsonError {
        JsonError::Missing { at: self.place(key) }
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>, JsonError> {
        self.get(key).map(|value| value.string(&self.place(key))).transpose()
    }

    pub(crate) fn required_string(&self, key: &str) -> Result<&'a str, JsonError> {
        self.string(key)?.ok_or_else(|| self.missing(key))
    }

    /// A whole number of 0 to 2^63 - 1, the range that both specs give to sizes.
    pub(crate) fn required_size(&self, key: &str) -> Result<u64, JsonError> {
        const EXPECTED: &str = "a whole number from 0 to 2^63 - 1";
        match self.get(key) {
            Some(Json::Number(number)) => match number.as_u64() {
                Some(size) if i64::try_from(size).is_ok() => Ok(size),
                _ => {
                    let got = if number.as_i64().is_some() { "negative" } else { "another number" };
                    Err(JsonError::Type { at: self.place(key), expected: EXPECTED, got })
                }
            },
            Some(other) => Err(other.is_not(EXPECTED, &self.place(key))),
            None => Err(self.missing(key)),
        }
    }

    /// The elements of an array with their places; none if it is absent.
    pub(crate) fn array(&self, key: &str) -> Result<Vec<(String, &'a Json)>, JsonError> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Json::Array(elements)) => {
                let place = self.place(key);
                Ok(elements.iter().enumerate().map(|(position, element)| (format!("{place}[{position}]"), element)).collect())
            }
            Some(other) => Err(other.is_not("an array", &self.place(key))),
        }
    }

    /// An object whose values are all strings; empty if it is absent.
    pub(crate) fn strings(&self, key: &str) -> Result<Vec<(&'a str, &'a str)>, JsonError> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Json::Object(entries)) => {
                let place = self.place(key);
                entries.iter().map(|(name, value)| Ok((name.as_str(), value.string(&join(&place, name))?))).collect()
            }
            Some(other) => Err(other.is_not("an object", &self.place(key))),
        }
    }
}

/// A key as readers see it that ignore the case, which for Go's includes two letters beyond ASCII.
fn folded(key: &str) -> String {
    key.chars()
        .map(|letter| match letter {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            other => other.to_ascii_lowercase(),
        })
        .collect()
}

fn join(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") }
}

/// The reader of a value that stands `depth` levels deep.
struct Value {
    depth: usize,
}

impl Value {
    fn deeper<E: serde::de::Error>(&self) -> Result<usize, E> {
        let depth = self.depth + 1;
        if depth > limits::JSON_DEPTH {
            return Err(E::custom(format_args!("more than {} levels deep", limits::JSON_DEPTH)));
        }
        Ok(depth)
    }
}

impl<'de> DeserializeSeed<'de> for Value {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Json, E> {
        Number::from_f64(value).map(Json::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Json, A::Error> {
        let depth = self.deeper()?;
        let mut array = Vec::new();
        while let Some(element) = elements.next_element_seed(Value { depth })? {
            array.push(element);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let depth = self.deeper()?;
        let mut object = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!("the key `{key}` stands there twice")));
            }
            object.push((key, entries.next_value_seed(Value { depth })?));
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_not_stand_twice_at_any_level() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"x":[{"a":1,"b":2,"a":3}]}"#, r#"{"\u0061":1,"a":2}"#] {
            let error = Json::parse(text.as_bytes()).expect_err(text);
            let JsonError::Syntax(cause) = error else { panic!("{error}") };
            assert!(cause.to_string().contains("`a` stands there twice"), "{cause}");
        }
        assert!(Json::parse(br#"[{"a":1},{"a":1}]"#).is_ok());
    }

    #[test]
    fn the_depth_is_limited() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(Json::parse(nested(limits::JSON_DEPTH).as_bytes()).is_ok());
        for levels in [limits::JSON_DEPTH + 1, 127, 100_000] {
            let JsonError::Syntax(cause) = Json::parse(nested(levels).as_bytes()).expect_err("too deep") else { panic!() };
            assert!(cause.to_string().contains("levels deep"), "{cause}");
        }
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for text in ["", "{", "{} {}", "{}x", "\u{feff}{}", "{'a':1}", "NaN", "1e400", r#""\ud800""#] {
            assert!(Json::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Json::parse(b"\"\xff\"").is_err());
    }

    #[test]
    fn a_key_that_differs_in_case_alone_is_refused() {
        for key in ["Layers", "LAYERS", "layer\u{17f}"] {
            let text = format!(r#"{{"{key}":[]}}"#);
            let error = Json::parse(text.as_bytes()).expect("well-formed").object("", &["layers"]).expect_err(key);
            assert!(matches!(error, JsonError::Case { known: "layers", .. }), "{error}");
        }
    }

    #[test]
    fn a_wrong_type_is_named_with_its_place() {
        let json =
            Json::parse(br#"{"a":[{"s":-1,"t":1.5,"u":"1","v":9223372036854775808,"w":9223372036854775807}]}"#).expect("well-formed");
        let object = json.object("", &[]).expect("an object");
        let (place, element) = object.array("a").expect("an array").remove(0);
        let inner = element.object(&place, &[]).expect("an object");
        for (key, got) in [("s", "negative"), ("t", "another number"), ("u", "a string"), ("v", "another number")] {
            let text = inner.required_size(key).expect_err(key).to_string();
            assert!(text.starts_with(&format!("`a[0].{key}` should be")) && text.ends_with(got), "{text}");
        }
        assert_eq!(inner.required_size("w").ok(), Some(i64::MAX as u64));
        assert!(matches!(inner.required_string("x"), Err(JsonError::Missing { at }) if at == "a[0].x"));
    }
}
