//! What a task may do. Format: docs/formats/grant.md.
//!
//! A grant is signed by an issuer that the gateway's operator named. It is
//! bound to one task, bounded in time and budgets, and carries limits only:
//! what was spent is the gateway's to count. What it does not name is denied.

use casemate_attestation::cbor::{CborError, Fields, Map};
use casemate_attestation::{Properties, Risk, UnixTime};
use ciborium::Value;

use crate::clause::Clause;
use crate::invocation::GrantRef;
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
    /// The grant that this one is a part of, if it is.
    pub parent: Option<GrantRef>,
    /// The person whose task it is, who may not approve its calls.
    pub owner: Option<String>,
}

/// Limits over a whole grant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budgets {
    /// The most calls.
    pub calls: u64,
    /// The most bytes of arguments sent to tools.
    pub bytes_out: Option<u64>,
    /// The most bytes of results given to the sandbox.
    pub bytes_in: Option<u64>,
    /// The most that calls may cost, in millionths of the operator's unit.
    pub cost_micro: Option<u64>,
    /// The most milliseconds that tools may take together.
    pub wall_ms: Option<u64>,
    /// The most different tools.
    pub distinct_tools: Option<u64>,
}

impl Budgets {
    /// A budget of calls and nothing else.
    pub fn of(calls: u64) -> Self {
        Self { calls, ..Self::default() }
    }
}

/// The longest lifetime of a grant: one day.
pub const MAX_LIFETIME_SECONDS: u64 = 24 * 60 * 60;
/// The most grants above another, of which it is a part.
pub const MAX_GRANTS_ABOVE: usize = 3;
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
            .optional(12, self.parent.map(GrantRef::to_value))
            .optional(13, self.owner.as_deref())
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
            parent: GrantRef::read_optional(&mut fields, 12)?,
            owner: values::optional_bounded_text(&mut fields, 13, MAX_NAME_BYTES)?,
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

impl Budgets {
    fn to_value(self) -> Value {
        Map::new()
            .set(1, self.calls)
            .optional(2, self.bytes_out)
            .optional(3, self.bytes_in)
            .optional(4, self.cost_micro)
            .optional(5, self.wall_ms)
            .optional(6, self.distinct_tools)
            .into_value()
    }

    fn read(fields: &mut Fields) -> Result<Self, CborError> {
        let mut inner = fields.map(11)?;
        let budgets = Self {
            calls: inner.uint(1)?,
            bytes_out: values::optional_uint(&mut inner, 2)?,
            bytes_in: values::optional_uint(&mut inner, 3)?,
            cost_micro: values::optional_uint(&mut inner, 4)?,
            wall_ms: values::optional_uint(&mut inner, 5)?,
            distinct_tools: values::optional_uint(&mut inner, 6)?,
        };
        inner.end()?;
        Ok(budgets)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::clause::{MAX_AMOUNTS, Rate, Sum, Threshold};
    use crate::constraint::{Constraint, Rule};
    use crate::decimal::Decimal;
    use crate::label::{Approvals, Effect, Label, Window};
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
            budgets: Budgets { bytes_in: Some(4096), ..Budgets::of(5) },
            parent: None,
            owner: None,
        }
    }

    fn payment() -> Clause {
        Clause {
            require: [Property::OperatorExcluded].into_iter().collect(),
            max_bytes_out: Some(9),
            effect: Effect::Write,
            max_in_label: Some(Label::Internal),
            until: Some(UnixTime(1_790_000_900)),
            approvals: Approvals::One,
            thresholds: vec![Threshold {
                pointer: "/amount".to_owned(),
                above: Decimal(10_500_000),
                approvals: Approvals::Two,
            }],
            sums: vec![Sum {
                pointer: "/amount".to_owned(),
                window: Window::Day,
                max: Decimal(50_000_000),
            }],
            ..Clause::of("bank.pay")
        }
    }

    #[test]
    fn grant_survives() {
        survives(grant());
        let budgets = Budgets {
            bytes_out: Some(1),
            cost_micro: Some(2),
            wall_ms: Some(3),
            distinct_tools: Some(4),
            ..Budgets::of(5)
        };
        survives(Grant {
            tools: vec![payment()],
            budgets,
            parent: Some(GrantRef { id: [7; 16], digest: [8; 32] }),
            owner: Some("alice".to_owned()),
            ..grant()
        });
    }

    #[test]
    fn limits_are_named() {
        let with = |clause: Clause| Grant { tools: vec![clause], ..grant() };
        let threshold = payment().thresholds.remove(0);
        let sum = payment().sums.remove(0);
        let cases = [
            (Grant { expires: UnixTime(0), ..grant() }, "key 7"),
            (Grant { expires: UnixTime(1_790_000_000 + 86_401), ..grant() }, "key 7"),
            (Grant { tools: vec![], ..grant() }, "key 10"),
            (Grant { tools: vec![Clause::of("t"); 129], ..grant() }, "key 10"),
            (Grant { task: String::new(), ..grant() }, "key 5"),
            (Grant { owner: Some(String::new()), ..grant() }, "key 13"),
            (with(Clause { thresholds: vec![threshold; MAX_AMOUNTS + 1], ..payment() }), "key 14"),
            (with(Clause { sums: vec![sum.clone(); MAX_AMOUNTS + 1], ..payment() }), "key 15"),
            (with(Clause { sums: vec![Sum { pointer: "x".into(), ..sum }], ..payment() }), "key 1"),
            (with(Clause { tool: "x".repeat(129), ..payment() }), "key 1"),
            (with(Clause { rate: Some(Rate { per_minute: 0, burst: 1 }), ..payment() }), "rate"),
        ];
        for (bad, field) in cases {
            let error = Grant::from_payload(&bad.payload()).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn unknown_keys_and_second_encodings_are_refused() {
        let read = |clause: Map| {
            let mut fields = Fields::of(
                "grant",
                Map::new().set(10, Value::Array(vec![clause.into_value()])).into_value(),
            )
            .unwrap();
            read_clauses(&mut fields).map(drop)
        };
        let clause = || Map::new().set(1, "t").set(2, Value::Array(vec![]));
        assert_eq!(read(clause()), Ok(()));
        let none: Value = Value::Array(vec![]);
        for (key, value) in [
            (8, none.clone()),
            (10, Value::from("external")),
            (10, Value::from("delete")),
            (11, Value::from("secret")),
            (13, Value::from("none")),
            (13, Value::from("three")),
            (14, none.clone()),
            (15, none),
            (16, Value::from(1)),
        ] {
            assert!(read(clause().set(key, value.clone())).is_err(), "{key}: {value:?}");
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
