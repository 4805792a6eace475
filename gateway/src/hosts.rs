//! The hosts' door: what is to become of each machine, and that this gateway lives.
//!
//! Format: docs/formats/host-lease.md. A host asks for a machine again and again,
//! and is answered each time; what changes between is told at once. A host that
//! gets no answer pauses its machine, and then destroys it: so a gateway that is
//! dead or cut off needs nobody's help for its machines to stop.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use casemate_attestation::cose::KeyId;
use casemate_attestation::{Bundle, Evidence, EvidenceKind, HostClaim};
use casemate_ledger::{StopLevel, text};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::admin::may_operate;
use crate::service::Gateway;
use crate::session::Lines;
use crate::state::State;
use crate::sync::locked;

/// A machine by its host's name and its id there.
pub(crate) type Machine = (String, [u8; 16]);

/// One line of a host: the machine that it asks about.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    /// The host's name, as in its claims.
    host: String,
    /// The machine's id, 32 hex digits.
    machine: String,
    /// The task that the host started it for.
    task: String,
    /// Its sandboxes, as this gateway or the one before its restart told them.
    #[serde(default)]
    sandboxes: Vec<String>,
    /// The number of the question, for its answer.
    beat: u64,
}

/// One line to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Answer {
    /// The last question's number.
    beat: u64,
    /// How far the machine is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<&'static str>,
    /// The machine's sandboxes.
    sandboxes: Vec<String>,
}

/// A host that says nothing for this long is gone: its leases are shorter.
const SILENCE: Duration = Duration::from_secs(300);
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// The most sandboxes of one machine that are told; one machine has one.
const MAX_SANDBOXES: usize = 16;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The machine that `bundle` is about, in its host's words. The verifier checked
/// them before it signed the certificate that names the bundle.
pub(crate) fn machine(bundle: &[u8]) -> Option<Machine> {
    let evidence = Evidence::decode(&Bundle::decode(bundle).ok()?.evidence).ok()?;
    let claim = evidence.items.iter().find(|item| item.kind == EvidenceKind::HostClaim)?;
    let claim = HostClaim::peek(&claim.evidence).ok()?;
    Some((claim.host, claim.machine))
}

/// Answers hosts until the task is dropped, and their connections with it.
pub(crate) async fn serve(gateway: Arc<Gateway>, listener: Option<UnixListener>) {
    let Some(listener) = listener else { return std::future::pending().await };
    let slots = Arc::new(Semaphore::new(gateway.config.connections));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let own = rustix::process::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| may_operate(peer.uid(), own)) {
            tracing::warn!("hosts' socket: expected the gateway's user or root");
            continue;
        }
        let gateway = Arc::clone(&gateway);
        connections.spawn(async move {
            if let Err(error) = serve_one(&gateway, stream).await {
                tracing::info!(%error, "a host's connection");
            }
            drop(slot);
        });
    }
}

async fn serve_one(gateway: &Gateway, stream: UnixStream) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = Lines::new(reader);
    let mut stirred = locked(&gateway.state).stirred.subscribe();
    let (mut asked, mut told) = (None, None);
    loop {
        let question = tokio::select! {
            line = timeout(SILENCE, lines.next()) => match line?? {
                Some(line) => Some(parse(&line)?),
                None => return Ok(()),
            },
            Ok(()) = stirred.changed(), if asked.is_some() => None,
        };
        let is_question = question.is_some();
        asked = question.or(asked);
        let Some(question) = &asked else { continue };
        let answer = answer(&locked(&gateway.state), &gateway.config.tenant, question);
        // Most of what changes does not concern this machine.
        if !is_question && told.as_ref() == Some(&answer) {
            continue;
        }
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        timeout(WRITE_PATIENCE, writer.write_all(&line)).await??;
        told = Some(answer);
    }
}

fn parse(line: &[u8]) -> io::Result<Question> {
    let question: Question = serde_json::from_slice(line)?;
    if id(&question).is_none() || question.sandboxes.len() > MAX_SANDBOXES {
        let text = "machine: expected 32 hex digits, and at most 16 sandboxes";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(question)
}

fn id(question: &Question) -> Option<[u8; 16]> {
    text::from_hex(&question.machine)?.try_into().ok()
}

/// What holds for a machine: of all that concerns it the hardest.
fn answer(state: &State, tenant: &str, question: &Question) -> Answer {
    let machine = (question.host.clone(), id(question).unwrap_or_default());
    let known = state.machines.get(&machine).map(|known| known.values()).into_iter().flatten();
    // What the host was told holds also while a stopped guest cannot say hello again.
    let mut sandboxes = question.sandboxes.clone();
    let mut level = state.stops.level(tenant, &question.task, None);
    for caller in known {
        level = level.max(state.stops.level(&caller.tenant, &caller.claims.task, None));
        if state.is_dead(caller) {
            level = Some(StopLevel::Destroy);
        }
        sandboxes.push(caller.sandbox.clone());
    }
    sandboxes.sort();
    sandboxes.dedup();
    let revoked = &state.revoked_keys;
    for sandbox in &sandboxes {
        level = level.max(state.stops.level(tenant, &question.task, Some(sandbox)));
        if state.stopped.contains(sandbox)
            || key_of(sandbox).is_some_and(|key| revoked.contains(&key))
        {
            level = Some(StopLevel::Destroy);
        }
    }
    sandboxes.truncate(MAX_SANDBOXES);
    Answer { beat: question.beat, stop: level.map(StopLevel::name), sandboxes }
}

/// The id of the identity key that ends a sandbox's URI
/// (docs/formats/identity-certificate.md).
fn key_of(sandbox: &str) -> Option<KeyId> {
    let (_, id) = sandbox.rsplit_once('/')?;
    Some(KeyId(text::from_hex(id)?.try_into().ok()?))
}
