//! The order of this machine's calls: sequence, previous hash, lease.

use std::sync::Arc;

use casemate_ledger::args::Commitment;
use casemate_ledger::cgp::{Hello, LeaseNotice, PROTOCOL, ToolMeta, method};
use casemate_ledger::{
    Authentic, BoundaryStatement, GrantRef, Invocation, Lease, Record, TimeSource,
};

use super::{GatewayError, random};
use crate::certificate::Certificate;
use crate::identity::Identity;

/// What the next invocation continues.
#[derive(Debug)]
pub(super) struct Chain {
    identity: Arc<Identity>,
    sandbox: String,
    boundary: BoundaryStatement,
    lease: Lease,
    sequence: u64,
    previous: [u8; 32],
}

impl Chain {
    /// The empty chain of a machine that made no call yet.
    pub(super) fn new(identity: Arc<Identity>, certificate: &Certificate) -> Self {
        let claims = &certificate.claims;
        Self {
            identity,
            sandbox: certificate.sandbox.clone(),
            boundary: BoundaryStatement {
                class: claims.boundary,
                bundle: claims.bundle,
                measurement: claims.measurement.clone(),
            },
            lease: Lease { id: [0; 16], nonce: [0; 16] },
            sequence: 0,
            previous: [0; 32],
        }
    }

    /// The greeting of a session that goes on from here.
    pub(super) fn hello(&self, bundle: Vec<u8>) -> Hello {
        Hello {
            protocol: PROTOCOL.to_owned(),
            sandbox: self.sandbox.clone(),
            epoch: self.identity.epoch,
            last_sequence: self.sequence,
            last_hash: self.previous,
            bundle,
        }
    }

    /// Takes the lease to sign under.
    pub(super) fn lease(&mut self, notice: &LeaseNotice) {
        self.lease = Lease { id: notice.id, nonce: notice.nonce };
    }

    /// The next invocation, signed. It counts only once it is [accepted](Self::accept).
    pub(super) fn sign(
        &self,
        tool: &str,
        meta: Option<&ToolMeta>,
        salt: &[u8; 32],
        canonical: &[u8],
        time_ms: u64,
    ) -> Result<Authentic<Invocation>, GatewayError> {
        let invocation = Invocation {
            id: random()?,
            sandbox: self.sandbox.clone(),
            epoch: self.identity.epoch,
            sequence: self.sequence + 1,
            previous: self.previous,
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
        Ok(invocation.sign(self.identity.public_key(), |message| self.identity.sign(message)))
    }

    /// The gateway decided on `signed`: the chain goes on from it.
    pub(super) fn accept(&mut self, signed: &Authentic<Invocation>) {
        self.sequence = signed.sequence;
        self.previous = signed.digest();
    }
}
