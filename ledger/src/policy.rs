//! What a gateway decides by beside the grants, as it keeps it by digest.
//! Format: docs/formats/gateway-policy.md.
//!
//! Only what an audit asks is read here; the rest of the file is the gateway's
//! configuration, which the digest covers too.

use std::collections::BTreeMap;

use casemate_attestation::{Properties, Risk};
use serde::{Deserialize, Serialize};

use crate::label::Label;
use crate::text;

/// The largest file, and the largest text of rules.
pub const MAX_POLICY_BYTES: usize = 4 << 20;

/// The part of a gateway's policy that an audit asks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Policy {
    /// SHA-256 of the organisation's rules, if there are any.
    pub rules: Option<Sha256>,
    /// What each risk class asks of a boundary.
    pub floor: Floor,
    /// The tools by name.
    pub tools: BTreeMap<String, Tool>,
}

/// A SHA-256, in the file as hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256(pub [u8; 32]);

/// What each risk class asks of a boundary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// For low risk.
    pub low: Properties,
    /// For medium risk.
    pub medium: Properties,
    /// For high risk.
    pub high: Properties,
}

/// A tool as decisions know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// The name of its upstream.
    pub upstream: String,
    /// SHA-256 of the pinned definition.
    pub definition: Sha256,
    /// The operator's risk class.
    pub risk: Risk,
    /// Whether calling it twice is as calling it once.
    pub idempotent: bool,
    /// Whether it only reads.
    pub read_only: bool,
    /// What one call costs.
    pub cost_micro: u64,
    /// How far its results may travel.
    pub label: Label,
    /// The top-level arguments that differ in calls that are the same.
    pub volatile: Vec<String>,
    /// The upstream's limit of a result.
    pub max_result_bytes: u64,
    /// The upstream's limit of a call's time.
    pub timeout_ms: u64,
}

/// Why a policy is not used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is too large.
    #[error("policy: expected at most {MAX_POLICY_BYTES} bytes, got {0}")]
    Length(usize),
    /// It is not the one that was asked for.
    #[error("policy: expected the SHA-256 {expected}, got {actual}")]
    Digest {
        /// What was asked for.
        expected: String,
        /// What it has.
        actual: String,
    },
    /// It is not the JSON that this version knows.
    #[error("policy: {0}")]
    Json(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct File {
    policy: Policy,
}

impl Policy {
    /// Reads the file whose SHA-256 is `digest`.
    pub fn read(bytes: &[u8], digest: &[u8; 32]) -> Result<Self, PolicyError> {
        check(bytes, digest)?;
        Ok(serde_json::from_slice::<File>(bytes)?.policy)
    }
}

/// Whether `bytes` are those that `digest` names, and not too many.
pub fn check(bytes: &[u8], digest: &[u8; 32]) -> Result<(), PolicyError> {
    if bytes.len() > MAX_POLICY_BYTES {
        return Err(PolicyError::Length(bytes.len()));
    }
    let actual = crate::digest(bytes);
    if actual != *digest {
        let (expected, actual) = (text::hex(digest), text::hex(&actual));
        return Err(PolicyError::Digest { expected, actual });
    }
    Ok(())
}

impl Floor {
    /// What `risk` asks.
    pub fn of(&self, risk: Risk) -> &Properties {
        match risk {
            Risk::Low => &self.low,
            Risk::Medium => &self.medium,
            Risk::High => &self.high,
        }
    }
}

impl TryFrom<String> for Sha256 {
    type Error = String;

    fn try_from(hex: String) -> Result<Self, String> {
        let digest = text::from_hex(&hex).and_then(|bytes| bytes.try_into().ok());
        digest.map(Self).ok_or_else(|| format!("expected 64 lower-case hex digits, got {hex:?}"))
    }
}

impl From<Sha256> for String {
    fn from(digest: Sha256) -> Self {
        text::hex(&digest.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_under_its_own_digest_only() {
        let bytes = br#"{"policy":{"floor":{"high":["own_kernel"],"low":[],"medium":[]},
            "rules":null,"tools":{"a.b":{"cost_micro":1,"definition":
            "0101010101010101010101010101010101010101010101010101010101010101",
            "idempotent":false,"label":"internal","max_result_bytes":2,"read_only":true,
            "risk":"high","timeout_ms":3,"upstream":"a","volatile":[]}},"loops":{}},
            "upstreams":[]}"#;
        let policy = Policy::read(bytes, &crate::digest(bytes)).unwrap();
        assert_eq!(policy.tools["a.b"].definition, Sha256([1; 32]));
        assert_eq!(policy.floor.of(Risk::High).iter().count(), 1);
        let error = Policy::read(bytes, &[0; 32]).unwrap_err().to_string();
        assert!(error.contains("expected the SHA-256 00"), "{error}");
        let large = vec![b' '; MAX_POLICY_BYTES + 1];
        assert!(matches!(Policy::read(&large, &[0; 32]), Err(PolicyError::Length(_))));
        let short = br#"{"policy":{"rules":"00"}}"#;
        let error = Policy::read(short, &crate::digest(short)).unwrap_err().to_string();
        assert!(error.contains("64 lower-case hex"), "{error}");
    }
}
