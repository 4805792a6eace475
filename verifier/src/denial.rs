//! Every "no" of the service, explained: one table of codes, one JSON shape.
//!
//! Format: docs/formats/verifier-api.md. A code is stable; texts may change.

use serde::{Deserialize, Serialize};

use crate::store::StoreError;

/// The reasons for which the service refuses, each with one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request is not what the route reads.
    BadRequest,
    /// There is no such route.
    NotFound,
    /// The route exists, for another method.
    MethodNotAllowed,
    /// The body did not arrive in time, or the work took too long.
    Timeout,
    /// The body is longer than the route reads.
    BodyTooLarge,
    /// Too much is going on; ask again.
    Busy,
    /// The nonce was not made by this verifier for this connection.
    NonceForeign,
    /// The nonce is older than a nonce may be.
    NonceExpired,
    /// The nonce was used before.
    NonceUsed,
    /// The task is not one that this verifier admits sandboxes for.
    TaskNotPermitted,
    /// The evidence does not verify.
    EvidenceRefused,
    /// The evidence verifies, but the policy does not accept what it says.
    AppraisalRefused,
    /// The identity was revoked.
    IdentityRevoked,
    /// The identity attested before with other facts that must not change.
    IdentityChanged,
    /// The sandbox has no attestation result here.
    NotAttested,
    /// The attestation result is too old for a new lease.
    AttestationExpired,
    /// The proof of possession is wrong.
    ProofRefused,
    /// The task may not have this secret.
    SecretNotPermitted,
    /// The boundary does not carry the risk of this secret.
    RiskRefused,
    /// There is no such secret.
    SecretUnknown,
    /// There is no such lease.
    LeaseUnknown,
    /// There is no such identity.
    IdentityUnknown,
    /// The disk is full; nothing was decided.
    StoreFull,
    /// The store does not answer; nothing was decided.
    StoreUnavailable,
    /// The service failed in a way that it should not.
    Internal,
}

/// One "no".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// The stable code.
    pub code: Box<str>,
    /// The HTTP status.
    pub status: u16,
    /// The rule that said no.
    pub rule: Box<str>,
    /// What the rule asks for.
    pub expected: Box<str>,
    /// What there was.
    pub actual: Box<str>,
    /// What to do about it.
    pub hint: Box<str>,
    /// Every rule that was looked at, when there were several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
}

/// One rule of an appraisal and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The rule.
    pub rule: String,
    /// Its outcome: `pass` or `fail`, or why it did not apply.
    pub outcome: String,
    /// What the rule asks for.
    pub expected: String,
    /// What there was.
    pub actual: String,
    /// What to do about it.
    pub hint: String,
}

impl Code {
    /// Name, HTTP status and hint of the code.
    pub fn describe(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::BadRequest => ("bad-request", 400, "send what docs/formats/verifier-api.md says"),
            Self::NotFound => {
                ("not-found", 404, "routes are listed in docs/formats/verifier-api.md")
            }
            Self::MethodNotAllowed => ("method-not-allowed", 405, "use the method of this route"),
            Self::Timeout => ("timeout", 408, "ask again; limits.request_timeout_ms is the limit"),
            Self::BodyTooLarge => {
                ("body-too-large", 413, "send less, or raise limits.evidence_bytes")
            }
            Self::Busy => ("busy", 503, "ask again in a moment"),
            Self::NonceForeign => {
                ("nonce-foreign", 403, "ask for a challenge on the connection that attests")
            }
            Self::NonceExpired => ("nonce-expired", 403, "ask for a new challenge"),
            Self::NonceUsed => ("nonce-used", 403, "ask for a new challenge"),
            Self::TaskNotPermitted => {
                ("task-not-permitted", 403, "name the task under [[task]] in verifier.toml")
            }
            Self::EvidenceRefused => {
                ("evidence-refused", 403, "check trust anchors, clock and who made the evidence")
            }
            Self::AppraisalRefused => {
                ("appraisal-refused", 403, "see checks: each failed rule has a hint")
            }
            Self::IdentityRevoked => {
                ("identity-revoked", 403, "start a new sandbox; a revoked key never comes back")
            }
            Self::IdentityChanged => (
                "identity-changed",
                403,
                "a new sealing key or an older epoch needs a new identity key",
            ),
            Self::NotAttested => ("not-attested", 403, "attest first"),
            Self::AttestationExpired => {
                ("attestation-expired", 403, "attest again, then ask again")
            }
            Self::ProofRefused => (
                "proof-refused",
                403,
                "sign this name and this connection's exporter with the identity key",
            ),
            Self::SecretNotPermitted => {
                ("secret-not-permitted", 403, "name the secret under the task in verifier.toml")
            }
            Self::RiskRefused => (
                "risk-refused",
                403,
                "run the task at a stronger boundary, or lower the secret's risk",
            ),
            Self::SecretUnknown => ("secret-unknown", 404, "store it: casemate secret put"),
            Self::LeaseUnknown => ("lease-unknown", 404, "list them: casemate secret leases"),
            Self::IdentityUnknown => ("identity-unknown", 404, "list them: casemate secret leases"),
            Self::StoreFull => ("store-full", 507, "free disk space where state_dir lies"),
            Self::StoreUnavailable => ("store-unavailable", 503, "see the verifier's log"),
            Self::Internal => ("internal", 500, "see the verifier's log"),
        }
    }
}

impl Denial {
    /// The denial for `code`: `rule` asked for `expected` and there was `actual`.
    pub fn new(
        code: Code,
        rule: impl Into<Box<str>>,
        expected: impl Into<Box<str>>,
        actual: impl Into<Box<str>>,
    ) -> Self {
        let (name, status, hint) = code.describe();
        Self {
            code: name.into(),
            status,
            rule: rule.into(),
            expected: expected.into(),
            actual: actual.into(),
            hint: hint.into(),
            checks: Vec::new(),
        }
    }

    /// The request's `field` is not what the route reads.
    pub fn field(field: &str, expected: &str, actual: impl Into<Box<str>>) -> Self {
        Self::new(Code::BadRequest, field, expected, actual)
    }

    /// Something failed that should not; the cause stays in the log.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "internal");
        Self::new(Code::Internal, "service", "an answer", "a failure of the service")
    }

    /// The same denial with another hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Box<str>>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same denial with every rule that was looked at.
    #[must_use]
    pub fn checks(mut self, checks: Vec<Check>) -> Self {
        self.checks = checks;
        self
    }
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { code, rule, expected, actual, hint, .. } = self;
        write!(f, "{code}: {rule}: expected {expected}, got {actual} ({hint})")
    }
}

impl std::error::Error for Denial {}

impl From<StoreError> for Denial {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "nothing was decided");
        match error {
            StoreError::Full => {
                Self::new(Code::StoreFull, "audit", "room for a row", "a full disk")
            }
            StoreError::Unavailable(_) => Self::new(
                Code::StoreUnavailable,
                "audit",
                "a durable row",
                "no answer of the store",
            ),
        }
    }
}
