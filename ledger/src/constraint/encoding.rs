//! Constraints as grants carry them. Format: docs/formats/grant.md.

use casemate_attestation::cbor::{CborError, Fields, Map};
use ciborium::Value as Cbor;

use super::{Constraint, MAX_CONSTRAINTS, MAX_NESTING, Rule, is_date};
use crate::decimal::MAX_PLACES;
use crate::json::{self, MAX_SAFE_INTEGER};
use crate::pattern::Pattern;
use crate::values;

const MAX_ITEMS: usize = 256;
const MAX_VALUE_BYTES: usize = 1024;
const MAX_POINTER_BYTES: usize = 256;

impl Constraint {
    pub(crate) fn to_value(&self) -> Cbor {
        Map::new()
            .set(1, self.pointer.as_str())
            .set(2, self.rule.name())
            .optional(3, self.rule.operand())
            .set(4, self.optional)
            .into_value()
    }

    #[cfg(test)]
    pub(crate) fn from_value(value: Cbor) -> Result<Self, CborError> {
        Self::nested(value, 0)
    }

    /// The constraints in `items`, at most [`MAX_CONSTRAINTS`].
    pub(crate) fn list(
        fields: &mut Fields,
        key: u64,
        depth: usize,
    ) -> Result<Vec<Self>, CborError> {
        let items = fields.items(key)?;
        if items.len() > MAX_CONSTRAINTS {
            return Err(fields.wrong(key, "at most 64 constraints"));
        }
        items.into_iter().map(|item| Self::nested(item, depth)).collect()
    }

    fn nested(value: Cbor, depth: usize) -> Result<Self, CborError> {
        let mut fields = Fields::of("constraint", value)?;
        if depth > MAX_NESTING {
            return Err(fields.wrong(2, "at most 4 levels of all, any and not"));
        }
        let pointer = values::pointer(&mut fields, 1, MAX_POINTER_BYTES)?;
        let rule = Rule::read(&mut fields, depth)?;
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
            Self::Equals(_) => "equals",
            Self::Matches(_) => "matches",
            Self::PathUnder(_) => "path_under",
            Self::IntRange(..) => "int_range",
            Self::DecimalMax(..) => "decimal_max",
            Self::DateWithin(..) => "date_within",
            Self::MaxLen(_) => "max_len",
            Self::SubsetOf(_) => "subset_of",
            Self::OnlyKeys(_) => "only_keys",
            Self::Present => "present",
            Self::Absent => "absent",
            Self::All(_) => "all",
            Self::Any(_) => "any",
            Self::Not(_) => "not",
        }
    }

    fn operand(&self) -> Option<Cbor> {
        let nested =
            |inner: &[Constraint]| Cbor::Array(inner.iter().map(Constraint::to_value).collect());
        match self {
            Self::OneOf(items)
            | Self::PathUnder(items)
            | Self::SubsetOf(items)
            | Self::OnlyKeys(items) => Some(values::texts(items)),
            Self::Equals(value) => {
                let text = json::canonical(value).unwrap_or_default();
                Some(Cbor::from(String::from_utf8(text).unwrap_or_default()))
            }
            Self::Matches(pattern) => Some(Cbor::from(pattern.as_str())),
            Self::IntRange(low, high) => {
                Some(Cbor::Array(vec![Cbor::from(*low), Cbor::from(*high)]))
            }
            Self::DecimalMax(most, places) => {
                Some(Cbor::Array(vec![Cbor::from(most.to_string()), Cbor::from(*places)]))
            }
            Self::DateWithin(from, to) => Some(values::texts([from, to])),
            Self::MaxLen(most) => Some(Cbor::from(*most)),
            Self::Present | Self::Absent => None,
            Self::All(inner) | Self::Any(inner) => Some(nested(inner)),
            Self::Not(inner) => Some(inner.to_value()),
        }
    }

    fn read(fields: &mut Fields, depth: usize) -> Result<Self, CborError> {
        Ok(match fields.text(2)?.as_str() {
            "one_of" => Self::OneOf(values::read_texts(fields, 3, MAX_ITEMS)?),
            "equals" => read_equals(fields)?,
            "matches" => {
                let pattern = Pattern::new(&fields.text(3)?);
                Self::Matches(
                    pattern.map_err(|_| {
                        fields.wrong(3, "a regular expression of at most 256 bytes")
                    })?,
                )
            }
            "path_under" => Self::PathUnder(values::read_texts(fields, 3, MAX_ITEMS)?),
            "subset_of" => Self::SubsetOf(values::read_texts(fields, 3, MAX_ITEMS)?),
            "only_keys" => Self::OnlyKeys(values::read_texts(fields, 3, MAX_ITEMS)?),
            "int_range" => read_range(fields)?,
            "decimal_max" => read_decimal(fields)?,
            "date_within" => read_dates(fields)?,
            "max_len" => Self::MaxLen(fields.uint(3)?),
            "present" => Self::Present,
            "absent" => Self::Absent,
            "all" => Self::All(read_some(fields, depth)?),
            "any" => Self::Any(read_some(fields, depth)?),
            "not" => Self::Not(Box::new(Constraint::nested(fields.required(3)?, depth + 1)?)),
            _ => return Err(fields.wrong(2, "a known rule")),
        })
    }
}

fn read_some(fields: &mut Fields, depth: usize) -> Result<Vec<Constraint>, CborError> {
    let inner = Constraint::list(fields, 3, depth + 1)?;
    if inner.is_empty() {
        return Err(fields.wrong(3, "at least one constraint"));
    }
    Ok(inner)
}

fn read_equals(fields: &mut Fields) -> Result<Rule, CborError> {
    let text = fields.text(3)?;
    let value = json::parse(text.as_bytes(), MAX_VALUE_BYTES).ok();
    let canonical = |value: &serde_json::Value| {
        json::canonical(value).is_ok_and(|bytes| bytes == text.as_bytes())
    };
    match value.filter(canonical) {
        Some(value) => Ok(Rule::Equals(value)),
        None => Err(fields.wrong(3, "canonical JSON (RFC 8785) of at most 1024 bytes")),
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

fn read_decimal(fields: &mut Fields) -> Result<Rule, CborError> {
    let items = fields.items(3)?;
    let wrong = || fields.wrong(3, "[decimal in its shortest form, places from 0 to 6]");
    let [most, places] = items.as_slice() else { return Err(wrong()) };
    let most = most.as_text().and_then(values::decimal).ok_or_else(wrong)?;
    let places = places.as_integer().and_then(|places| u32::try_from(places).ok());
    let places = places.filter(|places| *places <= MAX_PLACES).ok_or_else(wrong)?;
    Ok(Rule::DecimalMax(most, places))
}

fn read_dates(fields: &mut Fields) -> Result<Rule, CborError> {
    let dates: [String; 2] =
        values::read_texts(fields, 3, 2)?.try_into().map_err(|_| fields.wrong(3, "two dates"))?;
    let [from, to] = dates;
    if !is_date(&from) || !is_date(&to) || from > to {
        return Err(fields.wrong(3, "two dates YYYY-MM-DD, the earlier first"));
    }
    Ok(Rule::DateWithin(from, to))
}
