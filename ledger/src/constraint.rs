//! Limits on a call's arguments, as a grant states them.
//!
//! A constraint names a place by JSON pointer (RFC 6901) and what must hold
//! there. A place that is missing fails unless the constraint is optional.

use casemate_attestation::cbor::{CborError, Fields, Map};
use ciborium::Value as Cbor;
use serde_json::Value;

use crate::json::MAX_SAFE_INTEGER;
use crate::values;

/// One limit on the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    /// Where, as a JSON pointer; "" is the whole arguments object.
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
    /// A string, equal to one of these paths or below it: continued by `/` and
    /// steps that are neither empty nor `.` nor `..`.
    PathUnder(Vec<String>),
    /// An integer within these bounds, both included.
    IntRange(i64, i64),
    /// A string, array or object of at most this many bytes, items or entries.
    MaxLen(u64),
    /// Exactly this boolean.
    IsBool(bool),
    /// An object with no other keys than these.
    OnlyKeys(Vec<String>),
    /// Nothing is there.
    Absent,
}

/// The most constraints in one clause.
pub const MAX_CONSTRAINTS: usize = 64;
const MAX_ITEMS: usize = 256;

impl Constraint {
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

    pub(crate) fn to_value(&self) -> Cbor {
        Map::new()
            .set(1, self.pointer.as_str())
            .set(2, self.rule.name())
            .optional(3, self.rule.operand())
            .set(4, self.optional)
            .into_value()
    }

    pub(crate) fn from_value(value: Cbor) -> Result<Self, CborError> {
        let mut fields = Fields::of("constraint", value)?;
        let pointer = fields.text(1)?;
        if !(pointer.is_empty() || pointer.starts_with('/')) || pointer.len() > 256 {
            return Err(fields.wrong(1, "a JSON pointer of at most 256 bytes"));
        }
        let rule = Rule::read(&mut fields)?;
        let optional = fields.bool(4)?;
        fields.end()?;
        Ok(Self { pointer, rule, optional })
    }
}

impl Rule {
    /// The rule's name in the format and in grant files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::OneOf(_) => "one_of",
            Self::PathUnder(_) => "path_under",
            Self::IntRange(..) => "int_range",
            Self::MaxLen(_) => "max_len",
            Self::IsBool(_) => "is_bool",
            Self::OnlyKeys(_) => "only_keys",
            Self::Absent => "absent",
        }
    }

    fn holds(&self, value: &Value) -> bool {
        match self {
            Self::OneOf(items) => {
                value.as_str().is_some_and(|text| items.iter().any(|item| item == text))
            }
            Self::PathUnder(roots) => {
                value.as_str().is_some_and(|path| roots.iter().any(|root| is_under(path, root)))
            }
            Self::IntRange(low, high) => {
                value.as_i64().is_some_and(|number| (*low..=*high).contains(&number))
            }
            Self::MaxLen(most) => length(value).is_some_and(|length| length <= *most),
            Self::IsBool(expected) => value.as_bool() == Some(*expected),
            Self::OnlyKeys(keys) => {
                value.as_object().is_some_and(|object| object.keys().all(|key| keys.contains(key)))
            }
            Self::Absent => false,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::OneOf(items) => format!("must be one of {}", items.join(", ")),
            Self::PathUnder(roots) => format!("must be a path under {}", roots.join(", ")),
            Self::IntRange(low, high) => format!("must be an integer from {low} to {high}"),
            Self::MaxLen(most) => format!("must have a length of at most {most}"),
            Self::IsBool(expected) => format!("must be {expected}"),
            Self::OnlyKeys(keys) => format!("must have no keys other than {}", keys.join(", ")),
            Self::Absent => "must be absent".to_owned(),
        }
    }

    fn operand(&self) -> Option<Cbor> {
        match self {
            Self::OneOf(items) | Self::PathUnder(items) | Self::OnlyKeys(items) => {
                Some(values::texts(items))
            }
            Self::IntRange(low, high) => {
                Some(Cbor::Array(vec![Cbor::from(*low), Cbor::from(*high)]))
            }
            Self::MaxLen(most) => Some(Cbor::from(*most)),
            Self::IsBool(expected) => Some(Cbor::from(*expected)),
            Self::Absent => None,
        }
    }

    fn read(fields: &mut Fields) -> Result<Self, CborError> {
        Ok(match fields.text(2)?.as_str() {
            "one_of" => Self::OneOf(values::read_texts(fields, 3, MAX_ITEMS)?),
            "path_under" => Self::PathUnder(values::read_texts(fields, 3, MAX_ITEMS)?),
            "only_keys" => Self::OnlyKeys(values::read_texts(fields, 3, MAX_ITEMS)?),
            "int_range" => read_range(fields)?,
            "max_len" => Self::MaxLen(fields.uint(3)?),
            "is_bool" => Self::IsBool(fields.bool(3)?),
            "absent" => Self::Absent,
            _ => return Err(fields.wrong(2, "a known rule")),
        })
    }
}

fn read_range(fields: &mut Fields) -> Result<Rule, CborError> {
    let bounds: Option<Vec<i64>> = fields
        .items(3)?
        .iter()
        .map(|item| item.as_integer().and_then(|integer| i64::try_from(integer).ok()))
        .collect();
    let in_json = |number: &i64| number.unsigned_abs() <= MAX_SAFE_INTEGER;
    match bounds.as_deref() {
        Some([low, high]) if low <= high && in_json(low) && in_json(high) => {
            Ok(Rule::IntRange(*low, *high))
        }
        _ => Err(fields.wrong(3, "two integers within 2^53 - 1, the lower first")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(pointer: &str, rule: Rule) -> Constraint {
        Constraint { pointer: pointer.to_owned(), rule, optional: false }
    }

    #[test]
    fn the_table_of_rules() {
        let zone = || Rule::OneOf(vec!["UTC".into(), "Europe/Berlin".into()]);
        let path = || Rule::PathUnder(vec!["/srv/repo".into()]);
        let cases = [
            (at("/tz", zone()), json!({"tz": "UTC"}), true),
            (at("/tz", zone()), json!({"tz": "utc"}), false),
            (at("/tz", zone()), json!({"tz": ["UTC"]}), false),
            (at("/tz", zone()), json!({}), false),
            (Constraint { optional: true, ..at("/tz", zone()) }, json!({}), true),
            (Constraint { optional: true, ..at("/tz", zone()) }, json!({"tz": null}), false),
            (at("/p", path()), json!({"p": "/srv/repo"}), true),
            (at("/p", path()), json!({"p": "/srv/repo/a/b"}), true),
            (at("/p", path()), json!({"p": "/srv/repo2"}), false),
            (at("/p", path()), json!({"p": "/srv/repo/../x"}), false),
            (at("/p", path()), json!({"p": "/srv/repo//x"}), false),
            (at("/p", path()), json!({"p": "/srv/repo/"}), false),
            (at("/p", path()), json!({"p": "/srv/repo/%2e%2e/x"}), false),
            (at("/n", Rule::IntRange(-1, 3)), json!({"n": 3}), true),
            (at("/n", Rule::IntRange(-1, 3)), json!({"n": 4}), false),
            (at("/n", Rule::IntRange(-1, 3)), json!({"n": 2.5}), false),
            (at("/n", Rule::IntRange(-1, 3)), json!({"n": "2"}), false),
            (at("/s", Rule::MaxLen(3)), json!({"s": "abc"}), true),
            (at("/s", Rule::MaxLen(3)), json!({"s": "abcd"}), false),
            (at("/s", Rule::MaxLen(3)), json!({"s": 1}), false),
            (at("/b", Rule::IsBool(false)), json!({"b": false}), true),
            (at("/b", Rule::IsBool(false)), json!({"b": 0}), false),
            (at("", Rule::OnlyKeys(vec!["a".into()])), json!({"a": 1}), true),
            (at("", Rule::OnlyKeys(vec!["a".into()])), json!({"a": 1, "b": 2}), false),
            (at("/x", Rule::Absent), json!({}), true),
            (at("/x", Rule::Absent), json!({"x": null}), false),
        ];
        for (constraint, arguments, expected) in cases {
            assert_eq!(constraint.holds(&arguments), expected, "{constraint:?} on {arguments}");
            assert_eq!(Constraint::from_value(constraint.to_value()), Ok(constraint));
        }
    }

    #[test]
    fn malformed_rules_are_refused() {
        for rule in [Rule::IntRange(3, 1), Rule::IntRange(0, i64::MAX)] {
            assert!(Constraint::from_value(at("/n", rule).to_value()).is_err());
        }
        assert!(Constraint::from_value(at("n", Rule::Absent).to_value()).is_err());
    }
}
