//! The port's side of CGP/1: one TLS stream to the gateway, one signer, one
//! order. Format: docs/formats/cgp.md.
//!
//! Calls are signed and sent one at a time: a call that the gateway did not
//! take leaves its sequence number unused, so nothing may be signed behind a
//! call whose fate is open.

mod chain;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casemate_ledger::args::{self, MAX_ARGS_BYTES};
use casemate_ledger::cgp::{
    Hello, HelloReply, LeaseNotice, LineBuffer, LineTooLong, Message, MessageError, PROTOCOL,
    RpcError, ToolMeta, call_params, error_code, list_params, meta, method,
};
use casemate_mux::{Guest, MuxError, Stream};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::client::TlsStream;

use crate::attest::Attested;
use crate::config;
use crate::identity::Identity;
use crate::tls::{self, TlsError};
use chain::Chain;

const SERVICE: &str = "gateway";
const HELLO_PATIENCE: Duration = Duration::from_secs(30);
/// The longest wait for one call; the gateway's own limits are shorter.
const CALL_PATIENCE: Duration = Duration::from_secs(180);
/// The most tools whose grants are remembered.
const MAX_TOOLS: usize = 1024;

/// Why the stream to the gateway ended. The machine ends with it.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The wire gave no stream.
    #[error(transparent)]
    Mux(#[from] MuxError),
    /// No TLS connection.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The stream broke.
    #[error("gateway: {0}")]
    Io(#[from] std::io::Error),
    /// The gateway closed the stream.
    #[error("gateway: it closed the stream")]
    Closed,
    /// A line is too long.
    #[error("gateway: {0}")]
    Line(#[from] LineTooLong),
    /// A line is not a message.
    #[error("gateway: {0}")]
    Message(#[from] MessageError),
    /// A message is not what it must be.
    #[error("gateway, {field}: expected {expected}, got {actual}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it had to be.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// The gateway refused the session, or stopped it.
    #[error("gateway: {0}")]
    Refused(RpcError),
    /// No answer in time.
    #[error("gateway: no answer to {asked} within {seconds} s")]
    Timeout {
        /// What was asked.
        asked: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// The gateway did not renew the lease.
    #[error("gateway: the lease ended without a new one")]
    LeaseOver,
    /// The kernel gave no randomness.
    #[error("randomness: none")]
    Random,
}

/// What the port asks of the gateway.
pub trait Tools: Clone + Send + Sync + 'static {
    /// The result of `tools/list`.
    fn list(&self) -> impl Future<Output = Result<Value, RpcError>> + Send;
    /// The result of `tools/call` of `tool`.
    fn call(
        &self,
        tool: String,
        arguments: Value,
    ) -> impl Future<Output = Result<Value, RpcError>> + Send;
}

/// The way to the session's task; clones share it.
#[derive(Debug, Clone)]
pub struct Gateway(mpsc::Sender<Command>);

#[derive(Debug)]
struct Command {
    work: Work,
    reply: oneshot::Sender<Result<Value, RpcError>>,
}

#[derive(Debug)]
enum Work {
    List,
    Call { tool: String, arguments: Value },
}

impl Tools for Gateway {
    async fn list(&self) -> Result<Value, RpcError> {
        self.ask(Work::List).await
    }

    async fn call(&self, tool: String, arguments: Value) -> Result<Value, RpcError> {
        self.ask(Work::Call { tool, arguments }).await
    }
}

impl Gateway {
    /// The handle and the queue of its session; the queue holds `places` requests.
    fn new(places: usize) -> (Self, mpsc::Receiver<Command>) {
        let (commands, queue) = mpsc::channel(places);
        (Self(commands), queue)
    }

    async fn ask(&self, work: Work) -> Result<Value, RpcError> {
        let (reply, answer) = oneshot::channel();
        let full = |_| RpcError::new(error_code::OVERLOAD, "too many calls wait for the gateway");
        self.0.try_send(Command { work, reply }).map_err(full)?;
        let gone = |_| RpcError::new(error_code::LEASE, "the connection to the gateway ended");
        answer.await.map_err(gone)?
    }
}

/// One session with the gateway, greeted and ready.
#[derive(Debug)]
pub struct Session<S> {
    stream: S,
    lines: LineBuffer,
    next_id: u64,
    chain: Chain,
    lease_ends: Instant,
    tools: HashMap<String, ToolMeta>,
    queue: mpsc::Receiver<Command>,
}

/// Connects over the wire and greets the gateway.
pub async fn connect(
    mux: &Guest,
    peer: &config::Peer,
    identity: Arc<Identity>,
    attested: &Attested,
    places: usize,
) -> Result<(Gateway, Session<TlsStream<Stream>>), GatewayError> {
    let stream = mux.open(SERVICE).await?;
    let to = tls::Peer { name: &peer.server_name, ca_pem: &peer.ca_pem };
    let stream = tls::connect(to, Some(attested.certificate.key.clone()), stream).await?;
    let (gateway, queue) = Gateway::new(places);
    let session = Session::greet(stream, identity, attested, queue).await?;
    Ok((gateway, session))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    async fn greet(
        stream: S,
        identity: Arc<Identity>,
        attested: &Attested,
        queue: mpsc::Receiver<Command>,
    ) -> Result<Self, GatewayError> {
        let chain = Chain::new(identity, &attested.certificate);
        let hello = chain.hello(attested.bundle.clone());
        let mut session = Self {
            stream,
            lines: LineBuffer::default(),
            next_id: 1,
            chain,
            // Until the first lease, the greeting's own patience is the limit.
            lease_ends: Instant::now() + HELLO_PATIENCE,
            tools: HashMap::new(),
            queue,
        };
        let params = to_value(&hello)?;
        let greeted = timeout(HELLO_PATIENCE, session.exchange(method::HELLO, params)).await;
        let seconds = HELLO_PATIENCE.as_secs();
        let reply = greeted.map_err(|_| GatewayError::Timeout { asked: "hello", seconds })??;
        session.greeted(&hello, reply.map_err(GatewayError::Refused)?)?;
        Ok(session)
    }

    fn greeted(&mut self, hello: &Hello, reply: Value) -> Result<(), GatewayError> {
        let reply: HelloReply = from_value("hello", reply)?;
        if reply.protocol != PROTOCOL {
            return Err(wrong("hello.protocol", PROTOCOL, &reply.protocol));
        }
        // A machine's first session is its only one: there is nothing that
        // the gateway can have accepted before.
        let fresh = (hello.last_sequence, hello.last_hash);
        if (reply.accepted_sequence, reply.accepted_hash) != fresh {
            let actual = format!("{}", reply.accepted_sequence);
            return Err(wrong("hello.accepted_sequence", "0", &actual));
        }
        self.renew(&reply.lease);
        Ok(())
    }

    /// Serves the port's requests until the session ends; it always ends with an error.
    pub async fn run(mut self) -> GatewayError {
        loop {
            if let Err(error) = self.turn().await {
                return error;
            }
        }
    }

    async fn turn(&mut self) -> Result<(), GatewayError> {
        tokio::select! {
            message = read_message(&mut self.stream, &mut self.lines) => self.unasked(message?),
            command = self.queue.recv() => match command {
                Some(command) => self.serve(command).await,
                None => Err(GatewayError::Closed),
            },
            () = sleep_until(self.lease_ends) => Err(GatewayError::LeaseOver),
        }
    }

    async fn serve(&mut self, Command { work, reply }: Command) -> Result<(), GatewayError> {
        if reply.is_closed() {
            return Ok(()); // the caller gave up while it waited
        }
        let seconds = CALL_PATIENCE.as_secs();
        let late = |_| GatewayError::Timeout { asked: "a request", seconds };
        let answer = match work {
            Work::List => timeout(CALL_PATIENCE, self.list()).await.map_err(late)??,
            Work::Call { tool, arguments } => {
                timeout(CALL_PATIENCE, self.call(&tool, arguments)).await.map_err(late)??
            }
        };
        let over = answer.as_ref().err().is_some_and(|error| ends_session(error.code));
        let fatal = answer.as_ref().err().cloned().filter(|_| over);
        let _ = reply.send(answer);
        fatal.map_or(Ok(()), |error| Err(GatewayError::Refused(error)))
    }

    async fn list(&mut self) -> Result<Result<Value, RpcError>, GatewayError> {
        let answer = self.exchange(method::TOOLS_LIST, list_params()).await?;
        if let Ok(list) = &answer {
            self.remember(list)?;
        }
        Ok(answer)
    }

    async fn call(
        &mut self,
        tool: &str,
        arguments: Value,
    ) -> Result<Result<Value, RpcError>, GatewayError> {
        if !self.tools.contains_key(tool)
            && let Err(error) = self.list().await?
        {
            return Ok(Err(error));
        }
        let canonical = match args::canonical(Some(&arguments)) {
            Ok(canonical) if canonical.len() <= MAX_ARGS_BYTES => canonical,
            Ok(canonical) => return Ok(Err(args_too_long(canonical.len()))),
            Err(error) => {
                return Ok(Err(RpcError::new(error_code::INVALID_PARAMS, error.to_string())));
            }
        };
        let salt = random()?;
        let tool_meta = self.tools.get(tool);
        let signed = self.chain.sign(tool, tool_meta, &salt, &canonical, now_ms())?;
        let params = call_params(tool, arguments, signed.bytes(), &salt, None);
        let answer = self.exchange(method::TOOLS_CALL, params).await?;
        if answer.is_ok() {
            self.chain.accept(&signed);
        }
        Ok(answer)
    }

    /// Keeps each tool's digest and grant. A tool that is no longer listed
    /// keeps its last grant, so that a denial can say what became of it.
    fn remember(&mut self, list: &Value) -> Result<(), GatewayError> {
        let tools = list.get("tools").and_then(Value::as_array).map(Vec::as_slice);
        for tool in tools.unwrap_or_default() {
            let name = tool.get("name").and_then(Value::as_str).unwrap_or_default();
            let meta = tool.get("_meta").and_then(|fields| fields.get(meta::TOOL));
            let Some(meta) = meta else { continue };
            if self.tools.len() >= MAX_TOOLS && !self.tools.contains_key(name) {
                return Err(wrong("tools/list", "at most 1024 tools", "more"));
            }
            self.tools.insert(name.to_owned(), from_value("tools/list", meta.clone())?);
        }
        Ok(())
    }

    /// Sends one request and reads until its answer, taking leases on the way.
    async fn exchange(
        &mut self,
        method: &str,
        params: Value,
    ) -> Result<Result<Value, RpcError>, GatewayError> {
        let id = self.next_id;
        self.next_id += 1;
        self.stream.write_all(&Message::request(id, method, params).encode()).await?;
        self.stream.flush().await?;
        loop {
            let message = tokio::select! {
                message = read_message(&mut self.stream, &mut self.lines) => message?,
                () = sleep_until(self.lease_ends) => return Err(GatewayError::LeaseOver),
            };
            match message {
                Message::Response { id: answered, result } if answered == id => return Ok(result),
                other => self.unasked(other)?,
            }
        }
    }

    /// Takes a message that answers nothing: only leases may come so.
    fn unasked(&mut self, message: Message) -> Result<(), GatewayError> {
        match message {
            Message::Notification { method, params } if method == method::LEASE => {
                let notice = from_value("lease", params)?;
                self.renew(&notice);
                Ok(())
            }
            Message::Notification { .. } => Ok(()),
            Message::Request { method, .. } => {
                Err(wrong("message", "answers and notifications", &format!("request {method}")))
            }
            Message::Response { id, .. } => {
                Err(wrong("id", "the number of the open request", &id.to_string()))
            }
        }
    }

    fn renew(&mut self, notice: &LeaseNotice) {
        self.chain.lease(notice);
        self.lease_ends = Instant::now() + Duration::from_millis(notice.ttl_ms.min(MAX_TTL_MS));
    }
}

/// A day: longer leases would make the dead man's switch meaningless.
const MAX_TTL_MS: u64 = 24 * 3600 * 1000;

/// Reads the next message. Loses nothing when it is dropped between two reads.
async fn read_message(
    stream: &mut (impl AsyncRead + Unpin),
    lines: &mut LineBuffer,
) -> Result<Message, GatewayError> {
    let mut chunk = [0; 16 * 1024];
    loop {
        if let Some(line) = lines.next_line()? {
            return Ok(Message::parse(&line)?);
        }
        let length = stream.read(&mut chunk).await?;
        match chunk.get(..length) {
            Some(bytes) if length > 0 => lines.extend(bytes),
            _ => return Err(GatewayError::Closed),
        }
    }
}

/// Errors after which the chain does not go on.
fn ends_session(code: i64) -> bool {
    [error_code::CHAIN, error_code::REPLAY, error_code::LOG, error_code::LEASE].contains(&code)
}

fn args_too_long(actual: usize) -> RpcError {
    RpcError {
        code: error_code::INVALID_PARAMS,
        message: format!("arguments: expected at most {MAX_ARGS_BYTES} bytes, got {actual}"),
        details: json!({"field": "arguments", "expected": MAX_ARGS_BYTES, "actual": actual}),
    }
}

fn random<const N: usize>() -> Result<[u8; N], GatewayError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| GatewayError::Random)?;
    Ok(bytes)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0)
}

fn to_value(message: &impl serde::Serialize) -> Result<Value, GatewayError> {
    serde_json::to_value(message).map_err(|error| wrong("request", "JSON", &error.to_string()))
}

fn from_value<T: serde::de::DeserializeOwned>(
    field: &'static str,
    value: Value,
) -> Result<T, GatewayError> {
    serde_json::from_value(value).map_err(|error| wrong(field, "its format", &error.to_string()))
}

fn wrong(field: &'static str, expected: &str, actual: &str) -> GatewayError {
    GatewayError::Field { field, expected: expected.to_owned(), actual: actual.to_owned() }
}
