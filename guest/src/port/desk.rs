//! The one handler behind every door: takes a message, gives its answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use casemate_ledger::cgp::{RpcError, error_code};
use casemate_ledger::json;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Shared;
use super::translate::{self, Ask, Era};
use crate::gateway::Tools;

/// JSON-RPC 2.0, parse error.
pub(super) const PARSE_ERROR: i64 = -32700;
/// The longest id or progress token that is repeated to the client.
const MAX_ID_BYTES: usize = 256;
/// Progress that waits for a slow client; more is dropped.
const WAITING_PROGRESS: usize = 8;

/// The handler; clones share everything.
#[derive(Debug, Clone)]
pub(super) struct Desk<T> {
    pub(super) shared: Arc<Shared>,
    tools: T,
}

/// What a client is told, as JSON without a line's end.
#[derive(Debug)]
pub(super) enum Told {
    /// The last word on a request, with the error's code if it is one.
    Answer(Vec<u8>, Option<i64>),
    /// A notification on the way to it.
    Notice(Vec<u8>),
}

impl Told {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Answer(bytes, _) | Self::Notice(bytes) => bytes,
        }
    }
}

/// The requests of one client that are not answered yet, by id.
#[derive(Debug, Clone, Default)]
pub(super) struct Open(Arc<Mutex<HashMap<String, Option<AbortHandle>>>>);

/// Who asks: where its answers go, and what it asked already.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) told: mpsc::Sender<Told>,
    pub(super) open: Open,
}

/// One message that was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    /// None for a notification.
    pub(super) id: Option<Value>,
    pub(super) method: String,
    pub(super) params: Value,
}

/// What came of a message.
#[derive(Debug)]
pub(super) enum Taken {
    /// It needs no answer.
    Nothing,
    /// The answer.
    Answer(Told),
    /// The answer will be told to the client.
    Running,
}

impl<T: Tools> Desk<T> {
    pub(super) fn new(shared: Arc<Shared>, tools: T) -> Self {
        Self { shared, tools }
    }

    /// Reads one message: strict JSON, JSON-RPC 2.0, no batch.
    pub(super) fn read(&self, bytes: &[u8]) -> Result<Request, Told> {
        let message = json::parse(bytes, self.shared.limits.max_line_bytes).map_err(|error| {
            told_error(&Value::Null, RpcError::new(PARSE_ERROR, error.to_string()))
        })?;
        request(message).map_err(|error| told_error(&Value::Null, error))
    }

    /// Takes `request`; what is not known at once is told to `client` later.
    pub(super) fn take(&self, request: Request, client: &Client) -> Taken {
        let passed = self.shared.rate.take(Instant::now());
        let Request { id, method, params } = request;
        let Some(id) = id else {
            if passed.is_ok() {
                client.open.notified(&method, &params);
            }
            return Taken::Nothing;
        };
        let started = passed
            .map_err(|wait_ms| self.too_fast(wait_ms))
            .and_then(|()| self.start(&id, &method, &params, client));
        match started {
            Ok(None) => Taken::Running,
            Ok(Some(known)) => Taken::Answer(told(&id, known)),
            Err(error) => Taken::Answer(told_error(&id, error)),
        }
    }

    fn start(
        &self,
        id: &Value,
        method: &str,
        params: &Value,
        client: &Client,
    ) -> Result<Option<Value>, RpcError> {
        let era = translate::era(params)?;
        let ask = match translate::ask(era, method, params)? {
            Ask::Known(value) => return Ok(Some(value)),
            ask => ask,
        };
        let token = progress_token(params)?;
        let most = self.shared.limits.concurrent_calls;
        let place = Arc::clone(&self.shared.calls).try_acquire_owned().map_err(|_| {
            let message = format!("calls at one time: expected at most {most}, got one more");
            RpcError::new(error_code::OVERLOAD, message)
        })?;
        let guard = Registered::new(&client.open, id)?;
        let (tools, told_to, id) = (self.tools.clone(), client.told.clone(), id.clone());
        let key = guard.key.clone();
        let task = tokio::spawn(async move {
            // Who is gone is not answered; dropping the work cancels it.
            let result = tokio::select! {
                result = work(&tools, era, ask, token, &told_to) => result,
                () = told_to.closed() => return,
            };
            let answer = match result {
                Ok(result) => told(&id, result),
                Err(error) => told_error(&id, error),
            };
            // The id is free before its answer is read.
            drop((guard, place));
            let _ = told_to.send(answer).await;
        });
        client.open.running(&key, task.abort_handle());
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

async fn work<T: Tools>(
    tools: &T,
    era: Era,
    ask: Ask,
    token: Option<Value>,
    told_to: &mpsc::Sender<Told>,
) -> Result<Value, RpcError> {
    let (tool, arguments) = match ask {
        Ask::Known(value) => return Ok(value),
        Ask::List => return Ok(translate::list_result(era, tools.list().await?)),
        Ask::Call { tool, arguments } => (tool, arguments),
    };
    let Some(token) = token else {
        return Ok(translate::result_for(era, tools.call(tool, arguments, None).await?));
    };
    let (sender, mut notices) = mpsc::channel(WAITING_PROGRESS);
    let call = tools.call(tool, arguments, Some(sender));
    tokio::pin!(call);
    let tell = |progress| {
        let notice = json!({"jsonrpc": "2.0", "method": "notifications/progress",
            "params": translate::progress(&token, progress)});
        let _ = told_to.try_send(Told::Notice(notice.to_string().into_bytes()));
    };
    loop {
        tokio::select! {
            // What was reported before the answer is told before it.
            biased;
            Some(progress) = notices.recv() => tell(progress),
            result = &mut call => {
                std::iter::from_fn(|| notices.try_recv().ok()).for_each(tell);
                return Ok(translate::result_for(era, result?));
            }
        }
    }
}

impl Open {
    fn running(&self, key: &str, task: AbortHandle) {
        if let Ok(mut open) = self.0.lock()
            && let Some(entry) = open.get_mut(key)
        {
            *entry = Some(task);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_ok_and(|open| open.is_empty())
    }

    /// Nobody is left to answer to. A call that the gateway has is cancelled
    /// there, and recorded.
    pub(super) fn abort_all(&self) {
        let left = self.0.lock().map(|mut open| std::mem::take(&mut *open)).unwrap_or_default();
        left.into_values().flatten().for_each(|request| request.abort());
    }

    /// Only one notification matters here: a request that is no longer wanted.
    fn notified(&self, method: &str, params: &Value) {
        if method != "notifications/cancelled" {
            return;
        }
        let Some(id) = params.get("requestId") else { return };
        let task = self.0.lock().ok().and_then(|mut open| open.get_mut(&id.to_string())?.take());
        if let Some(task) = task {
            task.abort();
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
    fn new(open: &Open, id: &Value) -> Result<Self, RpcError> {
        let key = id.to_string();
        let twice = || RpcError::new(error_code::INVALID_REQUEST, "id: expected one not in use");
        let mut table = open.0.lock().map_err(|_| twice())?;
        if table.contains_key(&key) {
            return Err(twice());
        }
        table.insert(key.clone(), None);
        drop(table);
        Ok(Self { open: open.clone(), key })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Ok(mut open) = self.open.0.lock() {
            open.remove(&self.key);
        }
    }
}

fn request(message: Value) -> Result<Request, RpcError> {
    let wrong = |field: &str, expected: &str| {
        let message = format!("{field}: expected {expected}");
        RpcError::new(error_code::INVALID_REQUEST, message)
    };
    let Value::Object(mut fields) = message else { return Err(wrong("message", "an object")) };
    if fields.get("jsonrpc") != Some(&Value::from("2.0")) {
        return Err(wrong("jsonrpc", "\"2.0\""));
    }
    let Some(Value::String(method)) = fields.remove("method") else {
        return Err(wrong("method", "a string"));
    };
    let params = fields.remove("params").unwrap_or_default();
    if !params.is_null() && !params.is_object() {
        return Err(wrong("params", "an object"));
    }
    match fields.remove("id") {
        Some(id) if !is_id(&id) => Err(wrong("id", "a short string or an integer")),
        id => Ok(Request { id, method, params }),
    }
}

/// The client's progress token, if it wants progress.
fn progress_token(params: &Value) -> Result<Option<Value>, RpcError> {
    match params.get("_meta").and_then(|fields| fields.get("progressToken")) {
        None => Ok(None),
        Some(token) if is_id(token) => Ok(Some(token.clone())),
        Some(_) => {
            let message = "params._meta.progressToken: expected a short string or an integer";
            Err(RpcError::new(error_code::INVALID_PARAMS, message))
        }
    }
}

fn is_id(id: &Value) -> bool {
    match id {
        Value::String(text) => text.len() <= MAX_ID_BYTES,
        other => other.is_i64() || other.is_u64(),
    }
}

fn told(id: &Value, result: Value) -> Told {
    let message = json!({"jsonrpc": "2.0", "id": id, "result": result});
    Told::Answer(message.to_string().into_bytes(), None)
}

/// The error as an answer to `id`.
pub(super) fn told_error(id: &Value, error: RpcError) -> Told {
    let mut object = json!({"code": error.code, "message": error.message});
    if let (false, Some(fields)) = (error.details.is_null(), object.as_object_mut()) {
        fields.insert("data".to_owned(), error.details);
    }
    let message = json!({"jsonrpc": "2.0", "id": id, "error": object});
    Told::Answer(message.to_string().into_bytes(), Some(error.code))
}
