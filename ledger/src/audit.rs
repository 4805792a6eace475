//! A whole log, checked offline by somebody who has only a trust file: every
//! signature, every chain, a decision for each outcome, and the decisions
//! themselves as far as what was recorded lets them be made again.
//!
//! The check of a decision here is another one than the gateway's code: it
//! starts from the grant and the call, not from the gateway's state. What it
//! cannot know (rates, loops, breakers, payloads that are gone) it says.
//!
//! Checks: docs/formats/audit.md.

use std::collections::{BTreeMap, BTreeSet};

use casemate_attestation::UnixTime;
use casemate_attestation::x509::Certificate;
use serde_json::Value;

use crate::cgp::DenyCode;
use crate::checkpoint::Checkpoint;
use crate::merkle::{Frontier, leaf_hash};
use crate::receipt::{Outcome as Found, TrustFile};
use crate::record::{self, Authentic};
use crate::{
    Approval, Clause, Decision, Event, Grant, GrantRef, Hold, Identity, Invocation, Leaf, LeafKind,
    Outcome, Record, Revocation, RevocationTarget, Scope, Stop, Verdict, text,
};

mod witness;

/// What lies beside the log.
pub trait Material {
    /// The certificate in DER with this SHA-256.
    fn certificate(&self, digest: &[u8; 32]) -> Option<Vec<u8>>;
    /// The canonical JSON with this commitment; it was checked against it.
    fn payload(&self, commitment: &[u8; 32]) -> Option<Vec<u8>>;
}

/// One check of one leaf that did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The leaf.
    pub leaf: u64,
    /// The check, a stable name.
    pub check: &'static str,
    /// Failed, or not checkable.
    pub outcome: Found,
    /// Why.
    pub reason: String,
}

/// How often each check came to what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// It holds.
    pub pass: u64,
    /// It could not be made.
    pub not_checkable: u64,
    /// It does not hold.
    pub fail: u64,
}

/// What an audit came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The leaves that were walked.
    pub leaves: u64,
    /// Each check by name.
    pub counts: BTreeMap<&'static str, Count>,
    /// What did not pass, at most [`MAX_FINDINGS`] of it.
    pub findings: Vec<Finding>,
}

/// The most findings that are kept; all are counted.
pub const MAX_FINDINGS: usize = 10_000;

/// Walks a log leaf by leaf.
pub struct Auditor<'a> {
    trust: &'a TrustFile,
    material: &'a dyn Material,
    report: Report,
    grants: BTreeMap<[u8; 16], (Authentic<Grant>, u64)>,
    chains: BTreeMap<(String, u64), (u64, [u8; 32])>,
    identities: BTreeMap<[u8; 32], Option<Identity>>,
    open: BTreeMap<[u8; 32], u64>,
    holds: BTreeMap<[u8; 32], Held>,
    /// Each with its person, where the trust file has the approvers' keys.
    approvals: BTreeMap<[u8; 32], (Approval, Option<String>)>,
    ended: BTreeSet<String>,
    tree: Frontier,
    /// The head that witnesses cosigned last, until the walk is there.
    cosigned: Option<Checkpoint>,
    /// How many leaves that head has, from there on.
    behind: Option<u64>,
    at: u64,
}

/// A call that waited for people.
struct Held {
    invocation: Vec<u8>,
    about: About,
    /// The gateway's keyed digest of tool and arguments.
    call: [u8; 32],
    /// The commitment to the arguments.
    arguments: [u8; 32],
    /// Whether another decision stands in its place.
    superseded: bool,
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

type Checked<T = ()> = Result<T, (Found, String)>;

impl<'a> Auditor<'a> {
    /// An auditor of the log that `trust` names, with what lies beside it.
    pub fn new(trust: &'a TrustFile, material: &'a dyn Material) -> Self {
        Self {
            trust,
            material,
            report: Report::default(),
            grants: BTreeMap::new(),
            chains: BTreeMap::new(),
            identities: BTreeMap::new(),
            open: BTreeMap::new(),
            holds: BTreeMap::new(),
            approvals: BTreeMap::new(),
            ended: BTreeSet::new(),
            tree: Frontier::default(),
            cosigned: None,
            behind: None,
            at: 0,
        }
    }

    /// Checks the next leaf.
    pub fn leaf(&mut self, bytes: &[u8]) {
        self.at = self.report.leaves;
        self.report.leaves += 1;
        self.tree.push(leaf_hash(bytes));
        self.check(bytes);
        self.reached();
    }

    fn check(&mut self, bytes: &[u8]) {
        let leaf = Leaf::decode(bytes).map_err(failed);
        let Some(leaf) = self.note("leaf.format", leaf) else { return };
        let record = leaf.record.as_slice();
        match leaf.kind {
            LeafKind::Grant => self.grant(record),
            LeafKind::Revocation => self.revocation(record),
            LeafKind::Decision => self.decision(record),
            LeafKind::Outcome => self.outcome(record),
            LeafKind::Approval => self.approval(record),
            LeafKind::Stop => self.stop(record),
            LeafKind::Event => {
                self.gateways::<Event>(record);
            }
        }
    }

    /// Ends the walk: what was allowed and has no outcome is said.
    pub fn finish(mut self) -> Report {
        self.unreached();
        for leaf in std::mem::take(&mut self.open).into_values() {
            self.at = leaf;
            let why = "the call had not ended when the log was taken".to_owned();
            self.note::<()>("pair.outcome", Err((Found::NotCheckable, why)));
        }
        self.report
    }

    /// Counts a check, and keeps what did not pass.
    fn note<T>(&mut self, check: &'static str, result: Checked<T>) -> Option<T> {
        let count = self.report.counts.entry(check).or_default();
        let (outcome, reason) = match result {
            Ok(value) => {
                count.pass += 1;
                return Some(value);
            }
            Err(found) => found,
        };
        match outcome {
            Found::Fail => count.fail += 1,
            _ => count.not_checkable += 1,
        }
        if self.report.findings.len() < MAX_FINDINGS {
            self.report.findings.push(Finding { leaf: self.at, check, outcome, reason });
        }
        None
    }

    /// A record that the gateway must have signed.
    fn gateways<T: Record>(&mut self, record: &[u8]) -> Option<Authentic<T>> {
        let checked = T::verify(record, &self.trust.gateway_key).map_err(failed);
        self.note("leaf.signature", checked)
    }

    fn grant(&mut self, record: &[u8]) {
        let checked = record::peek::<Grant>(record).map_err(failed).and_then(|(_, grant)| {
            let key = self.trust.issuers.get(&grant.issuer);
            let key = key.ok_or_else(|| fail(format!("{} is no issuer here", grant.issuer)))?;
            Grant::verify(record, key).map_err(failed)
        });
        if let Some(grant) = self.note("leaf.signature", checked) {
            self.grants.entry(grant.id).or_insert((grant, 0));
        }
    }

    fn revocation(&mut self, record: &[u8]) {
        let Some(revocation) = self.gateways::<Revocation>(record) else { return };
        self.ended.insert(match &revocation.target {
            RevocationTarget::Grant(id) => format!("grant {}", text::hex(id)),
            RevocationTarget::Identity(key) => format!("identity {key}"),
            RevocationTarget::Sandbox(uri) => format!("sandbox {uri}"),
        });
    }

    fn stop(&mut self, record: &[u8]) {
        let Some(stop) = self.gateways::<Stop>(record) else { return };
        let scope = stop.scope.to_string();
        match stop.level {
            Some(_) => drop(self.ended.insert(scope)),
            None => drop(self.ended.remove(&scope)),
        }
    }

    /// An approval that its approver did not sign counts for nothing. Without
    /// the approvers' keys it is kept, and what rests on it is not checkable.
    fn approval(&mut self, record: &[u8]) {
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
            self.approvals.insert(crate::digest(record), (approval, person));
        }
    }

    fn outcome(&mut self, record: &[u8]) {
        let Some(outcome) = self.gateways::<Outcome>(record) else { return };
        let known = self.open.remove(&outcome.decision).map(drop);
        let why = "an outcome of no allowed call that is open: a second one, or of nothing";
        self.note("pair.decision", known.ok_or_else(|| fail(why)));
    }

    fn decision(&mut self, record: &[u8]) {
        let Some(decision) = self.gateways::<Decision>(record) else { return };
        if decision.verdict.is_allow() {
            self.open.insert(decision.digest(), self.at);
        }
        let Some(identity) = self.caller(&decision) else { return };
        let call = Invocation::verify(&decision.invocation, &identity.key).map_err(failed);
        let Some(call) = self.note("call.signature", call) else { return };
        self.order(&decision, &call);
        if let Verdict::Hold(hold) = decision.verdict {
            self.holds.insert(decision.digest(), Held::of(&hold, &decision, &call));
        }
        if decision.verdict.is_allow() {
            let ended = self.not_ended(&call, &identity);
            self.note("revocation.order", ended);
        }
        let replayed = match decision.verdict {
            Verdict::Allow => self.allowed(&decision, &call, &identity),
            Verdict::Deny(code) => self.denied(code, &decision, &call, &identity),
            Verdict::Hold(_) => not_checkable("whether people had to be asked"),
        };
        self.note("decision.replay", replayed);
        if decision.verdict.is_allow() {
            self.count_call(&call);
        }
    }

    /// The caller by the certificate that the decision names.
    fn caller(&mut self, decision: &Decision) -> Option<Identity> {
        let digest = decision.certificate;
        if !self.identities.contains_key(&digest) {
            let time = UnixTime(decision.time_ms / 1000);
            let checked = match self.material.certificate(&digest) {
                None => not_checkable("the certificate is not beside the log"),
                Some(der) => read_identity(&der, &digest, &self.trust.identity_ca, time),
            };
            let identity = self.note("call.certificate", checked);
            self.identities.insert(digest, identity);
        }
        let known = self.identities.get(&digest).cloned().flatten();
        if known.is_none() {
            let why = "without the caller's certificate".to_owned();
            self.note::<()>("call.signature", Err((Found::NotCheckable, why)));
        }
        known
    }

    /// The call comes next in its chain; one that waited for people came before.
    fn order(&mut self, decision: &Decision, call: &Authentic<Invocation>) {
        if let Some(hold) = decision.supersedes {
            let held = self.holds.get_mut(&hold).filter(|held| !held.superseded);
            let held = held.filter(|held| held.invocation == decision.invocation);
            let why = "a decision in place of none that held this very call";
            let checked = held.map(|held| held.superseded = true).ok_or_else(|| fail(why));
            self.note("chain.held", checked);
            return;
        }
        let key = (call.sandbox.clone(), call.epoch);
        let (sequence, last) = self.chains.get(&key).copied().unwrap_or_default();
        let next = if call.sequence == sequence + 1 && call.previous == last {
            Ok(())
        } else if call.sequence == sequence + 1 {
            Err(fail(format!("call {} continues another history", call.sequence)))
        } else {
            Err(fail(format!("expected call {}, got {}", sequence + 1, call.sequence)))
        };
        self.note("chain.order", next);
        self.chains.insert(key, (call.sequence, call.digest()));
    }

    fn not_ended(&self, call: &Invocation, identity: &Identity) -> Checked {
        let grant = call.grant.map(|grant| format!("grant {}", text::hex(&grant.id)));
        let names = [
            grant.unwrap_or_default(),
            format!("identity {}", identity.key_id()),
            format!("sandbox {}", call.sandbox),
            Scope::Sandbox(call.sandbox.clone()).to_string(),
            Scope::Task(identity.claims.task.clone()).to_string(),
            Scope::Tenant(identity.tenant.clone()).to_string(),
            Scope::All.to_string(),
        ];
        match names.iter().find(|name| self.ended.contains(*name)) {
            Some(name) => Err(fail(format!("allowed after {name} was ended"))),
            None => Ok(()),
        }
    }

    /// An allowed call is within its grant, from the grant and the call alone.
    fn allowed(&self, decision: &Decision, call: &Invocation, caller: &Identity) -> Checked {
        let (grant, calls) = self.named(call)?;
        let time = UnixTime(decision.time_ms / 1000);
        let risk = decision.raised.as_ref().map_or(decision.risk, |raised| raised.effective);
        let clause = clause_of(decision, grant)?;
        let facts = [
            ("the grant's tenant and task", subject(grant, caller)),
            ("a time within the grant's", grant.is_timely(time)),
            ("a time before the clause's end", clause.until.is_none_or(|until| time < until)),
            ("the tool of the clause", clause.tool == call.tool),
            ("the boundary of grant and clause", bounded(grant, clause, caller)),
            ("a risk within the ceiling", risk <= grant.risk_ceiling),
            ("a call within the budget", calls < grant.budgets.calls),
            ("the count of calls before", counted(decision, calls)),
        ];
        if let Some((fact, _)) = facts.iter().find(|(_, holds)| !holds) {
            return Err(fail(format!("allowed without {fact}")));
        }
        let people = self.approved(decision, call, clause);
        if let Err((Found::Fail, _)) = people {
            return people;
        }
        self.constrained(call, clause)?;
        people
    }

    /// The disclosed arguments are within the clause's constraints.
    fn constrained(&self, call: &Invocation, clause: &Clause) -> Checked {
        if clause.arguments.is_empty() && clause.thresholds.is_empty() && clause.sums.is_empty() {
            return Ok(());
        }
        let arguments = self.arguments(call)?;
        match clause.arguments.iter().find(|constraint| !constraint.holds(&arguments)) {
            Some(constraint) => Err(fail(format!("allowed against {}", constraint.describe()))),
            None if clause.sums.is_empty() && clause.thresholds.is_empty() => Ok(()),
            None => not_checkable("amounts and their sums are not added up here"),
        }
    }

    /// A denial for a reason that grant and call show must have that reason.
    fn denied(
        &self,
        code: DenyCode,
        decision: &Decision,
        call: &Invocation,
        caller: &Identity,
    ) -> Checked {
        let time = UnixTime(decision.time_ms / 1000);
        let reason = match code {
            DenyCode::GrantUnknown => self.named(call).is_err(),
            DenyCode::GrantExpired => self.named(call).is_ok_and(|(g, _)| time >= g.expires),
            DenyCode::GrantNotYetValid => {
                self.named(call).is_ok_and(|(grant, _)| time < grant.not_before)
            }
            DenyCode::GrantRevoked => self.not_ended(call, caller).is_err(),
            DenyCode::BudgetExhausted => {
                let over = |b: &crate::BudgetUse| b.before >= b.limit;
                let (grant, calls) = self.named(call)?;
                calls >= grant.budgets.calls || decision.budgets.iter().any(over)
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

    fn named(&self, call: &Invocation) -> Checked<(&Grant, u64)> {
        let named = call.grant.ok_or_else(|| fail("a call that names no grant"))?;
        let found = self.grants.get(&named.id).filter(|(grant, _)| grant.digest() == named.digest);
        let (grant, calls) = found.ok_or_else(|| fail("a grant that is not in the log before"))?;
        Ok((grant, *calls))
    }

    /// The arguments, if they were kept and not shredded.
    fn arguments(&self, call: &Invocation) -> Checked<Value> {
        let bytes = self.material.payload(&call.arguments.digest);
        let value = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let why = "the arguments are not disclosed".to_owned();
        value.ok_or((Found::NotCheckable, why))
    }

    /// Enough different people said yes to this call.
    fn approved(&self, decision: &Decision, call: &Invocation, clause: &Clause) -> Checked {
        let (mut people, mut unknown) = (BTreeSet::new(), None);
        let approvals = decision.approvals.iter().filter_map(|digest| self.approvals.get(digest));
        for (approval, person) in approvals.filter(|(approval, _)| approval.approve) {
            match self.held_before(&approval.hold, decision, call) {
                Ok(true) => {
                    people.insert(person.as_deref().unwrap_or(&approval.approver));
                }
                Ok(false) => {}
                Err(found) => unknown = Some(found),
            }
        }
        let needed = clause.approvals.count();
        match unknown {
            // By their names at least.
            _ if people.len() >= needed && needed > 0 && self.trust.approvers.is_empty() => {
                not_checkable(NO_APPROVERS)
            }
            _ if people.len() >= needed => Ok(()),
            Some(found) => Err(found),
            None => Err(fail("allowed without the people that the clause asks for")),
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
        let Some(held) = self.holds.get(hold).filter(|held| held.about == about) else {
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

    /// An allowed call counts for its grant and for those that it is a part of.
    fn count_call(&mut self, call: &Invocation) {
        let mut next = call.grant.map(|grant| grant.id);
        while let Some((grant, calls)) = next.and_then(|id| self.grants.get_mut(&id)) {
            *calls += 1;
            next = grant.parent.map(|parent| parent.id).filter(|id| *id != grant.id);
        }
    }
}

impl Held {
    fn of(hold: &Hold, decision: &Decision, call: &Invocation) -> Self {
        Self {
            invocation: decision.invocation.clone(),
            about: About::of(decision, call),
            call: hold.call,
            arguments: call.arguments.digest,
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

impl Report {
    /// Whether nothing failed. What could not be checked is in the counts.
    pub fn holds(&self) -> bool {
        self.counts.values().all(|count| count.fail == 0)
    }
}

fn subject(grant: &Grant, caller: &Identity) -> bool {
    grant.tenant == caller.tenant && grant.task == caller.claims.task
}

fn bounded(grant: &Grant, clause: &Clause, caller: &Identity) -> bool {
    let properties = &caller.claims.properties;
    [&grant.require, &clause.require].iter().all(|asked| properties.missing(asked).is_empty())
}

/// What the decision says of the calls before is what the log shows.
fn counted(decision: &Decision, calls: u64) -> bool {
    let budget = decision.budgets.iter().find(|budget| budget.name == "grant.calls");
    budget.is_none_or(|budget| budget.before == calls && budget.reserved == 1)
}

/// The clause of the grant that the decision names as its rule.
fn clause_of<'g>(decision: &Decision, grant: &'g Grant) -> Checked<&'g Clause> {
    let rule = decision.rules.iter().find_map(|rule| rule.strip_prefix("grant/tools/"));
    let clause = rule.and_then(|at| at.parse::<usize>().ok()).and_then(|at| grant.tools.get(at));
    clause.ok_or_else(|| fail("allowed by no clause of its grant"))
}

fn read_identity(
    der: &[u8],
    digest: &[u8; 32],
    ca: &Certificate,
    time: UnixTime,
) -> Checked<Identity> {
    if crate::digest(der) != *digest {
        return Err(fail("another certificate than the decision names"));
    }
    Identity::verify(der, ca, time).map_err(failed)
}

fn fail(reason: impl Into<String>) -> (Found, String) {
    (Found::Fail, reason.into())
}

fn failed(error: impl core::fmt::Display) -> (Found, String) {
    (Found::Fail, error.to_string())
}

fn not_checkable<T>(reason: impl Into<String>) -> Checked<T> {
    Err((Found::NotCheckable, reason.into()))
}
