//! A strict JSON reader: what it accepts has one meaning for every parser.
//!
//! Refused: duplicate keys at any depth, lone surrogates, bytes that are not
//! UTF-8, trailing bytes, nesting beyond [`MAX_DEPTH`], more than [`MAX_NODES`]
//! values, and integral numbers beyond 2^53 - 1, which parsers disagree about.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The deepest nesting that is read.
pub const MAX_DEPTH: usize = 64;
/// The most values (scalars, arrays, objects) that are read.
pub const MAX_NODES: usize = 100_000;
/// The largest integer that every JSON parser reads exactly (RFC 7493 section 2.2).
pub const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Why bytes are not strict JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The text is longer than the caller allows.
    #[error("JSON: expected at most {limit} bytes, got {actual}")]
    TooLong {
        /// The most bytes allowed.
        limit: usize,
        /// The bytes there were.
        actual: usize,
    },
    /// The text is not one JSON value.
    #[error("JSON: expected one value, got a syntax error: {reason}")]
    Syntax {
        /// The parser's words, with line and column.
        reason: String,
    },
    /// An object has a key twice.
    #[error("JSON: expected distinct keys, got one twice")]
    DuplicateKey,
    /// The nesting is too deep.
    #[error("JSON: expected at most {MAX_DEPTH} levels, got more")]
    TooDeep,
    /// There are too many values.
    #[error("JSON: expected at most {MAX_NODES} values, got more")]
    TooMany,
    /// An integer is outside the range that every parser reads exactly.
    #[error("JSON: expected integers within plus or minus 2^53 - 1, got one outside")]
    NumberRange,
}

/// Reads `bytes` as one strict JSON value.
pub fn parse(bytes: &[u8], limit: usize) -> Result<Value, JsonError> {
    if bytes.len() > limit {
        return Err(JsonError::TooLong { limit, actual: bytes.len() });
    }
    let state = State::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0, state: &state }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| {
        state.refused.take().unwrap_or_else(|| JsonError::Syntax { reason: error.to_string() })
    })
}

/// The RFC 8785 form of `value`.
///
/// Every [`Value`] made by [`parse`] has one; a value with a number that JSON
/// cannot write gives an error.
pub fn canonical(value: &Value) -> Result<Vec<u8>, JsonError> {
    serde_json_canonicalizer::to_vec(value)
        .map_err(|error| JsonError::Syntax { reason: error.to_string() })
}

#[derive(Default)]
struct State {
    nodes: Cell<usize>,
    // serde errors are strings; the typed reason waits here.
    refused: Cell<Option<JsonError>>,
}

impl State {
    fn refuse<E: serde::de::Error>(&self, error: JsonError) -> E {
        let text = error.to_string();
        self.refused.set(Some(error));
        E::custom(text)
    }
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    state: &'a State,
}

impl Strict<'_> {
    fn inner(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }

    fn integer<E: serde::de::Error>(
        self,
        magnitude: u64,
        number: impl Into<Number>,
    ) -> Result<Value, E> {
        match magnitude {
            0..=MAX_SAFE_INTEGER => Ok(Value::Number(number.into())),
            _ => Err(self.state.refuse(JsonError::NumberRange)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let nodes = self.state.nodes.get() + 1;
        self.state.nodes.set(nodes);
        if nodes > MAX_NODES {
            return Err(self.state.refuse(JsonError::TooMany));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.integer(value, value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.integer(value.unsigned_abs(), value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        // An integral float is an integer to most readers: the same limit holds.
        const LIMIT: f64 = 9_007_199_254_740_991.0;
        if value.fract() == 0.0 && value.abs() > LIMIT {
            return Err(self.state.refuse(JsonError::NumberRange));
        }
        let number =
            Number::from_f64(value).ok_or_else(|| self.state.refuse(JsonError::NumberRange))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        if self.depth >= MAX_DEPTH {
            return Err(self.state.refuse(JsonError::TooDeep));
        }
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.inner())? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        if self.depth >= MAX_DEPTH {
            return Err(self.state.refuse(JsonError::TooDeep));
        }
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(self.state.refuse(JsonError::DuplicateKey));
            }
            let value = map.next_value_seed(self.inner())?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<Value, JsonError> {
        parse(text.as_bytes(), 1 << 20)
    }

    fn canonical_text(text: &str) -> String {
        String::from_utf8(canonical(&parsed(text).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let deep = "[".repeat(65) + &"]".repeat(65);
        let many = format!("[{}0]", "0,".repeat(MAX_NODES));
        let cases: [(&str, JsonError); 9] = [
            (r#"{"a":1,"a":1}"#, JsonError::DuplicateKey),
            (r#"{"x":[{"a":1,"\u0061":2}]}"#, JsonError::DuplicateKey),
            (&deep, JsonError::TooDeep),
            (&many, JsonError::TooMany),
            ("9007199254740992", JsonError::NumberRange),
            ("-9007199254740992", JsonError::NumberRange),
            ("1e300", JsonError::NumberRange),
            ("18446744073709551616", JsonError::NumberRange),
            ("9007199254740993.0", JsonError::NumberRange),
        ];
        for (text, reason) in cases {
            assert_eq!(parsed(text), Err(reason), "{}", &text[..text.len().min(40)]);
        }
        for bad in ["", "1 2", "{", r#""\ud800""#, "NaN", "01", "1e400", "'a'", "[1,]", "\u{feff}1"]
        {
            assert!(matches!(parsed(bad), Err(JsonError::Syntax { .. })), "{bad}");
        }
        assert!(matches!(parse(b"\"\xff\"", 8), Err(JsonError::Syntax { .. })));
        assert_eq!(parse(b"[1,2]", 4), Err(JsonError::TooLong { limit: 4, actual: 5 }));
    }

    #[test]
    fn the_edges_are_accepted() {
        let deep = "[".repeat(64) + &"]".repeat(64);
        assert!(parsed(&deep).is_ok());
        assert!(parsed("[9007199254740991,-9007199254740991,1.5e-7]").is_ok());
        // serde_json's own Value would unpack this as raw JSON text.
        let text = r#"{"$serde_json::private::RawValue":"[1]"}"#;
        assert_eq!(canonical_text(text), text);
    }

    #[test]
    fn canonical_form_is_rfc_8785() {
        // RFC 8785 section 3.2.3 (sorting by UTF-16 code units) and 3.2.2.3 (numbers).
        assert_eq!(
            canonical_text(
                "{\"\\u20ac\":1,\"\\r\":2,\"\\ufb33\":3,\"1\":4,\"\\ud83d\\ude00\":5,\"\\u0080\":6,\"\\u00f6\":7}"
            ),
            "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}"
        );
        assert_eq!(canonical_text("[1.0,-0,-0.0,1E-7,4.50,2e-3]"), "[1,0,0,1e-7,4.5,0.002]");
    }

    proptest! {
        #[test]
        fn canonical_form_is_a_fixed_point(text in "[\\[\\]{}:,\"a-c0-9.eE+ -]{0,40}") {
            if let Ok(value) = parsed(&text) {
                let once = canonical(&value).unwrap();
                let twice = canonical(&parse(&once, 1 << 20).unwrap()).unwrap();
                prop_assert_eq!(once, twice);
            }
        }
    }
}
