//! Grants as people write them: a TOML file, which an issuer signs.
//!
//! ```toml
//! task = "report-42"
//! tenant = "demo"
//! minutes = 30
//! risk_ceiling = "low"
//! require = ["own_kernel"]
//!
//! [budgets]
//! calls = 20
//!
//! [[tool]]
//! name = "time.get_current_time"
//! max_calls = 10
//!
//! [[tool.argument]]
//! at = "/timezone"
//! one_of = ["UTC", "Europe/Berlin"]
//! ```

use casemate_attestation::cbor::CborError;
use casemate_attestation::{Properties, Risk, UnixTime};
use casemate_ledger::constraint::Rule;
use casemate_ledger::{
    Approvals, Authentic, Budgets, Clause, Constraint, Decimal, Effect, Grant, GrantRef, Label,
    Pattern, Rate, Record, Sum, Threshold, Window, text,
};
use serde::Deserialize;

use crate::keys::{SigningKey, random};

/// Why a grant file does not become a grant.
#[derive(Debug, thiserror::Error)]
pub enum GrantFileError {
    /// The file is not the TOML that this version knows.
    #[error("grant file: {0}")]
    Toml(#[from] Box<toml::de::Error>),
    /// A constraint names no rule, or more than one.
    #[error("grant file, tool {tool}, argument {at:?}: expected exactly one rule, got {actual}")]
    Rules {
        /// The tool.
        tool: String,
        /// The constraint's place.
        at: String,
        /// How many rules there were.
        actual: usize,
    },
    /// A rule's operand does not read.
    #[error("grant file, tool {tool}, argument {at:?}: {reason}")]
    Operand {
        /// The tool.
        tool: String,
        /// The place.
        at: String,
        /// What is wrong.
        reason: String,
    },
    /// The parent is not named as it must be.
    #[error("grant file, parent: expected id of 32 and digest of 64 lower-case hex digits")]
    Parent,
    /// The grant breaks a limit of its format.
    #[error("grant file: {0}")]
    Format(#[from] CborError),
    /// The system has no random bytes for the id.
    #[error("grant file: expected random bytes from the system")]
    Random,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    /// The task whose sandbox may use the grant.
    task: String,
    /// Its tenant.
    tenant: String,
    /// Minutes from now until it expires, at most 1440.
    minutes: u64,
    /// The highest risk of a tool.
    risk_ceiling: Risk,
    /// What the sandbox's boundary must have.
    #[serde(default)]
    require: Properties,
    /// The person whose task it is, who may not approve its calls.
    owner: Option<String>,
    /// The grant that this one is a part of: its id and digest in hex.
    parent: Option<ParentForm>,
    /// Limits over all tools.
    budgets: BudgetForm,
    /// The tools.
    #[serde(rename = "tool")]
    tools: Vec<ToolForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BudgetForm {
    /// The most calls.
    calls: u64,
    /// The most bytes of arguments.
    bytes_out: Option<u64>,
    /// The most bytes of results.
    bytes_in: Option<u64>,
    /// The most that calls may cost, in millionths.
    cost_micro: Option<u64>,
    /// The most milliseconds that tools may take together.
    wall_ms: Option<u64>,
    /// The most different tools.
    distinct_tools: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ParentForm {
    id: String,
    digest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolForm {
    /// The tool's name.
    name: String,
    /// The most calls.
    max_calls: Option<u64>,
    /// The most bytes of one result.
    max_result_bytes: Option<u64>,
    /// The longest that one call may take.
    timeout_ms: Option<u64>,
    /// Calls a minute.
    per_minute: Option<u64>,
    /// Calls at once within the rate; 1 when left out.
    burst: Option<u64>,
    /// Calls that run at once.
    concurrency: Option<u64>,
    /// The most bytes of arguments of all its calls.
    max_bytes_out: Option<u64>,
    /// What the boundary must have for this tool.
    #[serde(default)]
    require: Properties,
    /// What a call does: `read`, `write`, or `external` when left out.
    #[serde(default)]
    effect: Effect,
    /// The highest label that the sandbox may have seen.
    max_in_label: Option<Label>,
    /// Minutes from now until this tool ends.
    minutes: Option<u64>,
    /// How many people approve each call.
    approvals: Option<Approvals>,
    /// How many people approve a call above an amount.
    #[serde(default, rename = "threshold")]
    thresholds: Vec<ThresholdForm>,
    /// Limits on sums of amounts.
    #[serde(default, rename = "sum")]
    sums: Vec<SumForm>,
    /// Limits on arguments.
    #[serde(default, rename = "argument")]
    arguments: Vec<ArgumentForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ThresholdForm {
    /// Where the amount is, a JSON pointer.
    at: String,
    /// The largest amount that needs no approval by this threshold.
    above: String,
    /// How many people approve more.
    approvals: Approvals,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SumForm {
    /// Where the amount is, a JSON pointer.
    at: String,
    /// `hour`, `day` or `task`.
    over: Window,
    /// The most.
    max: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ArgumentForm {
    /// The place, a JSON pointer.
    at: String,
    /// Whether it may be missing.
    #[serde(default)]
    optional: bool,
    one_of: Option<Vec<String>>,
    equals: Option<toml::Value>,
    matches: Option<String>,
    path_under: Option<Vec<String>>,
    int_range: Option<(i64, i64)>,
    decimal_max: Option<(String, u32)>,
    date_within: Option<(String, String)>,
    max_len: Option<u64>,
    subset_of: Option<Vec<String>>,
    only_keys: Option<Vec<String>>,
    present: Option<bool>,
    absent: Option<bool>,
    all: Option<Vec<ArgumentForm>>,
    any: Option<Vec<ArgumentForm>>,
    not: Option<Box<ArgumentForm>>,
}

/// The grant in the TOML `text`, by `issuer`, valid from `now`, with a new id.
pub fn grant_from_toml(text: &str, issuer: &str, now: UnixTime) -> Result<Grant, GrantFileError> {
    let form: Form = toml::from_str(text).map_err(Box::new)?;
    let grant = Grant {
        id: random().ok_or(GrantFileError::Random)?,
        issuer: issuer.to_owned(),
        tenant: form.tenant,
        task: form.task,
        not_before: now,
        expires: now.plus_seconds(form.minutes.saturating_mul(60)),
        risk_ceiling: form.risk_ceiling,
        require: form.require,
        tools: form.tools.into_iter().map(|tool| clause(tool, now)).collect::<Result<_, _>>()?,
        budgets: Budgets {
            calls: form.budgets.calls,
            bytes_out: form.budgets.bytes_out,
            bytes_in: form.budgets.bytes_in,
            cost_micro: form.budgets.cost_micro,
            wall_ms: form.budgets.wall_ms,
            distinct_tools: form.budgets.distinct_tools,
        },
        parent: form.parent.map(parent).transpose()?,
        owner: form.owner,
    };
    // Reading back what would be signed applies every limit of the format.
    Ok(Grant::from_payload(&grant.payload())?)
}

/// The grant signed by its issuer's key.
pub fn sign_grant(grant: Grant, key: &SigningKey) -> Authentic<Grant> {
    grant.sign(key.public(), |message| key.sign(message))
}

fn parent(form: ParentForm) -> Result<GrantRef, GrantFileError> {
    let id = text::from_hex(&form.id).and_then(|id| id.try_into().ok());
    let digest = text::from_hex(&form.digest).and_then(|digest| digest.try_into().ok());
    match id.zip(digest) {
        Some((id, digest)) => Ok(GrantRef { id, digest }),
        None => Err(GrantFileError::Parent),
    }
}

fn clause(form: ToolForm, now: UnixTime) -> Result<Clause, GrantFileError> {
    let rate =
        form.per_minute.map(|per_minute| Rate { per_minute, burst: form.burst.unwrap_or(1) });
    let tool = form.name;
    let arguments = form.arguments.into_iter().map(|argument| constraint(&tool, argument));
    let thresholds = form.thresholds.into_iter().map(|form| {
        let above = decimal(&tool, &form.at, &form.above)?;
        Ok(Threshold { pointer: form.at, above, approvals: form.approvals })
    });
    let sums = form.sums.into_iter().map(|form| {
        let max = decimal(&tool, &form.at, &form.max)?;
        Ok(Sum { pointer: form.at, window: form.over, max })
    });
    Ok(Clause {
        arguments: arguments.collect::<Result<_, _>>()?,
        thresholds: thresholds.collect::<Result<_, GrantFileError>>()?,
        sums: sums.collect::<Result<_, GrantFileError>>()?,
        max_calls: form.max_calls,
        max_result_bytes: form.max_result_bytes,
        timeout_ms: form.timeout_ms,
        rate,
        concurrency: form.concurrency,
        require: form.require,
        max_bytes_out: form.max_bytes_out,
        effect: form.effect,
        max_in_label: form.max_in_label,
        until: form.minutes.map(|minutes| now.plus_seconds(minutes.saturating_mul(60))),
        approvals: form.approvals.unwrap_or(Approvals::None),
        tool,
    })
}

fn wrong(tool: &str, at: &str, reason: impl ToString) -> GrantFileError {
    let (tool, at) = (tool.to_owned(), at.to_owned());
    GrantFileError::Operand { tool, at, reason: reason.to_string() }
}

fn decimal(tool: &str, at: &str, text: &str) -> Result<Decimal, GrantFileError> {
    text.parse().map_err(|error| wrong(tool, at, error))
}

fn constraint(tool: &str, form: ArgumentForm) -> Result<Constraint, GrantFileError> {
    let at = form.at.clone();
    let nested = |forms: Vec<ArgumentForm>| {
        forms.into_iter().map(|form| constraint(tool, form)).collect::<Result<Vec<_>, _>>()
    };
    let pattern = |text: String| Pattern::new(&text).map_err(|error| wrong(tool, &at, error));
    let json =
        |value: toml::Value| serde_json::to_value(value).map_err(|error| wrong(tool, &at, error));
    let amount = |(most, places): (String, u32)| {
        decimal(tool, &at, &most).map(|most| Rule::DecimalMax(most, places))
    };
    let rules = [
        form.one_of.map(Rule::OneOf),
        form.equals.map(json).transpose()?.map(Rule::Equals),
        form.matches.map(pattern).transpose()?.map(Rule::Matches),
        form.path_under.map(Rule::PathUnder),
        form.int_range.map(|(low, high)| Rule::IntRange(low, high)),
        form.decimal_max.map(amount).transpose()?,
        form.date_within.map(|(from, to)| Rule::DateWithin(from, to)),
        form.max_len.map(Rule::MaxLen),
        form.subset_of.map(Rule::SubsetOf),
        form.only_keys.map(Rule::OnlyKeys),
        form.present.filter(|present| *present).map(|_| Rule::Present),
        form.absent.filter(|absent| *absent).map(|_| Rule::Absent),
        form.all.map(nested).transpose()?.map(Rule::All),
        form.any.map(nested).transpose()?.map(Rule::Any),
        form.not
            .map(|inner| constraint(tool, *inner))
            .transpose()?
            .map(|inner| Rule::Not(Box::new(inner))),
    ];
    let mut rules: Vec<Rule> = rules.into_iter().flatten().collect();
    match (rules.pop(), rules.is_empty()) {
        (Some(rule), true) => Ok(Constraint { pointer: form.at, rule, optional: form.optional }),
        (rule, _) => Err(GrantFileError::Rules {
            tool: tool.to_owned(),
            at: form.at,
            actual: rules.len() + usize::from(rule.is_some()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"
        task = "report-42"
        tenant = "demo"
        minutes = 30
        risk_ceiling = "low"
        require = ["own_kernel"]
        [budgets]
        calls = 20
        [[tool]]
        name = "time.get_current_time"
        max_calls = 10
        per_minute = 60
        [[tool.argument]]
        at = "/timezone"
        one_of = ["UTC", "Europe/Berlin"]
    "#;

    #[test]
    fn a_file_becomes_a_grant() {
        let grant = grant_from_toml(EXAMPLE, "ops", UnixTime(1_790_000_000)).unwrap();
        assert_eq!(grant.expires, UnixTime(1_790_001_800));
        assert_eq!(grant.tools[0].rate, Some(Rate { per_minute: 60, burst: 1 }));
        assert!(grant.tools[0].arguments[0].describe().contains("UTC"));
    }

    #[test]
    fn every_limit_has_its_words() {
        let text = EXAMPLE.replace(
            "[[tool.argument]]",
            r#"
            max_bytes_out = 500
            require = ["operator_excluded"]
            effect = "write"
            max_in_label = "internal"
            minutes = 5
            approvals = "one"
            [[tool.threshold]]
            at = "/amount"
            above = "100"
            approvals = "two"
            [[tool.sum]]
            at = "/amount"
            over = "day"
            max = "250.50"
            [[tool.argument]]
            at = ""
            any = [{ at = "/a", equals = 3 }, { at = "/b", not = { at = "", matches = "x+" } }]
            [[tool.argument]]"#,
        );
        let text = text.replace("[budgets]", "owner = \"alice\"\n[budgets]\ncost_micro = 7");
        let grant = grant_from_toml(&text, "ops", UnixTime(1_790_000_000)).unwrap();
        assert_eq!((grant.owner.as_deref(), grant.budgets.cost_micro), (Some("alice"), Some(7)));
        let clause = &grant.tools[0];
        assert_eq!(clause.until, Some(UnixTime(1_790_000_300)));
        assert_eq!((clause.effect, clause.approvals), (Effect::Write, Approvals::One));
        assert_eq!(clause.thresholds[0].above, Decimal(100_000_000));
        assert_eq!(
            (clause.sums[0].window, clause.sums[0].max),
            (Window::Day, Decimal(250_500_000))
        );
        assert!(clause.arguments[0].holds(&serde_json::json!({"b": "y"})));
        assert!(!clause.arguments[0].holds(&serde_json::json!({"b": "xx"})));
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, name) in [
            ("calls = 20", "call = 20", "call"),
            ("minutes = 30", "minutes = 1441", "key 7"),
            ("at = \"/timezone\"", "at = \"timezone\"", "JSON pointer"),
            ("one_of = [\"UTC\", \"Europe/Berlin\"]", "", "exactly one rule, got 0"),
            ("at = \"/timezone\"", "at = \"/timezone\"\nmax_len = 3", "exactly one rule, got 2"),
            ("own_kernel", "own_colonel", "own_colonel"),
            ("per_minute = 60", "approvals = \"three\"", "three"),
            ("per_minute = 60", "effect = \"delete\"", "delete"),
            ("one_of = [\"UTC\", \"Europe/Berlin\"]", "matches = \"(\"", "pattern"),
            ("one_of = [\"UTC\", \"Europe/Berlin\"]", "decimal_max = [\"x\", 2]", "decimal"),
            ("one_of = [\"UTC\", \"Europe/Berlin\"]", "int_range = [3, 1]", "key 3"),
            ("[budgets]", "parent = { id = \"0\", digest = \"0\" }\n[budgets]", "parent"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let text = EXAMPLE.replace(from, to);
            let error = grant_from_toml(&text, "ops", UnixTime(1_790_000_000)).unwrap_err();
            assert!(error.to_string().contains(name), "{to}: {error}");
        }
    }
}
