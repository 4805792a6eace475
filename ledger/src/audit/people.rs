//! Who said yes: to calls that waited, and to the end of a stop.

use std::collections::BTreeSet;

use serde_json::Value;

use super::line::Fit;
use super::{Auditor, Checked, Found, fail, failed, not_checkable};
use crate::record::{self, Record};
use crate::{
    Approval, Decimal, Decision, GrantRef, Hold, Invocation, MAX_APPROVAL_SECONDS, Stop, text,
};

/// A call that waited for people.
pub(super) struct Held {
    pub(super) invocation: Vec<u8>,
    about: About,
    /// The gateway's keyed digest of tool and arguments.
    call: [u8; 32],
    /// The commitment to the arguments.
    arguments: [u8; 32],
    /// Until when it waited.
    expires_ms: u64,
    /// Whether another decision stands in its place.
    pub(super) superseded: bool,
}

/// A person's word, and what became of it.
pub(super) struct Said {
    approval: Approval,
    /// The person, where the trust file has the approvers' keys.
    person: Option<String>,
    /// Whether a call was allowed by it: it is for one.
    used: bool,
}

/// What people approve, beside the arguments.
#[derive(PartialEq, Eq)]
struct About {
    sandbox: String,
    tool: String,
    tool_digest: Option<[u8; 32]>,
    grant: Option<GrantRef>,
    policy: [u8; 32],
}

const NO_APPROVERS: &str = "the trust file has no approvers' keys";

impl Auditor<'_> {
    /// An approval that its approver did not sign counts for nothing. Without
    /// the approvers' keys it is kept, and what rests on it is not checkable.
    pub(super) fn approval(&mut self, record: &[u8]) {
        let read = record::peek::<Approval>(record).map_err(failed);
        let Some((_, approval)) = self.note("leaf.format", read) else { return };
        let known = self.trust.approvers.get(&approval.approver);
        let checked = match known {
            _ if self.trust.approvers.is_empty() => not_checkable(NO_APPROVERS),
            None => Err(fail(format!("{} is no approver here", approval.approver))),
            Some(known) => {
                Approval::verify(record, &known.key).map_err(failed).map(|_| known.person.clone())
            }
        };
        let unknown = matches!(checked, Err((Found::NotCheckable, _)));
        let person = self.note("approval.signature", checked);
        if unknown || person.is_some() {
            let said = Said { approval, person, used: false };
            self.approvals.entry(crate::digest(record)).or_insert(said);
        }
    }

    /// Two persons said yes to the end of a stop of a tenant or of all. A lift
    /// that rests on less ends nothing.
    pub(super) fn lifted(&self, lift: &Stop) -> Checked {
        let stop = self.stops.get(&lift.scope);
        let stop = stop.ok_or_else(|| fail("it lifts no stop that is in force"))?;
        if !lift.scope.is_wide() {
            return Ok(());
        }
        let display = crate::digest(lift.scope.lift_display(stop).as_bytes());
        let words = lift.approvals.iter().filter_map(|digest| self.approvals.get(digest));
        let words = words.filter(|said| {
            let word = &said.approval;
            let of_this = word.approve && word.hold == *stop && word.display == display;
            of_this && said.is_timely(lift.time_ms)
        });
        let people: BTreeSet<&str> = words.map(Said::who).collect();
        match people.len() {
            ..2 => Err(fail(format!("lifted by {} person(s) of two", people.len()))),
            _ if self.trust.approvers.is_empty() => not_checkable(NO_APPROVERS),
            _ => Ok(()),
        }
    }

    /// Enough different people said yes to this call, none of them its owner.
    pub(super) fn approved(
        &self,
        decision: &Decision,
        call: &Invocation,
        (fits, arguments): (&[Fit<'_>], &Checked<Value>),
    ) -> Checked {
        let (mut people, mut unknown) = (BTreeSet::new(), None);
        let owner = fits.first().and_then(|fit| fit.known.grant.owner.as_deref());
        for said in decision.approvals.iter().filter_map(|digest| self.approvals.get(digest)) {
            if said.used {
                return Err(fail("allowed by an approval that another call used"));
            }
            if !said.approval.approve || !said.is_timely(decision.time_ms) {
                continue;
            }
            match self.held_before(&said.approval.hold, decision, call) {
                Ok(true) if Some(said.who()) == owner => {
                    return Err(fail("allowed by the word of the task's owner"));
                }
                Ok(true) => drop(people.insert(said.who())),
                Ok(false) => {}
                Err(found) => unknown = Some(found),
            }
        }
        let (least, most) = asked(fits, arguments.as_ref().ok())?;
        match unknown {
            // By their names at least.
            _ if people.len() >= most && most > 0 && self.trust.approvers.is_empty() => {
                not_checkable(NO_APPROVERS)
            }
            _ if people.len() >= most => Ok(()),
            Some(found) => Err(found),
            None if people.len() >= least => {
                not_checkable("whether an amount needs people; the arguments are not disclosed")
            }
            None => Err(fail("allowed without the people that the grant asks for")),
        }
    }

    /// Whether somebody said no to what the denial names.
    pub(super) fn refused(&self, decision: &Decision) -> bool {
        let said = self.approvals.values().filter(|said| !said.approval.approve);
        let rules = said.map(|said| format!("approval/{}", text::hex(&said.approval.hold)));
        rules.into_iter().any(|rule| decision.rules.contains(&rule))
    }

    /// The approvals of `decision` are used up.
    pub(super) fn use_up(&mut self, decision: &Decision) {
        for digest in &decision.approvals {
            if let Some(said) = self.approvals.get_mut(digest) {
                said.used = true;
            }
        }
    }

    /// Whether the decision `hold` held this call, or the same one made before:
    /// by the gateway's digest of it, or else by the arguments themselves.
    fn held_before(
        &self,
        hold: &[u8; 32],
        decision: &Decision,
        call: &Invocation,
    ) -> Checked<bool> {
        let about = About::of(decision, call);
        let held = self.holds.get(hold).filter(|held| held.about == about);
        let Some(held) = held.filter(|held| decision.time_ms < held.expires_ms) else {
            return Ok(false);
        };
        if held.invocation == decision.invocation {
            return Ok(true);
        }
        if let Some(last) = decision.supersedes.and_then(|last| self.holds.get(&last)) {
            return Ok(last.call == held.call);
        }
        let both = [&held.arguments, &call.arguments.digest].map(|one| self.material.payload(one));
        match both {
            [Some(before), Some(now)] => Ok(before == now),
            _ => not_checkable("whether people approved these arguments, which are not disclosed"),
        }
    }
}

/// How many people must have been asked: at least and, by amounts that are not
/// disclosed, at most.
pub(super) fn asked(fits: &[Fit<'_>], arguments: Option<&Value>) -> Checked<(usize, usize)> {
    let (mut least, mut most) = (0, 0);
    for fit in fits {
        least = least.max(fit.clause.approvals.count());
        for threshold in &fit.clause.thresholds {
            let count = threshold.approvals.count();
            let Some(arguments) = arguments else {
                most = most.max(count);
                continue;
            };
            let amount = arguments.pointer(&threshold.pointer).and_then(Decimal::of_argument);
            let why = || fail(format!("allowed without an amount at {}", threshold.pointer));
            if amount.ok_or_else(why)? > threshold.above {
                least = least.max(count);
            }
        }
    }
    Ok((least, least.max(most)))
}

impl Said {
    /// Who said it: the person, or the name that is claimed.
    fn who(&self) -> &str {
        self.person.as_deref().unwrap_or(&self.approval.approver)
    }

    /// Whether the word counts at this time: not over, and not given for longer
    /// than it may be.
    fn is_timely(&self, time_ms: u64) -> bool {
        let end_ms = self.approval.expires.0.saturating_mul(1000);
        let most_ms = time_ms.saturating_add(MAX_APPROVAL_SECONDS * 1000);
        time_ms < end_ms && end_ms <= most_ms
    }
}

impl Held {
    pub(super) fn of(hold: &Hold, decision: &Decision, call: &Invocation) -> Self {
        Self {
            invocation: decision.invocation.clone(),
            about: About::of(decision, call),
            call: hold.call,
            arguments: call.arguments.digest,
            expires_ms: hold.expires_ms,
            superseded: false,
        }
    }
}

impl About {
    fn of(decision: &Decision, call: &Invocation) -> Self {
        Self {
            sandbox: call.sandbox.clone(),
            tool: call.tool.clone(),
            tool_digest: call.tool_digest,
            grant: call.grant,
            policy: decision.policy,
        }
    }
}
