//! What the operator sees of a gateway: grants and budgets, how it stands, its
//! numbers, and leaves of its log.

use casemate_ledger::{Decision, Invocation, Leaf, LeafKind, record, text};
use serde::{Deserialize, Serialize};

use crate::clock::Now;
use crate::decide::Held;
use crate::metrics::Gauge;
use crate::service::{Gateway, Public};
use crate::state::State;
use crate::sync::locked;

/// A grant and what was used of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantSummary {
    /// The grant's id in hex.
    pub id: String,
    /// Who signed it.
    pub issuer: String,
    /// The task.
    pub task: String,
    /// Seconds since 1970 at which it expires.
    pub expires: u64,
    /// `active`, `suspended`, `expired`, `exhausted`, `revoked` or `pending`.
    pub state: String,
    /// The tools.
    pub tools: Vec<String>,
    /// Calls allowed so far.
    pub calls: u64,
    /// The most calls.
    pub max_calls: u64,
    /// Its other budgets, and those of its clauses.
    pub budgets: Vec<BudgetLeft>,
    /// The sandbox that it is bound to.
    pub sandbox: Option<String>,
}

/// A budget of a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetLeft {
    /// Its name, as decisions have it: `grant.cost_micro`, `clause.0.calls`.
    pub name: String,
    /// What was spent, or is reserved by calls that run.
    pub used: u64,
    /// The most.
    pub limit: u64,
}

/// A tool that rests for a sandbox, as its server failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenBreaker {
    /// The tool.
    pub tool: String,
    /// The sandbox.
    pub sandbox: String,
    /// For how long it still rests; 0 when the next call tries it.
    pub left_ms: u64,
}

/// How a gateway stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// What others need to know of it.
    pub public: Public,
    /// The log's name.
    pub log: String,
    /// The leaves on disk.
    pub leaves: u64,
    /// The leaves under the last published head.
    pub head: u64,
    /// For how many seconds the log has grown without a quorum of witnesses; none
    /// when no witnesses are configured.
    pub witness_lag_s: Option<u64>,
    /// `ok`, or why the log stopped.
    pub log_state: String,
    /// The connections that are open.
    pub connections: usize,
    /// The calls that run.
    pub running: usize,
    /// The calls that wait for people.
    pub waiting: usize,
    /// The tools, each with `ok`, `drifted` or `resting` (its server is down).
    pub tools: Vec<(String, String)>,
    /// The tools that rest, at most 256 of them.
    pub breakers: Vec<OpenBreaker>,
}

/// A leaf of the log as JSON; a view, never signed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The leaf's index.
    pub index: u64,
    /// What it is.
    pub kind: String,
    /// What it says.
    pub text: String,
    /// The sandbox that it is about, for a decision.
    pub sandbox: Option<String>,
}

const MAX_ENTRIES: u64 = 256;
const MAX_BREAKERS: usize = 256;

/// The grants and what was used of them.
pub(crate) fn grants(gateway: &Gateway) -> Vec<GrantSummary> {
    let now = gateway.clock.now().unix();
    let summary = |held: &Held| {
        let grant = &held.grant;
        let state = match () {
            () if held.revoked => "revoked",
            () if held.suspended.is_some() => "suspended",
            () if now < grant.not_before => "pending",
            () if now >= grant.expires => "expired",
            () if held.calls() >= grant.budgets.calls => "exhausted",
            () => "active",
        };
        GrantSummary {
            id: text::hex(&grant.id),
            issuer: grant.issuer.clone(),
            task: grant.task.clone(),
            expires: grant.expires.0,
            state: state.to_owned(),
            tools: grant.tools.iter().map(|clause| clause.tool.clone()).collect(),
            calls: held.calls(),
            max_calls: grant.budgets.calls,
            budgets: budgets(held),
            sandbox: held.user.as_ref().map(|user| user.sandbox.clone()),
        }
    };
    locked(&gateway.state).grants.values().map(summary).collect()
}

fn budgets(held: &Held) -> Vec<BudgetLeft> {
    let all = held.grant.budgets;
    let whole = [
        ("grant.cost_micro", all.cost_micro),
        ("grant.bytes_out", all.bytes_out),
        ("grant.bytes_in", all.bytes_in),
        ("grant.wall_ms", all.wall_ms),
        ("grant.distinct_tools", all.distinct_tools),
    ];
    let whole = whole.into_iter().map(|(name, limit)| (name.to_owned(), limit));
    let clauses = held.grant.tools.iter().enumerate().flat_map(|(at, clause)| {
        let limits = [("calls", clause.max_calls), ("bytes_out", clause.max_bytes_out)];
        limits.map(|(name, limit)| (format!("clause.{at}.{name}"), limit))
    });
    let limited = whole.chain(clauses).filter_map(|(name, limit)| Some((name, limit?)));
    limited.map(|(name, limit)| BudgetLeft { used: held.used.used(&name), name, limit }).collect()
}

/// How the gateway stands.
pub(crate) fn status(gateway: &Gateway) -> StatusReport {
    let tools = gateway.catalogue.all().into_iter().map(|(name, tool)| {
        let word = match () {
            () if tool.pinned.drifted => "drifted",
            () if tool.pinned.resting => "resting",
            () => "ok",
        };
        (name, word.to_owned())
    });
    let head = gateway.journal.head().map(|(head, _)| head);
    let now = gateway.clock.now();
    let seconds = now.unix().0;
    let lag = gateway.witnesses.as_ref().map(|witnesses| witnesses.lag(head.as_ref(), seconds));
    let state = locked(&gateway.state);
    StatusReport {
        head: head.map_or(0, |head| head.size),
        witness_lag_s: lag,
        public: gateway.public.clone(),
        log: gateway.config.log_origin.clone(),
        leaves: gateway.journal.size(),
        log_state: gateway.journal.check().map_or_else(|e| e.to_string(), |()| "ok".to_owned()),
        connections: state.sessions.values().filter(|session| !*session.switch.borrow()).count(),
        running: state.open.len(),
        waiting: state.holds.iter(now.unix_ms).count(),
        tools: tools.collect(),
        breakers: breakers(&state, now),
    }
}

fn breakers(state: &State, now: Now) -> Vec<OpenBreaker> {
    let open = state.breakers.iter().flat_map(|(tool, breakers)| {
        breakers.open(now).map(|(sandbox, left_ms)| OpenBreaker {
            tool: tool.clone(),
            sandbox: sandbox.to_owned(),
            left_ms,
        })
    });
    open.take(MAX_BREAKERS).collect()
}

/// The gateway's numbers as Prometheus text.
pub(crate) fn metrics(gateway: &Gateway) -> String {
    let status = status(gateway);
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let gauge = |name, help, value| Gauge { name, help, value };
    let mut gauges = vec![
        gauge("casemate_gateway_leaves", "Leaves on disk.", status.leaves),
        gauge("casemate_gateway_head_leaves", "Leaves under the last head.", status.head),
        gauge(
            "casemate_gateway_log_ok",
            "1 while the log takes records.",
            u64::from(status.log_state == "ok"),
        ),
        gauge("casemate_gateway_connections", "Open connections.", count(status.connections)),
        gauge("casemate_gateway_running_calls", "Calls that run.", count(status.running)),
        gauge(
            "casemate_gateway_waiting_calls",
            "Calls that wait for people.",
            count(status.waiting),
        ),
        gauge(
            "casemate_gateway_open_breakers",
            "Tools that rest, each counted for each sandbox.",
            count(status.breakers.len()),
        ),
        gauge(
            "casemate_gateway_resting_upstreams",
            "Upstreams that were down and still serve nothing.",
            count(gateway.catalogue.resting().len()),
        ),
        gauge(
            "casemate_gateway_drifted_tools",
            "Tools whose definition is no longer the pinned one.",
            count(status.tools.iter().filter(|(_, word)| word == "drifted").count()),
        ),
    ];
    let help = "Seconds that the log has grown unseen by a quorum of witnesses.";
    gauges.extend(
        status.witness_lag_s.map(|lag| gauge("casemate_gateway_witness_lag_seconds", help, lag)),
    );
    let help = "Batches of spans that did not reach their collector since the start.";
    let lost = gateway.spans.as_ref().map(|spans| spans.lost_batches());
    gauges.extend(lost.map(|lost| gauge("casemate_gateway_lost_span_batches", help, lost)));
    gateway.journal.counters().text(&gauges)
}

/// Leaves of the log from `from` on.
pub(crate) fn log(gateway: &Gateway, from: u64, count: u64) -> Result<Vec<LogEntry>, String> {
    let end = from.saturating_add(count.min(MAX_ENTRIES)).min(gateway.journal.size());
    let mut entries = Vec::new();
    for index in from..end {
        let leaf = gateway.journal.leaf(index).map_err(|error| error.to_string())?;
        let leaf = Leaf::decode(&leaf).map_err(|error| error.to_string())?;
        let kind = format!("{:?}", leaf.kind).to_lowercase();
        let sandbox = caller(&leaf);
        entries.push(LogEntry { index, kind, text: leaf.describe(), sandbox });
    }
    Ok(entries)
}

/// The sandbox whose call a leaf decides.
fn caller(leaf: &Leaf) -> Option<String> {
    if leaf.kind != LeafKind::Decision {
        return None;
    }
    let (_, decision) = record::peek::<Decision>(&leaf.record).ok()?;
    let (_, invocation) = record::peek::<Invocation>(&decision.invocation).ok()?;
    Some(invocation.sandbox)
}
