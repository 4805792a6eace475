//! A decision made again from the grants, the call and the log before it.

use casemate_attestation::{Properties, Risk, UnixTime};
use serde_json::Value;

use super::line::{Fit, Known, fits, fitting};
use super::usage::{About, budgeted, exhausted, recorded};
use super::{Auditor, Checked, all, fail, not_checkable, unknown};
use crate::cgp::DenyCode;
use crate::{Approvals, Decimal, Decision, Effect, Identity, Invocation, Label};

/// A call of a known sandbox, and what is told of it.
#[derive(Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) decision: &'a Decision,
    pub(super) call: &'a Invocation,
    pub(super) caller: &'a Identity,
    /// The arguments, if they were kept and not shredded.
    pub(super) arguments: &'a Checked<Value>,
}

impl Auditor<'_> {
    /// The arguments, if they were kept and not shredded.
    pub(super) fn arguments(&self, call: &Invocation) -> Checked<Value> {
        let bytes = self.material.payload(&call.arguments.digest);
        let value = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        value.ok_or_else(|| unknown("the arguments are not disclosed"))
    }

    /// An allowed call is within its grants.
    pub(super) fn allowed(&self, case: Case<'_>) -> Checked {
        let Case { decision, call, caller, arguments } = case;
        let line = self.line(call)?;
        let fits = fits(decision, &line)?;
        let first = line.first().ok_or_else(|| fail("a call that names no grant"))?;
        subject(first, caller)?;
        self.bound(first, caller)?;
        fits.iter().try_for_each(|fit| within(fit, case))?;
        all([
            bounded(&fits, case),
            self.raised(&fits, case),
            self.flows(&fits, call),
            budgeted(&fits, self.about(case)),
            self.approved(decision, call, (&fits, arguments)),
            constrained(&fits, arguments),
        ])
    }

    /// A call that waits passes every gate but the people.
    pub(super) fn held(&self, needed: Approvals, case: Case<'_>) -> Checked {
        let line = self.line(case.call)?;
        let fits = fitting(case.call, &line, case.arguments)?;
        let fits = fits.ok_or_else(|| fail("held though no clause fits"))?;
        subject(line.first().ok_or_else(|| fail("a call that names no grant"))?, case.caller)?;
        fits.iter().try_for_each(|fit| within(fit, case))?;
        let (least, most) = super::people::asked(&fits, case.arguments.as_ref().ok())?;
        if !(least..=most).contains(&needed.count()) {
            return Err(fail(format!("held for {} person(s), not {most}", needed.count())));
        }
        all([
            bounded(&fits, case),
            self.raised(&fits, case),
            self.flows(&fits, case.call),
            recorded(&fits, self.about(case)),
        ])
    }

    /// A denial for a reason that the log shows must have that reason.
    pub(super) fn denied(&self, code: DenyCode, case: Case<'_>) -> Checked {
        let Case { decision, call, caller, arguments } = case;
        if code == DenyCode::GrantUnknown {
            let why = "whether the gateway still took the grant's issuer";
            return self.line(call).map_or(Ok(()), |_| not_checkable(why));
        }
        if call.grant.is_none() {
            return not_checkable("which grant a call was looked at under that names none");
        }
        let line = self.line(call)?;
        let time = UnixTime(decision.time_ms / 1000);
        let any = |test: &dyn Fn(&Known) -> bool| line.iter().any(|known| test(known));
        let effective = effective(decision);
        let fits = || -> Checked<Vec<Fit<'_>>> {
            let fits = fitting(call, &line, arguments)?;
            fits.ok_or_else(|| fail("denied by a clause where none fits"))
        };
        let shown = match code {
            DenyCode::GrantForeign => line.first().is_some_and(|first| {
                let used = self.users.contains_key(&first.grant.id);
                subject(first, caller).is_err() || used && self.bound(first, caller).is_err()
            }),
            DenyCode::GrantNotYetValid => any(&|known| time < known.grant.not_before),
            DenyCode::GrantExpired => {
                any(&|known| time >= known.grant.expires)
                    || fits()?.iter().any(|fit| fit.clause.until.is_some_and(|end| time >= end))
            }
            DenyCode::GrantRevoked => any(&|known| self.is_revoked(&known.grant.id)),
            DenyCode::BoundaryInsufficient => {
                !caller.claims.properties.missing(&decision.boundary.required).is_empty()
            }
            DenyCode::RiskCeiling => any(&|known| effective > known.grant.risk_ceiling),
            DenyCode::FlowLabel => self.flows(&fits()?, call).is_err(),
            DenyCode::DecisionLimit => match fitting(call, &line, arguments)? {
                None => true,
                Some(fits) => fits.iter().any(|fit| lacks_amount(fit, arguments)),
            },
            DenyCode::BudgetExhausted => return exhausted(&fits()?, self.about(case)),
            DenyCode::ApprovalDenied => self.refused(decision),
            DenyCode::ToolNotGranted => return self.not_granted(case, &line),
            _ => {
                return not_checkable(format!("{} rests on the gateway's state", code.name()));
            }
        };
        let why = || fail(format!("denied by {}, which the log does not show", code.name()));
        shown.then_some(()).ok_or_else(why)
    }

    fn not_granted(&self, case: Case<'_>, line: &[&Known]) -> Checked {
        let tool = &case.call.tool;
        let named = line.first().is_some_and(|known| known.grant.clauses(tool).next().is_some());
        match self.policy_of(case.decision) {
            _ if !named => Ok(()),
            Err(found) => Err(found),
            Ok(policy) if policy.tools.contains_key(tool) => {
                Err(fail("denied a tool that grant and gateway have"))
            }
            Ok(_) => Ok(()),
        }
    }

    fn about<'a>(&'a self, case: Case<'a>) -> About<'a> {
        let Case { decision, call, arguments, .. } = case;
        let tool = self.policy_of(decision).ok().and_then(|policy| policy.tools.get(&call.tool));
        About { decision, call, arguments, tool }
    }

    /// The grant was bound to this sandbox, epoch and key before.
    fn bound(&self, known: &Known, caller: &Identity) -> Checked {
        let user = self.users.get(&known.grant.id);
        let own = (caller.sandbox.clone(), caller.claims.epoch, caller.key);
        let why = || fail("allowed under a grant that is bound to another sandbox, or to none");
        (user == Some(&own)).then_some(()).ok_or_else(why)
    }

    /// What raised the tool's risk is what call and log show.
    fn raised(&self, fits: &[Fit<'_>], case: Case<'_>) -> Checked {
        let Case { decision, call, arguments, .. } = case;
        let seen = self.seen(&call.sandbox);
        let base = decision.risk;
        let mut expected: (Risk, Vec<&str>) = (base, Vec::new());
        let mut open = None;
        for fit in fits {
            let clause = fit.clause;
            let mut reasons = Vec::new();
            if seen >= Label::Confidential {
                reasons.push("label_confidential");
            }
            if clause.effect == Effect::External && seen > Label::Public {
                reasons.push("external_with_label");
            }
            match (arguments, clause.thresholds.is_empty()) {
                (_, true) => {}
                (Ok(arguments), _) if above_a_threshold(fit, arguments) => reasons.push("amount"),
                (Ok(_), _) => {}
                (Err(found), _) => open = Some(found.clone()),
            }
            let risk = reasons.iter().fold(base, |risk, _| higher(risk));
            if risk >= expected.0 && !reasons.is_empty() {
                expected = (risk, reasons);
            }
        }
        let reasons = decision.raised.iter().flat_map(|raised| &raised.reasons);
        let same = effective(decision) == expected.0 && reasons.eq(expected.1.iter());
        match open {
            Some(found) if effective(decision) >= expected.0 => Err(found),
            None if same => Ok(()),
            _ => Err(fail(format!("a risk of {} by the log", expected.0))),
        }
    }

    /// The sandbox has seen nothing above what the clauses take.
    fn flows(&self, fits: &[Fit<'_>], call: &Invocation) -> Checked {
        let seen = self.seen(&call.sandbox);
        match fits.iter().find(|fit| fit.clause.max_in_label.is_some_and(|most| seen > most)) {
            Some(fit) => {
                let (rule, seen) = (fit.rule(), seen.name());
                Err(fail(format!("allowed by {rule} after the sandbox saw {seen} data")))
            }
            None => Ok(()),
        }
    }

    /// The highest label of the results that the sandbox was given.
    pub(super) fn seen(&self, sandbox: &str) -> Label {
        self.labels.get(sandbox).copied().unwrap_or_default()
    }
}

/// The risk that the gates used, by the decision.
pub(super) fn effective(decision: &Decision) -> Risk {
    decision.raised.as_ref().map_or(decision.risk, |raised| raised.effective)
}

fn higher(risk: Risk) -> Risk {
    match risk {
        Risk::Low => Risk::Medium,
        Risk::Medium | Risk::High => Risk::High,
    }
}

fn above_a_threshold(fit: &Fit<'_>, arguments: &Value) -> bool {
    fit.clause.thresholds.iter().any(|threshold| {
        let amount = arguments.pointer(&threshold.pointer).and_then(Decimal::of_argument);
        amount.is_none_or(|amount| amount > threshold.above)
    })
}

/// Whether the arguments lack an amount that the clause counts.
fn lacks_amount(fit: &Fit<'_>, arguments: &Checked<Value>) -> bool {
    let thresholds = fit.clause.thresholds.iter().map(|threshold| &threshold.pointer);
    let mut pointers = thresholds.chain(fit.clause.sums.iter().map(|sum| &sum.pointer));
    arguments.as_ref().is_ok_and(|arguments| {
        pointers.any(|at| arguments.pointer(at).and_then(Decimal::of_argument).is_none())
    })
}

/// The grant is for the caller's tenant and task.
fn subject(known: &Known, caller: &Identity) -> Checked {
    let of_caller = known.grant.tenant == caller.tenant && known.grant.task == caller.claims.task;
    of_caller.then_some(()).ok_or_else(|| fail("allowed without the grant's tenant and task"))
}

/// The call is within one grant of its line, beside amounts and arguments.
fn within(fit: &Fit<'_>, Case { decision, call, .. }: Case<'_>) -> Checked {
    let (grant, clause) = (&fit.known.grant, fit.clause);
    let time = UnixTime(decision.time_ms / 1000);
    let facts = [
        ("a time within the grant's", grant.is_timely(time)),
        ("a time before the clause's end", clause.until.is_none_or(|until| time < until)),
        ("the tool of the clause", clause.tool == call.tool),
        ("a risk within the ceiling", effective(decision) <= grant.risk_ceiling),
    ];
    match facts.iter().find(|(_, holds)| !holds) {
        Some((fact, _)) => Err(fail(format!("allowed without {fact}"))),
        None => Ok(()),
    }
}

/// The certificate has what grants, clauses and decision require.
fn bounded(fits: &[Fit<'_>], Case { decision, caller, .. }: Case<'_>) -> Checked {
    let (actual, required) = (&caller.claims.properties, &decision.boundary.required);
    let asked = asked(fits);
    if decision.boundary.actual != *actual {
        return Err(fail("another boundary than the caller's certificate has"));
    }
    if !required.missing(&asked).is_empty() || !actual.missing(required).is_empty() {
        return Err(fail("allowed without the boundary of grant and clause"));
    }
    Ok(())
}

/// What the grants and clauses of a line ask of a boundary.
pub(super) fn asked(fits: &[Fit<'_>]) -> Properties {
    let sets = fits.iter().flat_map(|fit| [&fit.known.grant.require, &fit.clause.require]);
    sets.flat_map(Properties::iter).collect()
}

/// The disclosed arguments are within the clauses' constraints, and the clauses
/// are the first ones that they fit.
fn constrained(fits: &[Fit<'_>], arguments: &Checked<Value>) -> Checked {
    let free = |fit: &Fit<'_>| fit.clause.arguments.is_empty() && fit.earlier().next().is_none();
    if fits.iter().all(free) {
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
    Ok(())
}
