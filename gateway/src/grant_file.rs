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
use casemate_ledger::{Authentic, Budgets, Clause, Constraint, Grant, Rate, Record};
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
    /// Limits on arguments.
    #[serde(default, rename = "argument")]
    arguments: Vec<ArgumentForm>,
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
    path_under: Option<Vec<String>>,
    only_keys: Option<Vec<String>>,
    int_range: Option<(i64, i64)>,
    max_len: Option<u64>,
    is_bool: Option<bool>,
    absent: Option<bool>,
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
        tools: form.tools.into_iter().map(clause).collect::<Result<_, _>>()?,
        budgets: Budgets {
            calls: form.budgets.calls,
            bytes_out: form.budgets.bytes_out,
            bytes_in: form.budgets.bytes_in,
        },
    };
    // Reading back what would be signed applies every limit of the format.
    Ok(Grant::from_payload(&grant.payload())?)
}

/// The grant signed by its issuer's key.
pub fn sign_grant(grant: Grant, key: &SigningKey) -> Authentic<Grant> {
    grant.sign(key.public(), |message| key.sign(message))
}

fn clause(form: ToolForm) -> Result<Clause, GrantFileError> {
    let rate =
        form.per_minute.map(|per_minute| Rate { per_minute, burst: form.burst.unwrap_or(1) });
    let tool = form.name;
    let arguments = form.arguments.into_iter().map(|argument| constraint(&tool, argument));
    Ok(Clause {
        arguments: arguments.collect::<Result<_, _>>()?,
        max_calls: form.max_calls,
        max_result_bytes: form.max_result_bytes,
        timeout_ms: form.timeout_ms,
        rate,
        concurrency: form.concurrency,
        tool,
    })
}

fn constraint(tool: &str, form: ArgumentForm) -> Result<Constraint, GrantFileError> {
    let rules = [
        form.one_of.map(Rule::OneOf),
        form.path_under.map(Rule::PathUnder),
        form.only_keys.map(Rule::OnlyKeys),
        form.int_range.map(|(low, high)| Rule::IntRange(low, high)),
        form.max_len.map(Rule::MaxLen),
        form.is_bool.map(Rule::IsBool),
        form.absent.filter(|absent| *absent).map(|_| Rule::Absent),
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
    fn mistakes_are_named() {
        for (from, to, name) in [
            ("calls = 20", "call = 20", "call"),
            ("minutes = 30", "minutes = 1441", "key 7"),
            ("at = \"/timezone\"", "at = \"timezone\"", "JSON pointer"),
            ("one_of = [\"UTC\", \"Europe/Berlin\"]", "", "exactly one rule, got 0"),
            ("at = \"/timezone\"", "at = \"/timezone\"\nmax_len = 3", "exactly one rule, got 2"),
            ("own_kernel", "own_colonel", "own_colonel"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let text = EXAMPLE.replace(from, to);
            let error = grant_from_toml(&text, "ops", UnixTime(1_790_000_000)).unwrap_err();
            assert!(error.to_string().contains(name), "{to}: {error}");
        }
    }
}
