//! The door of lines: one message a line, both ways, bounded. What MCP calls
//! stdio; it works unchanged over a unix socket.

use std::time::Duration;

use casemate_ledger::cgp::{RpcError, error_code};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::desk::{Client, Desk, Open, Taken, Told, told_error};
use crate::gateway::Tools;

/// How long a client may leave an answer unread.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// Answers that wait for a slow client; more make the requests wait.
const WAITING_ANSWERS: usize = 16;

/// Tells a client that there is no place for it.
pub(super) async fn refuse(most: usize, mut stream: impl AsyncWrite + Unpin) {
    let message = format!("connections: expected at most {most}, got one more");
    let told = told_error(&Value::Null, RpcError::new(error_code::OVERLOAD, message));
    let _ = timeout(WRITE_PATIENCE, write_line(&mut stream, told)).await;
}

/// Serves a client until it or its patience ends.
pub(super) async fn serve<T: Tools, S>(desk: Desk<T>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let (told, queue) = mpsc::channel(WAITING_ANSWERS);
    let client = Client { told, open: Open::default() };
    tokio::select! {
        () = read(&desk, reader, &client) => {}
        () = write(writer, queue) => {}
    }
    client.open.abort_all();
}

async fn read<T: Tools>(desk: &Desk<T>, mut reader: impl AsyncRead + Unpin, client: &Client) {
    let limit = desk.shared.limits.max_line_bytes;
    let mut buffer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    while let Ok(length @ 1..) = reader.read(&mut chunk).await {
        let mut rest = chunk.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n');
            let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
            if buffer.len() + part.len() > limit {
                too_long(limit, client).await;
                return;
            }
            buffer.extend_from_slice(part);
            rest = after.get(1..).unwrap_or_default();
            if end.is_some() && !line(desk, &std::mem::take(&mut buffer), client).await {
                return;
            }
        }
    }
    finish(client).await;
}

async fn too_long(limit: usize, client: &Client) {
    let message = format!("line: expected at most {limit} bytes, got more");
    let error = RpcError::new(error_code::INVALID_REQUEST, message);
    let _ = client.told.send(told_error(&Value::Null, error)).await;
    // Time for the answer to leave before the connection does.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Takes one line; false when nobody reads the answers.
async fn line<T: Tools>(desk: &Desk<T>, line: &[u8], client: &Client) -> bool {
    if line.iter().all(u8::is_ascii_whitespace) {
        return true;
    }
    let taken = match desk.read(line) {
        Ok(request) => desk.take(request, client),
        Err(told) => Taken::Answer(told),
    };
    match taken {
        Taken::Answer(told) => client.told.send(told).await.is_ok(),
        Taken::Nothing | Taken::Running => true,
    }
}

/// A client may close its sending half and still wait for its answers.
async fn finish(client: &Client) {
    while !client.open.is_empty() || client.told.capacity() < client.told.max_capacity() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn write(mut writer: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Told>) {
    while let Some(told) = queue.recv().await {
        match timeout(WRITE_PATIENCE, write_line(&mut writer, told)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
    }
}

async fn write_line(writer: &mut (impl AsyncWrite + Unpin), told: Told) -> std::io::Result<()> {
    let mut line = told.into_bytes();
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await
}

#[cfg(test)]
#[path = "lines_tests.rs"]
mod tests;
