//! Bytes as text in JSON and TOML: base64url without padding, and hex.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// `bytes` in base64url without padding (RFC 4648 section 5).
pub fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The bytes of base64url `text` without padding; other spellings are refused.
pub fn from_base64url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// `bytes` in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of lower-case hex `text`.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let strict = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !strict || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

/// A byte string of any length as base64url in serde formats.
pub mod b64 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes base64url without padding.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::base64url(bytes))
    }

    /// Reads base64url without padding.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::from_base64url(&text)
            .ok_or_else(|| D::Error::custom("expected base64url without padding"))
    }
}

/// A byte string of exactly `N` bytes as base64url in serde formats.
pub mod b64_array {
    use serde::{Deserializer, Serializer, de::Error};

    /// Writes base64url without padding.
    pub fn serialize<S: Serializer, const N: usize>(
        bytes: &[u8; N],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        super::b64::serialize(bytes, serializer)
    }

    /// Reads base64url without padding of exactly `N` bytes.
    pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<[u8; N], D::Error> {
        let bytes = super::b64::deserialize(deserializer)?;
        let actual = bytes.len();
        bytes.try_into().map_err(|_| {
            D::Error::custom(format!("expected {N} bytes in base64url, got {actual} bytes"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_strict() {
        assert_eq!(from_hex("00ff"), Some(vec![0, 255]));
        for bad in ["0", "0F", "zz", "0x00", "é0"] {
            assert_eq!(from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn padding_and_other_alphabets_are_refused() {
        assert_eq!(from_base64url(&base64url(b"\xff\xfe")), Some(vec![0xff, 0xfe]));
        assert_eq!(from_base64url("_-4="), None);
        assert_eq!(from_base64url("/+4"), None);
    }
}
