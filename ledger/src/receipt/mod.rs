//! One call, proved to somebody who has only a trust file.
//!
//! Format: docs/formats/receipt.md. A receipt is not signed: everything in it
//! is, by the log, the gateway, the sandbox, the verifier's CA, the grant's
//! issuer, or the evidence's own root.

mod tree;
mod trust;
mod verify;

pub use tree::{Check, Outcome, VerificationTree};
pub use trust::{TrustError, TrustFile};
pub use verify::verify;

use casemate_attestation::bundle::MAX_BUNDLE_BYTES;
use casemate_attestation::cbor::{CborError, Fields, Map};
use casemate_attestation::x509::MAX_CERTIFICATE_BYTES;
use ciborium::Value;

use crate::checkpoint::MAX_NOTE_BYTES;
use crate::leaf::MAX_LEAF_BYTES;
use crate::merkle::Hash;
use crate::values;

/// Everything that proves one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The log's checkpoint, a signed note.
    pub checkpoint: String,
    /// The decision's leaf.
    pub decision: Included,
    /// The outcome's leaf, for an allowed call.
    pub outcome: Option<Included>,
    /// The grant's leaf, if the call named a grant that the gateway holds.
    pub grant: Option<Included>,
    /// The caller's identity certificate in DER.
    pub certificate: Vec<u8>,
    /// The attestation bundle that the certificate names.
    pub bundle: Vec<u8>,
}

/// A leaf with the proof that it is in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Included {
    /// The leaf's index.
    pub index: u64,
    /// The leaf.
    pub leaf: Vec<u8>,
    /// The hashes from the leaf to the checkpoint's root.
    pub proof: Vec<Hash>,
}

/// The largest receipt that is read: a bundle and some records.
pub const MAX_RECEIPT_BYTES: usize = MAX_BUNDLE_BYTES + 512 * 1024;
const WHAT: &str = "receipt";

impl Receipt {
    /// The receipt's one encoding.
    pub fn encode(&self) -> Vec<u8> {
        Map::new()
            .set(1, 1)
            .set(2, self.checkpoint.as_str())
            .set(3, self.decision.to_value())
            .optional(4, self.outcome.as_ref().map(Included::to_value))
            .optional(5, self.grant.as_ref().map(Included::to_value))
            .bytes(6, &self.certificate)
            .bytes(7, &self.bundle)
            .encode()
    }

    /// Reads a receipt; nothing in it is believed yet.
    pub fn decode(bytes: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode(WHAT, bytes, MAX_RECEIPT_BYTES)?;
        fields.version(1, 1)?;
        let decision = fields.required(3)?;
        let receipt = Self {
            checkpoint: values::bounded_text(&mut fields, 2, MAX_NOTE_BYTES)?,
            decision: Included::from_value(decision)?,
            outcome: fields.optional(4).map(Included::from_value).transpose()?,
            grant: fields.optional(5).map(Included::from_value).transpose()?,
            certificate: fields.bytes(6)?,
            bundle: fields.bytes(7)?,
        };
        if receipt.certificate.len() > MAX_CERTIFICATE_BYTES {
            return Err(fields.wrong(6, "a certificate of at most 4096 bytes"));
        }
        fields.end()?;
        Ok(receipt)
    }
}

impl Included {
    fn to_value(&self) -> Value {
        let proof = self.proof.iter().map(|hash| Value::Bytes(hash.to_vec())).collect();
        Map::new().set(1, self.index).bytes(2, &self.leaf).set(3, Value::Array(proof)).into_value()
    }

    fn from_value(value: Value) -> Result<Self, CborError> {
        let mut fields = Fields::of("receipt leaf", value)?;
        let proof = fields.items(3)?;
        if proof.len() > 64 {
            return Err(fields.wrong(3, "at most 64 hashes"));
        }
        let hash = |item: Value| item.into_bytes().ok().and_then(|bytes| bytes.try_into().ok());
        let proof = proof.into_iter().map(hash).collect::<Option<_>>();
        let included = Self {
            index: fields.uint(1)?,
            leaf: fields.bytes(2)?,
            proof: proof.ok_or_else(|| fields.wrong(3, "hashes of 32 bytes"))?,
        };
        if included.leaf.len() > MAX_LEAF_BYTES {
            return Err(fields.wrong(2, "a leaf of at most 65535 bytes"));
        }
        fields.end()?;
        Ok(included)
    }
}
