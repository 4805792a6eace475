//! The end of a permission. Format: docs/formats/revocation.md.
//!
//! A revocation takes effect at its place in the log: no decision to allow
//! stands behind it.

use casemate_attestation::cbor::{CborError, Fields, Map};
use casemate_attestation::cose::KeyId;
use ciborium::Value;

use crate::invocation::MAX_SANDBOX_BYTES;
use crate::record::Record;
use crate::values;

/// Something that is no longer allowed, from this record on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// What is revoked.
    pub target: RevocationTarget,
    /// Why, in the operator's words.
    pub reason: String,
    /// Who asked, as the gateway knows them: `uid:0`, `file:revoked-identities`.
    pub by: String,
    /// The gateway's clock in milliseconds since 1970.
    pub time_ms: u64,
}

/// What a revocation names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RevocationTarget {
    /// A grant, by its id.
    Grant([u8; 16]),
    /// An identity, by the id of its key.
    Identity(KeyId),
    /// A sandbox, by its URI: every epoch and key of it. This is the kill at the gateway.
    Sandbox(String),
}

const WHAT: &str = "revocation";

impl Record for Revocation {
    const TYPE: &'static str = "application/casemate.revocation+cose";
    const MAX_BYTES: usize = 4096;

    fn payload(&self) -> Vec<u8> {
        let (kind, target) = match &self.target {
            RevocationTarget::Grant(id) => ("grant", Value::Bytes(id.to_vec())),
            RevocationTarget::Identity(key) => ("identity", Value::Bytes(key.0.to_vec())),
            RevocationTarget::Sandbox(uri) => ("sandbox", Value::from(uri.as_str())),
        };
        Map::new()
            .set(1, 1)
            .set(2, kind)
            .set(3, target)
            .set(4, self.reason.as_str())
            .set(5, self.by.as_str())
            .set(6, self.time_ms)
            .encode()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode(WHAT, payload, Self::MAX_BYTES)?;
        fields.version(1, 1)?;
        let target = match fields.text(2)?.as_str() {
            "grant" => RevocationTarget::Grant(fields.array(3)?),
            "identity" => RevocationTarget::Identity(KeyId(fields.array(3)?)),
            "sandbox" => {
                RevocationTarget::Sandbox(values::bounded_text(&mut fields, 3, MAX_SANDBOX_BYTES)?)
            }
            _ => return Err(fields.wrong(2, "grant, identity or sandbox")),
        };
        let revocation = Self {
            target,
            reason: values::bounded_text(&mut fields, 4, 1024)?,
            by: values::bounded_text(&mut fields, 5, 256)?,
            time_ms: fields.uint(6)?,
        };
        fields.end()?;
        Ok(revocation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::survives;

    #[test]
    fn every_target_survives() {
        for target in [
            RevocationTarget::Grant([1; 16]),
            RevocationTarget::Identity(KeyId([2; 16])),
            RevocationTarget::Sandbox("spiffe://casemate.internal/demo/sb/00".to_owned()),
        ] {
            survives(Revocation {
                target,
                reason: "task cancelled".to_owned(),
                by: "uid:0".to_owned(),
                time_ms: 5,
            });
        }
    }
}
