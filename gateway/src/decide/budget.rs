//! Do the budgets cover the call? What it could use at most is reserved.

use casemate_ledger::budget::prefix;
use casemate_ledger::cgp::{Denial, DenyCode};
use casemate_ledger::{BudgetUse, Clause, Decimal};

use super::{Call, Held, PinnedTool, deny};
use crate::clock::Now;

/// The most that one call may use, narrowed by every grant in its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowance {
    pub(super) timeout_ms: u64,
    pub(super) max_result_bytes: u64,
}

impl Allowance {
    /// What the tool's own limits allow.
    pub(super) fn of(tool: &PinnedTool) -> Self {
        Self { timeout_ms: tool.timeout_ms, max_result_bytes: tool.max_result_bytes }
    }

    /// Narrows it to what `clause` allows and `held` has left.
    pub(super) fn narrow(&mut self, held: &Held, clause: &Clause) {
        let least = |one: u64, other: Option<u64>| other.map_or(one, |other| one.min(other));
        let left = |limit: Option<u64>, name: &str| {
            limit.map(|limit| limit.saturating_sub(held.used.used(name)).max(1))
        };
        let budgets = &held.grant.budgets;
        self.timeout_ms = least(self.timeout_ms, clause.timeout_ms);
        self.timeout_ms = least(self.timeout_ms, left(budgets.wall_ms, "grant.wall_ms"));
        self.max_result_bytes = least(self.max_result_bytes, clause.max_result_bytes);
        self.max_result_bytes =
            least(self.max_result_bytes, left(budgets.bytes_in, "grant.bytes_in"));
    }
}

/// Checks every budget of the grant at `level` and lists its use in `budgets`.
pub(super) fn check(
    (level, held): (usize, &Held),
    (at, clause): (usize, &Clause),
    (tool, call): (&PinnedTool, &Call<'_>),
    (allowance, now): (Allowance, Now),
    budgets: &mut Vec<BudgetUse>,
) -> Result<(), Denial> {
    let limits = &held.grant.budgets;
    let new_tool = u64::from(!held.tools.contains(call.tool));
    let out = call.arguments_length;
    let whole = [
        ("grant.calls", Some(limits.calls), 1),
        ("grant.distinct_tools", limits.distinct_tools, new_tool),
        ("grant.bytes_out", limits.bytes_out, out),
        ("grant.cost_micro", limits.cost_micro, tool.cost_micro),
        ("grant.wall_ms", limits.wall_ms, allowance.timeout_ms),
        ("grant.bytes_in", limits.bytes_in, allowance.max_result_bytes),
    ];
    let of_clause = [("calls", clause.max_calls, 1), ("bytes_out", clause.max_bytes_out, out)];
    let whole = whole.into_iter().map(|(name, limit, needed)| (name.to_owned(), limit, needed));
    let of_clause = of_clause
        .into_iter()
        .map(|(name, limit, needed)| (format!("clause.{at}.{name}"), limit, needed));
    for (name, limit, needed) in whole.chain(of_clause) {
        let Some(limit) = limit else { continue };
        let before = held.used.used(&name);
        take(budgets, BudgetUse { name: prefix(level) + &name, limit, before, reserved: needed })?;
    }
    for (place, sum) in clause.sums.iter().enumerate() {
        let name = format!("clause.{at}.sum.{place}");
        let amount = call.arguments.pointer(&sum.pointer).and_then(Decimal::of_argument);
        let amount = amount.ok_or_else(|| no_amount(level, at, &sum.pointer))?;
        let before = held.used.summed(&name, sum.window, now.unix_ms);
        let name = prefix(level) + &name;
        take(budgets, BudgetUse { name, limit: sum.max.0, before, reserved: amount.0 })?;
    }
    Ok(())
}

/// The denial of arguments that lack an amount which a limit counts.
pub(super) fn no_amount(level: usize, at: usize, pointer: &str) -> Denial {
    let rule = format!("{}grant/tools/{at}/amount", prefix(level));
    let expected = format!("a decimal string or a whole number at {pointer}");
    deny(DenyCode::DecisionLimit, rule, expected, "none, or a float")
        .hint("write the amount as a decimal string")
}

fn take(budgets: &mut Vec<BudgetUse>, wanted: BudgetUse) -> Result<(), Denial> {
    let BudgetUse { name, limit, before, reserved } = &wanted;
    let fits = before.checked_add(*reserved).is_some_and(|after| after <= *limit);
    let denial = || {
        deny(
            DenyCode::BudgetExhausted,
            format!("budget/{name}"),
            format!("at most {limit}"),
            format!("{before} used and {reserved} asked for"),
        )
        .hint("the budget of this grant is used up; ask the operator for a new grant")
    };
    let result = if fits { Ok(()) } else { Err(denial()) };
    budgets.push(wanted);
    result
}
