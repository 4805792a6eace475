//! What a task may do. Format: docs/formats/grant.md.
//!
//! A grant is signed by an issuer that the gateway's operator named. It is
//! bound to one task, bounded in time and budgets, and carries limits only:
//! what was spent is the gateway's to count. What it does not name is denied.

use casemate_attestation::cbor::{CborError, Fields, Map};
use casemate_attestation::{Properties, Risk, UnixTime};
use ciborium::Value;

use crate::constraint::{Constraint, MAX_CONSTRAINTS};
use crate::invocation::MAX_TOOL_BYTES;
use crate::record::Record;
use crate::values;

/// A task's permission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The grant's id.
    pub id: [u8; 16],
    /// The issuer's name, as the gateway's operator knows it.
    pub issuer: String,
    /// The tenant whose sandboxes may use it.
    pub tenant: String,
    /// The task whose sandbox may use it; the first that does is bound to it.
    pub task: String,
    /// Not valid before.
    pub not_before: UnixTime,
    /// Not valid at or after; at most [`MAX_LIFETIME_SECONDS`] later.
    pub expires: UnixTime,
    /// The highest risk of a tool that may be called.
    pub risk_ceiling: Risk,
    /// What the sandbox's boundary must have, by its certificate.
    pub require: Properties,
    /// The tools, each with its limits.
    pub tools: Vec<Clause>,
    /// Limits over all tools together.
    pub budgets: Budgets,
}

/// One tool that a grant allows, within limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// The tool's name, exactly.
    pub tool: String,
    /// Limits on its arguments; all must hold.
    pub arguments: Vec<Constraint>,
    /// The most calls of this clause.
    pub max_calls: Option<u64>,
    /// The most bytes of one result.
    pub max_result_bytes: Option<u64>,
    /// The longest one call may take.
    pub timeout_ms: Option<u64>,
    /// The most calls in a time.
    pub rate: Option<Rate>,
    /// The most calls at once.
    pub concurrency: Option<u64>,
}

/// A steady rate with a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Calls per minute, at least 1.
    pub per_minute: u64,
    /// Calls that may come at once, at least 1.
    pub burst: u64,
}

/// Limits over a whole grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// The most calls.
    pub calls: u64,
    /// The most bytes of arguments sent to tools.
    pub bytes_out: Option<u64>,
    /// The most bytes of results given to the sandbox.
    pub bytes_in: Option<u64>,
}

/// The longest lifetime of a grant: one day.
pub const MAX_LIFETIME_SECONDS: u64 = 24 * 60 * 60;
/// The most clauses in a grant.
pub const MAX_CLAUSES: usize = 128;
const MAX_NAME_BYTES: usize = 256;
const WHAT: &str = "grant";

impl Grant {
    /// The clauses for `tool` with their places, in the order of the grant.
    pub fn clauses<'a, 't>(
        &'a self,
        tool: &'t str,
    ) -> impl Iterator<Item = (usize, &'a Clause)> + use<'a, 't> {
        self.tools.iter().enumerate().filter(move |(_, clause)| clause.tool == tool)
    }

    /// Whether the grant's time includes `now`.
    pub fn is_timely(&self, now: UnixTime) -> bool {
        self.not_before <= now && now < self.expires
    }
}

impl Record for Grant {
    const TYPE: &'static str = "application/casemate.grant+cose";
    const MAX_BYTES: usize = 32 * 1024;

    fn payload(&self) -> Vec<u8> {
        let tools = self.tools.iter().map(Clause::to_value).collect();
        Map::new()
            .set(1, 1)
            .bytes(2, &self.id)
            .set(3, self.issuer.as_str())
            .set(4, self.tenant.as_str())
            .set(5, self.task.as_str())
            .set(6, self.not_before.0)
            .set(7, self.expires.0)
            .set(8, self.risk_ceiling.name())
            .set(9, values::properties(&self.require))
            .set(10, Value::Array(tools))
            .set(11, self.budgets.to_value())
            .encode()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode(WHAT, payload, Self::MAX_BYTES)?;
        fields.version(1, 1)?;
        let grant = Self {
            id: fields.array(2)?,
            issuer: values::bounded_text(&mut fields, 3, MAX_NAME_BYTES)?,
            tenant: values::bounded_text(&mut fields, 4, MAX_NAME_BYTES)?,
            task: values::bounded_text(&mut fields, 5, MAX_NAME_BYTES)?,
            not_before: UnixTime(fields.uint(6)?),
            expires: UnixTime(fields.uint(7)?),
            risk_ceiling: fields
                .text(8)?
                .parse()
                .map_err(|_| fields.wrong(8, "a risk class (low, medium, high)"))?,
            require: values::read_properties(&mut fields, 9)?,
            tools: read_clauses(&mut fields)?,
            budgets: Budgets::read(&mut fields)?,
        };
        let lifetime = grant.expires.0.checked_sub(grant.not_before.0);
        if !lifetime.is_some_and(|seconds| (1..=MAX_LIFETIME_SECONDS).contains(&seconds)) {
            return Err(fields.wrong(7, "an expiry 1 s to 24 h after key 6"));
        }
        fields.end()?;
        Ok(grant)
    }
}

fn read_clauses(fields: &mut Fields) -> Result<Vec<Clause>, CborError> {
    let clauses = fields.items(10)?;
    if clauses.is_empty() || clauses.len() > MAX_CLAUSES {
        return Err(fields.wrong(10, "1 to 128 clauses"));
    }
    clauses.into_iter().map(Clause::from_value).collect()
}

impl Clause {
    /// A clause for `tool` without limits of its own.
    pub fn of(tool: impl Into<String>) -> Self {
        Self {
            tool: tool.into(),
            arguments: Vec::new(),
            max_calls: None,
            max_result_bytes: None,
            timeout_ms: None,
            rate: None,
            concurrency: None,
        }
    }

    fn to_value(&self) -> Value {
        let arguments = self.arguments.iter().map(Constraint::to_value).collect();
        let rate = self.rate.map(|r| Map::new().set(1, r.per_minute).set(2, r.burst).into_value());
        Map::new()
            .set(1, self.tool.as_str())
            .set(2, Value::Array(arguments))
            .optional(3, self.max_calls)
            .optional(4, self.max_result_bytes)
            .optional(5, self.timeout_ms)
            .optional(6, rate)
            .optional(7, self.concurrency)
            .into_value()
    }

    fn from_value(value: Value) -> Result<Self, CborError> {
        let mut fields = Fields::of("grant clause", value)?;
        let arguments = fields.items(2)?;
        if arguments.len() > MAX_CONSTRAINTS {
            return Err(fields.wrong(2, "at most 64 constraints"));
        }
        let clause = Self {
            tool: values::bounded_text(&mut fields, 1, MAX_TOOL_BYTES)?,
            arguments: arguments
                .into_iter()
                .map(Constraint::from_value)
                .collect::<Result<_, _>>()?,
            max_calls: values::optional_uint(&mut fields, 3)?,
            max_result_bytes: values::optional_uint(&mut fields, 4)?,
            timeout_ms: values::optional_uint(&mut fields, 5)?,
            rate: Rate::read(&mut fields)?,
            concurrency: values::optional_uint(&mut fields, 7)?,
        };
        fields.end()?;
        Ok(clause)
    }
}

impl Rate {
    fn read(fields: &mut Fields) -> Result<Option<Self>, CborError> {
        let Some(value) = fields.optional(6) else { return Ok(None) };
        let mut inner = Fields::of("rate", value)?;
        let rate = Self { per_minute: inner.uint(1)?, burst: inner.uint(2)? };
        if rate.per_minute == 0 || rate.burst == 0 {
            return Err(inner.wrong(1, "a rate and a burst of at least 1"));
        }
        inner.end()?;
        Ok(Some(rate))
    }
}

impl Budgets {
    fn to_value(self) -> Value {
        Map::new()
            .set(1, self.calls)
            .optional(2, self.bytes_out)
            .optional(3, self.bytes_in)
            .into_value()
    }

    fn read(fields: &mut Fields) -> Result<Self, CborError> {
        let mut inner = fields.map(11)?;
        let budgets = Self {
            calls: inner.uint(1)?,
            bytes_out: values::optional_uint(&mut inner, 2)?,
            bytes_in: values::optional_uint(&mut inner, 3)?,
        };
        inner.end()?;
        Ok(budgets)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::constraint::Rule;
    use crate::record::testing::survives;
    use casemate_attestation::Property;

    pub(crate) fn grant() -> Grant {
        Grant {
            id: [1; 16],
            issuer: "ops".to_owned(),
            tenant: "demo".to_owned(),
            task: "report-42".to_owned(),
            not_before: UnixTime(1_790_000_000),
            expires: UnixTime(1_790_001_800),
            risk_ceiling: Risk::Medium,
            require: [Property::OwnKernel, Property::Mediated].into_iter().collect(),
            tools: vec![Clause {
                arguments: vec![Constraint {
                    pointer: "/timezone".to_owned(),
                    rule: Rule::OneOf(vec!["UTC".to_owned()]),
                    optional: true,
                }],
                max_calls: Some(3),
                rate: Some(Rate { per_minute: 60, burst: 2 }),
                ..Clause::of("time.get_current_time")
            }],
            budgets: Budgets { calls: 5, bytes_out: None, bytes_in: Some(4096) },
        }
    }

    #[test]
    fn grant_survives() {
        survives(grant());
    }

    #[test]
    fn limits_are_named() {
        let cases = [
            (Grant { expires: UnixTime(0), ..grant() }, "key 7"),
            (Grant { expires: UnixTime(1_790_000_000 + 86_401), ..grant() }, "key 7"),
            (Grant { tools: vec![], ..grant() }, "key 10"),
            (Grant { tools: vec![Clause::of("t"); 129], ..grant() }, "key 10"),
            (Grant { task: String::new(), ..grant() }, "key 5"),
        ];
        for (bad, field) in cases {
            let error = Grant::from_payload(&bad.payload()).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn time_is_half_open() {
        let grant = grant();
        assert!(!grant.is_timely(UnixTime(1_789_999_999)));
        assert!(grant.is_timely(grant.not_before));
        assert!(!grant.is_timely(grant.expires));
    }
}
