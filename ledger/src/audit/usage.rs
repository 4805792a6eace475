//! What calls used of a grant, counted again from decisions and outcomes.
//!
//! Not the gateway's counters: each amount is kept with its decision here, and
//! sums are added up anew.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

use super::line::Fit;
use super::{Auditor, Checked, fail, not_checkable, unknown};
use crate::budget::{of_level, prefix, spent};
use crate::policy::Tool;
use crate::{BudgetUse, Decimal, Decision, Invocation, Outcome, Window};
use serde_json::Value;

/// What was used of one grant.
#[derive(Default)]
pub(super) struct Usage {
    plain: BTreeMap<String, u64>,
    sums: BTreeMap<String, Sum>,
    tools: BTreeSet<String>,
}

/// The amounts that one sum of a clause counts, by their decisions.
#[derive(Default)]
struct Sum {
    amounts: BTreeMap<When, u64>,
    /// The start of the window that was asked for last, and what lies after it.
    /// Kept, because a log of thousands of calls moves one window through as
    /// many amounts: each is added once and taken off once.
    window: Cell<(Option<u64>, u128)>,
}

/// When a decision was made, in milliseconds since 1970, and which one it is.
type When = (u64, [u8; 32]);

/// An allowed call without an outcome.
pub(super) struct Open {
    /// The decision's leaf.
    pub(super) leaf: u64,
    /// When it was made.
    time_ms: u64,
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
            for (name, budget) in of_level(level, &decision.budgets) {
                known.usage.add(name, budget.reserved, (decision.time_ms, id));
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
            for (name, budget) in of_level(level, &open.budgets) {
                let spent = spent(name, budget.reserved, outcome);
                let when = (open.time_ms, outcome.decision);
                known.usage.give_back(name, budget.reserved - spent, when);
            }
        }
    }
}

impl Open {
    pub(super) fn at(leaf: u64, time_ms: u64) -> Self {
        Self { leaf, time_ms, line: Vec::new(), budgets: Vec::new() }
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
        let Some(sum) = self.sums.get(name) else { return Before::Exactly(0) };
        let total = sum.after(window.milliseconds().map(|length| now_ms.saturating_sub(length)));
        if sum.amounts.len() > TOLD_APART { Before::AtLeast(total) } else { Before::Exactly(total) }
    }

    fn add(&mut self, name: &str, amount: u64, when: When) {
        if is_sum(name) {
            self.sums.entry(name.to_owned()).or_default().add(amount, when);
        } else {
            let count = self.plain.entry(name.to_owned()).or_default();
            *count = count.saturating_add(amount);
        }
    }

    fn give_back(&mut self, name: &str, back: u64, when: When) {
        if let Some(sum) = self.sums.get_mut(name) {
            sum.give_back(back, when);
        } else if let Some(count) = self.plain.get_mut(name) {
            *count = count.saturating_sub(back);
        }
    }
}

impl Sum {
    fn add(&mut self, amount: u64, when: When) {
        let known = self.amounts.entry(when).or_default();
        let amount = amount.min(u64::MAX - *known);
        *known += amount;
        self.change(when, |total| total + u128::from(amount));
    }

    fn give_back(&mut self, back: u64, when: When) {
        let Some(known) = self.amounts.get_mut(&when) else { return };
        let back = back.min(*known);
        *known -= back;
        self.change(when, |total| total - u128::from(back));
    }

    /// Keeps the total of the window right when an amount changes.
    fn change(&self, (time_ms, _): When, by: impl FnOnce(u128) -> u128) {
        let (from, total) = self.window.get();
        if from.is_none_or(|from| time_ms > from) {
            self.window.set((from, by(total)));
        }
    }

    /// The sum of what was decided on after `from`, or of all.
    fn after(&self, from: Option<u64>) -> u64 {
        let (last, mut total) = self.window.get();
        // A clock that went back moves the window back.
        if last < from {
            total -= self.between(last, from);
        } else {
            total += self.between(from, last);
        }
        self.window.set((from, total));
        u64::try_from(total).unwrap_or(u64::MAX)
    }

    /// The sum of what was decided on after `from` and not after `until`.
    fn between(&self, from: Option<u64>, until: Option<u64>) -> u128 {
        let Some(until) = until.filter(|_| from < until) else { return 0 };
        let start = from.map_or(Unbounded, |from| Excluded((from, [u8::MAX; 32])));
        let amounts = self.amounts.range((start, Included((until, [u8::MAX; 32]))));
        amounts.map(|(_, amount)| u128::from(*amount)).sum()
    }
}

fn is_sum(name: &str) -> bool {
    name.contains(".sum.")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Add(u64, u8, u64),
        GiveBack(u64, u8, u64),
        Ask(Option<u64>),
    }

    fn act() -> impl Strategy<Value = Act> {
        let amount = prop_oneof![0..50_u64, Just(u64::MAX)];
        prop_oneof![
            (0..20_u64, 0..4_u8, amount).prop_map(|(time, id, amount)| Act::Add(time, id, amount)),
            (0..20_u64, 0..4_u8, 0..60_u64).prop_map(|(time, id, n)| Act::GiveBack(time, id, n)),
            proptest::option::of(0..22_u64).prop_map(Act::Ask),
        ]
    }

    proptest! {
        /// The kept total is what adding up all amounts anew comes to, whichever
        /// way the window moves.
        #[test]
        fn a_moving_window_sums_as_adding_up_anew(acts in proptest::collection::vec(act(), 0..60)) {
            let (mut sum, mut plain) = (Sum::default(), BTreeMap::<(u64, u8), u64>::new());
            for act in acts {
                match act {
                    Act::Add(time, id, amount) => {
                        sum.add(amount, (time, [id; 32]));
                        let known = plain.entry((time, id)).or_default();
                        *known = known.saturating_add(amount);
                    }
                    Act::GiveBack(time, id, back) => {
                        sum.give_back(back, (time, [id; 32]));
                        let known = plain.get_mut(&(time, id));
                        known.into_iter().for_each(|known| *known = known.saturating_sub(back));
                    }
                    Act::Ask(from) => {
                        let within = plain.iter().filter(|((time, _), _)| from.is_none_or(|f| *time > f));
                        let total = within.fold(0_u64, |sum, (_, amount)| sum.saturating_add(*amount));
                        prop_assert_eq!(sum.after(from), total);
                    }
                }
            }
        }
    }
}
