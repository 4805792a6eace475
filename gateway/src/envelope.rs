//! Does this invocation come next from this sandbox? Checked before anything
//! is decided; a call that fails here is answered with a JSON-RPC error and
//! leaves no trace in the sandbox's chain.

use casemate_ledger::args::Commitment;
use casemate_ledger::cgp::{RpcError, error_code};
use casemate_ledger::{Authentic, Identity, Invocation};

use crate::clock::Now;

/// What the gateway remembers of one sandbox and epoch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chain {
    /// The last accepted sequence number.
    pub(crate) sequence: u64,
    /// SHA-256 of the invocation with that number.
    pub(crate) last: [u8; 32],
    /// Why the sandbox is frozen, if it is.
    pub(crate) frozen: Option<String>,
    /// The leaf of each decision, by sequence number from 1.
    pub(crate) decisions: Vec<u64>,
    /// The lease of its present connection.
    pub(crate) lease: Option<Lease>,
}

impl Chain {
    /// The place of the decision on call `sequence`, from 1.
    pub(crate) fn at(&mut self, sequence: u64) -> Option<&mut u64> {
        let at = usize::try_from(sequence.checked_sub(1)?).ok()?;
        self.decisions.get_mut(at)
    }
}

/// A lease as the gateway gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Its id.
    pub(crate) id: [u8; 16],
    /// The nonce given last.
    pub(crate) nonce: [u8; 16],
    /// The one before.
    pub(crate) previous: [u8; 16],
    /// When it ends, in microseconds of the monotonic clock.
    pub(crate) ends_us: u64,
}

/// The request that carries the invocation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    /// The method.
    pub(crate) method: &'a str,
    /// The tool in its parameters.
    pub(crate) tool: &'a str,
    /// The commitment to its arguments, made again.
    pub(crate) arguments: Commitment,
}

/// The invocation says what its request and certificate say.
pub(crate) fn check_content(
    invocation: &Invocation,
    request: Request<'_>,
    caller: &Identity,
) -> Result<(), RpcError> {
    let claims = &caller.claims;
    let pairs = [
        ("sandbox", invocation.sandbox == caller.sandbox),
        ("epoch", invocation.epoch == claims.epoch),
        ("method", invocation.method == request.method),
        ("tool", invocation.tool == request.tool),
        ("arguments", invocation.arguments == request.arguments),
        ("boundary class", invocation.boundary.class == claims.boundary),
        ("bundle digest", invocation.boundary.bundle == claims.bundle),
        ("measurement", invocation.boundary.measurement == claims.measurement),
    ];
    match pairs.iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((field, _)) => Err(RpcError::new(
            error_code::ENVELOPE,
            format!("invocation, {field}: expected that of the request and the certificate"),
        )),
    }
}

/// The lease lives and the certificate is still valid.
pub(crate) fn check_fresh(
    invocation: &Invocation,
    chain: &Chain,
    caller: &Identity,
    now: Now,
) -> Result<(), RpcError> {
    if now.unix() > caller.expires {
        return Err(RpcError::new(
            error_code::IDENTITY,
            "certificate: expected a valid one, got an expired one; attest again and reconnect",
        ));
    }
    let named = invocation.lease;
    let live = chain.lease.is_some_and(|lease| {
        named.id == lease.id
            && (named.nonce == lease.nonce || named.nonce == lease.previous)
            && now.monotonic_us < lease.ends_us
    });
    if live {
        return Ok(());
    }
    Err(RpcError::new(error_code::LEASE, "lease: expected the connection's, with a recent nonce"))
}

/// Why an invocation does not come next.
#[derive(Debug, PartialEq)]
pub(crate) enum OutOfOrder {
    /// It is refused and the chain stays as it is.
    Refused(RpcError),
    /// It proves that the key signed two histories: the sandbox is frozen.
    Fork(String),
}

/// The invocation is the next of its chain.
pub(crate) fn check_order(
    invocation: &Authentic<Invocation>,
    chain: &Chain,
) -> Result<(), OutOfOrder> {
    let refused = |code, text: String| Err(OutOfOrder::Refused(RpcError::new(code, text)));
    if let Some(reason) = &chain.frozen {
        return refused(error_code::CHAIN, format!("sandbox is frozen: {reason}"));
    }
    let expected = chain.sequence.saturating_add(1);
    let actual = invocation.sequence;
    if actual < expected {
        return refused(error_code::REPLAY, format!("sequence: expected {expected}, got {actual}"));
    }
    if actual > expected {
        return refused(error_code::CHAIN, format!("sequence: expected {expected}, got {actual}"));
    }
    if invocation.previous != chain.last {
        let text = format!("invocation {actual} continues another history than was accepted");
        return Err(OutOfOrder::Fork(text));
    }
    Ok(())
}
