//! A decision made again from the grants, the call and the log before it.

use casemate_attestation::UnixTime;
use serde_json::Value;

use super::line::{Fit, Known, fits};
use super::{Auditor, Checked, Found, fail, not_checkable};
use crate::cgp::DenyCode;
use crate::{Decision, Identity, Invocation};

impl Auditor<'_> {
    /// An allowed call is within its grants, from grants and call alone.
    pub(super) fn allowed(
        &self,
        decision: &Decision,
        call: &Invocation,
        caller: &Identity,
    ) -> Checked {
        let line = self.line(call)?;
        let fits = fits(decision, &line)?;
        let first = line.first().ok_or_else(|| fail("a call that names no grant"))?;
        subject(first, caller)?;
        fits.iter().try_for_each(|fit| within(fit, decision, call, caller))?;
        let arguments = self.arguments(call);
        all([
            counted(decision, first.calls),
            self.approved(decision, call, (&fits, &arguments)),
            constrained(&fits, &arguments),
        ])
    }

    /// A denial for a reason that grant and call show must have that reason.
    pub(super) fn denied(
        &self,
        code: DenyCode,
        decision: &Decision,
        call: &Invocation,
        caller: &Identity,
    ) -> Checked {
        let time = UnixTime(decision.time_ms / 1000);
        let line = self.line(call);
        let reason = match code {
            DenyCode::GrantUnknown => line.is_err(),
            DenyCode::GrantExpired => {
                line.is_ok_and(|line| line.iter().any(|known| time >= known.grant.expires))
            }
            DenyCode::GrantNotYetValid => {
                line.is_ok_and(|line| line.iter().any(|known| time < known.grant.not_before))
            }
            DenyCode::GrantRevoked => self.not_ended(call, caller).is_err(),
            DenyCode::BudgetExhausted => {
                let over = |b: &crate::BudgetUse| b.before >= b.limit;
                let used_up = |known: &&Known| known.calls >= known.grant.budgets.calls;
                line?.iter().any(used_up) || decision.budgets.iter().any(over)
            }
            _ => {
                return not_checkable(format!("{} rests on the gateway's state", code.name()));
            }
        };
        if reason {
            Ok(())
        } else {
            not_checkable(format!("{} is not to be seen in grant and call", code.name()))
        }
    }

    /// The arguments, if they were kept and not shredded.
    fn arguments(&self, call: &Invocation) -> Checked<Value> {
        let bytes = self.material.payload(&call.arguments.digest);
        let value = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let why = "the arguments are not disclosed".to_owned();
        value.ok_or((Found::NotCheckable, why))
    }
}

/// The grant is for the caller's tenant and task.
fn subject(known: &Known, caller: &Identity) -> Checked {
    let of_caller = known.grant.tenant == caller.tenant && known.grant.task == caller.claims.task;
    of_caller.then_some(()).ok_or_else(|| fail("allowed without the grant's tenant and task"))
}

/// The call is within one grant of its line, beside amounts and arguments.
fn within(fit: &Fit<'_>, decision: &Decision, call: &Invocation, caller: &Identity) -> Checked {
    let (grant, clause) = (&fit.known.grant, fit.clause);
    let time = UnixTime(decision.time_ms / 1000);
    let risk = decision.raised.as_ref().map_or(decision.risk, |raised| raised.effective);
    let properties = &caller.claims.properties;
    let bounded =
        [&grant.require, &clause.require].iter().all(|asked| properties.missing(asked).is_empty());
    let facts = [
        ("a time within the grant's", grant.is_timely(time)),
        ("a time before the clause's end", clause.until.is_none_or(|until| time < until)),
        ("the tool of the clause", clause.tool == call.tool),
        ("the boundary of grant and clause", bounded),
        ("a risk within the ceiling", risk <= grant.risk_ceiling),
        ("a call within the budget", fit.known.calls < grant.budgets.calls),
    ];
    match facts.iter().find(|(_, holds)| !holds) {
        Some((fact, _)) => Err(fail(format!("allowed without {fact}"))),
        None => Ok(()),
    }
}

/// What the decision says of the calls before is what the log shows.
fn counted(decision: &Decision, calls: u64) -> Checked {
    let budget = decision.budgets.iter().find(|budget| budget.name == "grant.calls");
    let same = budget.is_none_or(|budget| budget.before == calls && budget.reserved == 1);
    same.then_some(()).ok_or_else(|| fail("allowed without the count of calls before"))
}

/// The disclosed arguments are within the clauses' constraints, and the clauses
/// are the first ones that they fit.
fn constrained(fits: &[Fit<'_>], arguments: &Checked<Value>) -> Checked {
    let free = |fit: &Fit<'_>| fit.clause.arguments.is_empty() && fit.clause.sums.is_empty();
    if fits.iter().all(|fit| free(fit) && fit.earlier().next().is_none()) {
        return Ok(());
    }
    let arguments = arguments.as_ref().map_err(Clone::clone)?;
    for fit in fits {
        let broken = fit.clause.arguments.iter().find(|one| !one.holds(arguments));
        if let Some(constraint) = broken {
            let (rule, what) = (fit.rule(), constraint.describe());
            return Err(fail(format!("allowed by {rule} against {what}")));
        }
        if fit.earlier().any(|clause| clause.arguments.iter().all(|one| one.holds(arguments))) {
            return Err(fail(format!("allowed by {} where an earlier clause fits", fit.rule())));
        }
    }
    if fits.iter().all(|fit| fit.clause.sums.is_empty()) {
        return Ok(());
    }
    not_checkable("sums of amounts are not added up here")
}

/// Every check: what fails first, or else all that could not be made.
fn all(checks: impl IntoIterator<Item = Checked>) -> Checked {
    let mut unknown: Vec<String> = Vec::new();
    for check in checks {
        match check {
            Ok(()) => {}
            Err((Found::NotCheckable, why)) if unknown.contains(&why) => {}
            Err((Found::NotCheckable, why)) => unknown.push(why),
            Err(found) => return Err(found),
        }
    }
    if unknown.is_empty() { Ok(()) } else { not_checkable(unknown.join("; ")) }
}
