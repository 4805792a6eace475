//! Secrets: asked for by name with a proof of the identity key, opened with
//! the sealing key, and handed to the receiver that the configuration names.
//! Format: docs/formats/release.md.

use casemate_attestation::ReleaseProof;
use casemate_attestation::release::{SECRET_INFO, secret_aad};
use casemate_ledger::text::b64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::attest::Session;
use crate::config::Secret;
use crate::http::{Denial, HttpError};
use crate::identity::{Identity, IdentityError};

/// Why the machine stops over a secret.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The verifier did not answer.
    #[error("verifier{0}")]
    Http(#[from] HttpError),
    /// The verifier refused a secret that is required.
    #[error("secret {name}, which is required: {denial}")]
    Required {
        /// The secret's name.
        name: String,
        /// Why it was refused.
        denial: Box<Denial>,
    },
    /// What was sealed does not open.
    #[error("secret {name}: {source}")]
    Open {
        /// The secret's name.
        name: String,
        /// Why.
        source: IdentityError,
    },
}

/// What became of one secret.
#[derive(Debug)]
pub enum Released {
    /// The secret is here.
    Secret {
        /// Its bytes, wiped when dropped.
        value: SecretBytes,
        /// The verifier's record of having given it.
        lease: String,
    },
    /// The verifier refused it, and the configuration allows to go on without.
    Refused(Box<Denial>),
}

/// A secret's bytes: no printing, wiped when dropped.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// The bytes, for the one who was named as receiver.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl core::fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SecretBytes")
    }
}

#[derive(Serialize)]
struct Request {
    #[serde(with = "b64")]
    proof: Vec<u8>,
}

#[derive(Deserialize)]
struct Answer {
    lease: String,
    sealed: Sealed,
}

#[derive(Deserialize)]
struct Sealed {
    #[serde(with = "b64")]
    enc: Vec<u8>,
    #[serde(with = "b64")]
    ciphertext: Vec<u8>,
}

impl Session {
    /// Fetches `secret` for the sandbox named `sandbox`.
    pub async fn release(
        &mut self,
        identity: &Identity,
        sandbox: &str,
        secret: &Secret,
    ) -> Result<Released, ReleaseError> {
        let name = &secret.name;
        let proof = ReleaseProof {
            secret: name.clone(),
            channel: self.release_channel,
            sandbox: sandbox.to_owned(),
        };
        let proof = proof.sign(identity.public_key(), |message| identity.sign(message));
        let path = format!("/v1/secrets/{name}");
        let answer: Answer = match self.http.post(&path, &Request { proof }).await {
            Ok(answer) => answer,
            Err(HttpError::Denied { denial, .. }) => return refused(secret, denial),
            Err(error) => return Err(error.into()),
        };
        let aad = secret_aad(name, sandbox);
        let Sealed { enc, ciphertext } = answer.sealed;
        let value = identity
            .open(enc, SECRET_INFO, &aad, &ciphertext)
            .map_err(|source| ReleaseError::Open { name: name.clone(), source })?;
        Ok(Released::Secret { value: SecretBytes(value), lease: answer.lease })
    }
}

fn refused(secret: &Secret, denial: Box<Denial>) -> Result<Released, ReleaseError> {
    if secret.required {
        return Err(ReleaseError::Required { name: secret.name.clone(), denial });
    }
    Ok(Released::Refused(denial))
}
