//! A grant as the gateway holds it: its limits and what was used of them.

use casemate_ledger::{Authentic, BudgetUse, Grant, Identity};

use crate::clock::Now;
use crate::decide::{Permit, rate};

/// A grant with its uses.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// The grant; its signature was checked.
    pub(crate) grant: Authentic<Grant>,
    /// SHA-256 of the signed grant.
    pub(crate) digest: [u8; 32],
    /// The leaf that holds the grant.
    pub(crate) index: u64,
    /// Whether it was revoked.
    pub(crate) revoked: bool,
    /// The sandbox that used it first.
    pub(crate) user: Option<User>,
    /// Calls, bytes out and bytes in: spent, or reserved by running calls.
    pub(crate) calls: u64,
    pub(crate) bytes_out: u64,
    pub(crate) bytes_in: u64,
    /// The same for each clause.
    pub(crate) clauses: Vec<Use>,
}

/// What was used of one clause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Use {
    /// Calls, allowed ones.
    pub(crate) calls: u64,
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
            revoked: false,
            user: None,
            calls: 0,
            bytes_out: 0,
            bytes_in: 0,
        }
    }

    /// Whether `caller` is whom the grant is for.
    pub(crate) fn is_for(&self, caller: &Identity) -> bool {
        self.grant.tenant == caller.tenant
            && self.grant.task == caller.claims.task
            && self.user.as_ref().is_none_or(|user| *user == User::of(caller))
    }

    /// Takes what a decision reserved, now or when the log is read at start.
    pub(crate) fn reserve(&mut self, budgets: &[BudgetUse]) {
        for budget in budgets {
            if let Some(counter) = self.counter(&budget.name) {
                *counter = counter.saturating_add(budget.reserved);
            }
        }
    }

    /// Starts a call: counts it as running and against its rate.
    pub(crate) fn start(&mut self, permit: &Permit, now: Now) {
        let rate = self.grant.tools.get(permit.clause).and_then(|clause| clause.rate);
        if let Some(usage) = self.clauses.get_mut(permit.clause) {
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

    /// Gives back what a call reserved of result bytes and did not use.
    pub(crate) fn settle(&mut self, reserved: u64, used: u64) {
        self.bytes_in = self.bytes_in.saturating_sub(reserved.saturating_sub(used));
    }

    /// The counter behind a budget's name.
    fn counter(&mut self, name: &str) -> Option<&mut u64> {
        match name {
            "grant.calls" => Some(&mut self.calls),
            "grant.bytes_out" => Some(&mut self.bytes_out),
            "grant.bytes_in" => Some(&mut self.bytes_in),
            _ => {
                let at = name.strip_prefix("clause.")?.strip_suffix(".calls")?.parse().ok()?;
                let at: usize = at;
                self.clauses.get_mut(at).map(|usage| &mut usage.calls)
            }
        }
    }
}
