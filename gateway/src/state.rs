//! Everything that decisions depend on and calls change. All of it is made
//! again from the log at start: the log is the one truth.
//!
//! Lock order: the state's lock is taken first, and the log's inside it, so
//! that leaves are in the log in the order in which the state changed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use casemate_attestation::cose::KeyId;
use casemate_ledger::{
    Approval, Authentic, BudgetUse, Decision, Event, EventKind, Grant, Hold, Identity, Invocation,
    Label, Leaf, LeafKind, MAX_GRANTS_ABOVE, Outcome, Record, Revocation, RevocationTarget,
    Verdict, record,
};
use tokio::sync::watch;

use crate::clock::Now;
use crate::decide::{
    Breakers, Denials, Ended, Exact, Health, Held, Holds, Loops, Pending, Standing, Statement, User,
};
use crate::envelope::Chain;
use crate::hosts::Machine;
use crate::stops::Stops;

/// Approvers by name: who they are, and their keys.
pub(crate) type Persons = BTreeMap<String, (String, [u8; 32])>;

/// A sandbox and its boot incarnation.
pub(crate) type Instance = (String, u64);

/// The gateway's state.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Grants by id.
    pub(crate) grants: BTreeMap<[u8; 16], Held>,
    /// The grants of each task: a call or a list looks at those of its own only.
    tasks: HashMap<String, BTreeSet<[u8; 16]>>,
    /// Chains by sandbox and epoch.
    pub(crate) chains: BTreeMap<Instance, Chain>,
    /// Identity keys that may not call.
    pub(crate) revoked_keys: HashSet<KeyId>,
    /// Sandboxes that were stopped.
    pub(crate) stopped: HashSet<String>,
    /// Allowed calls without an outcome, by the decision's digest.
    pub(crate) open: HashMap<[u8; 32], Open>,
    /// When each sandbox's calls of a tool ended last so that they may have run,
    /// as the log says at start.
    pub(crate) unsure: HashMap<(String, String), u64>,
    /// The highest label of the results that each sandbox was given.
    pub(crate) labels: HashMap<String, Label>,
    /// What each sandbox called last.
    pub(crate) loops: HashMap<String, Loops>,
    /// Who is stopped until it is lifted.
    pub(crate) stops: Stops,
    /// Calls that wait for people.
    pub(crate) holds: Holds,
    /// Counts the answers of people, for those who wait.
    pub(crate) answers: watch::Sender<u64>,
    /// The breakers of each tool.
    pub(crate) breakers: HashMap<String, Breakers>,
    /// What the calls cost that were not allowed.
    pub(crate) denials: Denials,
    /// The outcome's leaf by the decision's leaf.
    pub(crate) outcomes: HashMap<u64, u64>,
    /// The sandboxes that said hello from each machine, by their URI.
    pub(crate) machines: HashMap<Machine, BTreeMap<String, Identity>>,
    /// Counts what may change the fate of machines, for their hosts.
    pub(crate) stirred: watch::Sender<u64>,
    /// The switch that ends each connection.
    pub(crate) sessions: HashMap<Instance, Connected>,
}

/// A connection and whose it is.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) caller: Identity,
    /// Ends it.
    pub(crate) switch: watch::Sender<bool>,
}

/// An allowed call that has no outcome yet.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    /// The decision's leaf.
    pub(crate) index: u64,
    /// The grants that it was allowed under, the one that it names first.
    pub(crate) line: Vec<[u8; 16]>,
    /// What was reserved of them.
    pub(crate) budgets: Vec<BudgetUse>,
    /// When that was.
    pub(crate) time_ms: u64,
    /// The sandbox, its tool, and the call's number in the search for loops.
    pub(crate) place: Place,
    /// Ends the call, and says why.
    pub(crate) cut: watch::Sender<Option<&'static str>>,
}

/// Where a call's end is noted.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) sandbox: String,
    pub(crate) tool: String,
    pub(crate) number: u64,
}

impl State {
    /// Applies the leaf at `index` as it was read from the log.
    ///
    /// The gateway's own records are taken without checking their signatures
    /// again: the log was checked against its signed checkpoint. A grant is
    /// taken only if one of `issuers` still signs for it.
    pub(crate) fn replay(
        &mut self,
        index: u64,
        leaf: &[u8],
        (issuers, persons): (&BTreeMap<String, [u8; 32]>, &Persons),
    ) -> Result<(), String> {
        let leaf = Leaf::decode(leaf).map_err(|error| error.to_string())?;
        let record = leaf.record.as_slice();
        match leaf.kind {
            LeafKind::Grant => self.replay_grant(index, record, issuers),
            LeafKind::Revocation => self.revoke(&peek::<Revocation>(record)?.target),
            LeafKind::Decision => self.replay_decision(index, record)?,
            LeafKind::Outcome => self.replay_outcome(index, &peek(record)?),
            LeafKind::Stop => {
                self.stops.take(&peek(record)?, casemate_ledger::digest(record));
            }
            LeafKind::Approval => self.replay_approval(record, persons),
            LeafKind::Event => self.replay_event(&peek(record)?),
        }
        Ok(())
    }

    /// Ends what `target` names.
    pub(crate) fn revoke(&mut self, target: &RevocationTarget) {
        match target {
            RevocationTarget::Grant(id) => {
                if let Some(held) = self.grants.get_mut(id) {
                    held.revoked = true;
                }
                self.cut_under(id, "grant_revoked");
            }
            RevocationTarget::Identity(key) => {
                self.revoked_keys.insert(*key);
                self.end(|caller| caller.key_id() == *key, "identity_revoked");
            }
            RevocationTarget::Sandbox(uri) => {
                self.stopped.insert(uri.clone());
                self.end(|caller| caller.sandbox == *uri, "sandbox_stopped");
            }
        }
    }

    /// Cancels what runs under the grant `id` or a part of it.
    pub(crate) fn cut_under(&self, id: &[u8; 16], reason: &'static str) {
        for open in self.open.values().filter(|open| open.line.contains(id)) {
            open.cut.send_replace(Some(reason));
        }
        // Who waits for people looks again.
        self.answers.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Cancels what the chosen callers run, and ends their connections.
    fn end(&self, chosen: impl Fn(&Identity) -> bool, reason: &'static str) {
        for one in self.sessions.values().filter(|one| chosen(&one.caller)) {
            let sandbox = &one.caller.sandbox;
            for open in self.open.values().filter(|open| open.place.sandbox == *sandbox) {
                open.cut.send_replace(Some(reason));
            }
            one.switch.send_replace(true);
        }
    }

    /// Takes a grant that was checked, in the log at `index`. A part of another
    /// grant is taken only while that one is held.
    pub(crate) fn hold(&mut self, grant: Authentic<Grant>, index: u64) -> Result<(), String> {
        let ancestors = self.ancestors(&grant)?;
        self.tasks.entry(grant.task.clone()).or_default().insert(grant.id);
        self.grants.insert(grant.id, Held { ancestors, ..Held::new(grant, index) });
        Ok(())
    }

    /// The grants of `task`, by rising id.
    pub(crate) fn of_task(&self, task: &str) -> impl Iterator<Item = &Held> {
        let ids = self.tasks.get(task).into_iter().flatten();
        ids.filter_map(|id| self.grants.get(id))
    }

    /// The grants that `grant` is a part of, nearest first.
    pub(crate) fn ancestors(&self, grant: &Grant) -> Result<Vec<[u8; 16]>, String> {
        let Some(parent) = grant.parent else { return Ok(Vec::new()) };
        let held = self.grants.get(&parent.id).filter(|held| held.digest == parent.digest);
        let held = held.ok_or("grant, parent: expected a grant that is held, by id and digest")?;
        if held.revoked {
            return Err("grant, parent: expected a live grant, got a revoked one".to_owned());
        }
        if held.ancestors.len() + 1 > MAX_GRANTS_ABOVE {
            return Err(format!("grant, parent: expected at most {MAX_GRANTS_ABOVE} grants above"));
        }
        grant.attenuates(&held.grant).map_err(|error| error.to_string())?;
        Ok([parent.id].into_iter().chain(held.ancestors.iter().copied()).collect())
    }

    /// The grant `id` and those that it is a part of; empty if one is not held.
    pub(crate) fn line(&self, id: &[u8; 16]) -> Vec<&Held> {
        let Some(first) = self.grants.get(id) else { return Vec::new() };
        let above = first.ancestors.iter().map(|id| self.grants.get(id));
        let line: Option<Vec<&Held>> = std::iter::once(Some(first)).chain(above).collect();
        line.unwrap_or_default()
    }

    /// The ids of the grant `id` and those that it is a part of.
    pub(crate) fn line_ids(&self, id: &[u8; 16]) -> Vec<[u8; 16]> {
        self.line(id).iter().map(|held| held.grant.id).collect()
    }

    /// Takes what an allowed call reserved of the grants in its line, and
    /// gives its sandbox the label of the tool's results.
    pub(crate) fn reserve(&mut self, label: Label, open: &Open) {
        for (level, id) in open.line.iter().enumerate() {
            if let Some(held) = self.grants.get_mut(id) {
                held.reserve(level, &open.budgets, &open.place.tool, open.time_ms);
            }
        }
        let seen = self.labels.entry(open.place.sandbox.clone()).or_default();
        *seen = label.max(*seen);
    }

    /// Learns from how an allowed call ended: repetition and broken servers.
    pub(crate) fn learn(&mut self, decision: &[u8; 32], outcome: &Outcome, ended: Ended, now: Now) {
        let Some(place) = self.open.get(decision).map(|open| open.place.clone()) else { return };
        if let Some(loops) = self.loops.get_mut(&place.sandbox) {
            loops.end(place.number, ended, now);
        }
        let jitter = decision.iter().fold(0_u64, |sum, byte| (sum << 8) ^ u64::from(*byte));
        let breakers = self.breakers.entry(place.tool).or_default();
        breakers.end(&place.sandbox, Health::of(outcome), now, jitter);
    }

    /// Starts a call under a clause of each grant in its line.
    pub(crate) fn start(&mut self, line: &[[u8; 16]], clauses: &[usize], now: Now) {
        for (id, clause) in line.iter().zip(clauses) {
            if let Some(held) = self.grants.get_mut(id) {
                held.start(*clause, now);
            }
        }
    }

    /// Ends a call under the grant `id` and those that it is a part of.
    pub(crate) fn finish(&mut self, id: &[u8; 16], clauses: &[usize]) {
        for (id, clause) in self.line_ids(id).iter().zip(clauses) {
            if let Some(held) = self.grants.get_mut(id) {
                held.finish(*clause);
            }
        }
    }

    /// Whether `caller` may not call any more: nothing lifts this.
    pub(crate) fn is_dead(&self, caller: &Identity) -> bool {
        self.stopped.contains(&caller.sandbox) || self.revoked_keys.contains(&caller.key_id())
    }

    /// Whether `caller` may not call, now or any more.
    pub(crate) fn is_ended(&self, caller: &Identity) -> bool {
        self.is_dead(caller) || self.stops.of(caller).is_some()
    }

    /// Notes from which machine `caller` said hello.
    pub(crate) fn locate(&mut self, machine: Machine, caller: &Identity) {
        let known = self.machines.entry(machine).or_default();
        if known.insert(caller.sandbox.clone(), caller.clone()).is_none() {
            self.stir();
        }
    }

    /// Has the hosts asked about be answered anew.
    pub(crate) fn stir(&self) {
        self.stirred.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Ends the connections of all who are stopped.
    pub(crate) fn end_stopped(&self) {
        self.end(|caller| self.stops.of(caller).is_some(), "sandbox_stopped");
    }

    /// Notes the end of an allowed call and settles its budget.
    pub(crate) fn close(&mut self, index: u64, outcome: &Outcome) {
        let Some(open) = self.open.remove(&outcome.decision) else { return };
        self.outcomes.insert(open.index, index);
        for (level, id) in open.line.iter().enumerate() {
            if let Some(held) = self.grants.get_mut(id) {
                held.settle(level, &open.budgets, outcome, open.time_ms);
            }
        }
    }

    fn replay_grant(&mut self, index: u64, record: &[u8], issuers: &BTreeMap<String, [u8; 32]>) {
        let issuer = peek::<Grant>(record).ok().and_then(|grant| issuers.get(&grant.issuer));
        match issuer.and_then(|key| Grant::verify(record, key).ok()) {
            Some(grant) => {
                if let Err(reason) = self.hold(grant, index) {
                    tracing::warn!(index, reason, "a grant is dropped");
                }
            }
            None => tracing::warn!(index, "a grant's issuer is no longer accepted; it is dropped"),
        }
    }

    fn replay_decision(&mut self, index: u64, record: &[u8]) -> Result<(), String> {
        let decision: Decision = peek(record)?;
        let invocation: Invocation = peek(&decision.invocation)?;
        let chain = self.chains.entry((invocation.sandbox.clone(), invocation.epoch)).or_default();
        if invocation.sequence > chain.sequence {
            chain.sequence = invocation.sequence;
            chain.last = casemate_ledger::digest(&decision.invocation);
            chain.decisions.push(index);
        } else if let Some(last) = chain.at(invocation.sequence) {
            // The call was held, and is decided on again.
            *last = index;
        }
        let digest = casemate_ledger::digest(record);
        match decision.verdict {
            Verdict::Hold(hold) => self.replay_hold(digest, &decision, invocation, hold),
            Verdict::Deny(_) => self.holds.finish(&digest, &decision.approvals),
            Verdict::Allow => {
                self.holds.finish(&digest, &decision.approvals);
                let grant = invocation.grant.map(|grant| grant.id).unwrap_or_default();
                let line = self.line_ids(&grant);
                let (budgets, time_ms) = (decision.budgets, decision.time_ms);
                let Invocation { sandbox, tool, .. } = invocation;
                let place = Place { sandbox, tool, number: 0 };
                let cut = watch::Sender::default();
                let open = Open { index, line, budgets, time_ms, place, cut };
                self.reserve(decision.label, &open);
                self.open.insert(digest, open);
            }
        }
        Ok(())
    }

    /// A call that waited is known again; what people are shown of it is not.
    fn replay_hold(
        &mut self,
        digest: [u8; 32],
        decision: &Decision,
        invocation: Invocation,
        hold: Hold,
    ) {
        let (Some(grant), Some(tool_digest)) = (invocation.grant, invocation.tool_digest) else {
            return;
        };
        let Invocation { sandbox, tool, .. } = invocation;
        let (call, policy) = (hold.call, decision.policy);
        let exact = Exact { sandbox, grant, tool_digest, call, policy };
        // The same call, made again, waits for the people who were asked before.
        if self.holds.standing(&exact, decision.time_ms) == Standing::New {
            let pending = Pending::new(exact, &tool, hold.needed, hold.expires_ms);
            self.holds.insert(digest, pending, decision.time_ms);
        }
    }

    /// Takes an approval again, if its approver is still listed.
    fn replay_approval(&mut self, record: &[u8], persons: &Persons) {
        let Ok(claimed) = peek::<Approval>(record) else { return };
        let Some((person, key)) = persons.get(&claimed.approver) else { return };
        let Ok(approval) = Approval::verify(record, key) else { return };
        let statement = Statement {
            hold: approval.hold,
            approve: approval.approve,
            person: person.clone(),
            approval: approval.digest(),
            expires_ms: approval.expires.0.saturating_mul(1000),
        };
        // It was taken when it was logged; a hold that is over has no use for it.
        let _ = self.holds.take(statement, 0);
    }

    fn replay_outcome(&mut self, index: u64, outcome: &Outcome) {
        let open = self.open.get(&outcome.decision);
        if let Some(open) = open.filter(|_| Ended::of(outcome, None).may_have_run()) {
            let Place { sandbox, tool, .. } = open.place.clone();
            let ended_ms = self.unsure.entry((sandbox, tool)).or_default();
            *ended_ms = outcome.ended_ms.max(*ended_ms);
        }
        self.close(index, outcome);
    }

    fn replay_event(&mut self, event: &Event) {
        let instance = event.sandbox.clone().zip(event.epoch);
        match (event.kind, instance) {
            (EventKind::Frozen, Some(instance)) => {
                let note = event.note.clone().unwrap_or_default();
                self.chains.entry(instance).or_default().frozen = Some(note);
            }
            (EventKind::Identity, Some(instance)) => {
                self.chains.entry(instance).or_default();
            }
            (EventKind::Suspended | EventKind::Resumed, _) => {
                let held = event.grant.and_then(|grant| self.grants.get_mut(&grant.id));
                if let Some(held) = held {
                    let reason = event.note.clone().unwrap_or_default();
                    held.suspended = (event.kind == EventKind::Suspended).then_some(reason);
                }
            }
            (EventKind::Activation, Some((sandbox, epoch))) => {
                let held = event.grant.and_then(|grant| self.grants.get_mut(&grant.id));
                if let (Some(held), Some(key)) = (held, event.key) {
                    held.user = Some(User { sandbox, epoch, key });
                }
            }
            _ => {}
        }
    }
}

fn peek<T: Record>(bytes: &[u8]) -> Result<T, String> {
    record::peek(bytes).map(|(_, record)| record).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::decide::tests::{grant, signed};

    #[test]
    fn ten_thousand_grants_of_others_cost_a_call_nothing() {
        let mut state = State::default();
        let mut own = grant();
        own.id = [0xff; 16];
        state.hold(signed(own), 0).unwrap();
        let other = signed(grant());
        for number in 0..10_000_u64 {
            // Not signed anew: only the task and the id tell them apart here.
            let held = Held::new(other.clone(), number);
            let id = [number.to_be_bytes(), [0; 8]].concat().try_into().unwrap();
            state.tasks.entry(format!("other-{}", number % 500)).or_default().insert(id);
            state.grants.insert(id, held);
        }
        assert_eq!(state.grants.len(), 10_001);
        let began = Instant::now();
        for _ in 0..1000 {
            assert_eq!(state.of_task("report").count(), 1);
        }
        println!("1000 looks at one of 10,001 grants: {:?}", began.elapsed());
        assert_eq!(state.of_task("other-7").count(), 20);
        assert_eq!(state.of_task("nobody").count(), 0);
    }
}
