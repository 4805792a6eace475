//! What an auditor trusts, in one file.

use std::collections::BTreeMap;

use casemate_attestation::x509::{Certificate, PemLimits, certificates_from_pem};
use casemate_attestation::{TrustAnchors, VerifyError};
use serde::Deserialize;

use crate::checkpoint::{CheckpointError, VerifierKey};
use crate::quorum::{PolicyError, WitnessPolicy};
use crate::text;

/// The keys and anchors that a receipt is checked against. Docs: docs/formats/receipt.md.
#[derive(Debug, Clone)]
pub struct TrustFile {
    /// The log's key.
    pub log: VerifierKey,
    /// The key that signs the gateway's records.
    pub gateway_key: [u8; 32],
    /// The verifier's identity CA.
    pub identity_ca: Certificate,
    /// Who may sign grants, by name.
    pub issuers: BTreeMap<String, [u8; 32]>,
    /// Who may approve calls, by name. Without any, who approved is not checkable.
    pub approvers: BTreeMap<String, Approver>,
    /// Where evidence may end: vendors' roots, local models, enrolled hosts.
    pub anchors: TrustAnchors,
    /// SHA-256 of the one appraisal policy that evidence may have been judged by.
    pub policy_sha256: Option<[u8; 32]>,
    /// SHA-256 of the one set of reference values, likewise.
    pub reference_sha256: Option<[u8; 32]>,
    /// Which witnesses must have cosigned the checkpoint.
    pub witnesses: Option<WitnessPolicy>,
}

/// Somebody who may approve calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approver {
    /// The person; two keys of one person are one person.
    pub person: String,
    /// The key.
    pub key: [u8; 32],
}

/// Why a trust file is not used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file is not the TOML that this version knows.
    #[error("trust file: {0}")]
    Toml(#[from] Box<toml::de::Error>),
    /// The log's key does not read.
    #[error("trust file, log: {0}")]
    Log(#[from] CheckpointError),
    /// The witness policy does not read.
    #[error("trust file, {0}")]
    Witnesses(#[from] PolicyError),
    /// A key is not 64 hex digits.
    #[error("trust file, {field}: expected 64 lower-case hex digits")]
    Key {
        /// The field.
        field: &'static str,
    },
    /// The CA's certificate does not read.
    #[error("trust file, identity_ca: {0}")]
    IdentityCa(#[from] VerifyError),
    /// The trust anchors do not read.
    #[error("trust file, trust_anchors: {0}")]
    Anchors(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    /// The log's vkey.
    log: String,
    /// The gateway's record key in hex.
    gateway_key: String,
    /// The identity CA's certificate in PEM.
    identity_ca: String,
    /// The text of a trust anchor file.
    trust_anchors: String,
    /// SHA-256 of the appraisal policy's text in hex.
    policy_sha256: Option<String>,
    /// SHA-256 of the reference values' text in hex.
    reference_sha256: Option<String>,
    /// The text of a C2SP tlog-policy.
    witness_policy: Option<String>,
    /// Who may sign grants.
    #[serde(default, rename = "issuer")]
    issuers: Vec<Issuer>,
    /// Who may approve calls.
    #[serde(default, rename = "approver")]
    approvers: Vec<ApproverForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Issuer {
    /// The name in the grants.
    name: String,
    /// The public key in hex.
    key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApproverForm {
    /// The name in the approvals.
    name: String,
    /// The person.
    person: String,
    /// The public key in hex.
    key: String,
}

impl TrustFile {
    /// Reads the text of a trust file; an unknown field is an error.
    pub fn from_toml(text: &str) -> Result<Self, TrustError> {
        let form: Form = toml::from_str(text).map_err(Box::new)?;
        let mut certificates =
            certificates_from_pem(form.identity_ca.as_bytes(), PemLimits::CHAIN)?;
        let identity_ca = certificates.remove(0);
        identity_ca.check_ca()?;
        let digest =
            |field, hex: &Option<String>| hex.as_deref().map(|h| key(field, h)).transpose();
        Ok(Self {
            log: VerifierKey::parse(&form.log)?,
            gateway_key: key("gateway_key", &form.gateway_key)?,
            identity_ca,
            issuers: form
                .issuers
                .into_iter()
                .map(|issuer| Ok((issuer.name, key("issuer.key", &issuer.key)?)))
                .collect::<Result<_, TrustError>>()?,
            approvers: form
                .approvers
                .into_iter()
                .map(|ApproverForm { name, person, key: hex }| {
                    Ok((name, Approver { person, key: key("approver.key", &hex)? }))
                })
                .collect::<Result<_, TrustError>>()?,
            anchors: TrustAnchors::from_toml(&form.trust_anchors)
                .map_err(|error| TrustError::Anchors(error.to_string()))?,
            policy_sha256: digest("policy_sha256", &form.policy_sha256)?,
            reference_sha256: digest("reference_sha256", &form.reference_sha256)?,
            witnesses: form.witness_policy.as_deref().map(WitnessPolicy::parse).transpose()?,
        })
    }
}

fn key(field: &'static str, hex: &str) -> Result<[u8; 32], TrustError> {
    text::from_hex(hex).and_then(|key| key.try_into().ok()).ok_or(TrustError::Key { field })
}
