//! Runs an allowed call at its tool server. The only way out.

use std::sync::Arc;
use std::time::Duration;

use casemate_ledger::args::Commitment;
use casemate_ledger::{Event, EventKind, LeafKind, Status, Upstream};
use casemate_ledger_store::{Payload, PayloadKind, StoreError};
use serde_json::{Map, Value, json};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};

use crate::catalogue::Tool;
use crate::clock::Now;
use crate::config;
use crate::decide::{Attempt, Permit};
use crate::inflight::{InFlight, Reporter, cut};
use crate::keys::random;
use crate::native::{self, Failure};
use crate::schema;
use crate::service::Gateway;
use crate::session::Session;
use crate::sync::turned_on;
use crate::upstream::{Asked, Late, Means, Running, UpstreamError};

/// How an allowed call ended.
#[derive(Debug, Clone)]
pub(crate) struct Execution {
    pub(crate) status: Status,
    /// A stable word, when there is no result.
    pub(crate) reason: Option<&'static str>,
    /// The result, without `_meta`.
    pub(crate) result: Option<Value>,
    /// The server that was asked.
    pub(crate) upstream: Option<Upstream>,
    /// When it was asked; 0 if it was not.
    pub(crate) started_ms: u64,
    pub(crate) ended_ms: u64,
}

impl Execution {
    /// A call that may run, but whose arguments cannot be kept for the auditor.
    pub(crate) fn refused(error: &StoreError, now: Now) -> Self {
        tracing::error!(%error, "arguments cannot be kept; the call is not sent");
        Self {
            status: Status::NotDispatched,
            reason: Some("payload_not_kept"),
            result: None,
            upstream: None,
            started_ms: 0,
            ended_ms: now.unix_ms,
        }
    }
}

/// An allowed call, on its way to its tool.
pub(crate) struct Job<'a> {
    pub(crate) gateway: &'a Arc<Gateway>,
    pub(crate) session: &'a Session,
    /// Only a pinned tool is ever allowed; this is the type's way to say so.
    pub(crate) tool: Option<&'a Tool>,
    pub(crate) arguments: Map<String, Value>,
    pub(crate) permit: &'a Permit,
    /// The digest of the decision that allows it.
    pub(crate) decision: [u8; 32],
}

/// Runs a call within its permit. A call that is cut short stays cut short. One
/// that its server leaves unanswered is made again if its permit says so.
pub(crate) async fn execute(
    job: Job<'_>,
    in_flight: InFlight,
    mut cut: watch::Receiver<Option<&'static str>>,
) -> Execution {
    let InFlight { mut cancelled, progress } = in_flight;
    let gateway = job.gateway;
    let mut ran = Execution {
        status: Status::NotDispatched,
        reason: None,
        result: None,
        upstream: None,
        started_ms: 0,
        ended_ms: 0,
    };
    let mut ended = job.session.ended.clone();
    let limit = Duration::from_millis(job.permit.timeout_ms);
    let working = job.attempts(Instant::now() + limit, progress, &mut ran);
    let switches = (&mut cut, &mut ended, &mut cancelled);
    if let Some((status, reason)) = cut_short(working, limit, switches).await {
        ran.reason = Some(reason);
        if ran.started_ms != 0 {
            ran.status = status;
        }
    }
    ran.ended_ms = gateway.clock.now().unix_ms;
    ran
}

/// Why `working` did not come to its end, if it did not. A switch that is on
/// already is seen before any of it runs: a stop that is durable is followed
/// by no dispatch.
async fn cut_short(
    working: impl Future<Output = ()>,
    limit: Duration,
    (cut, ended, cancelled): Switches<'_>,
) -> Option<(Status, &'static str)> {
    tokio::select! {
        biased;
        reason = said(cut) => Some((Status::Cancelled, reason)),
        () = turned_on(ended) => Some((Status::Cancelled, "cancelled")),
        () = turned_on(cancelled) => Some((Status::Cancelled, "cancelled")),
        done = timeout(limit, working) => done.is_err().then_some((Status::Timeout, "timeout")),
    }
}

/// What ends a call: an operator's word with its reason, the connection's end,
/// and a port that waits no more.
type Switches<'a> = (
    &'a mut watch::Receiver<Option<&'static str>>,
    &'a mut watch::Receiver<bool>,
    &'a mut watch::Receiver<bool>,
);

/// The reason, once there is one.
async fn said(cut: &mut watch::Receiver<Option<&'static str>>) -> &'static str {
    let reason = cut.wait_for(Option::is_some).await.ok().and_then(|reason| *reason);
    // The sender is gone with the call's entry: nobody can end it that way.
    match reason {
        Some(reason) => reason,
        None => std::future::pending().await,
    }
}

impl Job<'_> {
    /// One attempt after the other, until one is answered or there may be no
    /// more. What is between them is in the log before the next one begins.
    async fn attempts(&self, end: Instant, mut progress: Option<Reporter>, ran: &mut Execution) {
        let mut made = 0;
        // The first attempt alone tells how far it is: progress does not go back.
        while let Some(failed) = self.attempt(progress.take(), ran).await {
            let left = end.saturating_duration_since(Instant::now()).as_millis();
            let left_ms = u64::try_from(left).unwrap_or(u64::MAX);
            let jitter = random().map_or(0, u64::from_be_bytes);
            let Some(wait_ms) = self.permit.retry.wait_ms(failed, made, left_ms, jitter) else {
                return;
            };
            made += 1;
            if !self.note_retry(ran, made).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
    }

    /// Writes down that the call is made again; says whether that is durable.
    async fn note_retry(&self, ran: &mut Execution, made: u32) -> bool {
        let caller = &self.session.caller;
        let reason = ran.reason.take().unwrap_or("upstream_error");
        let event = Event {
            sandbox: Some(caller.sandbox.clone()),
            epoch: Some(caller.claims.epoch),
            digest: Some(self.decision),
            note: Some(format!("attempt {made}: {reason}")),
            ..Event::new(EventKind::Retried, self.gateway.clock.now().unix_ms)
        };
        let written = self.gateway.journal.write(LeafKind::Event, event);
        let durable = match written {
            Ok(written) => written.durable().await.map(drop),
            Err(error) => Err(error),
        };
        if durable.is_err() {
            ran.reason = Some(reason);
        }
        durable.is_ok()
    }

    /// One attempt. Says how it failed, if it did.
    async fn attempt(&self, progress: Option<Reporter>, ran: &mut Execution) -> Option<Attempt> {
        let (gateway, permit, tool) = (self.gateway, self.permit, self.tool?);
        let config = gateway.config.upstreams.get(tool.upstream)?;
        let slot = self.session.servers.get(&tool.upstream)?;
        let limit = usize::try_from(permit.max_result_bytes).unwrap_or(usize::MAX);
        if let Some(native) = gateway.natives.get(&tool.upstream) {
            self.begin(ran, named(config, None));
            casemate_ledger_store::step!("call.dispatching");
            let arguments = Value::Object(self.arguments.clone());
            let room = limit.saturating_sub(RESULT_SLACK);
            let answered = native.call(&tool.name, arguments, room).await;
            casemate_ledger_store::step!("call.answered");
            let answered = answered.map_err(|failure| told(&failure));
            settle(gateway, answered.and_then(|result| fitting(result, limit)), ran);
            if ran.result.as_ref().is_some_and(native::http::failed) {
                ran.reason = Some("server_error");
            }
            // Its errors and limits are its own: it is not tried again.
            return None;
        }
        let running = match server(gateway, slot, tool).await {
            Ok(running) => running,
            Err(reason) => {
                ran.reason = Some(reason);
                return (reason == UNANSWERED).then_some(Attempt::Unanswered);
            }
        };
        self.begin(ran, named(config, running.executable()));
        casemate_ledger_store::step!("call.dispatching");
        let progress = progress.map(|reporter| (reporter, &gateway.secrets));
        let asked = Asked { tool: &tool.name, arguments: self.arguments.clone(), limit };
        let answered = running.call(config, asked, progress, self.late()).await;
        casemate_ledger_store::step!("call.answered");
        if let Err(UpstreamError::Refused { code, message, .. }) = &answered {
            refused(gateway, (*code, message), limit, ran);
            return Some(Attempt::Answered);
        }
        let failed = answered.as_ref().err().map(|error| {
            tracing::warn!(%error, "upstream");
            match error {
                UpstreamError::Protocol { .. } => Attempt::Unanswered,
                _ => Attempt::Answered,
            }
        });
        let answered = answered.map_err(|error| match error {
            UpstreamError::WantsInput { .. } => "upstream_input_denied",
            UpstreamError::Result { .. } => "response_blocked",
            _ => UNANSWERED,
        });
        let answered = answered.and_then(|result| conforming(tool, result));
        settle(gateway, answered, ran);
        failed
    }

    /// Writes down a result that comes when nobody waits for it any more. It is
    /// given to nobody; the call's one outcome stays what it is.
    fn late(&self) -> Late {
        let (gateway, decision) = (Arc::clone(self.gateway), self.decision);
        let claims = &self.session.caller.claims;
        let (task, epoch) = (claims.task.clone(), claims.epoch);
        let sandbox = self.session.caller.sandbox.clone();
        Box::new(move |result| {
            let (result, left_out) = match result {
                Ok(result) => keep_late(gateway.as_ref(), &task, result),
                Err(error) => {
                    tracing::warn!(%error, "a late result");
                    (None, Some("not within the call's limits"))
                }
            };
            let event = Event {
                sandbox: Some(sandbox),
                epoch: Some(epoch),
                digest: Some(decision),
                result,
                note: left_out.map(str::to_owned),
                ..Event::new(EventKind::LateResult, gateway.clock.now().unix_ms)
            };
            if let Err(error) = gateway.journal.write(LeafKind::Event, event) {
                tracing::error!(%error, "a late result is not recorded");
            }
        })
    }

    /// The tool is asked. Until an answer says otherwise, it may have run.
    fn begin(&self, ran: &mut Execution, upstream: Upstream) {
        ran.upstream = Some(upstream);
        ran.status = Status::UpstreamError;
        if ran.started_ms == 0 {
            ran.started_ms = self.gateway.clock.now().unix_ms;
        }
    }
}

/// What is recorded of a late result, and why its payload is not kept, if it is not.
fn keep_late(
    gateway: &Gateway,
    task: &str,
    result: Map<String, Value>,
) -> (Option<Commitment>, Option<&'static str>) {
    let result = Value::Object(result);
    let bytes = casemate_ledger::args::canonical(Some(&result));
    let (Ok(bytes), Some(salt)) = (bytes, random()) else { return (None, Some("unreadable")) };
    let payload = Payload { kind: PayloadKind::Result, salt, bytes };
    let left_out = match payload.bytes.len() {
        _ if gateway.secrets.occur_in(&result) => Some("response_blocked"),
        length if length > MAX_LATE_BYTES => Some("too large to be kept"),
        _ => None,
    };
    if left_out.is_none()
        && let Err(error) = gateway.payloads.keep(task, &payload)
    {
        tracing::error!(%error, "a late result's payload is not kept");
    }
    (Some(payload.commitment()), left_out)
}

/// A result is what the tool's definition says, if that says anything.
fn conforming(tool: &Tool, result: Map<String, Value>) -> Result<Map<String, Value>, &'static str> {
    let failed = result.get("isError").and_then(Value::as_bool).unwrap_or(false);
    let Some(schema) = tool.definition.get("outputSchema").filter(|_| !failed) else {
        return Ok(result);
    };
    let structured = result.get("structuredContent").unwrap_or(&Value::Null);
    match schema::check(schema, structured) {
        Ok(()) => Ok(result),
        Err(mismatch) => {
            tracing::warn!(tool = tool.name, %mismatch, "a result is not what its tool defines");
            Err("response_invalid")
        }
    }
}

/// The most of a late result that is kept: no budget pays for it.
const MAX_LATE_BYTES: usize = 16 * 1024;
/// The word of a server that does not answer as it must.
const UNANSWERED: &str = "upstream_error";
/// JSON-RPC: the server's own failure, and parameters that it does not take.
const INTERNAL_ERROR: i32 = -32603;
const INVALID_PARAMS: i32 = -32602;
/// MCP up to 2025-11-25.
const LEGACY_NOT_FOUND: i32 = -32002;
/// The most of a server's words about an error that is passed on.
const MAX_MESSAGE_BYTES: usize = 2048;
/// What a native result has around its text, which stands in it twice.
const RESULT_SLACK: usize = 1024;

fn named(config: &config::Upstream, executable: Option<[u8; 32]>) -> Upstream {
    Upstream { kind: config.kind().to_owned(), name: config.name.clone(), executable }
}

/// The stable word of a native tool's failure.
fn told(failure: &Failure) -> &'static str {
    tracing::warn!(?failure, "native tool");
    match failure {
        Failure::Breach(_) => "data_reach",
        Failure::Blocked(_) => "response_blocked",
        Failure::Tool(_) | Failure::Upstream(_) => UNANSWERED,
    }
}

fn fitting(result: Map<String, Value>, limit: usize) -> Result<Map<String, Value>, &'static str> {
    let value = Value::Object(result);
    let fits = casemate_ledger::json::canonical(&value).is_ok_and(|bytes| bytes.len() <= limit);
    match value {
        Value::Object(result) if fits => Ok(result),
        _ => Err("response_blocked"),
    }
}

/// The result is given to the sandbox, unless it says a credential.
fn settle(
    gateway: &Gateway,
    answered: Result<Map<String, Value>, &'static str>,
    ran: &mut Execution,
) {
    match answered {
        Ok(result) => {
            let failed = result.get("isError").and_then(Value::as_bool).unwrap_or(false);
            let result = Value::Object(result);
            if gateway.secrets.occur_in(&result) {
                tracing::warn!("a result holds a credential of this gateway and is not passed on");
                ran.reason = Some("response_blocked");
                return;
            }
            ran.status = if failed { Status::ToolError } else { Status::Executed };
            ran.result = Some(result);
        }
        Err(reason) => ran.reason = Some(reason),
    }
}

/// A JSON-RPC error is the tool's answer, so that a model can correct itself.
fn refused(gateway: &Gateway, (code, message): (i32, &str), limit: usize, ran: &mut Execution) {
    // What up to 2025-11-25 was "resource not found" is "invalid params" now.
    let code = if code == LEGACY_NOT_FOUND { INVALID_PARAMS } else { code };
    let reason = if code == INTERNAL_ERROR { "internal_error" } else { "refused" };
    let said = if gateway.secrets.occur_in_text(message) {
        tracing::warn!("an error holds a credential of this gateway and is not passed on");
        ran.reason = Some("response_blocked");
        return;
    } else {
        cut(message, MAX_MESSAGE_BYTES.min(limit / 8))
    };
    let text = format!("The tool's server refused the call (error {code}): {said}");
    let about = json!({"status": Status::ToolError.name(), "reason": reason, "error": code});
    let Value::Object(result) = json!({
        "resultType": "complete",
        "isError": true,
        "content": [{"type": "text", "text": text}],
        "structuredContent": {"casemate": about},
    }) else {
        return;
    };
    settle(gateway, fitting(result, limit), ran);
    if ran.status == Status::ToolError {
        ran.reason = Some(reason);
    }
}

/// The connection's own process of the tool's server, started if need be, with
/// the tool still as it was pinned.
async fn server(
    gateway: &Gateway,
    slot: &Mutex<Option<Arc<Running>>>,
    tool: &Tool,
) -> Result<Arc<Running>, &'static str> {
    let Some(config) = gateway.config.upstreams.get(tool.upstream) else {
        return Err(UNANSWERED);
    };
    let failed = |error: UpstreamError| {
        tracing::warn!(%error, "upstream");
        UNANSWERED
    };
    let mut slot = slot.lock().await;
    // Out of the slot while it is looked at: a look that fails, finds drift or is
    // cut short takes the process with it, and no later call trusts it unseen.
    let usable = slot.take().filter(|running| !running.is_over());
    let (running, look) = match usable {
        Some(running) => {
            let look = running.must_look(config);
            (running, look)
        }
        None => {
            let helper = &gateway.config.confine_program;
            let means = Means { helper, secrets: &gateway.secrets };
            let running = Running::start(config, &means, tool.upstream).await.map_err(failed)?;
            (Arc::new(running), true)
        }
    };
    if look {
        let offered = running.tools(config).await.map_err(failed)?;
        let mut drifted = false;
        for (name, found) in gateway.catalogue.compare(tool.upstream, &offered) {
            // Also where one of two definitions under its name is the pinned one.
            drifted |= gateway.catalogue.tool(&name).is_none_or(|found| found.name == tool.name);
            gateway.note_drift(name, found);
        }
        drifted |= offered.iter().all(|definition| {
            casemate_ledger::tool::definition_digest(definition) != Ok(tool.pinned.digest)
        });
        if drifted {
            return Err("tool_drift");
        }
    }
    *slot = Some(Arc::clone(&running));
    Ok(running)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_stopped_already_is_never_begun() {
        let cancelled = Some((Status::Cancelled, "cancelled"));
        // Often enough that an order by chance would show.
        let revoked = Some((Status::Cancelled, "grant_revoked"));
        for (cut, ended, gone, expected) in [
            (None, false, false, None),
            (None, true, false, cancelled),
            (None, false, true, cancelled),
            (Some("grant_revoked"), true, true, revoked),
        ]
        .repeat(32)
        {
            let (_cut, mut cut) = watch::channel(cut);
            let (_ended, mut ended) = watch::channel(ended);
            let (_gone, mut gone) = watch::channel(gone);
            let mut begun = false;
            let working = async { begun = true };
            let switches = (&mut cut, &mut ended, &mut gone);
            let cut = cut_short(working, Duration::from_secs(9), switches).await;
            assert_eq!((cut, begun), (expected, expected.is_none()));
        }
    }
}
