//! What calls used of a grant, counted again from decisions and outcomes.
//!
//! Not the gateway's counters: each amount is kept with its decision here, and
//! sums are added up anew.

use std::collections::{BTreeMap, BTreeSet};

use super::line::{Fit, prefix};
use super::{Auditor, Checked, fail, not_checkable, unknown};
use crate::policy::Tool;
use crate::{BudgetUse, Decimal, Decision, Invocation, Outcome, Status, Window};
use serde_json::Value;

/// What was used of one grant.
#[derive(Default)]
pub(super) struct Usage {
    plain: BTreeMap<String, u64>,
    sums: BTreeMap<String, Vec<Amount>>,
    tools: BTreeSet<String>,
}

struct Amount {
    decision: [u8; 32],
    time_ms: u64,
    amount: u64,
}

/// An allowed call without an outcome.
pub(super) struct Open {
    /// The decision's leaf.
    pub(super) leaf: u64,
    line: Vec<[u8; 16]>,
    budgets: Vec<BudgetUse>,
}

/// The gateway tells this many amounts of one sum apart, and counts older ones
/// as the next newer: it may count more than there is, never less.
const TOLD_APART: usize = 1024;

/// One budget, as a decision must have it.
struct Expected {
    name: String,
    limit: u64,
    before: Before,
    /// What the call asks for, where that is known.
    needed: Checked<u64>,
}

#[derive(Clone, Copy)]
enum Before {
    Exactly(u64),
    AtLeast(u64),
}

/// What a call may use at most, from tool, clauses and what is left.
struct Most {
    timeout_ms: u64,
    result_bytes: u64,
}

/// What else is known of a call whose budgets are looked at.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) decision: &'a Decision,
    pub(super) call: &'a Invocation,
    pub(super) arguments: &'a Checked<Value>,
    /// The tool, if the policy file is there.
    pub(super) tool: Option<&'a Tool>,
}

impl Auditor<'_> {
    /// An allowed call takes what its decision reserved.
    pub(super) fn reserve(&mut self, decision: &Decision, id: [u8; 32], call: &Invocation) {
        let line = call.grant.map(|grant| self.line_ids(&grant.id)).unwrap_or_default();
        for (level, grant) in line.iter().enumerate() {
            let Some(known) = self.grants.get_mut(grant) else { continue };
            for (name, budget) in own(level, &decision.budgets) {
                known.usage.add(name, budget.reserved, (id, decision.time_ms));
            }
            known.usage.tools.insert(call.tool.clone());
        }
        if let Some(open) = self.open.get_mut(&id) {
            open.line = line;
            open.budgets.clone_from(&decision.budgets);
        }
    }

    /// A call that ended gives back what it did not use.
    pub(super) fn settle(&mut self, open: &Open, outcome: &Outcome) {
        for (level, grant) in open.line.iter().enumerate() {
            let Some(known) = self.grants.get_mut(grant) else { continue };
            for (name, budget) in own(level, &open.budgets) {
                let spent = spent(name, budget.reserved, outcome);
                known.usage.give_back(name, budget.reserved - spent, &outcome.decision);
            }
        }
    }
}

impl Open {
    pub(super) fn at(leaf: u64) -> Self {
        Self { leaf, line: Vec::new(), budgets: Vec::new() }
    }
}

/// The budgets of an allowed call are the grants', each with what was used
/// before and what this call asks for.
pub(super) fn budgeted(fits: &[Fit<'_>], about: About<'_>) -> Checked {
    let expected = expected(fits, about);
    let recorded = &about.decision.budgets;
    if recorded.len() != expected.len() {
        let (here, there) = (recorded.len(), expected.len());
        return Err(fail(format!("a decision on {here} budgets of {there}")));
    }
    let mut unknown = None;
    for (budget, expected) in recorded.iter().zip(&expected) {
        known(budget, expected)?;
        let name = &budget.name;
        match &expected.needed {
            Ok(needed) if budget.reserved != *needed => {
                let reserved = budget.reserved;
                return Err(fail(format!("{name}: {reserved} reserved where {needed} is asked")));
            }
            Err((_, why)) => unknown = Some(why.clone()),
            Ok(_) => {}
        }
        let after = budget.before.checked_add(budget.reserved);
        if after.is_none_or(|after| after > budget.limit) {
            return Err(fail(format!("{name}: allowed over the limit")));
        }
    }
    unknown.map_or(Ok(()), not_checkable)
}

/// The budgets that a decision looked at are the grants', with what was used before.
pub(super) fn recorded(fits: &[Fit<'_>], about: About<'_>) -> Checked {
    let expected = expected(fits, about);
    let recorded = &about.decision.budgets;
    recorded.iter().zip(&expected).try_for_each(|(budget, expected)| known(budget, expected))?;
    let whole = recorded.len() == expected.len();
    whole.then_some(()).ok_or_else(|| fail("a decision on some of the budgets"))
}

/// The last budget that a denied call came to does not cover it.
pub(super) fn exhausted(fits: &[Fit<'_>], about: About<'_>) -> Checked {
    let expected = expected(fits, about);
    let recorded = &about.decision.budgets;
    recorded.iter().zip(&expected).try_for_each(|(budget, expected)| known(budget, expected))?;
    let last = recorded.len().checked_sub(1).and_then(|at| expected.get(at));
    let Some((budget, expected)) = recorded.last().zip(last) else {
        return Err(fail("denied by a budget that the grant has not"));
    };
    if about.decision.rules.first() != Some(&format!("budget/{}", budget.name)) {
        return Err(fail("denied by another budget than the last that was looked at"));
    }
    match &expected.needed {
        Ok(needed) if budget.before.saturating_add(*needed) > budget.limit => Ok(()),
        _ if budget.before >= budget.limit => Ok(()),
        Ok(_) => Err(fail(format!("{}: denied though it covers the call", budget.name))),
        Err((_, why)) => not_checkable(why.as_str()),
    }
}

/// A recorded budget has the grant's limit and the log's count.
fn known(budget: &BudgetUse, expected: &Expected) -> Checked {
    let BudgetUse { name, limit, before, .. } = budget;
    if *name != expected.name || *limit != expected.limit {
        let (other, most) = (&expected.name, expected.limit);
        return Err(fail(format!("{name} of {limit} where the grant has {other} of {most}")));
    }
    let (same, count) = match expected.before {
        Before::Exactly(count) => (*before == count, count),
        Before::AtLeast(count) => (*before >= count, count),
    };
    let why = || fail(format!("{name}: {before} used before by the decision, {count} by the log"));
    same.then_some(()).ok_or_else(why)
}

/// Every budget of the line, in the order in which decisions have them.
fn expected(fits: &[Fit<'_>], about: About<'_>) -> Vec<Expected> {
    let most = about.tool.map(|tool| Most::of(tool, fits));
    fits.iter().flat_map(|fit| of_grant(fit, about, most.as_ref())).collect()
}

fn of_grant(fit: &Fit<'_>, about: About<'_>, most: Option<&Most>) -> Vec<Expected> {
    let (grant, clause, usage) = (&fit.known.grant.budgets, fit.clause, &fit.known.usage);
    let (out, at) = (about.call.arguments.length, fit.at);
    let of_tool = |value: Option<u64>| {
        value.ok_or_else(|| unknown("what the tool may use, without the policy file"))
    };
    let new_tool = u64::from(!usage.tools.contains(&about.call.tool));
    let cost = about.tool.map(|tool| tool.cost_micro);
    let plain = [
        ("grant.calls".to_owned(), Some(grant.calls), Ok(1)),
        ("grant.distinct_tools".to_owned(), grant.distinct_tools, Ok(new_tool)),
        ("grant.bytes_out".to_owned(), grant.bytes_out, Ok(out)),
        ("grant.cost_micro".to_owned(), grant.cost_micro, of_tool(cost)),
        ("grant.wall_ms".to_owned(), grant.wall_ms, of_tool(most.map(|m| m.timeout_ms))),
        ("grant.bytes_in".to_owned(), grant.bytes_in, of_tool(most.map(|m| m.result_bytes))),
        (format!("clause.{at}.calls"), clause.max_calls, Ok(1)),
        (format!("clause.{at}.bytes_out"), clause.max_bytes_out, Ok(out)),
    ];
    let plain = plain.into_iter().filter_map(|(name, limit, needed)| {
        let before = Before::Exactly(usage.used(&name));
        Some(Expected { limit: limit?, before, needed, name: prefix(fit.level) + &name })
    });
    let sums = clause.sums.iter().enumerate().map(|(place, sum)| {
        let name = format!("clause.{at}.sum.{place}");
        let amount = about.arguments.as_ref().map_err(Clone::clone).and_then(|arguments| {
            let amount = arguments.pointer(&sum.pointer).and_then(Decimal::of_argument);
            amount.ok_or_else(|| fail(format!("no amount at {}", sum.pointer)))
        });
        Expected {
            limit: sum.max.0,
            before: usage.summed(&name, sum.window, about.decision.time_ms),
            needed: amount.map(|amount| amount.0),
            name: prefix(fit.level) + &name,
        }
    });
    plain.chain(sums).collect()
}

impl Most {
    /// The tool's own limits, narrowed by each grant in the line.
    fn of(tool: &Tool, fits: &[Fit<'_>]) -> Self {
        let mut most = Self { timeout_ms: tool.timeout_ms, result_bytes: tool.max_result_bytes };
        let narrow =
            |most: &mut u64, limit: Option<u64>| *most = limit.map_or(*most, |l| l.min(*most));
        for fit in fits {
            let budgets = &fit.known.grant.budgets;
            let left = |limit: Option<u64>, name: &str| {
                limit.map(|limit| limit.saturating_sub(fit.known.usage.used(name)).max(1))
            };
            narrow(&mut most.timeout_ms, fit.clause.timeout_ms);
            narrow(&mut most.timeout_ms, left(budgets.wall_ms, "grant.wall_ms"));
            narrow(&mut most.result_bytes, fit.clause.max_result_bytes);
            narrow(&mut most.result_bytes, left(budgets.bytes_in, "grant.bytes_in"));
        }
        most
    }
}

impl Usage {
    fn used(&self, name: &str) -> u64 {
        self.plain.get(name).copied().unwrap_or(0)
    }

    fn summed(&self, name: &str, window: Window, now_ms: u64) -> Before {
        let amounts = self.sums.get(name).map(Vec::as_slice).unwrap_or_default();
        let from = window.milliseconds().map(|length| now_ms.saturating_sub(length));
        let within = amounts.iter().filter(|amount| from.is_none_or(|from| amount.time_ms > from));
        let sum = within.fold(0_u64, |sum, amount| sum.saturating_add(amount.amount));
        if amounts.len() > TOLD_APART { Before::AtLeast(sum) } else { Before::Exactly(sum) }
    }

    fn add(&mut self, name: &str, amount: u64, (decision, time_ms): ([u8; 32], u64)) {
        if is_sum(name) {
            let amounts = self.sums.entry(name.to_owned()).or_default();
            amounts.push(Amount { decision, time_ms, amount });
        } else {
            let count = self.plain.entry(name.to_owned()).or_default();
            *count = count.saturating_add(amount);
        }
    }

    fn give_back(&mut self, name: &str, back: u64, decision: &[u8; 32]) {
        let count = if is_sum(name) {
            let mut amounts = self.sums.get_mut(name).into_iter().flatten();
            amounts.find(|one| one.decision == *decision).map(|one| &mut one.amount)
        } else {
            self.plain.get_mut(name)
        };
        if let Some(count) = count {
            *count = count.saturating_sub(back);
        }
    }
}

fn is_sum(name: &str) -> bool {
    name.contains(".sum.")
}

/// The budgets of the grant at `level`, by their own names.
fn own(level: usize, budgets: &[BudgetUse]) -> impl Iterator<Item = (&str, &BudgetUse)> {
    let prefix = prefix(level);
    budgets.iter().filter_map(move |budget| {
        let name = budget.name.strip_prefix(&prefix)?;
        let is_own = name.starts_with("grant.") || name.starts_with("clause.");
        is_own.then_some((name, budget))
    })
}

/// What a call really used of `reserved` (docs/formats/outcome.md): all where
/// nobody knows; a call that was allowed stays a call.
fn spent(name: &str, reserved: u64, outcome: &Outcome) -> u64 {
    let kind = name.rsplit('.').next().unwrap_or_default();
    match (outcome.status, kind) {
        (Status::Unknown, _) | (_, "calls" | "distinct_tools") => reserved,
        (Status::NotDispatched, _) => 0,
        (_, "bytes_in") => outcome.bytes_in.min(reserved),
        (_, "wall_ms") => outcome.ended_ms.saturating_sub(outcome.started_ms).min(reserved),
        _ => reserved,
    }
}
