//! A call's arguments and results as they are committed to: canonical bytes
//! under a salt, so that the log shows neither and proves both.

use serde_json::Value;

use crate::json::{self, JsonError};

/// The largest canonical arguments, and the largest line that carries them.
pub const MAX_ARGS_BYTES: usize = 1024 * 1024;

/// A length and a salted hash in place of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commitment {
    /// The length of the bytes.
    pub length: u64,
    /// The hash, see [`Commitment::to_args`] and [`Commitment::to_result`].
    pub digest: [u8; 32],
}

impl Commitment {
    /// Commits to canonical arguments: SHA-256(0x01 || salt || bytes).
    pub fn to_args(salt: &[u8; 32], canonical: &[u8]) -> Self {
        Self::new(1, salt, canonical)
    }

    /// Commits to a result as it was sent: SHA-256(0x02 || salt || bytes).
    pub fn to_result(salt: &[u8; 32], bytes: &[u8]) -> Self {
        Self::new(2, salt, bytes)
    }

    fn new(domain: u8, salt: &[u8; 32], bytes: &[u8]) -> Self {
        let preimage = [&[domain][..], salt, bytes].concat();
        Self {
            length: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            digest: crate::digest(&preimage),
        }
    }
}

/// The RFC 8785 form of a tool's arguments; absent arguments are `{}`.
pub fn canonical(arguments: Option<&Value>) -> Result<Vec<u8>, JsonError> {
    arguments.map_or_else(|| Ok(b"{}".to_vec()), json::canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commitments_depend_on_domain_salt_and_bytes() {
        let one = Commitment::to_args(&[0; 32], b"{}");
        assert_ne!(one, Commitment::to_result(&[0; 32], b"{}"));
        assert_ne!(one, Commitment::to_args(&[1; 32], b"{}"));
        assert_ne!(one, Commitment::to_args(&[0; 32], b"[]"));
        assert_eq!(one.length, 2);
    }

    #[test]
    fn absent_arguments_are_an_empty_object() {
        assert_eq!(canonical(None).unwrap(), b"{}");
        assert_eq!(
            canonical(Some(&serde_json::json!({"b":1,"a":2}))).unwrap(),
            br#"{"a":2,"b":1}"#
        );
    }
}
