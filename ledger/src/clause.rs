//! One tool that a grant allows, and every limit on it.

use casemate_attestation::cbor::{CborError, Fields, Map};
use casemate_attestation::{Properties, UnixTime};
use ciborium::Value;

use crate::constraint::Constraint;
use crate::decimal::Decimal;
use crate::invocation::MAX_TOOL_BYTES;
use crate::label::{Approvals, Effect, Label, Window};
use crate::values;

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
    /// What the boundary must have for this clause, beside what the grant asks.
    pub require: Properties,
    /// The most bytes of arguments of all its calls together.
    pub max_bytes_out: Option<u64>,
    /// What a call does to the world; without a word, the worst.
    pub effect: Effect,
    /// The highest label that the sandbox may have seen when it calls.
    pub max_in_label: Option<Label>,
    /// When the clause ends, if that is before its grant does.
    pub until: Option<UnixTime>,
    /// How many people must approve each call.
    pub approvals: Approvals,
    /// How many must approve a call above an amount.
    pub thresholds: Vec<Threshold>,
    /// Limits on the sum of an amount over a time.
    pub sums: Vec<Sum>,
}

/// A steady rate with a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Calls per minute, at least 1.
    pub per_minute: u64,
    /// Calls that may come at once, at least 1.
    pub burst: u64,
}

/// From which amount on a call needs approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Threshold {
    /// Where the amount is, as a JSON pointer; it must be there.
    pub pointer: String,
    /// A call with more than this needs approval.
    pub above: Decimal,
    /// By how many people.
    pub approvals: Approvals,
}

/// A limit on the sum of an amount over all calls in a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// Where the amount is, as a JSON pointer; it must be there.
    pub pointer: String,
    /// Over which time.
    pub window: Window,
    /// The most.
    pub max: Decimal,
}

/// The most thresholds, and the most sums, in one clause.
pub const MAX_AMOUNTS: usize = 8;
const MAX_POINTER_BYTES: usize = 256;

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
            require: Properties::default(),
            max_bytes_out: None,
            effect: Effect::default(),
            max_in_label: None,
            until: None,
            approvals: Approvals::None,
            thresholds: Vec::new(),
            sums: Vec::new(),
        }
    }

    pub(crate) fn to_value(&self) -> Value {
        let arguments = self.arguments.iter().map(Constraint::to_value).collect();
        let rate = self.rate.map(|r| Map::new().set(1, r.per_minute).set(2, r.burst).into_value());
        let some = |items: Vec<Value>| (!items.is_empty()).then_some(Value::Array(items));
        let require = self.require.iter().next().map(|_| values::properties(&self.require));
        Map::new()
            .set(1, self.tool.as_str())
            .set(2, Value::Array(arguments))
            .optional(3, self.max_calls)
            .optional(4, self.max_result_bytes)
            .optional(5, self.timeout_ms)
            .optional(6, rate)
            .optional(7, self.concurrency)
            .optional(8, require)
            .optional(9, self.max_bytes_out)
            .optional(10, (self.effect != Effect::default()).then(|| self.effect.name()))
            .optional(11, self.max_in_label.map(Label::name))
            .optional(12, self.until.map(|until| until.0))
            .optional(13, (self.approvals != Approvals::None).then(|| self.approvals.name()))
            .optional(14, some(self.thresholds.iter().map(Threshold::to_value).collect()))
            .optional(15, some(self.sums.iter().map(Sum::to_value).collect()))
            .into_value()
    }

    pub(crate) fn from_value(value: Value) -> Result<Self, CborError> {
        let mut fields = Fields::of("grant clause", value)?;
        let clause = Self {
            tool: values::bounded_text(&mut fields, 1, MAX_TOOL_BYTES)?,
            arguments: Constraint::list(&mut fields, 2, 0)?,
            max_calls: values::optional_uint(&mut fields, 3)?,
            max_result_bytes: values::optional_uint(&mut fields, 4)?,
            timeout_ms: values::optional_uint(&mut fields, 5)?,
            rate: Rate::read(&mut fields)?,
            concurrency: values::optional_uint(&mut fields, 7)?,
            require: read_require(&mut fields)?,
            max_bytes_out: values::optional_uint(&mut fields, 9)?,
            effect: read_effect(&mut fields)?,
            max_in_label: values::optional_name(&mut fields, 11, "a label", Label::from_name)?,
            until: values::optional_uint(&mut fields, 12)?.map(UnixTime),
            approvals: read_approvals(&mut fields)?,
            thresholds: values::optional_items(&mut fields, 14, MAX_AMOUNTS)?
                .into_iter()
                .map(Threshold::from_value)
                .collect::<Result<_, _>>()?,
            sums: values::optional_items(&mut fields, 15, MAX_AMOUNTS)?
                .into_iter()
                .map(Sum::from_value)
                .collect::<Result<_, _>>()?,
        };
        fields.end()?;
        Ok(clause)
    }
}

fn read_require(fields: &mut Fields) -> Result<Properties, CborError> {
    let Some(value) = fields.optional(8) else { return Ok(Properties::default()) };
    let mut inner = Fields::of("clause requirement", Map::new().set(8, value).into_value())?;
    let require = values::read_properties(&mut inner, 8)?;
    if require.iter().next().is_none() {
        return Err(fields.wrong(8, "at least one property, or no key 8"));
    }
    Ok(require)
}

/// The default is written as no key, so that one meaning has one encoding.
fn read_effect(fields: &mut Fields) -> Result<Effect, CborError> {
    let effect = values::optional_name(fields, 10, "read or write", Effect::from_name)?;
    match effect {
        Some(effect) if effect == Effect::default() => {
            Err(fields.wrong(10, "no key for the effect external"))
        }
        effect => Ok(effect.unwrap_or_default()),
    }
}

fn read_approvals(fields: &mut Fields) -> Result<Approvals, CborError> {
    let level = values::optional_name(fields, 13, "one or two", Approvals::from_name)?;
    match level {
        Some(Approvals::None) => Err(fields.wrong(13, "no key for no approvals")),
        level => Ok(level.unwrap_or(Approvals::None)),
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

impl Threshold {
    fn to_value(&self) -> Value {
        Map::new()
            .set(1, self.pointer.as_str())
            .set(2, self.above.to_string())
            .set(3, self.approvals.name())
            .into_value()
    }

    fn from_value(value: Value) -> Result<Self, CborError> {
        let mut fields = Fields::of("approval threshold", value)?;
        let approvals = Approvals::from_name(&fields.text(3)?).filter(|a| *a != Approvals::None);
        let threshold = Self {
            pointer: values::pointer(&mut fields, 1, MAX_POINTER_BYTES)?,
            above: values::read_decimal(&mut fields, 2)?,
            approvals: approvals.ok_or_else(|| fields.wrong(3, "one or two"))?,
        };
        fields.end()?;
        Ok(threshold)
    }
}

impl Sum {
    fn to_value(&self) -> Value {
        Map::new()
            .set(1, self.pointer.as_str())
            .set(2, self.window.name())
            .set(3, self.max.to_string())
            .into_value()
    }

    fn from_value(value: Value) -> Result<Self, CborError> {
        let mut fields = Fields::of("sum", value)?;
        let window = Window::from_name(&fields.text(2)?);
        let sum = Self {
            pointer: values::pointer(&mut fields, 1, MAX_POINTER_BYTES)?,
            window: window.ok_or_else(|| fields.wrong(2, "hour, day or task"))?,
            max: values::read_decimal(&mut fields, 3)?,
        };
        fields.end()?;
        Ok(sum)
    }
}
