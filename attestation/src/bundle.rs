//! Everything needed to verify a verdict again, years later and offline.
//!
//! Format: docs/formats/bundle.md. A bundle is not signed: it carries the
//! evidence, whose signatures are checked again, and whoever needs its origin
//! refers to it by digest, as identity certificates and receipts do. Trust
//! anchors are not in it: they are the auditor's own.

use ciborium::Value;

use crate::anchors::TrustAnchors;
use crate::appraise::{Appraisal, Outcome, appraise};
use crate::binding::Binding;
use crate::cbor::{CborError, Fields, Map};
use crate::crypto::sha256;
use crate::error::VerifyError;
use crate::evidence::{EndorsementKind, Evidence, MAX_EVIDENCE_BYTES};
use crate::policy::{Policy, PolicyError};
use crate::reference::ReferenceValues;
use crate::time::UnixTime;
use crate::verify::{Endorsements, verify};

/// The largest bundle that is read.
pub const MAX_BUNDLE_BYTES: usize = 8 * 1024 * 1024;
const MAX_ENDORSEMENTS: usize = 64;
const WHAT: &str = "attestation bundle";

/// The inputs and the result of one verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The evidence envelope, encoded.
    pub evidence: Vec<u8>,
    /// What the report data stands for, encoded.
    pub binding: Vec<u8>,
    /// What the verifier added to the evidence.
    pub endorsements: Endorsements,
    /// The appraisal policy, as it was read.
    pub policy: String,
    /// The reference values, as they were read.
    pub references: String,
    /// The time of verification.
    pub time: UnixTime,
    /// What came out.
    pub verdict: Verdict,
}

/// The result of an appraisal, as a bundle records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The boundary class.
    pub boundary: String,
    /// The properties, in order.
    pub properties: Vec<String>,
    /// `genuine`, `model` or `none`.
    pub hardware: String,
    /// The label of the anchor, or an empty string.
    pub anchor: String,
    /// The launch measurement, or nothing.
    pub measurement: Vec<u8>,
    /// Each rule with its outcome.
    pub outcomes: Vec<(String, String)>,
}

/// Why a bundle does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The bytes are not a bundle, or one of its parts is not well-formed.
    #[error(transparent)]
    Cbor(#[from] CborError),
    /// The policy or the reference values do not read.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The evidence does not verify under the given anchors.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The result is not the one that was recorded.
    #[error("{field}: expected {expected}, got {actual}")]
    Verdict {
        /// What differs.
        field: &'static str,
        /// What was recorded.
        expected: String,
        /// What comes out now.
        actual: String,
    },
}

impl Bundle {
    /// The bundle of one verification that was just made.
    pub fn new(
        evidence: &Evidence,
        binding: &Binding,
        endorsements: &Endorsements,
        policy: &Policy,
        references: &ReferenceValues,
        appraisal: &Appraisal,
    ) -> Self {
        Self {
            evidence: evidence.encode(),
            binding: binding.preimage(),
            endorsements: endorsements.clone(),
            policy: policy.source().to_owned(),
            references: references.source().to_owned(),
            time: appraisal.appraised_at(),
            verdict: Verdict::of(appraisal),
        }
    }

    /// The bundle's one encoding.
    pub fn encode(&self) -> Vec<u8> {
        let endorsements = self
            .endorsements
            .items
            .iter()
            .map(|(kind, bytes)| Map::new().set(1, kind.code()).bytes(2, bytes).into_value());
        Map::new()
            .set(1, 1)
            .bytes(2, &self.evidence)
            .bytes(3, &self.binding)
            .set(4, Value::Array(endorsements.collect()))
            .set(5, self.policy.as_str())
            .set(6, self.references.as_str())
            .set(7, self.time.0)
            .set(8, self.verdict.to_value())
            .encode()
    }

    /// SHA-256 of the encoding: how certificates and receipts name a bundle.
    pub fn digest(&self) -> [u8; 32] {
        sha256(&self.encode())
    }

    /// Reads a bundle; nothing in it is believed yet.
    pub fn decode(bytes: &[u8]) -> Result<Self, BundleError> {
        let mut fields = Fields::decode(WHAT, bytes, MAX_BUNDLE_BYTES)?;
        fields.version(1, 1)?;
        let evidence = fields.bytes(2)?;
        if evidence.len() > MAX_EVIDENCE_BYTES {
            return Err(fields.wrong(2, "an evidence envelope of at most 4 MiB").into());
        }
        let binding = fields.bytes(3)?;
        let items = fields.items(4)?;
        if items.len() > MAX_ENDORSEMENTS {
            return Err(fields.wrong(4, "at most 64 endorsements").into());
        }
        let items = items.into_iter().map(endorsement).collect::<Result<_, _>>()?;
        let bundle = Self {
            evidence,
            binding,
            endorsements: Endorsements { items },
            policy: fields.text(5)?,
            references: fields.text(6)?,
            time: UnixTime(fields.uint(7)?),
            verdict: Verdict::from_fields(fields.map(8)?)?,
        };
        fields.end()?;
        Ok(bundle)
    }

    /// What the evidence was bound to.
    pub fn binding(&self) -> Result<Binding, BundleError> {
        Ok(Binding::from_preimage(&self.binding)?)
    }

    /// Verifies and appraises again, at the recorded time, under the caller's
    /// anchors, and compares the result with the recorded one.
    pub fn reverify(&self, anchors: &TrustAnchors) -> Result<Appraisal, BundleError> {
        let evidence = Evidence::decode(&self.evidence)?;
        let binding = self.binding()?;
        let policy = Policy::from_toml(&self.policy)?;
        let references = ReferenceValues::from_toml(&self.references)?;
        let claims = verify(&evidence, anchors, &self.endorsements, self.time)?;
        let appraisal = appraise(&claims, &policy, &references, &binding, self.time);
        self.verdict.compare(&Verdict::of(&appraisal))?;
        Ok(appraisal)
    }
}

impl Verdict {
    /// What a bundle records of `appraisal`.
    pub fn of(appraisal: &Appraisal) -> Self {
        let outcome = |outcome: Outcome| outcome.name().to_owned();
        Self {
            boundary: appraisal.boundary().name().to_owned(),
            properties: appraisal.properties().iter().map(|p| p.name().to_owned()).collect(),
            hardware: appraisal.hardware().name().to_owned(),
            anchor: appraisal.anchor().map(|anchor| anchor.label.clone()).unwrap_or_default(),
            measurement: appraisal.measurement().unwrap_or_default().to_vec(),
            outcomes: appraisal
                .checks()
                .iter()
                .map(|check| (check.rule.to_owned(), outcome(check.outcome)))
                .collect(),
        }
    }

    fn to_value(&self) -> Value {
        let texts =
            |texts: &[String]| Value::Array(texts.iter().map(|t| t.as_str().into()).collect());
        let outcomes = self.outcomes.iter().map(|(rule, outcome)| {
            Map::new().set(1, rule.as_str()).set(2, outcome.as_str()).into_value()
        });
        Map::new()
            .set(1, self.boundary.as_str())
            .set(2, texts(&self.properties))
            .set(3, self.hardware.as_str())
            .set(4, self.anchor.as_str())
            .bytes(5, &self.measurement)
            .set(6, Value::Array(outcomes.collect()))
            .into_value()
    }

    fn from_fields(mut fields: Fields) -> Result<Self, CborError> {
        let boundary = fields.text(1)?;
        let properties = fields
            .items(2)?
            .into_iter()
            .map(Value::into_text)
            .collect::<Result<_, _>>()
            .map_err(|_| fields.wrong(2, "an array of texts"))?;
        let verdict = Self {
            boundary,
            properties,
            hardware: fields.text(3)?,
            anchor: fields.text(4)?,
            measurement: fields.bytes(5)?,
            outcomes: fields.items(6)?.into_iter().map(outcome).collect::<Result<_, _>>()?,
        };
        fields.end()?;
        Ok(verdict)
    }

    /// The recorded verdict against the one that comes out now. Anchor labels
    /// are the auditor's own names and may differ.
    fn compare(&self, now: &Self) -> Result<(), BundleError> {
        let differs = |field, expected: String, actual: String| {
            Err(BundleError::Verdict { field, expected, actual })
        };
        if self.boundary != now.boundary {
            return differs("boundary", self.boundary.clone(), now.boundary.clone());
        }
        if self.hardware != now.hardware {
            return differs("hardware", self.hardware.clone(), now.hardware.clone());
        }
        if self.properties != now.properties {
            return differs("properties", self.properties.join(", "), now.properties.join(", "));
        }
        if self.measurement != now.measurement {
            let hex = crate::wire::hex;
            return differs("measurement", hex(&self.measurement), hex(&now.measurement));
        }
        if self.outcomes != now.outcomes {
            let list = |verdict: &Self| {
                verdict
                    .outcomes
                    .iter()
                    .map(|(r, o)| format!("{r} {o}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            return differs("checks", list(self), list(now));
        }
        Ok(())
    }
}

fn endorsement(value: Value) -> Result<(EndorsementKind, Vec<u8>), CborError> {
    let mut fields = Fields::of(WHAT, value)?;
    let code = fields.uint(1)?;
    let kind = EndorsementKind::from_code(code)
        .ok_or_else(|| fields.wrong(1, "a known endorsement kind"))?;
    let bytes = fields.bytes(2)?;
    fields.end()?;
    Ok((kind, bytes))
}

fn outcome(value: Value) -> Result<(String, String), CborError> {
    let mut fields = Fields::of(WHAT, value)?;
    let pair = (fields.text(1)?, fields.text(2)?);
    fields.end()?;
    Ok(pair)
}
