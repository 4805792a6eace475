//! One stream to the gateway: greeted, then lines both ways until it ends.

use std::time::Duration;

use casemate_ledger::cgp::{HelloReply, LineBuffer, Message, PROTOCOL, method};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::calls::Calls;
use super::{GatewayError, from_value, wrong};
use crate::attest::Attested;

const HELLO_PATIENCE: Duration = Duration::from_secs(30);
/// How long calls may go on when the stream is to be replaced.
const DRAIN_PATIENCE: Duration = Duration::from_secs(120);

/// One greeted stream.
#[derive(Debug)]
pub(super) struct Session<S> {
    stream: S,
    lines: LineBuffer,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Says hello under the identity of `attested` and learns where to go on.
    pub(super) async fn greet(
        stream: S,
        calls: &mut Calls,
        attested: &Attested,
    ) -> Result<Self, GatewayError> {
        let mut session = Self { stream, lines: LineBuffer::default() };
        let hello = calls.chain.hello(attested)?;
        let params = serde_json::to_value(&hello)
            .map_err(|error| wrong("hello", "JSON", &error.to_string()))?;
        let exchange = session.hello(Message::request(0, method::HELLO, params));
        let seconds = HELLO_PATIENCE.as_secs();
        let reply = timeout(HELLO_PATIENCE, exchange)
            .await
            .map_err(|_| GatewayError::Timeout { asked: "hello", seconds })??;
        if reply.protocol != PROTOCOL {
            return Err(wrong("hello.protocol", PROTOCOL, &reply.protocol));
        }
        calls.greeted(&reply)?;
        Ok(session)
    }

    async fn hello(&mut self, hello: Message) -> Result<HelloReply, GatewayError> {
        self.write(&hello.encode()).await?;
        loop {
            match read_message(&mut self.stream, &mut self.lines).await? {
                Message::Response { id: 0, result: Ok(reply) } => {
                    return from_value("hello", reply);
                }
                Message::Response { id: 0, result: Err(error) } => {
                    return Err(GatewayError::of_hello(error));
                }
                Message::Notification { .. } => {}
                _ => return Err(wrong("message", "the answer to hello", "another")),
            }
        }
    }

    /// Carries `calls` until the stream fails or `renewal` is done and what is
    /// on its way has come back; gives what the renewal gave.
    pub(super) async fn run<R>(
        &mut self,
        calls: &mut Calls,
        renewal: impl Future<Output = Result<R, GatewayError>>,
    ) -> Result<R, GatewayError> {
        tokio::pin!(renewal);
        let mut renewed = None;
        let mut drained = Instant::now();
        loop {
            if renewed.is_none() {
                let lines = calls.lines()?;
                self.write(&lines).await?;
            } else if calls.is_idle() || Instant::now() >= drained {
                break;
            }
            tokio::select! {
                message = read_message(&mut self.stream, &mut self.lines) => calls.take(message?)?,
                command = calls.queue.recv(), if renewed.is_none() && calls.has_place() => {
                    calls.ask(command.ok_or(GatewayError::Closed)?);
                }
                Some(ticket) = calls.given_up.recv() => {
                    if let Some(line) = calls.give_up(ticket) {
                        self.write(&line).await?;
                    }
                }
                () = sleep_until(calls.lease_ends) => return Err(GatewayError::LeaseOver),
                outcome = &mut renewal, if renewed.is_none() => {
                    renewed = Some(outcome?);
                    drained = Instant::now() + DRAIN_PATIENCE;
                }
                () = sleep_until(drained), if renewed.is_some() => {}
            }
        }
        renewed.ok_or(GatewayError::Closed)
    }

    async fn write(&mut self, lines: &[u8]) -> Result<(), GatewayError> {
        if lines.is_empty() {
            return Ok(());
        }
        self.stream.write_all(lines).await?;
        Ok(self.stream.flush().await?)
    }
}

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
