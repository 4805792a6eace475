//! Do the budgets cover the call? What it could use at most is reserved.

use casemate_ledger::cgp::{Denial, DenyCode};
use casemate_ledger::{BudgetUse, Clause};

use super::{Call, Held, Permit, PinnedTool, Use, deny};

/// Checks every budget and lists its use in `budgets`.
pub(super) fn check(
    held: &Held,
    (at, clause, usage): (usize, &Clause, Use),
    tool: &PinnedTool,
    call: &Call<'_>,
    budgets: &mut Vec<BudgetUse>,
) -> Result<Permit, Denial> {
    let limits = &held.grant.budgets;
    take(budgets, "grant.calls".to_owned(), limits.calls, held.calls, 1)?;
    if let Some(limit) = clause.max_calls {
        take(budgets, format!("clause.{at}.calls"), limit, usage.calls, 1)?;
    }
    if let Some(limit) = limits.bytes_out {
        let needed = call.arguments_length;
        take(budgets, "grant.bytes_out".to_owned(), limit, held.bytes_out, needed)?;
    }
    let mut most = clause
        .max_result_bytes
        .map_or(tool.max_result_bytes, |clause_limit| clause_limit.min(tool.max_result_bytes));
    if let Some(limit) = limits.bytes_in {
        // A result may be as long as what is left.
        most = most.min(limit.saturating_sub(held.bytes_in)).max(1);
        take(budgets, "grant.bytes_in".to_owned(), limit, held.bytes_in, most)?;
    }
    Ok(Permit {
        clause: at,
        timeout_ms: clause.timeout_ms.unwrap_or(tool.timeout_ms).min(tool.timeout_ms),
        max_result_bytes: most,
    })
}

fn take(
    budgets: &mut Vec<BudgetUse>,
    name: String,
    limit: u64,
    before: u64,
    reserved: u64,
) -> Result<(), Denial> {
    let fits = before.checked_add(reserved).is_some_and(|after| after <= limit);
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
    budgets.push(BudgetUse { name, limit, before, reserved });
    result
}
