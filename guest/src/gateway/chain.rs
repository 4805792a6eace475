//! The order of this machine's calls: sequence, previous hash, lease.

use std::collections::VecDeque;
use std::sync::Arc;

use casemate_ledger::args::Commitment;
use casemate_ledger::cgp::{Hello, LeaseNotice, PROTOCOL, ToolMeta, method};
use casemate_ledger::{
    Authentic, BoundaryStatement, GrantRef, Invocation, Lease, Record, TimeSource,
};

use super::{GatewayError, random, wrong};
use crate::attest::Attested;
use crate::identity::Identity;

/// One invocation's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) sequence: u64,
    pub(super) hash: [u8; 32],
}

/// What the next invocation continues.
#[derive(Debug)]
pub(super) struct Chain {
    identity: Arc<Identity>,
    sandbox: String,
    boundary: BoundaryStatement,
    lease: Lease,
    /// The last invocation that the gateway is known to have decided on.
    decided: Link,
    /// Signed after it, in order; their fate is open.
    signed: VecDeque<Link>,
    /// Grows when invocations that were sent have become void.
    pub(super) generation: u64,
}

impl Chain {
    /// The empty chain of a machine that made no call yet.
    pub(super) fn new(identity: Arc<Identity>, attested: &Attested) -> Self {
        Self {
            identity,
            sandbox: attested.certificate.sandbox.clone(),
            boundary: boundary(attested),
            lease: Lease { id: [0; 16], nonce: [0; 16] },
            decided: Link { sequence: 0, hash: [0; 32] },
            signed: VecDeque::new(),
            generation: 0,
        }
    }

    /// The greeting of a session under the identity of `attested`.
    pub(super) fn hello(&mut self, attested: &Attested) -> Result<Hello, GatewayError> {
        if attested.certificate.sandbox != self.sandbox {
            let actual = &attested.certificate.sandbox;
            return Err(wrong("renewed certificate, URI", &self.sandbox, actual));
        }
        self.boundary = boundary(attested);
        let last = self.last();
        Ok(Hello {
            protocol: PROTOCOL.to_owned(),
            sandbox: self.sandbox.clone(),
            epoch: self.identity.epoch,
            last_sequence: last.sequence,
            last_hash: last.hash,
            bundle: attested.bundle.clone(),
        })
    }

    fn last(&self) -> Link {
        self.signed.back().copied().unwrap_or(self.decided)
    }

    /// Goes on from where the gateway says that it is: an invocation of ours.
    /// Those after it were never decided on and are void.
    pub(super) fn resume(&mut self, at: Link) -> Result<(), GatewayError> {
        if at != self.decided && !self.signed.contains(&at) {
            let expected = format!("{} or a later one of ours", self.decided.sequence);
            return Err(wrong("hello.accepted_sequence", &expected, &at.sequence.to_string()));
        }
        self.decided = at;
        self.signed.clear();
        self.generation += 1;
        Ok(())
    }

    /// Takes the lease to sign under.
    pub(super) fn lease(&mut self, notice: &LeaseNotice) {
        self.lease = Lease { id: notice.id, nonce: notice.nonce };
    }

    /// The next invocation, signed.
    pub(super) fn sign(
        &mut self,
        tool: &str,
        meta: Option<&ToolMeta>,
        salt: &[u8; 32],
        canonical: &[u8],
        time_ms: u64,
    ) -> Result<Authentic<Invocation>, GatewayError> {
        let last = self.last();
        let invocation = Invocation {
            id: random()?,
            sandbox: self.sandbox.clone(),
            epoch: self.identity.epoch,
            sequence: last.sequence + 1,
            previous: last.hash,
            lease: self.lease,
            grant: meta.map(|meta| GrantRef { id: meta.grant.id, digest: meta.grant.digest }),
            method: method::TOOLS_CALL.to_owned(),
            tool: tool.to_owned(),
            tool_digest: meta.map(|meta| meta.digest),
            arguments: Commitment::to_args(salt, canonical),
            boundary: self.boundary.clone(),
            time_ms,
            time_source: TimeSource::Host,
        };
        let identity = &self.identity;
        let signed = invocation.sign(identity.public_key(), |message| identity.sign(message));
        self.signed.push_back(Link { sequence: signed.sequence, hash: signed.digest() });
        Ok(signed)
    }

    /// The gateway decided on invocation `sequence`, and so on all before it.
    pub(super) fn accepted(&mut self, sequence: u64) {
        while let Some(link) = self.signed.front().filter(|link| link.sequence <= sequence) {
            self.decided = *link;
            self.signed.pop_front();
        }
    }

    /// The gateway refused invocation `sequence`: it and those after it are void.
    pub(super) fn refused(&mut self, sequence: u64) {
        self.signed.retain(|link| link.sequence < sequence);
        self.generation += 1;
    }
}

fn boundary(attested: &Attested) -> BoundaryStatement {
    let claims = &attested.certificate.claims;
    BoundaryStatement {
        class: claims.boundary,
        bundle: claims.bundle,
        measurement: claims.measurement.clone(),
    }
}
