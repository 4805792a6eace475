//! What was checked, as a tree for people and as data for programs.

use core::fmt::{self, Write};

use serde::Serialize;

/// Every check of one receipt, in groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerificationTree {
    /// What the call was, in one line, as far as it could be read.
    pub subject: String,
    /// The checks.
    pub checks: Vec<Check>,
}

/// One check, or a group of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A stable name: `log.checkpoint`.
    pub id: &'static str,
    /// What is checked, for people.
    pub title: String,
    /// What came out; for a group, the worst of its members.
    pub outcome: Outcome,
    /// What had to be.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub expected: String,
    /// What is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub actual: String,
    /// The members of a group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
}

/// What a check came to, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It holds.
    Pass,
    /// A receipt alone cannot tell.
    NotCheckable,
    /// It does not hold.
    Fail,
}

impl VerificationTree {
    /// Whether nothing failed. What could not be checked is in the tree.
    pub fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.outcome != Outcome::Fail)
    }

    /// The ids of the checks that failed, without groups.
    pub fn failures(&self) -> Vec<&'static str> {
        let mut failures = Vec::new();
        self.checks.iter().for_each(|check| check.collect_failures(&mut failures));
        failures
    }
}

impl Check {
    pub(super) fn pass(id: &'static str, title: &str, actual: impl fmt::Display) -> Self {
        Self::new(id, title, Outcome::Pass, String::new(), actual.to_string())
    }

    pub(super) fn fail(
        id: &'static str,
        title: &str,
        expected: impl fmt::Display,
        actual: impl fmt::Display,
    ) -> Self {
        Self::new(id, title, Outcome::Fail, expected.to_string(), actual.to_string())
    }

    pub(super) fn not_checkable(id: &'static str, title: &str, why: impl fmt::Display) -> Self {
        Self::new(id, title, Outcome::NotCheckable, String::new(), why.to_string())
    }

    /// Passes with `actual` when it is what was `expected`.
    pub(super) fn equal<T: PartialEq + fmt::Display>(
        id: &'static str,
        title: &str,
        expected: T,
        actual: T,
    ) -> Self {
        if expected == actual {
            Self::pass(id, title, actual)
        } else {
            Self::fail(id, title, expected, actual)
        }
    }

    pub(super) fn group(id: &'static str, title: &str, checks: Vec<Self>) -> Self {
        let worst = checks.iter().map(|check| check.outcome).max().unwrap_or(Outcome::Pass);
        Self { checks, ..Self::new(id, title, worst, String::new(), String::new()) }
    }

    fn new(
        id: &'static str,
        title: &str,
        outcome: Outcome,
        expected: String,
        actual: String,
    ) -> Self {
        Self { id, title: title.to_owned(), outcome, expected, actual, checks: Vec::new() }
    }

    fn collect_failures(&self, failures: &mut Vec<&'static str>) {
        if self.checks.is_empty() && self.outcome == Outcome::Fail {
            failures.push(self.id);
        }
        self.checks.iter().for_each(|check| check.collect_failures(failures));
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let mark = match self.outcome {
            Outcome::Pass => "pass",
            Outcome::NotCheckable => "  ? ",
            Outcome::Fail => "FAIL",
        };
        write!(f, "{mark}  {:1$}{2}", "", depth * 2, self.title)?;
        if !self.actual.is_empty() {
            write!(f, ": {}", self.actual)?;
        }
        if !self.expected.is_empty() {
            write!(f, " (expected {})", self.expected)?;
        }
        f.write_char('\n')?;
        self.checks.iter().try_for_each(|check| check.write(f, depth + 1))
    }
}

impl fmt::Display for VerificationTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.subject)?;
        self.checks.iter().try_for_each(|check| check.write(f, 0))
    }
}
