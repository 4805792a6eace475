//! The documents that evidence is judged by, and the one call that judges.
//!
//! Policy, reference values and trust anchors are read once at start; every
//! judgement is `casemate_attestation`'s.

use std::path::Path;

use casemate_attestation::seen::marks;
use casemate_attestation::{
    Appraisal, Binding, Bundle, Endorsements, Evidence, Mark, Policy, ReferenceValues, Risk,
    TrustAnchors, UnixTime, VerifyError, appraise, verify,
};

use crate::config::Config;
use crate::denial::{Check, Code, Denial};

/// What evidence is judged by.
#[derive(Debug, Clone)]
pub(crate) struct Judge {
    anchors: TrustAnchors,
    policy: Policy,
    references: ReferenceValues,
}

/// A judgement, and everything that it can be made with again.
#[derive(Debug, Clone)]
pub(crate) struct Judged {
    /// What was found.
    pub appraisal: Appraisal,
    /// The attestation bundle, encoded (docs/formats/bundle.md).
    pub bundle: Vec<u8>,
    /// How new the endorsements are that it rests on.
    pub marks: Vec<Mark>,
}

/// A document that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{field}, {path}: {cause}")]
pub struct DocumentError {
    /// The configuration's field.
    pub field: &'static str,
    /// The file.
    pub path: String,
    /// What is wrong with it.
    pub cause: String,
}

impl Judge {
    /// Reads the documents that `config` names.
    pub(crate) fn load(config: &Config) -> Result<Self, DocumentError> {
        let mut references = Vec::new();
        for path in &config.reference_value_files {
            let text = read("reference_value_files", path)?;
            // Each alone first, so that an error names its file.
            ReferenceValues::from_toml(&text).map_err(wrong("reference_value_files", path))?;
            references.push(text);
        }
        // One file stays what it is, so that its digest is that of the file.
        let references = references.join("\n");
        let (policy, anchors) = (&config.policy_file, &config.trust_anchors_file);
        Ok(Self {
            policy: Policy::from_toml(&read("policy_file", policy)?)
                .map_err(wrong("policy_file", policy))?,
            anchors: TrustAnchors::from_toml(&read("trust_anchors_file", anchors)?)
                .map_err(wrong("trust_anchors_file", anchors))?,
            references: ReferenceValues::from_toml(&references).map_err(|error| DocumentError {
                field: "reference_value_files",
                path: "all together".to_owned(),
                cause: error.to_string(),
            })?,
        })
    }

    /// Verifies and appraises `evidence` that must carry `binding`.
    pub(crate) fn judge(
        &self,
        evidence: &Evidence,
        endorsements: &Endorsements,
        binding: &Binding,
        now: UnixTime,
    ) -> Result<Judged, Denial> {
        let claims = verify(evidence, &self.anchors, endorsements, now).map_err(refused)?;
        let (policy, references) = (&self.policy, &self.references);
        let appraisal = appraise(&claims, policy, references, binding, now);
        let marks = marks(&claims);
        let bundle =
            Bundle::new(evidence, binding, endorsements, policy, references, &appraisal).encode();
        Ok(Judged { appraisal, bundle, marks })
    }

    /// Judges the evidence of a stored bundle anew: its time and binding, the
    /// documents of today.
    pub(crate) fn judge_again(&self, bundle: &[u8]) -> Result<(Judged, Binding), Denial> {
        let bundle = Bundle::decode(bundle).map_err(Denial::internal)?;
        let evidence = Evidence::decode(&bundle.evidence).map_err(Denial::internal)?;
        let binding = bundle.binding().map_err(Denial::internal)?;
        let judged = self.judge(&evidence, &bundle.endorsements, &binding, bundle.time)?;
        Ok((judged, binding))
    }
}

/// The denial of evidence that does not hold.
pub(crate) fn refused(error: VerifyError) -> Denial {
    let rule = format!("{}: {}", error.reason.code(), error.field);
    Denial::new(Code::EvidenceRefused, rule, error.expected, error.actual)
        .hint(error.reason.meaning())
}

/// The denial of `appraisal` for `risk`, with every rule that was looked at.
///
/// Evidence that breaks a rule is refused as such; evidence that breaks none
/// and still is not enough is a matter of the boundary.
pub(crate) fn denial(
    appraisal: &Appraisal,
    risk: Risk,
    cause: casemate_attestation::Denial,
) -> Denial {
    let code = match appraisal.failures().next() {
        Some(_) => Code::AppraisalRefused,
        None => Code::RiskRefused,
    };
    let checks = appraisal.checks().iter().map(|check| Check {
        rule: check.rule.to_owned(),
        outcome: check.outcome.name().to_owned(),
        expected: check.expected.clone(),
        actual: check.actual.clone(),
        hint: check.hint.clone(),
    });
    tracing::info!(%risk, rule = cause.rule, "refused");
    Denial::new(code, cause.rule, cause.expected, cause.actual)
        .hint(cause.hint)
        .checks(checks.collect())
}

const MAX_DOCUMENT_BYTES: u64 = 1024 * 1024;

fn read(field: &'static str, path: &Path) -> Result<String, DocumentError> {
    let error = |cause: String| DocumentError { field, path: path.display().to_string(), cause };
    let length = std::fs::metadata(path).map_err(|cause| error(cause.to_string()))?.len();
    if length > MAX_DOCUMENT_BYTES {
        return Err(error(format!("expected at most {MAX_DOCUMENT_BYTES} bytes, got {length}")));
    }
    std::fs::read_to_string(path).map_err(|cause| error(cause.to_string()))
}

fn wrong<E: std::fmt::Display>(
    field: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> DocumentError {
    move |cause| DocumentError { field, path: path.display().to_string(), cause: cause.to_string() }
}
