//! May this call run? A pure function of the grant as it stands, the call and
//! the time. The gates are in the order of [`decide`]; the first that fails
//! decides, and what it says is what the sandbox and the log are told.

mod approval;
mod boundary;
mod breaker;
mod budget;
mod counters;
mod denials;
mod flow;
mod held;
mod loops;
mod rate;
mod retry;
mod rules;

pub(crate) use approval::{Exact, Holds, Pending, Standing, Statement, expired};
pub(crate) use boundary::Raised;
pub(crate) use breaker::{Breakers, Health};
pub(crate) use denials::Denials;
pub(crate) use held::{Held, User};
pub use loops::LoopLimits;
pub(crate) use loops::{Ended, Finding, Level, Loops};
pub(crate) use retry::{Attempt, RetryPlan};
pub(crate) use rules::Rules;
pub use rules::{RulesAgain, RulesError};

use casemate_attestation::{Properties, Risk};
use casemate_ledger::budget::prefix;
use casemate_ledger::cgp::{Denial, DenyCode};
use casemate_ledger::{Approvals, BudgetUse, Clause, Decimal, GrantRef, Identity, Label};
use serde_json::Value;

use self::budget::Allowance;
use crate::clock::Now;
use crate::config::BoundaryFloor;

/// The most rules that a decision names.
const MAX_POLICIES: usize = 48;

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
    /// A keyed digest of tool and arguments: the same for calls that are the same.
    pub(crate) fingerprint: [u8; 32],
    /// The same without leaving the volatile arguments out.
    pub(crate) exact: [u8; 32],
}

/// What the gateway knows of a tool before it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PinnedTool {
    /// The name of its upstream.
    pub(crate) upstream: String,
    /// The pinned definition's digest.
    pub(crate) digest: [u8; 32],
    /// The operator's risk class.
    pub(crate) risk: Risk,
    /// Whether calling it twice is as calling it once.
    pub(crate) idempotent: bool,
    /// Whether it only reads.
    pub(crate) read_only: bool,
    /// What one call costs.
    pub(crate) cost_micro: u64,
    /// How far its results may travel.
    pub(crate) label: Label,
    /// The top-level arguments that differ in calls that are the same.
    pub(crate) volatile: Vec<String>,
    /// Whether the upstream no longer offers that definition.
    pub(crate) drifted: bool,
    /// Whether the upstream was down when the gateway started, and still is.
    pub(crate) resting: bool,
    /// The upstream's limit of a result.
    pub(crate) max_result_bytes: u64,
    /// The upstream's limit of a call's time.
    pub(crate) timeout_ms: u64,
}

/// What stands when a call comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// The grant that the call names and those that it is a part of, nearest
    /// first; empty if it is not held.
    pub(crate) grants: &'a [&'a Held],
    /// What the risk classes ask of a boundary.
    pub(crate) floor: &'a BoundaryFloor,
    /// The highest label that the sandbox was given.
    pub(crate) seen: Label,
    /// What the sandbox called last.
    pub(crate) loops: &'a Loops,
    /// How much repetition is too much.
    pub(crate) loop_limits: &'a LoopLimits,
    /// The breakers of the tool.
    pub(crate) breakers: &'a Breakers,
    /// The call's own number in the search for loops, if it waited.
    pub(crate) waited: Option<u64>,
    /// What people said of this very call.
    pub(crate) standing: &'a Standing,
    /// Why the arguments reach for what the tool's configuration does not give.
    pub(crate) reach: Option<&'a Denial>,
    /// The organisation's rules, if there are any.
    pub(crate) rules: Option<&'a Rules>,
}

/// A decision with all that its record needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ruling {
    /// Allowed within limits, or denied and why.
    pub(crate) verdict: Result<Permit, Denial>,
    /// What decided.
    pub(crate) rules: Vec<String>,
    /// The tool's risk in the catalogue; an unknown tool has high risk.
    pub(crate) risk: Risk,
    /// What this call's risk is, and why, if that is more.
    pub(crate) raised: Raised,
    /// What grant, clause and risk require of the boundary.
    pub(crate) required: Properties,
    /// The budgets that were looked at.
    pub(crate) budgets: Vec<BudgetUse>,
    /// Whether the call came as far as the search for loops, and what that saw.
    pub(crate) loops: Option<Option<Finding>>,
    /// How many people have to be asked, when that is all that is missing.
    pub(crate) ask: Option<Approvals>,
    /// The approvals that the verdict rests on.
    pub(crate) approvals: Vec<[u8; 32]>,
    /// What the organisation's rules were that decided, or would have.
    policies: Vec<String>,
}

/// Leave for one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Permit {
    /// The clause that allows it, of each grant in its line.
    pub(crate) clauses: Vec<usize>,
    /// The longest that it may take.
    pub(crate) timeout_ms: u64,
    /// The most bytes of its result.
    pub(crate) max_result_bytes: u64,
    /// Whether it may be made again when it fails.
    pub(crate) retry: RetryPlan,
}

/// The clause of one grant in a call's line.
#[derive(Clone, Copy)]
struct Fit<'a> {
    /// The grant's place in the line: 0 is the one that the call names.
    level: usize,
    held: &'a Held,
    at: usize,
    clause: &'a Clause,
}

/// Decides on `call` under the `facts` as they stand.
pub(crate) fn decide(facts: &Facts<'_>, call: &Call<'_>, now: Now) -> Ruling {
    let risk = call.pinned.map_or(Risk::High, |tool| tool.risk);
    let mut ruling = Ruling {
        verdict: Err(unknown_grant()),
        rules: Vec::new(),
        risk,
        raised: Raised { effective: risk, reasons: Vec::new() },
        required: facts.grants.first().map(|held| held.grant.require.clone()).unwrap_or_default(),
        budgets: Vec::new(),
        loops: None,
        ask: None,
        approvals: Vec::new(),
        policies: Vec::new(),
    };
    ruling.verdict = judge(facts, call, now, &mut ruling);
    ruling.rules = match &ruling.verdict {
        Ok(permit) => permit.rules(),
        Err(denial) => vec![denial.rule.clone()],
    };
    let policies = std::mem::take(&mut ruling.policies).into_iter();
    let new: Vec<String> = policies.filter(|name| !ruling.rules.contains(name)).collect();
    ruling.rules.extend(new.into_iter().take(MAX_POLICIES));
    if let Some(Some(finding)) = ruling.loops {
        ruling.rules.push(format!("gate/loops/{}/{}", finding.rule, finding.count));
    }
    if ruling.verdict.is_err() {
        ruling.budgets.iter_mut().for_each(|budget| budget.reserved = 0);
    }
    ruling
}

impl Ruling {
    /// Turns it into a denial, whatever it was.
    pub(crate) fn deny(&mut self, denial: Denial) {
        self.rules = vec![denial.rule.clone()];
        self.budgets.iter_mut().for_each(|budget| budget.reserved = 0);
        self.approvals.clear();
        self.verdict = Err(denial);
    }
}

impl Permit {
    /// The clauses that allow the call, by name.
    fn rules(&self) -> Vec<String> {
        let levels = self.clauses.iter().enumerate();
        levels.map(|(level, at)| format!("{}grant/tools/{at}", prefix(level))).collect()
    }
}

/// The gates, in their order. What they find out on the way goes into `ruling`.
fn judge(
    facts: &Facts<'_>,
    call: &Call<'_>,
    now: Now,
    ruling: &mut Ruling,
) -> Result<Permit, Denial> {
    let held = known(facts.grants.first().copied(), call)?;
    belongs(held, call)?;
    facts.grants.iter().try_for_each(|held| timely(held, now))?;
    boundary::check(&held.grant.require, call, "gate/boundary")?;
    let tool = pinned(held, call)?;
    if let Some(denial) = facts.reach {
        return Err(denial.clone());
    }
    let line = fitting_line(facts, call)?;
    line.iter().try_for_each(|fit| open(fit, now))?;
    assess(facts, &line, call, ruling)?;
    if let (Some(rules), Some(fit)) = (facts.rules, line.first()) {
        let about = (ruling.raised.effective, facts.seen);
        let mut said = rules.ask(call, tool, fit, about, now);
        let verdict = said.verdict();
        ruling.policies = said.rules;
        verdict?;
    }
    flow::check(facts, &line)?;
    facts.loops.check_duplicate(call, now)?;
    let finding = facts.loops.look(facts.loop_limits, call, facts.waited, now);
    ruling.loops = Some(finding);
    facts.loops.check(finding, call, now)?;
    let mut allowance = Allowance::of(tool);
    line.iter().for_each(|fit| allowance.narrow(fit.held, fit.clause));
    for fit in &line {
        let level = (fit.level, fit.held);
        let limits = (allowance, now);
        budget::check(level, (fit.at, fit.clause), (tool, call), limits, &mut ruling.budgets)?;
    }
    line.iter().try_for_each(|fit| rate::check(fit, now))?;
    breaker::up(tool)?;
    facts.breakers.check(&call.caller.sandbox, now)?;
    approved(facts, &line, call, ruling)?;
    Ok(Permit {
        clauses: line.iter().map(|fit| fit.at).collect(),
        timeout_ms: allowance.timeout_ms,
        max_result_bytes: allowance.max_result_bytes,
        retry: RetryPlan::of(tool, &line, !ruling.approvals.is_empty()),
    })
}

/// The call's risk is below every ceiling and its boundary above every floor.
fn assess(
    facts: &Facts<'_>,
    line: &[Fit<'_>],
    call: &Call<'_>,
    ruling: &mut Ruling,
) -> Result<(), Denial> {
    for fit in line {
        let raised = boundary::risk(ruling.risk, fit.clause, call, facts.seen);
        if raised.effective >= ruling.raised.effective && !raised.reasons.is_empty() {
            ruling.raised = raised;
        }
    }
    let risk = ruling.raised.effective;
    for fit in line {
        under_ceiling(fit.held, risk)?;
        for required in [&fit.held.grant.require, &fit.clause.require] {
            required.iter().for_each(|property| ruling.required.insert(property));
        }
    }
    facts.floor.of(risk).iter().for_each(|property| ruling.required.insert(property));
    boundary::check(&ruling.required, call, "gate/boundary/clause")
}

/// Nobody has to be asked, or those who were said yes.
fn approved(
    facts: &Facts<'_>,
    line: &[Fit<'_>],
    call: &Call<'_>,
    ruling: &mut Ruling,
) -> Result<(), Denial> {
    let needed = approvals(line, call)?;
    match facts.standing {
        _ if needed == Approvals::None => Ok(()),
        Standing::Approved(_, approvals) if approvals.len() >= needed.count() => {
            ruling.approvals.clone_from(approvals);
            Ok(())
        }
        standing => {
            if matches!(standing, Standing::New | Standing::Waiting(_)) {
                ruling.ask = Some(needed);
            }
            Err(approval::pending(standing, needed))
        }
    }
}

/// How many people must approve the call.
fn approvals(line: &[Fit<'_>], call: &Call<'_>) -> Result<Approvals, Denial> {
    let mut needed = Approvals::None;
    for fit in line {
        needed = needed.max(fit.clause.approvals);
        for threshold in &fit.clause.thresholds {
            let amount = call.arguments.pointer(&threshold.pointer).and_then(Decimal::of_argument);
            let amount =
                amount.ok_or_else(|| budget::no_amount(fit.level, fit.at, &threshold.pointer))?;
            if amount > threshold.above {
                needed = needed.max(threshold.approvals);
            }
        }
    }
    Ok(needed)
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
    if let Some(reason) = &held.suspended {
        return Err(loops::stopped(reason.clone()));
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

/// The gateway has the tool, as the sandbox was shown it, below the ceiling.
fn pinned<'a>(held: &Held, call: &Call<'a>) -> Result<&'a PinnedTool, Denial> {
    let granted = call.grant.is_some() && held.grant.clauses(call.tool).next().is_some();
    let (true, Some(tool)) = (granted, call.pinned) else { return Err(not_granted(call)) };
    if tool.drifted || call.tool_digest != Some(tool.digest) {
        let actual = if tool.drifted { "a changed definition" } else { "another digest" };
        return Err(deny(DenyCode::ToolDrift, "gate/pin", "the pinned definition", actual)
            .hint("list the tools again; if it stays, the operator must look at the tool server"));
    }
    under_ceiling(held, tool.risk)?;
    Ok(tool)
}

fn under_ceiling(held: &Held, risk: Risk) -> Result<(), Denial> {
    if risk <= held.grant.risk_ceiling {
        return Ok(());
    }
    Err(deny(
        DenyCode::RiskCeiling,
        "gate/risk",
        format!("a call of at most {} risk", held.grant.risk_ceiling),
        format!("{risk} risk"),
    )
    .hint("ask the operator for a grant with a higher ceiling"))
}

fn not_granted(call: &Call<'_>) -> Denial {
    deny(DenyCode::ToolNotGranted, "gate/tool", "a tool that tools/list shows", call.tool)
        .hint("list the tools; what is not there is not allowed")
}

/// The clause that fits in each grant of the line.
fn fitting_line<'a>(facts: &Facts<'a>, call: &Call<'_>) -> Result<Vec<Fit<'a>>, Denial> {
    if !call.arguments.is_object() {
        let expected = "an object of arguments";
        return Err(deny(DenyCode::ArgsInvalid, "gate/arguments", expected, "another value").into());
    }
    facts.grants.iter().enumerate().map(|(level, held)| fitting(level, held, call)).collect()
}

/// The first clause for the tool whose constraints all hold.
fn fitting<'a>(level: usize, held: &'a Held, call: &Call<'_>) -> Result<Fit<'a>, Denial> {
    let mut first_broken = None;
    for (at, clause) in held.grant.clauses(call.tool) {
        let broken = (0..).zip(&clause.arguments).find(|(_, c)| !c.holds(call.arguments));
        match broken {
            None => return Ok(Fit { level, held, at, clause }),
            Some((place, constraint)) => {
                first_broken.get_or_insert((at, place, constraint));
            }
        }
    }
    let prefix = prefix(level);
    let (rule, expected) = match first_broken {
        Some((at, place, constraint)) => {
            (format!("{prefix}grant/tools/{at}/arguments/{place}"), constraint.describe())
        }
        None => (format!("{prefix}gate/arguments"), "a clause for the tool".to_owned()),
    };
    Err(deny(DenyCode::DecisionLimit, rule, expected, "arguments that do not")
        .hint("change the arguments to what the grant allows"))
}

/// The clause has not ended before its grant.
fn open(fit: &Fit<'_>, now: Now) -> Result<(), Denial> {
    match fit.clause.until {
        Some(until) if now.unix() >= until => Err(deny(
            DenyCode::GrantExpired,
            format!("{}grant/tools/{}/until", prefix(fit.level), fit.at),
            format!("a time before {until}"),
            now.unix().to_string(),
        )
        .hint("this tool's time is over; ask the operator for a new grant")),
        _ => Ok(()),
    }
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

    fn retry_later(mut self, milliseconds: u64, hint: &str) -> Denial {
        self.0.retryable = true;
        self.0.retry_after_ms = Some(milliseconds);
        self.hint(hint)
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
pub(crate) mod tests;
