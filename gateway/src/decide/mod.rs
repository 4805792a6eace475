//! May this call run? A pure function of the grant as it stands, the call and
//! the time. The gates are in the order of [`decide`]; the first that fails
//! decides, and what it says is what the sandbox and the log are told.

mod budget;
mod held;
mod rate;

pub(crate) use held::{Held, Use, User};

use casemate_attestation::{Properties, Risk};
use casemate_ledger::cgp::{Denial, DenyCode};
use casemate_ledger::{BudgetUse, Clause, GrantRef, Identity};
use serde_json::Value;

use crate::clock::Now;

/// A call whose envelope was checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    /// Who calls, by certificate.
    pub(crate) caller: &'a Identity,
    /// The grant that the call names.
    pub(crate) grant: Option<GrantRef>,
    /// The tool that the call names.
    pub(crate) tool: &'a str,
    /// The definition that the sandbox was shown.
    pub(crate) tool_digest: Option<[u8; 32]>,
    /// The tool as the gateway has it, if it has it.
    pub(crate) pinned: Option<&'a PinnedTool>,
    /// The arguments.
    pub(crate) arguments: &'a Value,
    /// Their canonical length.
    pub(crate) arguments_length: u64,
}

/// What the gateway knows of a tool before it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PinnedTool {
    /// The pinned definition's digest.
    pub(crate) digest: [u8; 32],
    /// The operator's risk class.
    pub(crate) risk: Risk,
    /// Whether the upstream no longer offers that definition.
    pub(crate) drifted: bool,
    /// The upstream's limit of a result.
    pub(crate) max_result_bytes: u64,
    /// The upstream's limit of a call's time.
    pub(crate) timeout_ms: u64,
}

/// A decision with all that its record needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ruling {
    /// Allowed within limits, or denied and why.
    pub(crate) verdict: Result<Permit, Denial>,
    /// What decided.
    pub(crate) rules: Vec<String>,
    /// The tool's risk; an unknown tool has high risk.
    pub(crate) risk: Risk,
    /// What the grant requires of the boundary.
    pub(crate) required: Properties,
    /// The budgets that were looked at.
    pub(crate) budgets: Vec<BudgetUse>,
}

/// Leave for one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Permit {
    /// The clause of the grant that allows it.
    pub(crate) clause: usize,
    /// The longest that it may take.
    pub(crate) timeout_ms: u64,
    /// The most bytes of its result.
    pub(crate) max_result_bytes: u64,
}

/// Decides on `call` under `held`, the grant that it names, if there is one.
pub(crate) fn decide(held: Option<&Held>, call: &Call<'_>, now: Now) -> Ruling {
    let mut ruling = Ruling {
        verdict: Err(unknown_grant()),
        rules: Vec::new(),
        risk: call.pinned.map_or(Risk::High, |tool| tool.risk),
        required: held.map(|held| held.grant.require.clone()).unwrap_or_default(),
        budgets: Vec::new(),
    };
    ruling.verdict = judge(held, call, now, &mut ruling.budgets);
    ruling.rules = match &ruling.verdict {
        Ok(permit) => vec![format!("grant/tools/{}", permit.clause)],
        Err(denial) => vec![denial.rule.clone()],
    };
    if ruling.verdict.is_err() {
        ruling.budgets.iter_mut().for_each(|budget| budget.reserved = 0);
    }
    ruling
}

fn judge(
    held: Option<&Held>,
    call: &Call<'_>,
    now: Now,
    budgets: &mut Vec<BudgetUse>,
) -> Result<Permit, Denial> {
    let held = known(held, call)?;
    belongs(held, call)?;
    timely(held, now)?;
    bounded(held, call)?;
    let tool = pinned(held, call)?;
    let (at, clause) = fitting_clause(held, call)?;
    let usage = held.clauses.get(at).copied().unwrap_or_default();
    let permit = budget::check(held, (at, clause, usage), tool, call, budgets)?;
    rate::check(at, clause, usage, now)?;
    Ok(permit)
}

fn unknown_grant() -> Denial {
    deny(DenyCode::GrantUnknown, "gate/grant", "a grant that this gateway holds", "none")
        .hint("ask the operator for a grant for this task, then list the tools again")
}

/// The grant that the call names is held. A call that names none is looked at
/// under a grant of its task, to be told what is wrong; it is never allowed.
fn known<'a>(held: Option<&'a Held>, call: &Call<'_>) -> Result<&'a Held, Denial> {
    let held = held.ok_or_else(unknown_grant)?;
    match call.grant {
        Some(grant) if grant.digest != held.digest => Err(unknown_grant()),
        _ => Ok(held),
    }
}

/// The grant is for this tenant, this task and, once used, this sandbox.
fn belongs(held: &Held, call: &Call<'_>) -> Result<(), Denial> {
    let foreign = |expected: &str, actual: &str| {
        Err(deny(DenyCode::GrantForeign, "gate/subject", expected, actual)
            .hint("a grant serves the one sandbox of its task"))
    };
    let caller = call.caller;
    if held.grant.tenant != caller.tenant {
        return foreign("a sandbox of the grant's tenant", &caller.tenant);
    }
    if held.grant.task != caller.claims.task {
        return foreign("a sandbox of the grant's task", &caller.claims.task);
    }
    match &held.user {
        Some(user) if *user != User::of(caller) => {
            foreign("the sandbox, epoch and key that used the grant first", "another")
        }
        _ => Ok(()),
    }
}

fn timely(held: &Held, now: Now) -> Result<(), Denial> {
    if held.revoked {
        return Err(deny(
            DenyCode::GrantRevoked,
            "gate/revocation",
            "a live grant",
            "a revoked one",
        )
        .hint("the operator ended this grant; work that needs it must stop"));
    }
    let time = now.unix();
    if time < held.grant.not_before {
        let wait = held.grant.not_before.0.saturating_mul(1000).saturating_sub(now.unix_ms);
        return Err(deny(
            DenyCode::GrantNotYetValid,
            "gate/time",
            format!("a time from {}", held.grant.not_before),
            time.to_string(),
        )
        .retry_after(wait));
    }
    if !held.grant.is_timely(time) {
        let expected = format!("a time before {}", held.grant.expires);
        return Err(deny(DenyCode::GrantExpired, "gate/time", expected, time.to_string())
            .hint("ask the operator for a new grant"));
    }
    Ok(())
}

/// The certificate has every property that the grant requires.
fn bounded(held: &Held, call: &Call<'_>) -> Result<(), Denial> {
    let actual = &call.caller.claims.properties;
    let missing = actual.missing(&held.grant.require);
    if missing.is_empty() {
        return Ok(());
    }
    let class = call.caller.claims.boundary;
    Err(deny(
        DenyCode::BoundaryInsufficient,
        "gate/boundary",
        format!("properties {}", held.grant.require),
        format!("{class} with {actual}; missing {missing}"),
    )
    .hint("run the task in a stronger boundary"))
}

/// The gateway has the tool, as the sandbox was shown it, below the ceiling.
fn pinned<'a>(held: &Held, call: &Call<'a>) -> Result<&'a PinnedTool, Denial> {
    let granted = call.grant.is_some() && held.grant.clauses(call.tool).next().is_some();
    let (true, Some(tool)) = (granted, call.pinned) else { return Err(not_granted(call)) };
    if tool.drifted || call.tool_digest != Some(tool.digest) {
        let actual = if tool.drifted { "a changed definition" } else { "another digest" };
        return Err(deny(DenyCode::ToolDrift, "gate/pin", "the pinned definition", actual)
            .hint("list the tools again; if it stays, the operator must look at the tool server"));
    }
    if tool.risk > held.grant.risk_ceiling {
        return Err(deny(
            DenyCode::RiskCeiling,
            "gate/risk",
            format!("a tool of at most {} risk", held.grant.risk_ceiling),
            format!("{} risk", tool.risk),
        )
        .hint("ask the operator for a grant with a higher ceiling"));
    }
    Ok(tool)
}

fn not_granted(call: &Call<'_>) -> Denial {
    deny(DenyCode::ToolNotGranted, "gate/tool", "a tool that tools/list shows", call.tool)
        .hint("list the tools; what is not there is not allowed")
}

/// The first clause for the tool whose constraints all hold.
fn fitting_clause<'a>(held: &'a Held, call: &Call<'_>) -> Result<(usize, &'a Clause), Denial> {
    if !call.arguments.is_object() {
        let expected = "an object of arguments";
        return Err(deny(DenyCode::ArgsInvalid, "gate/arguments", expected, "another value").into());
    }
    let mut first_broken = None;
    for (at, clause) in held.grant.clauses(call.tool) {
        let broken = (0..).zip(&clause.arguments).find(|(_, c)| !c.holds(call.arguments));
        match broken {
            None => return Ok((at, clause)),
            Some((place, constraint)) => {
                first_broken.get_or_insert((at, place, constraint));
            }
        }
    }
    let (rule, expected) = match first_broken {
        Some((at, place, constraint)) => {
            (format!("grant/tools/{at}/arguments/{place}"), constraint.describe())
        }
        None => ("gate/arguments".to_owned(), "a clause for the tool".to_owned()),
    };
    Err(deny(DenyCode::DecisionLimit, rule, expected, "arguments that do not")
        .hint("change the arguments to what the grant allows"))
}

/// A denial that will not pass by waiting, without a hint.
pub(crate) fn deny(
    code: DenyCode,
    rule: impl Into<String>,
    expected: impl Into<String>,
    actual: impl Into<String>,
) -> Draft {
    Draft(Denial {
        code,
        rule: rule.into(),
        expected: expected.into(),
        actual: actual.into(),
        hint: "the same call will be denied again".to_owned(),
        retryable: false,
        retry_after_ms: None,
    })
}

/// A denial being written.
pub(crate) struct Draft(Denial);

impl Draft {
    fn hint(mut self, hint: &str) -> Denial {
        hint.clone_into(&mut self.0.hint);
        self.0
    }

    fn retry_after(mut self, milliseconds: u64) -> Denial {
        self.0.retryable = true;
        self.0.retry_after_ms = Some(milliseconds);
        self.hint("wait, then call again")
    }

    fn retry_soon(mut self, hint: &str) -> Denial {
        self.0.retryable = true;
        self.hint(hint)
    }
}

impl From<Draft> for Denial {
    fn from(draft: Draft) -> Self {
        draft.0
    }
}

#[cfg(test)]
mod tests;
