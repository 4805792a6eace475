//! Is the boundary strong enough for the harm that this call could do?
//!
//! The operator gives each tool a base risk. What is known of this call may
//! raise it, never lower it; each class has a floor of boundary properties.

use casemate_attestation::{Properties, Risk};
use casemate_ledger::cgp::{Denial, DenyCode};
use casemate_ledger::{Clause, Decimal, Effect, Label};

use super::{Call, deny};

/// A tool's risk in one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Raised {
    /// The risk after everything that raised it.
    pub(crate) effective: Risk,
    /// What raised it.
    pub(crate) reasons: Vec<&'static str>,
}

/// The risk of a call under `clause` by a sandbox that has seen `seen`.
pub(super) fn risk(base: Risk, clause: &Clause, call: &Call<'_>, seen: Label) -> Raised {
    let above = |place: &str, limit: Decimal| {
        let amount = call.arguments.pointer(place).and_then(Decimal::of_argument);
        amount.is_none_or(|amount| amount > limit)
    };
    let facts = [
        ("label_confidential", seen >= Label::Confidential),
        ("external_with_label", clause.effect == Effect::External && seen > Label::Public),
        ("amount", clause.thresholds.iter().any(|t| above(&t.pointer, t.above))),
    ];
    let reasons: Vec<_> = facts.into_iter().filter(|(_, so)| *so).map(|(name, _)| name).collect();
    Raised { effective: reasons.iter().fold(base, |risk, _| higher(risk)), reasons }
}

fn higher(risk: Risk) -> Risk {
    match risk {
        Risk::Low => Risk::Medium,
        Risk::Medium | Risk::High => Risk::High,
    }
}

/// The certificate has every property in `required`.
pub(super) fn check(
    required: &Properties,
    call: &Call<'_>,
    rule: impl Into<String>,
) -> Result<(), Denial> {
    let actual = &call.caller.claims.properties;
    let missing = actual.missing(required);
    if missing.is_empty() {
        return Ok(());
    }
    let class = call.caller.claims.boundary;
    Err(deny(
        DenyCode::BoundaryInsufficient,
        rule,
        format!("properties {required}"),
        format!("{class} with {actual}; missing {missing}"),
    )
    .hint("run the task in a stronger boundary"))
}
