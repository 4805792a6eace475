//! The list of rules and their outcomes.

use serde::Serialize;

/// What a rule expects that the policy does not ask for.
pub const NOT_ASKED: &str = "the policy does not ask";

/// How a rule came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The rule holds.
    Pass,
    /// The rule does not hold.
    Fail,
    /// The policy does not ask, or there is nothing to ask it of.
    NotApplicable,
}

/// One rule of an appraisal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The rule's stable id: the evidence it is about, a dot, its name.
    pub rule: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// What the policy asks for.
    pub expected: String,
    /// What there is.
    pub actual: String,
    /// What would make the rule pass; empty unless it failed.
    pub hint: String,
}

/// A list of rules under construction.
#[derive(Debug, Default)]
pub struct Checks(Vec<Check>);

impl Outcome {
    /// The outcome's name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::NotApplicable => "not_applicable",
        }
    }
}

impl Checks {
    /// Adds a rule that was applied.
    pub fn compare(
        &mut self,
        rule: &'static str,
        passed: bool,
        expected: impl Into<String>,
        actual: impl core::fmt::Display,
        hint: &str,
    ) {
        let (outcome, hint) = match passed {
            true => (Outcome::Pass, String::new()),
            false => (Outcome::Fail, hint.to_owned()),
        };
        let (expected, actual) = (expected.into(), actual.to_string());
        self.0.push(Check { rule, outcome, expected, actual, hint });
    }

    /// Adds a rule that the policy does not ask for.
    pub fn not_asked(&mut self, rule: &'static str, actual: impl core::fmt::Display) {
        self.not_applicable(rule, NOT_ASKED, actual);
    }

    /// Records a rule that does not speak of this evidence, or not yet.
    pub fn not_applicable(
        &mut self,
        rule: &'static str,
        expected: impl core::fmt::Display,
        actual: impl core::fmt::Display,
    ) {
        self.0.push(Check {
            rule,
            outcome: Outcome::NotApplicable,
            expected: expected.to_string(),
            actual: actual.to_string(),
            hint: String::new(),
        });
    }

    /// How many rules have failed so far.
    pub fn failed(&self) -> usize {
        self.0.iter().filter(|check| check.outcome == Outcome::Fail).count()
    }

    /// The rules in the order they were added.
    pub fn into_list(self) -> Vec<Check> {
        self.0
    }
}
