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

use self::line::Known;
use self::people::{Held, Said};
use self::replay::Case;
use self::usage::Open;
use crate::cgp::DenyCode;
use crate::checkpoint::Checkpoint;
use crate::merkle::{Frontier, leaf_hash};
use crate::policy::Policy;
use crate::receipt::{Outcome as Found, TrustFile};
use crate::record::{self, Authentic};
use crate::{
    Decision, Event, EventKind, Grant, Identity, Invocation, Label, Leaf, LeafKind, Outcome,
    Record, Revocation, RevocationTarget, Scope, Stop, Verdict, text,
};

mod line;
mod people;
mod policy;
mod replay;
mod usage;
mod witness;

pub use self::policy::{Question, Ruled, Rules};

/// What lies beside the log.
pub trait Material {
    /// The certificate in DER with this SHA-256.
    fn certificate(&self, digest: &[u8; 32]) -> Option<Vec<u8>>;
    /// The canonical JSON with this commitment; it was checked against it.
    fn payload(&self, commitment: &[u8; 32]) -> Option<Vec<u8>>;
    /// A file of the gateway's policy with this SHA-256 (docs/formats/gateway-policy.md).
    fn policy(&self, digest: &[u8; 32]) -> Option<Vec<u8>>;
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
    /// What did not pass, at most [`MAX_FINDINGS`] of it, and [`NOT_REPLAYED`].
    pub findings: Vec<Finding>,
}

/// What the gateway asked of each allowed call and no auditor can ask again,
/// with the reason. Each is counted as not checkable.
pub const NOT_REPLAYED: [(&str, &str); 6] = [
    ("gate.fresh", "the lease of a connection is not in the log"),
    ("gate.drift", "what a tool server offered at that time is not in the log"),
    ("gate.reach", "a tool's schema, and what its upstream may reach, are not evaluated here"),
    ("gate.loops", "repetition is judged by a keyed digest and by results"),
    ("gate.rate", "rates and calls at once are counted by the gateway's own clock"),
    ("gate.breaker", "breakers are counted by the gateway's own clock"),
];

/// The most findings that are kept; all are counted.
pub const MAX_FINDINGS: usize = 10_000;

/// Walks a log leaf by leaf.
pub struct Auditor<'a> {
    trust: &'a TrustFile,
    material: &'a dyn Material,
    report: Report,
    grants: BTreeMap<[u8; 16], Known>,
    chains: BTreeMap<(String, u64), (u64, [u8; 32])>,
    identities: BTreeMap<[u8; 32], Option<Identity>>,
    open: BTreeMap<[u8; 32], Open>,
    holds: BTreeMap<[u8; 32], Held>,
    approvals: BTreeMap<[u8; 32], Said>,
    ended: BTreeSet<String>,
    /// The stops in force, each with its record's digest.
    stops: BTreeMap<Scope, [u8; 32]>,
    /// The sandbox, epoch and key to which each grant was bound.
    users: BTreeMap<[u8; 16], (String, u64, [u8; 32])>,
    /// The highest label of the results that each sandbox was given.
    labels: BTreeMap<String, Label>,
    policies: BTreeMap<[u8; 32], Option<Policy>>,
    /// The policy that the gateway started with last.
    started: Option<[u8; 32]>,
    rules: Option<&'a dyn Rules>,
    /// How many calls were allowed, and the leaf of the first.
    allowed: Option<(u64, u64)>,
    tree: Frontier,
    /// The head that witnesses cosigned last, until the walk is there.
    cosigned: Option<Checkpoint>,
    /// How many leaves that head has, from there on.
    behind: Option<u64>,
    at: u64,
}

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
            stops: BTreeMap::new(),
            users: BTreeMap::new(),
            labels: BTreeMap::new(),
            policies: BTreeMap::new(),
            started: None,
            rules: None,
            allowed: None,
            tree: Frontier::default(),
            cosigned: None,
            behind: None,
            at: 0,
        }
    }

    /// Has `rules` evaluate the organisation's rules, if there are any.
    pub fn with_rules(mut self, rules: &'a dyn Rules) -> Self {
        self.rules = Some(rules);
        self
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
            LeafKind::Event => self.event(record),
        }
    }

    /// Ends the walk: what was allowed and has no outcome is said.
    pub fn finish(mut self) -> Report {
        self.unreached();
        for open in std::mem::take(&mut self.open).into_values() {
            self.at = open.leaf;
            let why = "the call had not ended when the log was taken".to_owned();
            self.note::<()>("pair.outcome", Err((Found::NotCheckable, why)));
        }
        self.gates();
        self.report
    }

    /// The gates that are not asked again, once each for all allowed calls.
    fn gates(&mut self) {
        let Some((count, first)) = self.allowed else { return };
        self.at = first;
        for (gate, why) in NOT_REPLAYED {
            let reason = format!("{count} allowed calls from here on: {why}");
            let (leaf, outcome) = (self.at, Found::NotCheckable);
            self.report.findings.push(Finding { leaf, check: gate, outcome, reason });
            self.report.counts.entry(gate).or_default().not_checkable = count;
        }
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
            self.take(grant);
        }
    }

    fn revocation(&mut self, record: &[u8]) {
        let Some(revocation) = self.gateways::<Revocation>(record) else { return };
        self.ended.insert(match &revocation.target {
            RevocationTarget::Grant(id) => name_of(id),
            RevocationTarget::Identity(key) => format!("identity {key}"),
            RevocationTarget::Sandbox(uri) => format!("sandbox {uri}"),
        });
    }

    fn stop(&mut self, record: &[u8]) {
        let Some(stop) = self.gateways::<Stop>(record) else { return };
        if stop.level.is_some() {
            self.stops.insert(stop.scope.clone(), stop.digest());
            return;
        }
        let lifted = self.lifted(&stop);
        let holds_on = matches!(lifted, Err((Found::Fail, _)));
        self.note("stop.lift", lifted);
        if !holds_on {
            self.stops.remove(&stop.scope);
        }
    }

    fn event(&mut self, record: &[u8]) {
        let Some(event) = self.gateways::<Event>(record) else { return };
        let grant = event.grant.map(|grant| grant.id);
        match (event.kind, grant) {
            (EventKind::GatewayStart, _) => self.started = event.digest,
            (EventKind::Activation, Some(grant)) => {
                if let Event {
                    sandbox: Some(sandbox), epoch: Some(epoch), key: Some(key), ..
                } = &*event
                {
                    self.users.entry(grant).or_insert((sandbox.clone(), *epoch, *key));
                }
            }
            (EventKind::Suspended, Some(grant)) => drop(self.ended.insert(suspended(&grant))),
            (EventKind::Resumed, Some(grant)) => drop(self.ended.remove(&suspended(&grant))),
            _ => {}
        }
    }

    fn outcome(&mut self, record: &[u8]) {
        let Some(outcome) = self.gateways::<Outcome>(record) else { return };
        let open = self.open.remove(&outcome.decision);
        if let Some(open) = &open {
            self.settle(open, &outcome);
        }
        let known = open.map(drop);
        let why = "an outcome of no allowed call that is open: a second one, or of nothing";
        self.note("pair.decision", known.ok_or_else(|| fail(why)));
    }

    fn decision(&mut self, record: &[u8]) {
        let Some(decision) = self.gateways::<Decision>(record) else { return };
        if decision.verdict.is_allow() {
            self.open.insert(decision.digest(), Open::at(self.at, decision.time_ms));
            let (count, first) = self.allowed.unwrap_or((0, self.at));
            self.allowed = Some((count + 1, first));
        }
        let Some(identity) = self.caller(&decision) else { return self.unproved(&decision) };
        let call = Invocation::verify(&decision.invocation, &identity.key).map_err(failed);
        let Some(call) = self.note("call.signature", call) else { return };
        self.order(&decision, &call);
        if let Verdict::Hold(hold) = decision.verdict {
            self.holds.insert(decision.digest(), Held::of(&hold, &decision, &call));
        }
        if decision.verdict.is_allow() {
            let ended = self.not_ended(&call, Some(&identity));
            self.note("revocation.order", ended);
        }
        self.learn_policy(&decision);
        let arguments = self.arguments(&call);
        let (caller, arguments) = (&identity, &arguments);
        self.replay(Case { decision: &decision, call: &call, caller, arguments });
        self.count(&decision, &call);
    }

    /// A decision on a call without its caller's certificate: what the call says
    /// is still what the gateway counted, and the later calls of its chain and
    /// its grant rest on that count. What else of it cannot be checked is said.
    fn unproved(&mut self, decision: &Authentic<Decision>) {
        let without = || not_checkable("without the caller's certificate");
        let call = record::peek::<Invocation>(&decision.invocation);
        let call = match call.map_err(failed) {
            Ok((_, call)) => call,
            Err(found) => {
                self.note::<()>("call.signature", Err(found));
                return;
            }
        };
        self.note::<()>("call.signature", without());
        self.order(decision, &call);
        self.learn_policy(decision);
        self.note::<()>("decision.replay", without());
        // What fails without asking who called fails.
        if decision.verdict.is_allow() {
            let ended = self.not_ended(&call, None).and_then(|()| without());
            self.note::<()>("revocation.order", ended);
        }
        if !matches!(decision.verdict, Verdict::Deny(_)) {
            let by_policy = self.by_started(decision).and_then(|()| without());
            self.note::<()>("decision.policy", by_policy);
            self.note::<()>("decision.rules", without());
        }
        if let Verdict::Hold(hold) = decision.verdict {
            self.holds.insert(decision.digest(), Held::of(&hold, decision, &call));
        }
        self.count(decision, &call);
    }

    /// An allowed call takes what its decision says it does.
    fn count(&mut self, decision: &Authentic<Decision>, call: &Invocation) {
        if decision.verdict.is_allow() {
            self.reserve(decision, decision.digest(), call);
            self.use_up(decision);
            let seen = self.labels.entry(call.sandbox.clone()).or_default();
            *seen = decision.label.max(*seen);
        }
    }

    /// Decides again, as far as the log and what lies beside it allow.
    fn replay(&mut self, case: Case<'_>) {
        let replayed = match case.decision.verdict {
            Verdict::Allow => self.allowed(case),
            Verdict::Hold(hold) => self.held(hold.needed, case),
            Verdict::Deny(DenyCode::PolicyForbid) => self.by_rules(case),
            Verdict::Deny(code) => self.denied(code, case),
        };
        self.note("decision.replay", replayed);
        if !matches!(case.decision.verdict, Verdict::Deny(_)) {
            let by_policy = self.by_policy(case);
            self.note("decision.policy", by_policy);
            let by_rules = self.by_rules(case);
            self.note("decision.rules", by_rules);
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
        self.identities.get(&digest).cloned().flatten()
    }

    /// The call comes next in its chain; one that waited for people came before.
    fn order(&mut self, decision: &Decision, call: &Invocation) {
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
        let expected = sequence.saturating_add(1);
        let next = if call.sequence == expected && call.previous == last {
            Ok(())
        } else if call.sequence == expected {
            Err(fail(format!("call {} continues another history", call.sequence)))
        } else {
            Err(fail(format!("expected call {expected}, got {}", call.sequence)))
        };
        self.note("chain.order", next);
        self.chains.insert(key, (call.sequence, crate::digest(&decision.invocation)));
    }

    /// Whether the grant was revoked.
    fn is_revoked(&self, grant: &[u8; 16]) -> bool {
        self.ended.contains(&name_of(grant))
    }

    /// Nothing that the call rests on was revoked, and no stop holds its sandbox.
    fn not_ended(&self, call: &Invocation, identity: Option<&Identity>) -> Checked {
        let line = call.grant.map(|grant| self.line_ids(&grant.id)).unwrap_or_default();
        let key = identity.map(|identity| format!("identity {}", identity.key_id()));
        let own = [format!("sandbox {}", call.sandbox)].into_iter().chain(key);
        let grants = line.iter().flat_map(|grant| [name_of(grant), suspended(grant)]);
        let ended = grants.chain(own).find(|name| self.ended.contains(name));
        let of_caller = identity.map(|identity| {
            [Scope::Task(identity.claims.task.clone()), Scope::Tenant(identity.tenant.clone())]
        });
        let mut scopes = [Scope::Sandbox(call.sandbox.clone()), Scope::All]
            .into_iter()
            .chain(of_caller.into_iter().flatten());
        let stopped = scopes.find(|scope| self.stops.contains_key(scope));
        match ended.or_else(|| stopped.map(|scope| scope.to_string())) {
            Some(name) => Err(fail(format!("allowed after {name} was ended"))),
            None => Ok(()),
        }
    }
}

impl Report {
    /// Whether nothing failed. What could not be checked is in the counts.
    pub fn holds(&self) -> bool {
        self.counts.values().all(|count| count.fail == 0)
    }
}

/// A grant, as it is named among what ended.
fn name_of(grant: &[u8; 16]) -> String {
    format!("grant {}", text::hex(grant))
}

/// A grant that waits for its operator, as it is named among what ended.
fn suspended(grant: &[u8; 16]) -> String {
    format!("suspended {}", name_of(grant))
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

fn unknown(why: &str) -> (Found, String) {
    (Found::NotCheckable, why.to_owned())
}

/// Every check: what fails first, or else all that could not be made.
fn all(checks: impl IntoIterator<Item = Checked>) -> Checked {
    let mut open: Vec<String> = Vec::new();
    for check in checks {
        match check {
            Ok(()) => {}
            Err((Found::NotCheckable, why)) if open.contains(&why) => {}
            Err((Found::NotCheckable, why)) => open.push(why),
            Err(found) => return Err(found),
        }
    }
    if open.is_empty() { Ok(()) } else { not_checkable(open.join("; ")) }
}

fn not_checkable<T>(reason: impl Into<String>) -> Checked<T> {
    Err((Found::NotCheckable, reason.into()))
}
