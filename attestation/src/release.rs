//! What an attested guest and a verifier agree on when a secret is released.
//!
//! Format: docs/formats/release.md. The guest proves that it holds the attested
//! identity key on this very connection; the verifier seals the secret to the
//! attested sealing key (HPKE, RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256),
//! HKDF-SHA256, AES-256-GCM).

use crate::cbor::{CborError, Fields, Map};
use crate::cose::{self, CoseError};

/// The TLS exporter label (RFC 8446 7.5, no context) whose 32 bytes are
/// [`ReleaseProof::channel`].
pub const RELEASE_EXPORTER_LABEL: &[u8] = b"EXPORTER-casemate-release-v1";
/// The HPKE `info` of a sealed secret.
pub const SECRET_INFO: &[u8] = b"casemate/secret/v1";
/// The record type in the COSE header of a [`ReleaseProof`].
pub const RELEASE_PROOF_TYPE: &str = "application/casemate.release-proof+cose";

/// The HPKE `aad` of the secret `name` sealed to `sandbox`: the two, a zero byte between.
pub fn secret_aad(name: &str, sandbox: &str) -> Vec<u8> {
    [name.as_bytes(), &[0], sandbox.as_bytes()].concat()
}

/// A guest's request for one secret, signed with its identity key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseProof {
    /// The secret's name.
    pub secret: String,
    /// The exporter of the connection that carries the request.
    pub channel: [u8; 32],
    /// The sandbox's SPIFFE ID.
    pub sandbox: String,
}

/// Why a proof is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseProofError {
    /// The COSE structure or the signature is wrong.
    #[error(transparent)]
    Cose(#[from] CoseError),
    /// The payload is not a proof.
    #[error(transparent)]
    Cbor(#[from] CborError),
}

/// The largest proof that is read.
pub const MAX_RELEASE_PROOF_BYTES: usize = 4096;
const WHAT: &str = "release proof";

impl ReleaseProof {
    /// The proof signed by the identity key; `sign` is the private key's act.
    pub fn sign(&self, public_key: &[u8; 32], sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Vec<u8> {
        let payload = Map::new()
            .set(1, 1)
            .set(2, self.secret.as_str())
            .bytes(3, &self.channel)
            .set(4, self.sandbox.as_str())
            .encode();
        cose::sign1(RELEASE_PROOF_TYPE, public_key, payload, sign)
    }

    /// Reads a proof and checks that `public_key` signed it.
    pub fn verify(bytes: &[u8], public_key: &[u8; 32]) -> Result<Self, ReleaseProofError> {
        let record = cose::Unverified::parse(RELEASE_PROOF_TYPE, bytes, MAX_RELEASE_PROOF_BYTES)?;
        Ok(Self::from_payload(&record.verify(public_key)?)?)
    }

    /// The sandbox that the proof names, before its signature was checked, to find the key by.
    pub fn unverified_sandbox(bytes: &[u8]) -> Result<String, ReleaseProofError> {
        let record = cose::Unverified::parse(RELEASE_PROOF_TYPE, bytes, MAX_RELEASE_PROOF_BYTES)?;
        Ok(Self::from_payload(record.unverified_payload())?.sandbox)
    }

    fn from_payload(payload: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode(WHAT, payload, MAX_RELEASE_PROOF_BYTES)?;
        fields.version(1, 1)?;
        let proof =
            Self { secret: fields.text(2)?, channel: fields.array(3)?, sandbox: fields.text(4)? };
        fields.end()?;
        Ok(proof)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proof_needs_its_key() {
        let proof = ReleaseProof {
            secret: "db".to_owned(),
            channel: [7; 32],
            sandbox: "spiffe://t/x/sb/1".to_owned(),
        };
        let bytes = proof.sign(&[9; 32], |_| [0; 64]);
        assert_eq!(ReleaseProof::unverified_sandbox(&bytes).unwrap(), proof.sandbox);
        assert!(matches!(
            ReleaseProof::verify(&bytes, &[9; 32]),
            Err(ReleaseProofError::Cose(CoseError::Signature { .. }))
        ));
    }

    #[test]
    fn aad_keeps_name_and_sandbox_apart() {
        assert_ne!(secret_aad("ab", "c"), secret_aad("a", "bc"));
    }
}
