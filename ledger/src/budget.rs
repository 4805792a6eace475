//! How decisions name the budgets of a line of grants, and what a call that
//! ended really used of them (docs/formats/decision.md, docs/formats/outcome.md):
//! one rule for the gateway that counts and for the auditor who counts again.

use crate::{BudgetUse, Outcome, Status};

/// What the rules and budgets of the grant at `level` of its line are called,
/// before their own names.
pub fn prefix(level: usize) -> String {
    if level == 0 { String::new() } else { format!("parent.{level}.") }
}

/// The budgets of the grant at `level`, by their own names.
pub fn of_level(level: usize, budgets: &[BudgetUse]) -> impl Iterator<Item = (&str, &BudgetUse)> {
    let prefix = prefix(level);
    budgets.iter().filter_map(move |budget| {
        let name = budget.name.strip_prefix(&prefix)?;
        let is_own = name.starts_with("grant.") || name.starts_with("clause.");
        is_own.then_some((name, budget))
    })
}

/// What a call used of the `reserved` units of the budget `name`: all where
/// nobody knows, never more than was reserved, and a call that was allowed
/// stays a call.
pub fn spent(name: &str, reserved: u64, outcome: &Outcome) -> u64 {
    let kind = name.rsplit('.').next().unwrap_or_default();
    match (outcome.status, kind) {
        (Status::Unknown, _) | (_, "calls" | "distinct_tools") => reserved,
        (Status::NotDispatched, _) => 0,
        (_, "bytes_in") => outcome.bytes_in.min(reserved),
        (_, "wall_ms") => outcome.ended_ms.saturating_sub(outcome.started_ms).min(reserved),
        _ => reserved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> BudgetUse {
        BudgetUse { name: name.to_owned(), limit: 9, before: 0, reserved: 1 }
    }

    #[test]
    fn a_level_has_its_own_budgets_and_no_others() {
        let budgets =
            ["grant.calls", "clause.0.calls", "parent.1.grant.calls", "parent.10.grant.calls"]
                .map(named);
        let names = |level| of_level(level, &budgets).map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(0), ["grant.calls", "clause.0.calls"]);
        assert_eq!(names(1), ["grant.calls"]);
        assert_eq!(names(2), [""; 0]);
        assert_eq!(names(10), ["grant.calls"]);
    }

    #[test]
    fn a_call_uses_what_its_outcome_says_and_never_more_than_it_reserved() {
        let outcome = |status| Outcome {
            decision: [1; 32],
            status,
            reason: None,
            result: None,
            upstream: None,
            started_ms: 1_000,
            ended_ms: 1_300,
            bytes_out: 3,
            bytes_in: 40,
        };
        for (name, reserved, executed, unknown, not_dispatched) in [
            ("grant.calls", 1, 1, 1, 1),
            ("grant.distinct_tools", 1, 1, 1, 1),
            ("clause.0.calls", 1, 1, 1, 1),
            ("grant.bytes_in", 100, 40, 100, 0),
            ("grant.bytes_in", 30, 30, 30, 0),
            ("grant.wall_ms", 1_000, 300, 1_000, 0),
            ("grant.wall_ms", 200, 200, 200, 0),
            ("grant.bytes_out", 7, 7, 7, 0),
            ("clause.0.bytes_out", 7, 7, 7, 0),
            ("grant.cost_micro", 7, 7, 7, 0),
            ("clause.0.sum.0", 7, 7, 7, 0),
        ] {
            let used = |status| spent(name, reserved, &outcome(status));
            assert_eq!(used(Status::Executed), executed, "{name}, executed");
            assert_eq!(used(Status::Unknown), unknown, "{name}, unknown");
            assert_eq!(used(Status::NotDispatched), not_dispatched, "{name}, not dispatched");
        }
    }
}
