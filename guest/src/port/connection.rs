//! One client: lines in, lines out, both bounded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use casemate_ledger::cgp::{RpcError, error_code};
use casemate_ledger::json;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::Shared;
use super::translate::{self, Ask, Era};
use crate::gateway::Tools;

/// How long a client may leave an answer unread.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// Answers that wait for a slow client; more make the requests wait.
const WAITING_ANSWERS: usize = 16;
/// JSON-RPC 2.0, parse error.
const PARSE_ERROR: i64 = -32700;
/// The longest id that is repeated to the client.
const MAX_ID_BYTES: usize = 256;

/// One client's connection before it is served.
#[derive(Debug)]
pub(super) struct Connection<T> {
    shared: Arc<Shared>,
    tools: T,
}

/// The requests of one client that are not answered yet, by id.
type Open = Arc<Mutex<HashMap<String, Option<AbortHandle>>>>;

impl<T: Tools> Connection<T> {
    pub(super) fn new(shared: Arc<Shared>, tools: T) -> Self {
        Self { shared, tools }
    }

    /// Tells a client that there is no place for it.
    pub(super) async fn refuse(self, mut stream: impl AsyncWrite + Unpin) {
        let most = self.shared.limits.connections;
        let message = format!("connections: expected at most {most}, got one more");
        let line = failure(&Value::Null, RpcError::new(error_code::OVERLOAD, message));
        let _ = timeout(WRITE_PATIENCE, stream.write_all(&line)).await;
    }

    /// Serves the client until it or its patience ends.
    pub(super) async fn serve<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let (answers, queue) = mpsc::channel(WAITING_ANSWERS);
        let open = Open::default();
        tokio::select! {
            () = self.read(reader, &answers, &open) => {}
            () = write(writer, queue) => {}
        }
        // Nobody is left to answer to. A call that the gateway has goes on
        // there and is recorded.
        let left = open.lock().map(|mut open| std::mem::take(&mut *open)).unwrap_or_default();
        left.into_values().flatten().for_each(|request| request.abort());
    }

    async fn read(
        &self,
        mut reader: impl AsyncRead + Unpin,
        answers: &mpsc::Sender<Vec<u8>>,
        open: &Open,
    ) {
        let limit = self.shared.limits.max_line_bytes;
        let mut buffer = Vec::new();
        let mut chunk = [0; 16 * 1024];
        while let Ok(length @ 1..) = reader.read(&mut chunk).await {
            for byte in chunk.get(..length).unwrap_or_default() {
                if *byte != b'\n' {
                    buffer.push(*byte);
                    if buffer.len() > limit {
                        let message = format!("line: expected at most {limit} bytes, got more");
                        let error = RpcError::new(error_code::INVALID_REQUEST, message);
                        let _ = answers.send(failure(&Value::Null, error)).await;
                        // Time for the answer to leave before the connection does.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        return;
                    }
                    continue;
                }
                let line = std::mem::take(&mut buffer);
                if let Some(answer) = self.line(&line, answers, open)
                    && answers.send(answer).await.is_err()
                {
                    return;
                }
            }
        }
        self.finish(open).await;
    }

    /// A client may close its sending half and still wait for its answers.
    async fn finish(&self, open: &Open) {
        while open.lock().is_ok_and(|open| !open.is_empty()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Takes one line; gives the answer if it is known at once.
    fn line(&self, line: &[u8], answers: &mpsc::Sender<Vec<u8>>, open: &Open) -> Option<Vec<u8>> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        let passed = self.shared.rate.take(Instant::now());
        let message = match json::parse(line, self.shared.limits.max_line_bytes) {
            Ok(message) => message,
            Err(error) => {
                let error = RpcError::new(PARSE_ERROR, error.to_string());
                return Some(failure(&Value::Null, error));
            }
        };
        let (id, method, params) = match request(&message) {
            Ok((Some(id), method, params)) => (id, method, params),
            Ok((None, method, params)) => {
                if passed.is_ok() {
                    notified(method, params, open);
                }
                return None;
            }
            Err(error) => return Some(failure(&Value::Null, error)),
        };
        if let Err(wait_ms) = passed {
            return Some(failure(&id, self.too_fast(wait_ms)));
        }
        match self.request(&id, method, params, answers, open) {
            Ok(None) => None,
            Ok(Some(known)) => Some(success(&id, known)),
            Err(error) => Some(failure(&id, error)),
        }
    }

    fn request(
        &self,
        id: &Value,
        method: &str,
        params: &Value,
        answers: &mpsc::Sender<Vec<u8>>,
        open: &Open,
    ) -> Result<Option<Value>, RpcError> {
        let era = translate::era(params)?;
        let ask = match translate::ask(era, method, params)? {
            Ask::Known(value) => return Ok(Some(value)),
            ask => ask,
        };
        let most = self.shared.limits.concurrent_calls;
        let place = Arc::clone(&self.shared.calls).try_acquire_owned().map_err(|_| {
            let message = format!("calls at one time: expected at most {most}, got one more");
            RpcError::new(error_code::OVERLOAD, message)
        })?;
        let key = id.to_string();
        let guard = Registered::new(open, &key)?;
        let (tools, answers, id) = (self.tools.clone(), answers.clone(), id.clone());
        let task = tokio::spawn(async move {
            let line = match answer(&tools, era, ask).await {
                Ok(result) => success(&id, result),
                Err(error) => failure(&id, error),
            };
            let _ = answers.send(line).await;
            drop((guard, place));
        });
        if let Ok(mut open) = open.lock()
            && let Some(entry) = open.get_mut(&key)
        {
            *entry = Some(task.abort_handle());
        }
        Ok(None)
    }

    fn too_fast(&self, wait_ms: u64) -> RpcError {
        let most = self.shared.limits.requests_per_second;
        RpcError {
            code: error_code::OVERLOAD,
            message: format!("requests: expected at most {most} a second, got more"),
            details: json!({"retry_after_ms": wait_ms}),
        }
    }
}

async fn answer<T: Tools>(tools: &T, era: Era, ask: Ask) -> Result<Value, RpcError> {
    match ask {
        Ask::Known(value) => Ok(value),
        Ask::List => Ok(translate::list_result(era, tools.list().await?)),
        Ask::Call { tool, arguments } => {
            Ok(translate::result_for(era, tools.call(tool, arguments).await?))
        }
    }
}

/// An id in the table of open requests, taken out when this is dropped.
#[derive(Debug)]
struct Registered {
    open: Open,
    key: String,
}

impl Registered {
    fn new(open: &Open, key: &str) -> Result<Self, RpcError> {
        let twice = || RpcError::new(error_code::INVALID_REQUEST, "id: expected one not in use");
        let mut table = open.lock().map_err(|_| twice())?;
        if table.contains_key(key) {
            return Err(twice());
        }
        table.insert(key.to_owned(), None);
        drop(table);
        Ok(Self { open: Arc::clone(open), key: key.to_owned() })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Ok(mut open) = self.open.lock() {
            open.remove(&self.key);
        }
    }
}

/// The id (none for a notification), method and parameters of a message.
fn request(message: &Value) -> Result<(Option<Value>, &str, &Value), RpcError> {
    const NONE: &Value = &Value::Null;
    let wrong = |field: &str, expected: &str| {
        let message = format!("{field}: expected {expected}");
        RpcError::new(error_code::INVALID_REQUEST, message)
    };
    let fields = message.as_object().ok_or_else(|| wrong("message", "an object"))?;
    if fields.get("jsonrpc") != Some(&Value::from("2.0")) {
        return Err(wrong("jsonrpc", "\"2.0\""));
    }
    let method = fields.get("method").and_then(Value::as_str);
    let method = method.ok_or_else(|| wrong("method", "a string"))?;
    let params = fields.get("params").unwrap_or(NONE);
    if !params.is_null() && !params.is_object() {
        return Err(wrong("params", "an object"));
    }
    match fields.get("id") {
        None => Ok((None, method, params)),
        Some(id) if is_id(id) => Ok((Some(id.clone()), method, params)),
        Some(_) => Err(wrong("id", "a short string or an integer")),
    }
}

fn is_id(id: &Value) -> bool {
    match id {
        Value::String(text) => text.len() <= MAX_ID_BYTES,
        other => other.is_i64() || other.is_u64(),
    }
}

/// Only one notification matters here: a request that is no longer wanted.
fn notified(method: &str, params: &Value, open: &Open) {
    if method != "notifications/cancelled" {
        return;
    }
    let Some(id) = params.get("requestId") else { return };
    let task = open.lock().ok().and_then(|mut open| open.get_mut(&id.to_string())?.take());
    if let Some(task) = task {
        task.abort();
    }
}

async fn write(mut writer: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = queue.recv().await {
        match timeout(WRITE_PATIENCE, writer.write_all(&line)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
    }
}

fn success(id: &Value, result: Value) -> Vec<u8> {
    encode(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

fn failure(id: &Value, error: RpcError) -> Vec<u8> {
    let mut object = json!({"code": error.code, "message": error.message});
    if let (false, Some(fields)) = (error.details.is_null(), object.as_object_mut()) {
        fields.insert("data".to_owned(), error.details);
    }
    encode(&json!({"jsonrpc": "2.0", "id": id, "error": object}))
}

fn encode(message: &Value) -> Vec<u8> {
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
