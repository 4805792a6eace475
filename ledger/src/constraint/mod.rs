//! Limits on a call's arguments, as a grant states them.
//!
//! A constraint names a place by JSON pointer (RFC 6901) and what must hold
//! there. A place that is missing fails unless the constraint is optional.
//! Whether a constraint holds is a function of the arguments alone.

mod encoding;

use serde_json::Value;

use crate::decimal::Decimal;
use crate::pattern::Pattern;

/// One limit on the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    /// Where, as a JSON pointer; "" is the whole value.
    pub pointer: String,
    /// What must hold there.
    pub rule: Rule,
    /// Whether the place may be missing.
    pub optional: bool,
}

/// What must hold at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// A string, one of these.
    OneOf(Vec<String>),
    /// Exactly this value, compared in canonical form (RFC 8785).
    Equals(Value),
    /// A string that the whole of this pattern matches.
    Matches(Pattern),
    /// A string, equal to one of these paths or below it: continued by `/` and
    /// steps that are neither empty nor `.` nor `..`.
    PathUnder(Vec<String>),
    /// An integer within these bounds, both included.
    IntRange(i64, i64),
    /// An amount ([`Decimal`]) of at most this much and this many places.
    DecimalMax(Decimal, u32),
    /// A date `YYYY-MM-DD` within these, both included.
    DateWithin(String, String),
    /// A string, array or object of at most this many bytes, items or entries.
    MaxLen(u64),
    /// An array of strings, each one of these.
    SubsetOf(Vec<String>),
    /// An object with no other keys than these.
    OnlyKeys(Vec<String>),
    /// Something is there, even null.
    Present,
    /// Nothing is there.
    Absent,
    /// All of these, each from this place on.
    All(Vec<Constraint>),
    /// At least one of these, each from this place on.
    Any(Vec<Constraint>),
    /// Not this, from this place on.
    Not(Box<Constraint>),
}

/// The most constraints in one clause, and in one `all` or `any`.
pub const MAX_CONSTRAINTS: usize = 64;
/// The deepest nesting of `all`, `any` and `not`.
pub const MAX_NESTING: usize = 4;

impl Constraint {
    /// A constraint that must hold at `pointer`, which must be there.
    pub fn at(pointer: impl Into<String>, rule: Rule) -> Self {
        Self { pointer: pointer.into(), rule, optional: false }
    }

    /// Whether `arguments` keep to this constraint.
    pub fn holds(&self, arguments: &Value) -> bool {
        match (arguments.pointer(&self.pointer), &self.rule) {
            (found, Rule::Absent) => found.is_none(),
            (None, _) => self.optional,
            (Some(value), rule) => rule.holds(value),
        }
    }

    /// The constraint in words, for denials and listings.
    pub fn describe(&self) -> String {
        let place = if self.pointer.is_empty() { "arguments" } else { &self.pointer };
        let optional = if self.optional { " (if present)" } else { "" };
        format!("{place}{optional} {}", self.rule.describe())
    }
}

impl Rule {
    fn holds(&self, value: &Value) -> bool {
        match self {
            Self::OneOf(items) => value.as_str().is_some_and(|text| is_in(text, items)),
            Self::Equals(expected) => same(value, expected),
            Self::Matches(pattern) => value.as_str().is_some_and(|text| pattern.matches(text)),
            Self::PathUnder(roots) => {
                value.as_str().is_some_and(|path| roots.iter().any(|root| is_under(path, root)))
            }
            Self::IntRange(low, high) => {
                value.as_i64().is_some_and(|number| (*low..=*high).contains(&number))
            }
            Self::DecimalMax(most, places) => Decimal::of_argument(value)
                .is_some_and(|amount| amount <= *most && amount.places() <= *places),
            Self::DateWithin(from, to) => value
                .as_str()
                .is_some_and(|date| is_date(date) && date >= from.as_str() && date <= to.as_str()),
            Self::MaxLen(most) => length(value).is_some_and(|length| length <= *most),
            Self::SubsetOf(items) => value.as_array().is_some_and(|found| {
                found.iter().all(|item| item.as_str().is_some_and(|text| is_in(text, items)))
            }),
            Self::OnlyKeys(keys) => {
                value.as_object().is_some_and(|object| object.keys().all(|key| keys.contains(key)))
            }
            Self::Present => true,
            Self::Absent => false,
            Self::All(inner) => inner.iter().all(|constraint| constraint.holds(value)),
            Self::Any(inner) => inner.iter().any(|constraint| constraint.holds(value)),
            Self::Not(inner) => !inner.holds(value),
        }
    }

    fn describe(&self) -> String {
        let each = |inner: &[Constraint], word: &str| {
            inner.iter().map(Constraint::describe).collect::<Vec<_>>().join(word)
        };
        match self {
            Self::OneOf(items) => format!("must be one of {}", items.join(", ")),
            Self::Equals(expected) => format!("must be {expected}"),
            Self::Matches(pattern) => format!("must match {}", pattern.as_str()),
            Self::PathUnder(roots) => format!("must be a path under {}", roots.join(", ")),
            Self::IntRange(low, high) => format!("must be an integer from {low} to {high}"),
            Self::DecimalMax(most, places) => {
                format!("must be an amount of at most {most} with at most {places} places")
            }
            Self::DateWithin(from, to) => format!("must be a date from {from} to {to}"),
            Self::MaxLen(most) => format!("must have a length of at most {most}"),
            Self::SubsetOf(items) => format!("must have only items of {}", items.join(", ")),
            Self::OnlyKeys(keys) => format!("must have no keys other than {}", keys.join(", ")),
            Self::Present => "must be present".to_owned(),
            Self::Absent => "must be absent".to_owned(),
            Self::All(inner) => format!("must have all of: {}", each(inner, "; ")),
            Self::Any(inner) => format!("must have one of: {}", each(inner, "; or ")),
            Self::Not(inner) => format!("must not be so that {}", inner.describe()),
        }
    }
}

fn is_in(text: &str, items: &[String]) -> bool {
    items.iter().any(|item| item == text)
}

/// Whether two values have one canonical form: 1.0 is 1, and keys have no order.
fn same(one: &Value, other: &Value) -> bool {
    one == other
        || matches!(
            (crate::json::canonical(one), crate::json::canonical(other)),
            (Ok(one), Ok(other)) if one == other
        )
}

fn length(value: &Value) -> Option<u64> {
    let length = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.len(),
        Value::Object(entries) => entries.len(),
        _ => return None,
    };
    u64::try_from(length).ok()
}

/// Whether `path` is `root` or below it, without any step that could leave it.
fn is_under(path: &str, root: &str) -> bool {
    let root = root.strip_suffix('/').unwrap_or(root);
    let Some(rest) = path.strip_prefix(root) else { return false };
    let steps = rest.strip_prefix('/').map(|rest| rest.split('/'));
    let clean = |mut steps: core::str::Split<'_, char>| {
        steps.all(|step| !matches!(step, "" | "." | "..")) && !rest.contains(['\\', '\0', '%'])
    };
    rest.is_empty() || steps.is_some_and(clean)
}

/// Whether `text` is a day of the calendar as RFC 3339 writes it (full-date).
fn is_date(text: &str) -> bool {
    let number = |range: core::ops::Range<usize>| {
        let digits = text.get(range).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        digits.and_then(|digits| digits.parse::<u32>().ok())
    };
    let dashes = (text.len(), text.get(4..5), text.get(7..8)) == (10, Some("-"), Some("-"));
    let (Some(year), Some(month), Some(day), true) =
        (number(0..4), number(5..7), number(8..10), dashes)
    else {
        return false;
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&day)
}

#[cfg(test)]
mod tests;
