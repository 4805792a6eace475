//! Everything that decisions depend on and calls change. All of it is made
//! again from the log at start: the log is the one truth.
//!
//! Lock order: the state's lock is taken first, and the log's inside it, so
//! that leaves are in the log in the order in which the state changed.

use std::collections::{BTreeMap, HashMap, HashSet};

use casemate_attestation::cose::KeyId;
use casemate_ledger::{
    Decision, Event, EventKind, Grant, Identity, Invocation, Leaf, LeafKind, Outcome, Record,
    Revocation, RevocationTarget, Verdict, record,
};
use tokio::sync::watch;

use crate::decide::{Held, User};
use crate::envelope::Chain;

/// A sandbox and its boot incarnation.
pub(crate) type Instance = (String, u64);

/// The gateway's state.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Grants by id.
    pub(crate) grants: BTreeMap<[u8; 16], Held>,
    /// Chains by sandbox and epoch.
    pub(crate) chains: BTreeMap<Instance, Chain>,
    /// Identity keys that may not call.
    pub(crate) revoked_keys: HashSet<KeyId>,
    /// Sandboxes that were stopped.
    pub(crate) stopped: HashSet<String>,
    /// Allowed calls without an outcome, by the decision's digest.
    pub(crate) open: HashMap<[u8; 32], Open>,
    /// The outcome's leaf by the decision's leaf.
    pub(crate) outcomes: HashMap<u64, u64>,
    /// The switch that ends each connection.
    pub(crate) sessions: HashMap<Instance, watch::Sender<bool>>,
}

/// An allowed call that has no outcome yet.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    /// The decision's leaf.
    pub(crate) index: u64,
    /// The grant that it was allowed under.
    pub(crate) grant: [u8; 16],
    /// The result bytes that were reserved.
    pub(crate) reserved_in: u64,
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
        issuers: &BTreeMap<String, [u8; 32]>,
    ) -> Result<(), String> {
        let leaf = Leaf::decode(leaf).map_err(|error| error.to_string())?;
        let record = leaf.record.as_slice();
        match leaf.kind {
            LeafKind::Grant => self.replay_grant(index, record, issuers),
            LeafKind::Revocation => self.revoke(&peek::<Revocation>(record)?.target),
            LeafKind::Decision => self.replay_decision(index, record)?,
            LeafKind::Outcome => self.replay_outcome(index, &peek(record)?),
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
            }
            RevocationTarget::Identity(key) => {
                self.revoked_keys.insert(*key);
            }
            RevocationTarget::Sandbox(uri) => {
                self.stopped.insert(uri.clone());
                for ((sandbox, _), session) in &self.sessions {
                    if sandbox == uri {
                        session.send_replace(true);
                    }
                }
            }
        }
    }

    /// Whether `caller` may not call any more.
    pub(crate) fn is_ended(&self, caller: &Identity) -> bool {
        self.stopped.contains(&caller.sandbox) || self.revoked_keys.contains(&caller.key_id())
    }

    /// Notes the end of an allowed call and settles its budget.
    pub(crate) fn close(&mut self, index: u64, outcome: &Outcome) {
        let Some(open) = self.open.remove(&outcome.decision) else { return };
        self.outcomes.insert(open.index, index);
        // What nobody knows counts as spent.
        let unknown = outcome.status == casemate_ledger::Status::Unknown;
        if let (Some(held), false) = (self.grants.get_mut(&open.grant), unknown) {
            held.settle(open.reserved_in, outcome.bytes_in);
        }
    }

    fn replay_grant(&mut self, index: u64, record: &[u8], issuers: &BTreeMap<String, [u8; 32]>) {
        let issuer = peek::<Grant>(record).ok().and_then(|grant| issuers.get(&grant.issuer));
        match issuer.and_then(|key| Grant::verify(record, key).ok()) {
            Some(grant) => {
                self.grants.insert(grant.id, Held::new(grant, index));
            }
            None => tracing::warn!(index, "a grant's issuer is no longer accepted; it is dropped"),
        }
    }

    fn replay_decision(&mut self, index: u64, record: &[u8]) -> Result<(), String> {
        let decision: Decision = peek(record)?;
        let invocation: Invocation = peek(&decision.invocation)?;
        let chain = self.chains.entry((invocation.sandbox.clone(), invocation.epoch)).or_default();
        chain.sequence = invocation.sequence;
        chain.last = casemate_ledger::digest(&decision.invocation);
        chain.decisions.push(index);
        if decision.verdict != Verdict::Allow {
            return Ok(());
        }
        let grant = invocation.grant.map(|grant| grant.id).unwrap_or_default();
        if let Some(held) = self.grants.get_mut(&grant) {
            held.reserve(&decision.budgets);
        }
        let open = Open { index, grant, reserved_in: reserved_in(&decision) };
        self.open.insert(casemate_ledger::digest(record), open);
        Ok(())
    }

    fn replay_outcome(&mut self, index: u64, outcome: &Outcome) {
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

/// The result bytes that a decision reserved.
pub(crate) fn reserved_in(decision: &Decision) -> u64 {
    let budget = decision.budgets.iter().find(|budget| budget.name == "grant.bytes_in");
    budget.map_or(0, |budget| budget.reserved)
}

fn peek<T: Record>(bytes: &[u8]) -> Result<T, String> {
    record::peek(bytes).map(|(_, record)| record).map_err(|error| error.to_string())
}
