//! What clients asked and the gateway has not answered yet. It outlives each
//! stream to the gateway.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casemate_ledger::args::{self, MAX_ARGS_BYTES};
use casemate_ledger::cgp::{
    Cancelled, HelloReply, LeaseNotice, Message, Progress, RpcError, ToolMeta, call_params,
    error_code, list_params, meta, method,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::chain::{Chain, Link};
use super::{Command, GatewayError, Queues, Work, from_value, random, wrong};
use crate::attest::Attested;
use crate::identity::Identity;

/// Requests that are sent and not answered; fewer than the gateway takes at once.
const OPEN: usize = 48;
/// The most tools whose grants are remembered.
const MAX_TOOLS: usize = 1024;
/// A day: longer leases would make the dead man's switch meaningless.
const MAX_TTL_MS: u64 = 24 * 3600 * 1000;

/// Everything that is asked.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) chain: Chain,
    pub(super) queue: mpsc::Receiver<Command>,
    pub(super) given_up: mpsc::UnboundedReceiver<u64>,
    pub(super) lease_ends: Instant,
    tools: HashMap<String, Known>,
    /// To be sent, in order.
    waiting: VecDeque<Asked>,
    /// Sent, by the request's number.
    open: BTreeMap<u64, Asked>,
    next_id: u64,
}

#[derive(Debug)]
struct Asked {
    ticket: Option<u64>,
    work: Work,
    /// None when nobody waits for the answer.
    reply: Option<oneshot::Sender<Result<Value, RpcError>>>,
    /// Whether the tools were listed since this was asked.
    listed: bool,
    /// The invocation's number and the chain's generation, once signed.
    signed: Option<(u64, u64)>,
    /// How many streams ended before it was decided on.
    streams: u32,
}

/// A call that is on its way when so many streams break may be what breaks them.
const STREAMS_OF_ONE_CALL: u32 = 3;

/// What a call of a tool has to name.
#[derive(Debug)]
struct Known {
    meta: ToolMeta,
    /// The gateway said no to the grant: look for another before the next call.
    stale: bool,
}

impl Asked {
    fn is_call(&self) -> bool {
        matches!(self.work, Work::Call { .. })
    }

    fn is_given_up(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn answer(self, answer: Result<Value, RpcError>) {
        if let Some(reply) = self.reply {
            let _ = reply.send(answer);
        }
    }
}

impl Calls {
    pub(super) fn new(identity: Arc<Identity>, attested: &Attested, queues: Queues) -> Self {
        Self {
            chain: Chain::new(identity, attested),
            queue: queues.0,
            given_up: queues.1,
            lease_ends: Instant::now(),
            tools: HashMap::new(),
            waiting: VecDeque::new(),
            open: BTreeMap::new(),
            next_id: 1,
        }
    }

    /// A new stream's gateway says where it is.
    pub(super) fn greeted(&mut self, reply: &HelloReply) -> Result<(), GatewayError> {
        let at = Link { sequence: reply.accepted_sequence, hash: reply.accepted_hash };
        self.chain.resume(at)?;
        self.renew(&reply.lease);
        // What was decided may have run: it is not sent again.
        for (_, mut asked) in std::mem::take(&mut self.open).into_iter().rev() {
            asked.streams += 1;
            match asked.signed.take() {
                Some((sequence, _)) if sequence <= at.sequence => asked.answer(Ok(unknown())),
                // Nobody waits for it any more: it is not made to run after all.
                _ if asked.is_call() && asked.is_given_up() => {}
                _ if asked.streams >= STREAMS_OF_ONE_CALL => asked.answer(Err(undecided())),
                _ => self.waiting.push_front(asked),
            }
        }
        Ok(())
    }

    /// The sandbox is stopped: nothing of what was asked waits for its end.
    pub(super) fn refuse(&mut self, stop: &RpcError) {
        for asked in std::mem::take(&mut self.waiting) {
            asked.answer(Err(stop.clone()));
        }
        for (_, asked) in std::mem::take(&mut self.open) {
            // What was sent may have run.
            let sent = asked.signed.is_some();
            asked.answer(if sent { Ok(unknown()) } else { Err(stop.clone()) });
        }
    }

    pub(super) fn renew(&mut self, notice: &LeaseNotice) {
        self.chain.lease(notice);
        self.lease_ends = Instant::now() + Duration::from_millis(notice.ttl_ms.min(MAX_TTL_MS));
    }

    pub(super) fn has_place(&self) -> bool {
        self.open.len() + self.waiting.len() < OPEN
    }

    /// Whether nothing is on its way to the gateway or back.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn ask(&mut self, Command { ticket, work, reply }: Command) {
        if reply.is_closed() {
            return; // the caller gave up while it waited
        }
        let (ticket, reply) = (Some(ticket), Some(reply));
        let asked = Asked { ticket, work, reply, listed: false, signed: None, streams: 0 };
        self.waiting.push_back(asked);
    }

    /// The lines to send for all that can be sent now.
    pub(super) fn lines(&mut self) -> Result<Vec<u8>, GatewayError> {
        let mut lines = Vec::new();
        let listing = self.open.values().any(|asked| matches!(asked.work, Work::List));
        for asked in std::mem::take(&mut self.waiting) {
            match self.must_list(&asked) {
                true => self.waiting.push_back(asked),
                false => lines.extend(self.line(asked)?),
            }
        }
        if !listing && !self.waiting.is_empty() {
            let list = Work::List;
            let asked = Asked {
                ticket: None,
                work: list,
                reply: None,
                listed: true,
                signed: None,
                streams: 0,
            };
            lines.extend(self.line(asked)?);
        }
        Ok(lines)
    }

    fn must_list(&self, asked: &Asked) -> bool {
        let Work::Call { tool, .. } = &asked.work else { return false };
        !asked.listed && self.tools.get(tool).is_none_or(|known| known.stale)
    }

    /// The line of one request, unless it is answered without being sent.
    fn line(&mut self, mut asked: Asked) -> Result<Vec<u8>, GatewayError> {
        let id = self.next_id;
        let message = match &asked.work {
            Work::List => Message::request(id, method::TOOLS_LIST, list_params()),
            Work::Call { tool, arguments, progress } => {
                let canonical = match canonical(arguments) {
                    Ok(canonical) => canonical,
                    Err(error) => {
                        asked.answer(Err(error));
                        return Ok(Vec::new());
                    }
                };
                let salt = random()?;
                let known = self.tools.get(tool).map(|known| &known.meta);
                let signed = self.chain.sign(tool, known, &salt, &canonical, now_ms())?;
                asked.signed = Some((signed.sequence, self.chain.generation));
                let progress = progress.as_ref().map(|_| id);
                let params = call_params(tool, arguments.clone(), signed.bytes(), &salt, progress);
                Message::request(id, method::TOOLS_CALL, params)
            }
        };
        self.next_id += 1;
        self.open.insert(id, asked);
        Ok(message.encode())
    }

    /// Nobody waits for the command with `ticket`: the line that says so, if
    /// the gateway has it.
    pub(super) fn give_up(&mut self, ticket: u64) -> Option<Vec<u8>> {
        self.waiting.retain(|asked| asked.ticket != Some(ticket));
        let (id, asked) = self.open.iter_mut().find(|(_, asked)| asked.ticket == Some(ticket))?;
        asked.reply = None;
        let params = serde_json::to_value(Cancelled { request_id: *id }).ok()?;
        Some(Message::notification(method::CANCELLED, params).encode())
    }

    /// Takes one message of the gateway.
    pub(super) fn take(&mut self, message: Message) -> Result<(), GatewayError> {
        match message {
            Message::Response { id, result } => {
                let expected = "the number of an open request";
                let asked = self.open.remove(&id);
                let asked = asked.ok_or_else(|| wrong("id", expected, &id.to_string()))?;
                match asked.work {
                    Work::List => self.listed(asked, result),
                    Work::Call { .. } => self.called(asked, result),
                }
            }
            Message::Notification { method, params } if method == method::LEASE => {
                self.renew(&from_value("lease", params)?);
                Ok(())
            }
            Message::Notification { method, params } if method == method::PROGRESS => {
                let progress: Progress = from_value("progress", params)?;
                let asked = self.open.get(&progress.progress_token);
                // Progress of what is over, or faster than it is read, is dropped.
                if let Some(Work::Call { progress: Some(to), .. }) = asked.map(|asked| &asked.work)
                {
                    let _ = to.try_send(progress);
                }
                Ok(())
            }
            Message::Notification { .. } => Ok(()),
            Message::Request { method, .. } => {
                Err(wrong("message", "answers and notifications", &format!("request {method}")))
            }
        }
    }

    fn listed(
        &mut self,
        asked: Asked,
        result: Result<Value, RpcError>,
    ) -> Result<(), GatewayError> {
        match &result {
            Ok(list) => self.remember(list)?,
            Err(error) => {
                let waiting = std::mem::take(&mut self.waiting);
                waiting.into_iter().for_each(|call| call.answer(Err(error.clone())));
            }
        }
        self.waiting.iter_mut().for_each(|call| call.listed = true);
        asked.answer(result);
        Ok(())
    }

    fn called(
        &mut self,
        mut asked: Asked,
        result: Result<Value, RpcError>,
    ) -> Result<(), GatewayError> {
        let (sequence, generation) = asked.signed.take().unwrap_or_default();
        let void = generation != self.chain.generation;
        match result {
            Ok(result) => {
                self.chain.accepted(sequence);
                self.look_again(&asked, &result);
                asked.answer(Ok(result));
                Ok(())
            }
            // It stood behind one that was refused: it is signed anew.
            Err(error) if void && error.code == error_code::CHAIN => {
                self.waiting.push_back(asked);
                Ok(())
            }
            Err(error) => {
                let end = ends_session(&error);
                // What ends the stream leaves open whether the number was used: a
                // decision may be on disk, or the call was held before. The next
                // hello names it, and its answer tells.
                if !void && end.is_none() {
                    self.chain.refused(sequence);
                }
                asked.answer(Err(error));
                end.map_or(Ok(()), Err)
            }
        }
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
            let meta = from_value("tools/list", meta.clone())?;
            self.tools.insert(name.to_owned(), Known { meta, stale: false });
        }
        Ok(())
    }

    /// A grant that is over makes the next call look for a new one.
    fn look_again(&mut self, asked: &Asked, result: &Value) {
        let code = result.pointer("/structuredContent/casemate/code").and_then(Value::as_str);
        if let (Some(code), Work::Call { tool, .. }) = (code, &asked.work)
            && (code.starts_with("grant_") || code == "tool_drift")
            && let Some(known) = self.tools.get_mut(tool)
        {
            known.stale = true;
        }
    }
}

/// The errors that end the stream, and whether for good.
fn ends_session(error: &RpcError) -> Option<GatewayError> {
    match error.code {
        error_code::CHAIN | error_code::REPLAY => Some(GatewayError::Refused(error.clone())),
        error_code::LEASE | error_code::LOG | error_code::IDENTITY => {
            Some(GatewayError::Interrupted(error.clone()))
        }
        _ => None,
    }
}

/// The result of a call whose answer was lost with its stream.
fn unknown() -> Value {
    let text = "The connection was lost while the call ran. It may have had its effect; \
                the log has its outcome. It was not tried again.";
    json!({
        "resultType": "complete",
        "isError": true,
        "content": [{"type": "text", "text": text}],
        "structuredContent": {"casemate": {"code": "outcome_unknown", "retryable": false}},
    })
}

/// The answer to a call that no stream lived to see decided.
fn undecided() -> RpcError {
    let text = "the gateway ended one stream after the other while this call was open; \
                it was not decided on and did not run";
    RpcError::new(error_code::OVERLOAD, text)
}

fn canonical(arguments: &Value) -> Result<Vec<u8>, RpcError> {
    match args::canonical(Some(arguments)) {
        Ok(canonical) if canonical.len() <= MAX_ARGS_BYTES => Ok(canonical),
        Ok(canonical) => {
            let actual = canonical.len();
            Err(RpcError {
                code: error_code::INVALID_PARAMS,
                message: format!(
                    "arguments: expected at most {MAX_ARGS_BYTES} bytes, got {actual}"
                ),
                details: json!({"field": "arguments", "expected": MAX_ARGS_BYTES, "actual": actual}),
            })
        }
        Err(error) => Err(RpcError::new(error_code::INVALID_PARAMS, error.to_string())),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0)
}
