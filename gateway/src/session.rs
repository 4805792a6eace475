//! One port's connection: TLS, hello, then requests in the order they came.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use casemate_ledger::cgp::{
    Cancelled, Hello, HelloReply, LeaseNotice, LineBuffer, MAX_BUNDLE_BYTES, Message, PROTOCOL,
    RpcError, error_code, method,
};
use casemate_ledger::{Event, EventKind, Identity, LeafKind};
use casemate_ledger_store::StoreError;
use rustls::ServerConfig;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{MissedTickBehavior, timeout};

use crate::clock::Now;
use crate::envelope::{Chain, Lease};
use crate::inflight::{Calls, InFlight};
use crate::journal::Written;
use crate::keys::random;
use crate::service::Gateway;
use crate::state::{Connected, State};
use crate::sync::{locked, turned_on};
use crate::upstream::Running;
use crate::{artefacts, call, hosts, listing};

/// A connection whose port said hello.
pub(crate) struct Session {
    pub(crate) caller: Identity,
    /// The tool servers of this connection, by their place in the configuration.
    pub(crate) servers: HashMap<usize, Arc<Mutex<Option<Arc<Running>>>>>,
    /// Turns true when the connection is over or the sandbox was stopped.
    pub(crate) ended: watch::Receiver<bool>,
    lease: [u8; 16],
}

/// How long a peer may take for the handshake, for hello, and to read a reply.
const PEER_PATIENCE: Duration = Duration::from_secs(10);
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// Calls of one connection that run at once; more are not read.
const IN_FLIGHT: usize = 64;
const OUTGOING: usize = 128;
/// How long running calls may go on when their port is gone.
const GRACE: Duration = Duration::from_secs(2);

/// Serves one stream until it ends. Errors are the peer's and end it.
pub(crate) async fn serve<S>(gateway: Arc<Gateway>, tls: Arc<ServerConfig>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    if let Err(error) = serve_stream(gateway, tls, stream).await {
        tracing::info!(%error, "connection ended");
    }
}

async fn serve_stream<S>(gateway: Arc<Gateway>, tls: Arc<ServerConfig>, stream: S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let stream = timeout(PEER_PATIENCE, acceptor.accept(stream)).await??;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = certificates.first().map_or(&[][..], |certificate| certificate.as_ref());
    let identity = Identity::verify(certificate, &gateway.identity_ca, gateway.clock.now().unix());
    let chain: Vec<Vec<u8>> = certificates.iter().map(|certificate| certificate.to_vec()).collect();
    let (reader, mut writer) = tokio::io::split(stream);
    let mut lines = Lines::new(reader);
    let greeting = timeout(PEER_PATIENCE, read_hello(&mut lines)).await??;
    let Some((id, hello)) = greeting else { return Ok(()) };
    let greeted = match (identity, hello) {
        (Ok(caller), Ok(hello)) => greet(&gateway, caller, &chain, &hello).await,
        (Err(error), _) => Err(RpcError::new(error_code::IDENTITY, error.to_string())),
        (_, Err(error)) => Err(error),
    };
    let (session, ended, reply) = match greeted {
        Ok(greeted) => greeted,
        Err(error) => {
            let answer = Message::Response { id, result: Err(error.clone()) };
            timeout(WRITE_PATIENCE, write_line(&mut writer, &answer.encode())).await??;
            return Err(io::Error::other(error));
        }
    };
    let result = serde_json::to_value(reply).map_err(io::Error::other);
    let answer = Message::Response { id, result: Ok(result?) };
    let (outgoing, queue) = mpsc::channel(OUTGOING);
    let _ = outgoing.send(answer.encode()).await;
    tokio::select! {
        result = write_all(writer, queue) => result,
        result = requests(&gateway, Arc::new(session), EndOnDrop(ended), lines, outgoing) => result,
    }
}

/// The first request, which must be hello.
async fn read_hello<R: AsyncRead + Unpin>(
    lines: &mut Lines<R>,
) -> io::Result<Option<(u64, Result<Hello, RpcError>)>> {
    let Some(line) = lines.next().await? else { return Ok(None) };
    match Message::parse(&line).map_err(io::Error::other)? {
        Message::Request { id, method, params } if method == method::HELLO => {
            let hello = serde_json::from_value(params)
                .map_err(|error| RpcError::new(error_code::INVALID_PARAMS, error.to_string()));
            Ok(Some((id, hello)))
        }
        _ => Err(io::Error::other("expected casemate/hello first")),
    }
}

type Greeted = (Session, watch::Sender<bool>, HelloReply);

/// Checks hello against certificate and chain, and gives the first lease.
async fn greet(
    gateway: &Gateway,
    caller: Identity,
    chain: &[Vec<u8>],
    hello: &Hello,
) -> Result<Greeted, RpcError> {
    check_hello(gateway, &caller, hello)?;
    let log_error = |error: &dyn std::fmt::Display| {
        RpcError::new(error_code::LOG, format!("gateway cannot keep records: {error}"))
    };
    artefacts::keep(&gateway.config.state_dir, &caller, chain, &hello.bundle)
        .await
        .map_err(|error| log_error(&error))?;
    let machine = gateway.config.host_socket.as_ref().and_then(|_| hosts::machine(&hello.bundle));
    let now = gateway.clock.now();
    let (switch, ended) = watch::channel(false);
    let (written, lease, sequence, hash) = {
        let mut state = locked(&gateway.state);
        // Also of who is refused: a stop has to find its machine.
        if let Some(machine) = machine {
            state.locate(machine, &caller);
        }
        refuse(&state, &caller, now)?;
        let instance = (caller.sandbox.clone(), caller.claims.epoch);
        let later = (caller.sandbox.clone(), caller.claims.epoch.saturating_add(1));
        let newer = state.chains.range(later..).next();
        let newer = newer.is_some_and(|((uri, _), _)| *uri == caller.sandbox);
        if newer {
            return Err(RpcError::new(error_code::IDENTITY, "a later epoch was seen already"));
        }
        let chain = state.chains.entry(instance.clone()).or_default();
        if let Err(reason) = check_continuity(chain, hello) {
            freeze(gateway, chain, &caller, &reason).map_err(|error| log_error(&error))?;
            return Err(RpcError::new(error_code::CHAIN, format!("sandbox is frozen: {reason}")));
        }
        let lease = new_lease(gateway, None)
            .ok_or_else(|| RpcError::new(error_code::OVERLOAD, "no random bytes"))?;
        chain.lease = Some(lease);
        let (sequence, hash) = (chain.sequence, chain.last);
        let connected = Connected { caller: caller.clone(), switch: switch.clone() };
        if let Some(older) = state.sessions.insert(instance, connected) {
            older.switch.send_replace(true);
        }
        let written = note(gateway, &mut state, &caller, now);
        (written.map_err(|error| log_error(&error))?, lease, sequence, hash)
    };
    written.durable().await.map_err(|error| log_error(&error))?;
    let reply = HelloReply {
        protocol: PROTOCOL.to_owned(),
        accepted_sequence: sequence,
        accepted_hash: hash,
        lease: notice(gateway, lease),
        gateway_time_ms: now.unix_ms,
        policy: gateway.policy,
        log: gateway.config.log_origin.clone(),
    };
    let servers = (0..gateway.config.upstreams.len()).map(|at| (at, Arc::default())).collect();
    Ok((Session { caller, servers, ended, lease: lease.id }, switch, reply))
}

/// Writes the hello down. No budget pays for it, and the record stands in the
/// write-ahead log and in a tile.
fn note(
    gateway: &Gateway,
    state: &mut State,
    caller: &Identity,
    now: Now,
) -> Result<Written<Event>, StoreError> {
    let event = Event {
        sandbox: Some(caller.sandbox.clone()),
        epoch: Some(caller.claims.epoch),
        key: Some(caller.key),
        digest: Some(caller.digest),
        ..Event::new(EventKind::Identity, now.unix_ms)
    };
    let written = gateway.journal.write(LeafKind::Event, event)?;
    let bytes = u64::try_from(written.record.bytes().len()).unwrap_or(u64::MAX);
    state.denials.charge(&caller.sandbox, bytes.saturating_mul(2), now);
    Ok(written)
}

/// Whether the sandbox may connect; if not, for now or for good.
fn refuse(state: &State, caller: &Identity, now: Now) -> Result<(), RpcError> {
    if state.is_dead(caller) {
        let text = "the sandbox was killed or its key revoked, for good";
        return Err(RpcError::new(error_code::IDENTITY, text));
    }
    if state.is_ended(caller) {
        return Err(RpcError::new(error_code::LEASE, "the sandbox was stopped by its operator"));
    }
    if let Some(wait_ms) = state.denials.wait_ms(&caller.sandbox, now) {
        let text = format!("too much of this sandbox was written down; wait {wait_ms} ms");
        return Err(RpcError::new(error_code::OVERLOAD, text));
    }
    Ok(())
}

fn check_hello(gateway: &Gateway, caller: &Identity, hello: &Hello) -> Result<(), RpcError> {
    let identity = |text: &str| Err(RpcError::new(error_code::IDENTITY, text));
    if hello.protocol != PROTOCOL {
        let text = format!("protocol: expected {PROTOCOL}, got {}", hello.protocol);
        return Err(RpcError::new(error_code::INVALID_PARAMS, text));
    }
    if caller.tenant != gateway.config.tenant {
        return identity("certificate, URI: expected a sandbox of this gateway's tenant");
    }
    if hello.sandbox != caller.sandbox || hello.epoch != caller.claims.epoch {
        return identity("hello: expected the sandbox and epoch of the certificate");
    }
    if hello.bundle.len() > MAX_BUNDLE_BYTES
        || casemate_ledger::digest(&hello.bundle) != caller.claims.bundle
    {
        return identity("hello, bundle: expected the bundle that the certificate names");
    }
    Ok(())
}

/// The port's last invocation must be the last accepted one or come after it.
fn check_continuity(chain: &Chain, hello: &Hello) -> Result<(), String> {
    if let Some(reason) = &chain.frozen {
        return Err(reason.clone());
    }
    if hello.last_sequence < chain.sequence {
        let (ours, theirs) = (chain.sequence, hello.last_sequence);
        return Err(format!("the port knows {theirs} invocations of {ours} that were accepted"));
    }
    if hello.last_sequence == chain.sequence && hello.last_hash != chain.last {
        return Err(format!("invocation {} is another one than was accepted", chain.sequence));
    }
    Ok(())
}

/// Freezes a sandbox for good.
pub(crate) fn freeze(
    gateway: &Gateway,
    chain: &mut Chain,
    caller: &Identity,
    reason: &str,
) -> Result<(), StoreError> {
    if chain.frozen.is_some() {
        return Ok(());
    }
    chain.frozen = Some(reason.to_owned());
    tracing::warn!(sandbox = caller.sandbox, reason, "sandbox frozen");
    let event = Event {
        sandbox: Some(caller.sandbox.clone()),
        epoch: Some(caller.claims.epoch),
        note: Some(reason.to_owned()),
        ..Event::new(EventKind::Frozen, gateway.clock.now().unix_ms)
    };
    gateway.journal.write(LeafKind::Event, event).map(drop)
}

/// Reads requests until the stream or the session ends, then lets calls end.
/// Calls are tasks of their own: whatever happens to the connection, each
/// writes its outcome.
async fn requests<R: AsyncRead + Unpin>(
    gateway: &Arc<Gateway>,
    session: Arc<Session>,
    end: EndOnDrop,
    mut lines: Lines<R>,
    outgoing: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    let calls = Calls::default();
    let mut ended = session.ended.clone();
    let half = Duration::from_millis(gateway.config.lease_ms / 2);
    let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + half, half);
    // Two nonces in a row would make a port's call stale that is on its way:
    // after a delay there is one.
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let result = loop {
        tokio::select! {
            biased;
            () = turned_on(&mut ended) => break Ok(()),
            _ = beat.tick() => match rotate(gateway, &session) {
                Some(line) => if outgoing.send(line).await.is_err() { break Ok(()) },
                None => break Ok(()),
            },
            request = next_request(&slots, &mut lines) => match request {
                Ok(Some((slot, line))) => match Message::parse(&line) {
                    // A refusal is answered before anything behind it is read.
                    Ok(message) => start(gateway, &session, &calls, message, &outgoing, slot).await,
                    Err(error) => break Err(io::Error::other(error)),
                },
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            },
        }
    };
    // A port that is gone gets this long; then what still runs is cancelled.
    let all = u32::try_from(IN_FLIGHT).unwrap_or(u32::MAX);
    let _ = timeout(GRACE, slots.acquire_many(all)).await;
    drop(end);
    result
}

/// The next line, once there is room for another call.
async fn next_request<R: AsyncRead + Unpin>(
    slots: &Arc<Semaphore>,
    lines: &mut Lines<R>,
) -> io::Result<Option<(OwnedSemaphorePermit, Vec<u8>)>> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    Ok(lines.next().await?.map(|line| (slot, line)))
}

/// Does what must happen in the order of arrival, and leaves the rest to a task.
async fn start(
    gateway: &Arc<Gateway>,
    session: &Arc<Session>,
    calls: &Calls,
    message: Message,
    outgoing: &mpsc::Sender<Vec<u8>>,
    slot: OwnedSemaphorePermit,
) {
    let (id, method, params) = match message {
        Message::Request { id, method, params } => (id, method, params),
        Message::Notification { method, params } if method == method::CANCELLED => {
            if let Ok(Cancelled { request_id }) = serde_json::from_value(params) {
                calls.cancel(request_id);
            }
            return;
        }
        // The port has nothing else to notify of, and nothing was asked of it.
        _ => return,
    };
    let admitted = match calls.start(id, &params, outgoing) {
        Ok(in_flight) => {
            let pending = dispatch(gateway, session, &method, params, in_flight);
            if matches!(pending, Pending::Known(_)) {
                calls.end(id);
            }
            pending
        }
        Err(error) => Pending::Known(Err(error)),
    };
    let admitted = match admitted {
        Pending::Call(admitted) => admitted,
        Pending::Known(result) => {
            // A port that does not read is noticed by the task that writes.
            let _ = outgoing.send(Message::Response { id, result }.encode()).await;
            return;
        }
    };
    let (outgoing, calls) = (outgoing.clone(), calls.clone());
    tokio::spawn(async move {
        let answer = Message::Response { id, result: admitted.finish().await };
        calls.end(id);
        let _ = outgoing.send(answer.encode()).await;
        drop(slot);
    });
}

/// Ends a session's calls when its connection is over, however it ended.
struct EndOnDrop(watch::Sender<bool>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// An answer that is known, or a call that was admitted and goes on.
enum Pending {
    Known(Result<Value, RpcError>),
    Call(Box<call::Admitted>),
}

/// What must happen in the order of arrival happens here.
fn dispatch(
    gateway: &Arc<Gateway>,
    session: &Arc<Session>,
    name: &str,
    params: Value,
    in_flight: InFlight,
) -> Pending {
    match name {
        method::TOOLS_LIST => Pending::Known(listing::tools(gateway, &session.caller)),
        method::TOOLS_CALL => match call::admit(gateway, session, params, in_flight) {
            Ok(admitted) => Pending::Call(Box::new(admitted)),
            Err(error) => Pending::Known(Err(error)),
        },
        method::HELLO => Pending::Known(Err(RpcError::new(
            error_code::INVALID_REQUEST,
            "hello: expected once, at the start",
        ))),
        _ => Pending::Known(Err(RpcError::new(error_code::METHOD_NOT_FOUND, "no such method"))),
    }
}

/// The line that gives the next nonce, unless the lease is no longer ours.
fn rotate(gateway: &Gateway, session: &Session) -> Option<Vec<u8>> {
    let instance = (session.caller.sandbox.clone(), session.caller.claims.epoch);
    let mut state = locked(&gateway.state);
    let chain = state.chains.get_mut(&instance)?;
    let old = chain.lease.filter(|lease| lease.id == session.lease)?;
    let lease = new_lease(gateway, Some(old))?;
    chain.lease = Some(lease);
    let params = serde_json::to_value(notice(gateway, lease)).ok()?;
    Some(Message::notification(method::LEASE, params).encode())
}

/// The next lease after `old`, or a new one.
fn new_lease(gateway: &Gateway, old: Option<Lease>) -> Option<Lease> {
    let nonce = random()?;
    let id = old.map_or_else(random, |old| Some(old.id))?;
    let ttl_us = gateway.config.lease_ms.saturating_mul(1000);
    Some(Lease {
        id,
        nonce,
        previous: old.map_or(nonce, |old| old.nonce),
        ends_us: gateway.clock.now().monotonic_us.saturating_add(ttl_us),
    })
}

fn notice(gateway: &Gateway, lease: Lease) -> LeaseNotice {
    LeaseNotice { id: lease.id, nonce: lease.nonce, ttl_ms: gateway.config.lease_ms }
}

async fn write_all<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut queue: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Some(line) = queue.recv().await {
        timeout(WRITE_PATIENCE, write_line(&mut writer, &line)).await??;
    }
    writer.shutdown().await
}

async fn write_line<W: AsyncWrite + Unpin>(writer: &mut W, line: &[u8]) -> io::Result<()> {
    writer.write_all(line).await?;
    writer.flush().await
}

/// Lines of bounded length from a stream. Dropping [`Self::next`] loses nothing.
pub(crate) struct Lines<R> {
    reader: R,
    buffer: LineBuffer,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, buffer: LineBuffer::default() }
    }

    pub(crate) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut chunk = vec![0; 16 * 1024];
        loop {
            if let Some(line) = self.buffer.next_line().map_err(io::Error::other)? {
                return Ok(Some(line));
            }
            let count = self.reader.read(&mut chunk).await?;
            if count == 0 {
                return Ok(None);
            }
            self.buffer.extend(chunk.get(..count).unwrap_or_default());
        }
    }
}
