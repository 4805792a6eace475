//! The port's side of CGP/1: one signer, one order, one TLS stream to the
//! gateway at a time. Format: docs/formats/cgp.md.
//!
//! Calls are signed in the order in which they are sent, each before the fate
//! of the one before is known. A call that the gateway refuses leaves its
//! number unused; those behind it are then signed anew. The stream is made
//! again when it breaks and before the identity certificate ends; the chain of
//! calls goes on through all of them.

mod calls;
mod chain;
mod dial;
mod keeper;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use casemate_ledger::cgp::{LineTooLong, MessageError, Progress, RpcError, error_code};
use casemate_mux::MuxError;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::attest::AttestError;
use crate::tls::TlsError;

pub use dial::{Dial, Machine};
pub use keeper::{Keeper, connect};

/// The longest wait for one call; the gateway's own limits are shorter.
const CALL_PATIENCE: Duration = Duration::from_secs(900);

/// Why the port has no gateway. The machine ends with it.
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
    /// The gateway refused the session, or a call in a way that ends it.
    #[error("gateway: {0}")]
    Refused(RpcError),
    /// The gateway serves no calls on this stream any more, or none for now.
    #[error("gateway: {0}")]
    Interrupted(RpcError),
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
    /// The identity was not renewed in time.
    #[error("identity, renewal: {0}")]
    Renewal(Box<AttestError>),
    /// The kernel gave no randomness.
    #[error("randomness: none")]
    Random,
}

impl GatewayError {
    /// Why there is no session: for good, or for as long as the gateway has
    /// stopped the sandbox, cannot write its log, or has too much to do.
    fn of_hello(error: RpcError) -> Self {
        match error.code {
            error_code::LEASE | error_code::LOG | error_code::OVERLOAD => Self::Interrupted(error),
            _ => Self::Refused(error),
        }
    }

    /// Whether another stream may do better.
    fn is_passing(&self) -> bool {
        match self {
            Self::Mux(_) | Self::Tls(_) | Self::Io(_) | Self::Closed => true,
            Self::Interrupted(_) | Self::Timeout { .. } | Self::LeaseOver => true,
            Self::Renewal(error) => !error.is_refusal(),
            Self::Line(_) | Self::Message(_) | Self::Field { .. } => false,
            Self::Refused(_) | Self::Random => false,
        }
    }

    /// Whether the gateway may have ended the stream because of our certificate:
    /// in TLS 1.3 it looks at that after our handshake is done (RFC 8446 2).
    fn may_be_the_certificate(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Closed)
    }

    /// The gateway's answer to a sandbox that its operator has stopped.
    fn as_stop(&self) -> Option<&RpcError> {
        match self {
            Self::Interrupted(error) if error.code == error_code::LEASE => Some(error),
            _ => None,
        }
    }
}

/// What the port asks of the gateway.
pub trait Tools: Clone + Send + Sync + 'static {
    /// The result of `tools/list`.
    fn list(&self) -> impl Future<Output = Result<Value, RpcError>> + Send;
    /// The result of `tools/call` of `tool`. Dropping the future cancels the
    /// call; its progress, if wanted, goes to `progress`.
    fn call(
        &self,
        tool: String,
        arguments: Value,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> impl Future<Output = Result<Value, RpcError>> + Send;
}

/// The way to the keeper's task; clones share it.
#[derive(Debug, Clone)]
pub struct Gateway {
    commands: mpsc::Sender<Command>,
    /// Tickets of commands that nobody waits for; at most one for each that was queued.
    given_up: mpsc::UnboundedSender<u64>,
    tickets: Arc<AtomicU64>,
}

/// One thing that a client wants.
#[derive(Debug)]
struct Command {
    ticket: u64,
    work: Work,
    reply: oneshot::Sender<Result<Value, RpcError>>,
}

#[derive(Debug)]
enum Work {
    List,
    Call { tool: String, arguments: Value, progress: Option<mpsc::Sender<Progress>> },
}

impl Tools for Gateway {
    async fn list(&self) -> Result<Value, RpcError> {
        self.ask(Work::List).await
    }

    async fn call(
        &self,
        tool: String,
        arguments: Value,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<Value, RpcError> {
        self.ask(Work::Call { tool, arguments, progress }).await
    }
}

type Queues = (mpsc::Receiver<Command>, mpsc::UnboundedReceiver<u64>);

impl Gateway {
    /// The handle and its queues; the first holds `places` commands.
    fn new(places: usize) -> (Self, Queues) {
        let (commands, queue) = mpsc::channel(places);
        let (given_up, tickets) = mpsc::unbounded_channel();
        (Self { commands, given_up, tickets: Arc::default() }, (queue, tickets))
    }

    async fn ask(&self, work: Work) -> Result<Value, RpcError> {
        let (reply, answer) = oneshot::channel();
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let full = |_| RpcError::new(error_code::OVERLOAD, "too many calls wait for the gateway");
        self.commands.try_send(Command { ticket, work, reply }).map_err(full)?;
        let mut waiting = Waiting { ticket, given_up: Some(&self.given_up) };
        let answer = timeout(CALL_PATIENCE, answer).await.map_err(|_| {
            let text = format!("no answer of the gateway within {} s", CALL_PATIENCE.as_secs());
            RpcError::new(error_code::OVERLOAD, text)
        })?;
        waiting.given_up = None;
        let gone = |_| RpcError::new(error_code::LEASE, "the connection to the gateway ended");
        answer.map_err(gone)?
    }
}

/// Gives the command up when it is dropped before its answer came.
struct Waiting<'a> {
    ticket: u64,
    given_up: Option<&'a mpsc::UnboundedSender<u64>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(given_up) = self.given_up {
            // Without a keeper there is nothing to cancel.
            let _ = given_up.send(self.ticket);
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], GatewayError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| GatewayError::Random)?;
    Ok(bytes)
}

fn wrong(field: &'static str, expected: &str, actual: &str) -> GatewayError {
    GatewayError::Field { field, expected: expected.to_owned(), actual: actual.to_owned() }
}

fn from_value<T: serde::de::DeserializeOwned>(
    field: &'static str,
    value: Value,
) -> Result<T, GatewayError> {
    serde_json::from_value(value).map_err(|error| wrong(field, "its format", &error.to_string()))
}
