//! Deterministic CBOR (RFC 8949 section 4.2.1) on top of `ciborium`.
//!
//! Everything this project signs is a map with small unsigned keys. [`Map`]
//! writes such maps in the one permitted form, and [`Fields`] reads them:
//! a field that is absent, twice there, of another type, or not known is an
//! error that names the key. Bytes that are not in the one permitted form are
//! refused, so equality of meaning is equality of bytes.

use ciborium::Value;

/// Why bytes are not the CBOR that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CborError {
    /// The bytes are longer than the caller allows.
    #[error("{what}: expected at most {limit} bytes, got {actual}")]
    TooLong {
        /// The structure that was being read.
        what: &'static str,
        /// The most bytes allowed.
        limit: usize,
        /// The bytes there were.
        actual: usize,
    },
    /// The bytes are not one well-formed CBOR item.
    #[error("{what}: expected one well-formed CBOR item")]
    Malformed {
        /// The structure that was being read.
        what: &'static str,
    },
    /// The item is not in deterministic encoding.
    #[error("{what}: expected deterministic CBOR (RFC 8949 4.2.1), got another encoding of it")]
    NotDeterministic {
        /// The structure that was being read.
        what: &'static str,
    },
    /// A field has another type than expected.
    #[error("{what}, key {key}: expected {expected}")]
    WrongType {
        /// The structure that was being read.
        what: &'static str,
        /// The key of the field, or 0 for the structure itself.
        key: u64,
        /// The type expected.
        expected: &'static str,
    },
    /// A field that must be there is not.
    #[error("{what}, key {key}: expected a value, got none")]
    Missing {
        /// The structure that was being read.
        what: &'static str,
        /// The key of the field.
        key: u64,
    },
    /// A field is there that the format does not know.
    #[error("{what}: unknown key {key}")]
    UnknownKey {
        /// The structure that was being read.
        what: &'static str,
        /// The key, printed.
        key: String,
    },
}

/// A map under construction. Keys may be added in any order.
#[derive(Debug, Clone, Default)]
pub struct Map(std::collections::BTreeMap<u64, Value>);

impl Map {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key` to `value`.
    #[must_use]
    pub fn set(mut self, key: u64, value: impl Into<Value>) -> Self {
        self.0.insert(key, value.into());
        self
    }

    /// Sets `key` to the byte string `bytes`.
    #[must_use]
    pub fn bytes(self, key: u64, bytes: &[u8]) -> Self {
        self.set(key, Value::Bytes(bytes.to_vec()))
    }

    /// Sets `key` if there is a value.
    #[must_use]
    pub fn optional(self, key: u64, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.set(key, value),
            None => self,
        }
    }

    /// The map as a value, to nest it.
    pub fn into_value(self) -> Value {
        Value::Map(self.0.into_iter().map(|(key, value)| (Value::from(key), value)).collect())
    }

    /// The map's one encoding.
    pub fn encode(self) -> Vec<u8> {
        encode(&self.into_value())
    }
}

/// The encoding of `value`, whose maps must already be sorted ([`Map`] does).
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing to a Vec cannot fail; an empty result is refused by every reader.
    if ciborium::into_writer(value, &mut out).is_err() {
        out.clear();
    }
    out
}

/// Reads exactly one deterministic item of at most `limit` bytes.
pub fn decode(what: &'static str, bytes: &[u8], limit: usize) -> Result<Value, CborError> {
    if bytes.len() > limit {
        return Err(CborError::TooLong { what, limit, actual: bytes.len() });
    }
    let mut rest = bytes;
    let value: Value = ciborium::de::from_reader_with_recursion_limit(&mut rest, 16)
        .map_err(|_| CborError::Malformed { what })?;
    if !rest.is_empty() {
        return Err(CborError::Malformed { what });
    }
    if !sorted(&value) || encode(&value) != bytes {
        return Err(CborError::NotDeterministic { what });
    }
    Ok(value)
}

/// Whether all maps in `value` have unsigned keys in strictly rising order.
fn sorted(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().all(sorted),
        Value::Map(entries) => {
            let keys: Option<Vec<u64>> = entries.iter().map(|(key, _)| unsigned(key)).collect();
            keys.is_some_and(|keys| keys.windows(2).all(|pair| pair.first() < pair.last()))
                && entries.iter().all(|(_, value)| sorted(value))
        }
        _ => true,
    }
}

fn unsigned(value: &Value) -> Option<u64> {
    value.as_integer().and_then(|integer| u64::try_from(integer).ok())
}

/// The fields of one map, taken out one by one.
#[derive(Debug)]
pub struct Fields {
    what: &'static str,
    entries: Vec<(Value, Value)>,
}

impl Fields {
    /// Reads `bytes` as one deterministic map.
    pub fn decode(what: &'static str, bytes: &[u8], limit: usize) -> Result<Self, CborError> {
        Self::of(what, decode(what, bytes, limit)?)
    }

    /// The fields of `value`, which must be a map.
    pub fn of(what: &'static str, value: Value) -> Result<Self, CborError> {
        match value {
            Value::Map(entries) => Ok(Self { what, entries }),
            _ => Err(CborError::WrongType { what, key: 0, expected: "a map" }),
        }
    }

    /// The value of `key`, if there is one.
    pub fn optional(&mut self, key: u64) -> Option<Value> {
        let at = self.entries.iter().position(|(k, _)| unsigned(k) == Some(key))?;
        Some(self.entries.swap_remove(at).1)
    }

    /// The value of `key`.
    pub fn required(&mut self, key: u64) -> Result<Value, CborError> {
        self.optional(key).ok_or(CborError::Missing { what: self.what, key })
    }

    /// The unsigned integer under `key`.
    pub fn uint(&mut self, key: u64) -> Result<u64, CborError> {
        let value = self.required(key)?;
        unsigned(&value).ok_or_else(|| self.wrong(key, "an unsigned integer"))
    }

    /// The byte string under `key`.
    pub fn bytes(&mut self, key: u64) -> Result<Vec<u8>, CborError> {
        let value = self.required(key)?;
        value.into_bytes().map_err(|_| self.wrong(key, "a byte string"))
    }

    /// The byte string of exactly `N` bytes under `key`.
    pub fn array<const N: usize>(&mut self, key: u64) -> Result<[u8; N], CborError> {
        let bytes = self.bytes(key)?;
        bytes.try_into().map_err(|_| self.wrong(key, "a byte string of the fixed length"))
    }

    /// The text string under `key`.
    pub fn text(&mut self, key: u64) -> Result<String, CborError> {
        let value = self.required(key)?;
        value.into_text().map_err(|_| self.wrong(key, "a text string"))
    }

    /// The boolean under `key`.
    pub fn bool(&mut self, key: u64) -> Result<bool, CborError> {
        let value = self.required(key)?;
        value.into_bool().map_err(|_| self.wrong(key, "a boolean"))
    }

    /// The array under `key`.
    pub fn items(&mut self, key: u64) -> Result<Vec<Value>, CborError> {
        let value = self.required(key)?;
        value.into_array().map_err(|_| self.wrong(key, "an array"))
    }

    /// The nested map under `key`.
    pub fn map(&mut self, key: u64) -> Result<Self, CborError> {
        let value = self.required(key)?;
        match value {
            Value::Map(entries) => Ok(Self { what: self.what, entries }),
            _ => Err(self.wrong(key, "a map")),
        }
    }

    /// Checks that `key` is the unsigned integer `expected`, as versions are.
    pub fn version(&mut self, key: u64, expected: u64) -> Result<(), CborError> {
        match self.uint(key)? {
            actual if actual == expected => Ok(()),
            _ => Err(self.wrong(key, "the version this reader knows")),
        }
    }

    /// Ends the reading: a field that nobody took is an error.
    pub fn end(self) -> Result<(), CborError> {
        match self.entries.first() {
            None => Ok(()),
            Some((key, _)) => {
                Err(CborError::UnknownKey { what: self.what, key: format!("{key:?}") })
            }
        }
    }

    /// The error that `key` is not `expected`.
    pub fn wrong(&self, key: u64, expected: &'static str) -> CborError {
        CborError::WrongType { what: self.what, key, expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_meaning_has_one_encoding() {
        let bytes = Map::new().set(2, "b").set(1, 7).encode();
        assert_eq!(bytes, Map::new().set(1, 7).set(2, "b").encode());
        let mut fields = Fields::decode("test", &bytes, 64).unwrap();
        assert_eq!(fields.uint(1), Ok(7));
        assert_eq!(fields.text(2).as_deref(), Ok("b"));
        fields.end().unwrap();
    }

    #[test]
    fn other_encodings_are_refused() {
        // {1: 7} with the 7 in two bytes, keys unsorted, a key twice, text keys, trailing bytes.
        for bytes in [
            &[0xa1, 1, 0x18, 7][..],
            &[0xa2, 2, 0, 1, 0],
            &[0xa2, 1, 0, 1, 0],
            &[0xa1, 0x61, b'a', 0],
            &[0xa1, 1, 7, 0],
            &[0xbf, 1, 7, 0xff],
            &[],
        ] {
            assert!(decode("test", bytes, 64).is_err(), "{bytes:x?}");
        }
    }

    #[test]
    fn unknown_and_missing_keys_are_named() {
        let bytes = Map::new().set(9, 1).encode();
        let mut fields = Fields::decode("test", &bytes, 64).unwrap();
        assert_eq!(fields.uint(1), Err(CborError::Missing { what: "test", key: 1 }));
        assert!(fields.end().unwrap_err().to_string().contains("unknown key"));
    }

    #[test]
    fn hostile_nesting_and_size_end_early() {
        let deep = vec![0x81; 10_000];
        assert!(decode("test", &deep, 20_000).is_err());
        assert!(matches!(decode("test", &deep, 10), Err(CborError::TooLong { .. })));
        // An array that claims 2^60 items must not allocate for them.
        assert!(decode("test", &[0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0], 64).is_err());
    }
}
