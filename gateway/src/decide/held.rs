//! A grant as the gateway holds it: its limits and what was used of them.

use std::collections::BTreeSet;

use casemate_ledger::budget::{of_level, spent};
use casemate_ledger::{Authentic, BudgetUse, Grant, Identity, Outcome};

use super::counters::Counters;
use crate::clock::Now;
use crate::decide::rate;

/// A grant with its uses.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// The grant; its signature was checked.
    pub(crate) grant: Authentic<Grant>,
    /// SHA-256 of the signed grant.
    pub(crate) digest: [u8; 32],
    /// The leaf that holds the grant.
    pub(crate) index: u64,
    /// The grants that this one is a part of, nearest first.
    pub(crate) ancestors: Vec<[u8; 16]>,
    /// Whether it was revoked.
    pub(crate) revoked: bool,
    /// Why it waits for an operator, if it does.
    pub(crate) suspended: Option<String>,
    /// The sandbox that used it first.
    pub(crate) user: Option<User>,
    /// What was spent, or is reserved by running calls.
    pub(crate) used: Counters,
    /// The tools that were called.
    pub(crate) tools: BTreeSet<String>,
    /// How each clause is busy.
    pub(crate) clauses: Vec<Use>,
}

/// How busy a clause is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Use {
    /// Calls that run now.
    pub(crate) running: u64,
    /// When the rate is at rest again, in microseconds of the monotonic clock.
    pub(crate) rest_us: u64,
}

/// The sandbox to which a grant is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) sandbox: String,
    pub(crate) epoch: u64,
    pub(crate) key: [u8; 32],
}

impl User {
    /// The user that `caller` is.
    pub(crate) fn of(caller: &Identity) -> Self {
        Self { sandbox: caller.sandbox.clone(), epoch: caller.claims.epoch, key: caller.key }
    }
}

impl Held {
    /// A grant that nobody used yet, in the log at `index`.
    pub(crate) fn new(grant: Authentic<Grant>, index: u64) -> Self {
        Self {
            digest: grant.digest(),
            clauses: vec![Use::default(); grant.tools.len()],
            grant,
            index,
            ancestors: Vec::new(),
            revoked: false,
            suspended: None,
            user: None,
            used: Counters::default(),
            tools: BTreeSet::new(),
        }
    }

    /// Whether `caller` is whom the grant is for.
    pub(crate) fn is_for(&self, caller: &Identity) -> bool {
        self.grant.tenant == caller.tenant
            && self.grant.task == caller.claims.task
            && self.user.as_ref().is_none_or(|user| *user == User::of(caller))
    }

    /// The calls that were allowed.
    pub(crate) fn calls(&self) -> u64 {
        self.used.used("grant.calls")
    }

    /// Takes what a decision at `time_ms` reserved of this grant, which is
    /// number `level` in the line of grants that it was made under.
    pub(crate) fn reserve(
        &mut self,
        level: usize,
        budgets: &[BudgetUse],
        tool: &str,
        time_ms: u64,
    ) {
        for (name, budget) in of_level(level, budgets) {
            self.used.add(name, budget.reserved, time_ms);
        }
        self.tools.insert(tool.to_owned());
    }

    /// Gives back what a call reserved and did not use.
    pub(crate) fn settle(
        &mut self,
        level: usize,
        budgets: &[BudgetUse],
        outcome: &Outcome,
        time_ms: u64,
    ) {
        for (name, budget) in of_level(level, budgets) {
            let back = budget.reserved.saturating_sub(spent(name, budget.reserved, outcome));
            self.used.give_back(name, back, time_ms);
        }
    }

    /// Starts a call of `clause`: counts it as running and against its rate.
    pub(crate) fn start(&mut self, clause: usize, now: Now) {
        let rate = self.grant.tools.get(clause).and_then(|clause| clause.rate);
        if let Some(usage) = self.clauses.get_mut(clause) {
            usage.running += 1;
            if let Some(rate) = rate {
                usage.rest_us = rate::advance(rate, usage.rest_us, now);
            }
        }
    }

    /// Ends a call of `clause`.
    pub(crate) fn finish(&mut self, clause: usize) {
        if let Some(usage) = self.clauses.get_mut(clause) {
            usage.running = usage.running.saturating_sub(1);
        }
    }
}
