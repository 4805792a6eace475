//! From a list of outcomes to a yes or a denial, for one risk class.

use serde::Serialize;

use super::{Appraisal, Check};
use crate::boundary::Risk;

/// A yes for one risk class. Only [`Appraisal::affirmed`] makes one; whoever
/// releases secrets asks for it by value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affirmed {
    risk: Risk,
    appraisal: Appraisal,
}

/// A no, and what would have to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{rule}: expected {expected}, got {actual}; {hint}")]
pub struct Denial {
    /// The rule that decided.
    pub rule: String,
    /// What it asks for.
    pub expected: String,
    /// What there is.
    pub actual: String,
    /// What would make it pass.
    pub hint: String,
}

impl Affirmed {
    /// The risk class that was asked for.
    pub fn risk(&self) -> Risk {
        self.risk
    }

    /// The appraisal that says yes.
    pub fn appraisal(&self) -> &Appraisal {
        &self.appraisal
    }
}

impl Appraisal {
    /// Whether this result is good enough for `risk`: no rule failed, and
    /// boundary and properties are those that the policy asks for.
    pub fn affirmed(&self, risk: Risk) -> Result<Affirmed, Denial> {
        if let Some(check) = self.failures().next() {
            return Err(Denial::of(check));
        }
        let required = self.risk.requirement(risk);
        if self.boundary < required.boundary {
            return Err(Denial {
                rule: format!("risk.{risk}.boundary"),
                expected: format!("at least {}", required.boundary),
                actual: self.label(),
                hint: "run on a host that builds, and can show, a stronger boundary".to_owned(),
            });
        }
        let missing = self.properties.missing(&required.properties);
        if !missing.is_empty() {
            return Err(Denial {
                rule: format!("risk.{risk}.properties"),
                expected: required.properties.to_string(),
                actual: self.properties.to_string(),
                hint: format!("{missing} must be shown; now: {}", self.label()),
            });
        }
        Ok(Affirmed { risk, appraisal: self.clone() })
    }
}

impl Denial {
    fn of(check: &Check) -> Self {
        Self {
            rule: check.rule.to_owned(),
            expected: check.expected.clone(),
            actual: check.actual.clone(),
            hint: check.hint.clone(),
        }
    }
}
