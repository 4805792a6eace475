//! Everything needed to verify a verdict again, years later and offline.
//!
//! Format: docs/formats/bundle.md. A bundle is not signed: it carries the
//! evidence, whose signatures are checked again, and whoever needs its origin
//! refers to it by digest, as identity certificates and receipts do. Trust
//! anchors are not in it: they are the auditor's own.

use ciborium::Value;

use crate::anchors::TrustAnchors;
use crate::appraise::{Appraisal, Expected, Outcome, appraise};
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
/// The keys of what the evidence had to answer.
const BINDING: u64 = 3;
const REPORT_DATA: u64 = 9;
const TPM_NONCE: u64 = 10;

/// The inputs and the result of one verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The evidence envelope, encoded.
    pub evidence: Vec<u8>,
    /// What the evidence had to answer.
    pub asked: Asked,
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

/// What the evidence had to answer: [`Expected`], with its bytes owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The preimage of a binding's report data.
    Binding(Vec<u8>),
    /// These 64 bytes.
    ReportData([u8; 64]),
    /// A nonce that an Azure machine's vTPM answers.
    TpmNonce(Vec<u8>),
    /// Nothing: freshness was not judged.
    Nothing,
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
    pub fn new<'a>(
        evidence: &Evidence,
        expected: impl Into<Expected<'a>>,
        endorsements: &Endorsements,
        policy: &Policy,
        references: &ReferenceValues,
        appraisal: &Appraisal,
    ) -> Self {
        Self {
            evidence: evidence.encode(),
            asked: Asked::of(expected.into()),
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
        let start = Map::new().set(1, 1).bytes(2, &self.evidence);
        self.asked
            .write(start)
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
        let asked = Asked::read(&mut fields)?;
        let items = fields.items(4)?;
        if items.len() > MAX_ENDORSEMENTS {
            return Err(fields.wrong(4, "at most 64 endorsements").into());
        }
        let items = items.into_iter().map(endorsement).collect::<Result<_, _>>()?;
        let bundle = Self {
            evidence,
            asked,
            endorsements: Endorsements { items },
            policy: fields.text(5)?,
            references: fields.text(6)?,
            time: UnixTime(fields.uint(7)?),
            verdict: Verdict::from_fields(fields.map(8)?)?,
        };
        fields.end()?;
        Ok(bundle)
    }

    /// What the evidence was bound to, where that is an instance's binding.
    pub fn binding(&self) -> Result<Binding, BundleError> {
        match &self.asked {
            Asked::Binding(preimage) => Ok(Binding::from_preimage(preimage)?),
            _ => Err(CborError::Missing { what: WHAT, key: BINDING }.into()),
        }
    }

    /// Verifies and appraises again, at the recorded time, under the caller's
    /// anchors, and compares the result with the recorded one.
    pub fn reverify(&self, anchors: &TrustAnchors) -> Result<Appraisal, BundleError> {
        let evidence = Evidence::decode(&self.evidence)?;
        let policy = Policy::from_toml(&self.policy)?;
        let references = ReferenceValues::from_toml(&self.references)?;
        let claims = verify(&evidence, anchors, &self.endorsements, self.time)?;
        let judge = |expected| appraise(&claims, &policy, &references, expected, self.time);
        let appraisal = match &self.asked {
            Asked::Binding(_) => judge(Expected::Binding(&self.binding()?)),
            Asked::ReportData(bytes) => judge(Expected::ReportData(*bytes)),
            Asked::TpmNonce(nonce) => judge(Expected::TpmNonce(nonce)),
            Asked::Nothing => judge(Expected::Nothing),
        };
        self.verdict.compare(&Verdict::of(&appraisal))?;
        Ok(appraisal)
    }
}

impl Asked {
    fn of(expected: Expected<'_>) -> Self {
        match expected {
            Expected::Binding(binding) => Self::Binding(binding.preimage()),
            Expected::ReportData(bytes) => Self::ReportData(bytes),
            Expected::TpmNonce(nonce) => Self::TpmNonce(nonce.to_vec()),
            Expected::Nothing => Self::Nothing,
        }
    }

    fn write(&self, map: Map) -> Map {
        match self {
            Self::Binding(preimage) => map.bytes(BINDING, preimage),
            Self::ReportData(bytes) => map.bytes(REPORT_DATA, bytes),
            Self::TpmNonce(nonce) => map.bytes(TPM_NONCE, nonce),
            Self::Nothing => map,
        }
    }

    /// At most one of the three keys.
    fn read(fields: &mut Fields) -> Result<Self, CborError> {
        let mut found = Self::Nothing;
        for key in [BINDING, REPORT_DATA, TPM_NONCE] {
            let Some(value) = fields.optional(key) else { continue };
            let bytes = value.into_bytes().map_err(|_| fields.wrong(key, "a byte string"))?;
            if found != Self::Nothing {
                return Err(fields.wrong(key, "one of the keys 3, 9 and 10"));
            }
            found = match key {
                BINDING => Self::Binding(bytes),
                REPORT_DATA => {
                    let bytes = bytes.try_into().map_err(|_| fields.wrong(key, "64 bytes"))?;
                    Self::ReportData(bytes)
                }
                _ => Self::TpmNonce(bytes),
            };
        }
        Ok(found)
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
        self.compare_rules(now)
    }

    /// Rules are compared by name. A later release may know more of them: one
    /// that was not recorded must not fail, or the verdict would be another.
    fn compare_rules(&self, now: &Self) -> Result<(), BundleError> {
        let differs =
            |expected, actual| Err(BundleError::Verdict { field: "checks", expected, actual });
        let mut left: Vec<_> = now.outcomes.iter().collect();
        for (rule, outcome) in &self.outcomes {
            let expected = || format!("{rule} {outcome}, as recorded");
            let Some(at) = left.iter().position(|(known, _)| known == rule) else {
                return differs(expected(), "no such rule".to_owned());
            };
            let (_, actual) = left.remove(at);
            if actual != outcome {
                return differs(expected(), format!("{rule} {actual}"));
            }
        }
        match left.iter().find(|(_, outcome)| outcome == Outcome::Fail.name()) {
            None => Ok(()),
            Some((rule, _)) => differs(
                "no failure beside those recorded".to_owned(),
                format!("{rule} fails, a rule that the record does not know"),
            ),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(outcomes: &[(&str, &str)]) -> Verdict {
        let own = |(rule, outcome): &(&str, &str)| ((*rule).to_owned(), (*outcome).to_owned());
        Verdict {
            boundary: "tee".to_owned(),
            properties: vec![],
            hardware: "genuine".to_owned(),
            anchor: String::new(),
            measurement: vec![],
            outcomes: outcomes.iter().map(own).collect(),
        }
    }

    #[test]
    fn rules_that_a_later_release_adds_do_not_unmake_a_verdict() {
        let then = verdict(&[("a", "pass"), ("b", "fail"), ("b", "pass")]);
        let later = |outcomes: &[(&str, &str)]| then.compare(&verdict(outcomes));
        // Added in between, and in another order.
        later(&[
            ("new", "pass"),
            ("b", "fail"),
            ("b", "pass"),
            ("a", "pass"),
            ("c", "not_applicable"),
        ])
        .unwrap();
        for (now, said) in [
            (&[("a", "pass"), ("b", "fail"), ("b", "pass"), ("new", "fail")][..], "new fails"),
            (&[("a", "fail"), ("b", "fail"), ("b", "pass")], "a fail"),
            (&[("a", "pass"), ("b", "pass"), ("b", "pass")], "b pass"),
            (&[("a", "pass"), ("b", "fail")], "no such rule"),
            (&[], "no such rule"),
        ] {
            let error = later(now).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn every_form_of_question_is_kept() {
        let bundle = |asked| Bundle {
            evidence: vec![1],
            asked,
            endorsements: Endorsements::default(),
            policy: String::new(),
            references: String::new(),
            time: UnixTime(1),
            verdict: verdict(&[]),
        };
        for asked in [
            Asked::Binding(vec![2]),
            Asked::ReportData([3; 64]),
            Asked::TpmNonce(vec![4]),
            Asked::Nothing,
        ] {
            let bundle = bundle(asked);
            assert_eq!(Bundle::decode(&bundle.encode()), Ok(bundle));
        }
    }
}
