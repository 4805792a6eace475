//! The operator's door: JSON lines on a unix socket of mode 0600.
//!
//! Format: docs/formats/gateway-admin.md. [`Client`] is the other end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use casemate_attestation::cose::KeyId;
use casemate_ledger::{
    Event, EventKind, Grant, GrantRef, LeafKind, Record, Revocation, RevocationTarget, record, text,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::approve::{self, Waiting};
use crate::journal::wait;
use crate::overview::{self, GrantSummary, LogEntry, StatusReport};
use crate::receipts;
use crate::service::Gateway;
use crate::stops::{self, Stopped};
use crate::sync::locked;

/// What an operator may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Take a signed grant.
    GrantAdd {
        /// The grant's signed bytes, base64url without padding.
        grant: String,
    },
    /// List the grants and what was used of them.
    GrantList,
    /// End a grant; the next decision knows.
    GrantRevoke {
        /// The grant's id, 32 hex digits.
        id: String,
        /// Why.
        reason: String,
    },
    /// Let a grant go on that was suspended because its sandbox went round in circles.
    GrantResume {
        /// The grant's id, 32 hex digits.
        id: String,
        /// Why.
        reason: String,
    },
    /// List the calls that wait for people: as many as fit, in the order of
    /// their ids. An empty list says that there are no more.
    ApprovalList {
        /// The last id of the list before this one.
        #[serde(default)]
        after: Option<String>,
    },
    /// Take a signed approval.
    ApprovalAdd {
        /// The approval's signed bytes, base64url without padding.
        approval: String,
    },
    /// Stop a sandbox: its connection ends, its running calls are cancelled,
    /// and it can call nothing any more.
    Kill {
        /// The sandbox's URI.
        sandbox: String,
        /// Why.
        reason: String,
    },
    /// Stop a scope until it is lifted: connections end, calls are refused.
    Stop {
        /// `all`, `tenant:NAME`, `task:NAME` or `sandbox:URI`.
        scope: String,
        /// `freeze`, `pause` or `destroy`.
        level: String,
        /// Why.
        reason: String,
    },
    /// Lift a stop.
    StopLift {
        /// The scope that is stopped.
        scope: String,
        /// Why.
        reason: String,
        /// For a tenant or all: the signed yes of two persons, base64url.
        approvals: Vec<String>,
    },
    /// List the stops in force.
    StopList,
    /// Refuse an identity key from now on.
    RevokeIdentity {
        /// The key's id, 32 hex digits.
        key: String,
        /// Why.
        reason: String,
    },
    /// How the gateway stands.
    Status,
    /// The receipt of a call by its decision's leaf.
    Receipt {
        /// The leaf's index.
        decision: u64,
    },
    /// The receipt of a call by its place in its sandbox's sequence.
    ReceiptOf {
        /// The sandbox's URI.
        sandbox: String,
        /// Its boot incarnation.
        epoch: u64,
        /// The call's number, from 1.
        sequence: u64,
    },
    /// The gateway's numbers as Prometheus text.
    Metrics,
    /// The COSE receipt (RFC 9942) of a leaf, whatever it holds.
    CoseReceipt {
        /// The leaf's index.
        leaf: u64,
    },
    /// Delete the key of a task's payloads. What the log proves stays proved.
    PayloadsShred {
        /// The task.
        task: String,
    },
    /// Some leaves of the log.
    Log {
        /// The first one.
        from: u64,
        /// How many, at most 256.
        count: u64,
    },
}

/// What the gateway answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "content", rename_all = "snake_case")]
pub enum Reply {
    /// It is done, durable, and in the log at this leaf.
    Done(u64),
    /// It is not done: what was expected, and what was there.
    Refused(String),
    /// The grants.
    Grants(Vec<GrantSummary>),
    /// The calls that wait for people.
    Approvals(Vec<Waiting>),
    /// The stops in force.
    Stops(Vec<Stopped>),
    /// How the gateway stands.
    Status(Box<StatusReport>),
    /// A receipt (docs/formats/receipt.md), base64url.
    Receipt(String),
    /// Numbers, as Prometheus text.
    Metrics(String),
    /// Leaves of the log.
    Log(Vec<LogEntry>),
}

/// Why the operator's door gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The socket cannot be reached, or closed early.
    #[error("{path}: {source}")]
    Socket {
        /// The socket.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The answer is not one.
    #[error("operator's socket: expected a reply, got {0}")]
    Reply(String),
}

/// Asks a gateway over its operator's socket.
pub struct Client;

const MAX_REQUEST_BYTES: u64 = 64 * 1024;
const MAX_REPLY_BYTES: u64 = 32 << 20;
const PATIENCE: Duration = Duration::from_secs(30);
const CONNECTIONS: usize = 16;
const MAX_REASON_BYTES: usize = 1024;
const MAX_TASK_BYTES: usize = 256;
/// How long to wait after an accept that failed, as it may at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Client {
    /// Sends `command` to the gateway whose socket is at `path`.
    pub async fn call(path: &Path, command: &Command) -> Result<Reply, AdminError> {
        let socket = |source| AdminError::Socket { path: path.display().to_string(), source };
        let mut stream = UnixStream::connect(path).await.map_err(socket)?;
        let mut line =
            serde_json::to_vec(command).map_err(|error| AdminError::Reply(error.to_string()))?;
        line.push(b'\n');
        stream.write_all(&line).await.map_err(socket)?;
        let mut reply = Vec::new();
        let mut reader = BufReader::new(stream).take(MAX_REPLY_BYTES);
        let read = timeout(PATIENCE, reader.read_until(b'\n', &mut reply)).await;
        read.map_err(std::io::Error::from).and_then(|read| read).map_err(socket)?;
        serde_json::from_slice(&reply).map_err(|error| AdminError::Reply(error.to_string()))
    }
}

/// Serves the operator until the task is dropped.
pub(crate) async fn serve(gateway: Arc<Gateway>, listener: UnixListener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // The mode of the socket says the same; this holds in the moment before it is set.
        let own = rustix::process::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| may_operate(peer.uid(), own)) {
            tracing::warn!("operator's socket: expected the gateway's user or root");
            continue;
        }
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move {
            if let Err(error) = serve_one(&gateway, stream).await {
                tracing::debug!(%error, "operator's connection");
            }
            drop(slot);
        });
    }
}

/// Whether the user `peer` may command a gateway that runs as `own`.
pub(crate) fn may_operate(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

async fn serve_one(gateway: &Gateway, stream: UnixStream) -> std::io::Result<()> {
    let by = stream.peer_cred().map(|peer| format!("uid:{}", peer.uid()))?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut reader).take(MAX_REQUEST_BYTES);
        let count = timeout(PATIENCE, bounded.read_until(b'\n', &mut line)).await??;
        if count == 0 {
            return Ok(());
        }
        let reply = if line.ends_with(b"\n") {
            match serde_json::from_slice(&line) {
                Ok(command) => answer(gateway, command, &by).await,
                Err(error) => Reply::Refused(format!("command: {error}")),
            }
        } else {
            Reply::Refused(format!("command: expected a line of at most {MAX_REQUEST_BYTES} bytes"))
        };
        let mut text = serde_json::to_vec(&reply)?;
        text.push(b'\n');
        timeout(PATIENCE, writer.write_all(&text)).await??;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
    }
}

async fn answer(gateway: &Gateway, command: Command, by: &str) -> Reply {
    let result = match command {
        Command::GrantAdd { grant } => add_grant(gateway, &grant).await,
        Command::GrantList => Ok(Reply::Grants(overview::grants(gateway))),
        Command::GrantRevoke { id, reason } => match id_of(&id) {
            Ok(id) if locked(&gateway.state).grants.contains_key(&id) => {
                revoke(gateway, RevocationTarget::Grant(id), reason, by).await
            }
            Ok(_) => Err(format!("id: expected a grant that is held, got {id}")),
            Err(error) => Err(error),
        },
        Command::GrantResume { id, reason } => resume(gateway, &id, reason, by).await,
        Command::ApprovalList { after } => match after.as_deref().map(id_of).transpose() {
            Ok(after) => Ok(Reply::Approvals(approve::list(gateway, after))),
            Err(error) => Err(error),
        },
        Command::ApprovalAdd { approval } => approve::take(gateway, &approval).await,
        Command::Kill { sandbox, reason } => {
            revoke(gateway, RevocationTarget::Sandbox(sandbox), reason, by).await
        }
        Command::Stop { scope, level, reason } => {
            stops::stop(gateway, (&scope, &level), reason, by).await
        }
        Command::StopLift { scope, reason, approvals } => {
            stops::lift(gateway, &scope, reason, &approvals, by).await
        }
        Command::StopList => Ok(Reply::Stops(stops::list(gateway))),
        Command::RevokeIdentity { key, reason } => match id_of(&key) {
            Ok(id) => revoke(gateway, RevocationTarget::Identity(KeyId(id)), reason, by).await,
            Err(error) => Err(error),
        },
        Command::Status => Ok(Reply::Status(Box::new(overview::status(gateway)))),
        Command::Receipt { decision } => receipts::receipt(gateway, decision).await,
        Command::ReceiptOf { sandbox, epoch, sequence } => {
            match receipts::find(gateway, sandbox, epoch, sequence) {
                Some(decision) => receipts::receipt(gateway, decision).await,
                None => Err(format!("sequence: expected a call that was decided, got {sequence}")),
            }
        }
        Command::Metrics => Ok(Reply::Metrics(overview::metrics(gateway))),
        Command::CoseReceipt { leaf } => gateway
            .journal
            .cose_receipt(leaf)
            .map(|receipt| Reply::Receipt(text::base64url(&receipt)))
            .map_err(|error| error.to_string()),
        Command::PayloadsShred { task } => shred(gateway, task, by).await,
        Command::Log { from, count } => overview::log(gateway, from, count).map(Reply::Log),
    };
    result.unwrap_or_else(Reply::Refused)
}

fn id_of<const N: usize>(hex: &str) -> Result<[u8; N], String> {
    let id = text::from_hex(hex).and_then(|id| id.try_into().ok());
    id.ok_or_else(|| format!("id: expected {} lower-case hex digits, got {hex:?}", 2 * N))
}

async fn add_grant(gateway: &Gateway, grant: &str) -> Result<Reply, String> {
    let bytes = text::from_base64url(grant).ok_or("grant: expected base64url without padding")?;
    let (_, claimed) = record::peek::<Grant>(&bytes).map_err(|error| error.to_string())?;
    let key = gateway
        .issuers
        .get(&claimed.issuer)
        .ok_or_else(|| format!("grant, issuer: expected a listed one, got {:?}", claimed.issuer))?;
    let grant = Grant::verify(&bytes, key).map_err(|error| error.to_string())?;
    if grant.tenant != gateway.config.tenant {
        let expected = &gateway.config.tenant;
        return Err(format!("grant, tenant: expected {expected}, got {}", grant.tenant));
    }
    let now = gateway.clock.now().unix();
    if grant.expires <= now {
        return Err(format!("grant, expires: expected a time after {now}, got {}", grant.expires));
    }
    let (index, durable) = {
        let mut state = locked(&gateway.state);
        if let Some(held) = state.grants.get(&grant.id) {
            let same = held.digest == grant.digest();
            return if same {
                Ok(Reply::Done(held.index))
            } else {
                Err("grant, id: expected a new one, got that of another grant".to_owned())
            };
        }
        state.ancestors(&grant)?;
        let appended = gateway.journal.append(LeafKind::Grant, grant.bytes());
        let (index, durable) = appended.map_err(|error| error.to_string())?;
        state.hold(grant, index)?;
        (index, durable)
    };
    wait(durable).await.map_err(|error| error.to_string())?;
    Ok(Reply::Done(index))
}

/// Revokes at once and in the log; answers when it is durable.
async fn revoke(
    gateway: &Gateway,
    target: RevocationTarget,
    reason: String,
    by: &str,
) -> Result<Reply, String> {
    let time_ms = gateway.clock.now().unix_ms;
    let revocation = Revocation { target, reason, by: by.to_owned(), time_ms };
    // What could not be read back must not be written.
    Revocation::from_payload(&revocation.payload()).map_err(|error| error.to_string())?;
    let written = {
        let mut state = locked(&gateway.state);
        // Whatever the disk says, it is revoked from here on.
        state.revoke(&revocation.target);
        state.stir();
        gateway.journal.write(LeafKind::Revocation, revocation).map_err(|e| e.to_string())?
    };
    let (index, _) = written.durable().await.map_err(|error| error.to_string())?;
    Ok(Reply::Done(index))
}

/// Shreds first and writes it down then: a crash between leaves nothing to read.
async fn shred(gateway: &Gateway, task: String, by: &str) -> Result<Reply, String> {
    if task.is_empty() || task.len() > MAX_TASK_BYTES {
        return Err(format!("task: expected 1 to {MAX_TASK_BYTES} bytes, got {}", task.len()));
    }
    let was_there = gateway.payloads.shred(&task).map_err(|error| error.to_string())?;
    if !was_there {
        return Err(format!("task: expected one with payloads, got {task:?}"));
    }
    let event = Event {
        digest: Some(casemate_ledger::digest(task.as_bytes())),
        note: Some(format!("{task}, by {by}")),
        ..Event::new(EventKind::PayloadsShredded, gateway.clock.now().unix_ms)
    };
    let written = gateway.journal.write(LeafKind::Event, event).map_err(|e| e.to_string())?;
    let (index, _) = written.durable().await.map_err(|error| error.to_string())?;
    Ok(Reply::Done(index))
}

/// Ends a suspension, and forgets what led to it but not what may still run.
async fn resume(gateway: &Gateway, id: &str, reason: String, by: &str) -> Result<Reply, String> {
    let grant = id_of(id)?;
    let mut event = Event {
        note: Some(format!("{by}: {reason}")),
        ..Event::new(EventKind::Resumed, gateway.clock.now().unix_ms)
    };
    if reason.len() > MAX_REASON_BYTES {
        return Err(format!("reason: expected at most {MAX_REASON_BYTES} bytes"));
    }
    let written = {
        let mut state = locked(&gateway.state);
        let held = state.grants.get_mut(&grant).filter(|held| held.suspended.is_some());
        let held = held.ok_or_else(|| format!("id: expected a suspended grant, got {id}"))?;
        event.grant = Some(GrantRef { id: grant, digest: held.digest });
        held.suspended = None;
        let sandbox = held.user.as_ref().map(|user| user.sandbox.clone()).unwrap_or_default();
        if let Some(loops) = state.loops.get_mut(&sandbox) {
            loops.forget(gateway.clock.now());
        }
        gateway.journal.write(LeafKind::Event, event).map_err(|error| error.to_string())?
    };
    let (index, _) = written.durable().await.map_err(|error| error.to_string())?;
    Ok(Reply::Done(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_user_and_root_command() {
        for (peer, own, may) in [(7, 7, true), (0, 7, true), (8, 7, false), (7, 0, false)] {
            assert_eq!(may_operate(peer, own), may, "{peer} {own}");
        }
    }
}
