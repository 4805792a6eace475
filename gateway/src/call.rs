//! One call, from its line to its answer.
//!
//! [`admit`] runs in the order of arrival: envelope, decision, reservation, the
//! decision's place in the log. [`Admitted::finish`] then waits until the
//! decision is on disk, runs the tool, and waits until the outcome is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use casemate_ledger::args::{Commitment, MAX_ARGS_BYTES};
use casemate_ledger::cgp::{self, Denial, ReceiptPointer, RpcError, error_code, meta, method};
use casemate_ledger::{
    Authentic, Decision, Identity, Invocation, LeafKind, Outcome, Record, args, json, text,
};
use casemate_ledger_store::{Payload, PayloadKind, StoreError, step};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::admit::{Case, Decided, decide_in_order, release, stopped};
use crate::catalogue::Tool;
use crate::decide::{Call, Ended, Permit};
use crate::envelope::{self, Request};
use crate::execute::{Execution, Job, execute};
use crate::inflight::InFlight;
use crate::journal::Written;
use crate::keys::random;
use crate::metrics::Stage;
use crate::service::Gateway;
use crate::session::Session;
use crate::spans::Trace;
use crate::sync::{locked, turned_on};

/// A call that was decided on.
pub(crate) struct Admitted {
    gateway: Arc<Gateway>,
    session: Arc<Session>,
    decided: Option<Decided>,
    invocation: Authentic<Invocation>,
    params: Params,
    fingerprint: [u8; 32],
    exact: [u8; 32],
    in_flight: InFlight,
    trace: Trace,
}

/// The parameters of `tools/call`.
struct Params {
    tool: String,
    arguments: Value,
    canonical: Vec<u8>,
    invocation: Vec<u8>,
    salt: [u8; 32],
}

/// Checks the envelope, decides, reserves, and puts the decision into the log.
pub(crate) fn admit(
    gateway: &Arc<Gateway>,
    session: &Arc<Session>,
    params: Value,
    in_flight: InFlight,
) -> Result<Admitted, RpcError> {
    step!("call.received");
    let began = Instant::now();
    let params = read_params(params)?;
    let caller = &session.caller;
    let invocation = Invocation::verify(&params.invocation, &caller.key)
        .map_err(|error| RpcError::new(error_code::ENVELOPE, error.to_string()))?;
    let arguments = Commitment::to_args(&params.salt, &params.canonical);
    let request = Request { method: method::TOOLS_CALL, tool: &params.tool, arguments };
    envelope::check_content(&invocation, request, caller)?;
    let tool = gateway.catalogue.tool(&params.tool);
    let fingerprint = fingerprint(gateway, &params, tool.as_ref());
    let exact = gateway.fingerprints.of(&[params.tool.as_bytes(), &params.canonical]);
    let call = params.call(&session.caller, &invocation, tool.as_ref(), (fingerprint, exact));
    let case = Case { session, invocation: &invocation, call: &call };
    let pinned = tool.as_ref().map(|_| params.tool.as_str());
    let mut trace =
        Trace::begin(gateway.spans.as_ref(), gateway.clock, (caller, &invocation), pinned);
    let decided = decide_in_order(gateway, case).inspect_err(|error| trace.refused(error))?;
    gateway.journal.counters().took(Stage::Decide, began.elapsed());
    Ok(Admitted {
        gateway: Arc::clone(gateway),
        session: Arc::clone(session),
        decided: Some(decided),
        invocation,
        params,
        fingerprint,
        exact,
        in_flight,
        trace,
    })
}

impl Params {
    /// The call that these parameters ask for.
    fn call<'a>(
        &'a self,
        caller: &'a Identity,
        invocation: &'a Invocation,
        tool: Option<&'a Tool>,
        (fingerprint, exact): ([u8; 32], [u8; 32]),
    ) -> Call<'a> {
        Call {
            caller,
            grant: invocation.grant,
            tool: &self.tool,
            tool_digest: invocation.tool_digest,
            pinned: tool.map(|tool| &tool.pinned),
            arguments: &self.arguments,
            arguments_length: u64::try_from(self.canonical.len()).unwrap_or(u64::MAX),
            fingerprint,
            exact,
        }
    }
}

/// How long the port of a call that waits for people is kept waiting.
const PATIENCE: Duration = Duration::from_secs(25);

impl Admitted {
    /// Waits for people if they have to be asked, and for the disk, runs the
    /// tool if it may, and answers.
    pub(crate) async fn finish(mut self) -> Result<Value, RpcError> {
        let decided = self.decide().await;
        let decided = decided.inspect_err(|error| self.trace.refused(error))?;
        let Decided { written, verdict, cut, .. } = decided;
        let durable = written.durable().await.map_err(stopped);
        let (index, record) = durable.inspect_err(|error| self.trace.refused(error))?;
        step!("call.decision-durable");
        self.trace.decided(index, record.verdict, verdict.as_ref().err());
        let mut receipt = ReceiptPointer {
            log: self.gateway.config.log_origin.clone(),
            invocation: self.invocation.digest(),
            decision: index,
            outcome: None,
            result_salt: None,
        };
        let payload = Payload {
            kind: PayloadKind::Arguments,
            salt: self.params.salt,
            bytes: std::mem::take(&mut self.params.canonical),
        };
        let kept = self.gateway.payloads.keep(&self.session.caller.claims.task, &payload);
        let permit = match verdict {
            Ok(permit) => permit,
            Err(denial) => return Ok(denied(&denial, &receipt)),
        };
        Ok(self.run(kept, (&permit, cut), &record, &mut receipt).await)
    }

    /// The decision that stands: the first one, or the one after people
    /// answered. A call whose people take longer is answered that it waits.
    async fn decide(&mut self) -> Result<Decided, RpcError> {
        let (gateway, session) = (Arc::clone(&self.gateway), Arc::clone(&self.session));
        let mut changed = locked(&gateway.state).answers.subscribe();
        let mut ended = session.ended.clone();
        let end = tokio::time::Instant::now() + PATIENCE;
        while let Some(waiting) = self.decided.as_ref().and_then(|decided| decided.waiting) {
            let tool = gateway.catalogue.tool(&self.params.tool);
            let digests = (self.fingerprint, self.exact);
            let call = self.params.call(&session.caller, &self.invocation, tool.as_ref(), digests);
            let case = Case { session: &session, invocation: &self.invocation, call: &call };
            if let Some(decided) = release(&gateway, case, waiting)? {
                self.decided = Some(decided);
                continue;
            }
            let left = waiting.expires_ms.saturating_sub(gateway.clock.now().unix_ms);
            tokio::select! {
                () = turned_on(&mut ended) => break,
                () = turned_on(&mut self.in_flight.cancelled) => break,
                () = tokio::time::sleep_until(end) => break,
                () = tokio::time::sleep(Duration::from_millis(left)) => {},
                Ok(()) = changed.changed() => {},
            }
        }
        self.decided.take().ok_or_else(|| RpcError::new(error_code::OVERLOAD, "decided already"))
    }

    /// Runs an allowed call, writes its outcome, and answers. From here on the
    /// call may have run: without a durable outcome the answer says just that.
    async fn run(
        mut self,
        kept: Result<(), StoreError>,
        (permit, cut): (&Permit, watch::Receiver<Option<&'static str>>),
        record: &Authentic<Decision>,
        receipt: &mut ReceiptPointer,
    ) -> Value {
        let (gateway, session) = (self.gateway, self.session);
        let bytes_out = self.invocation.arguments.length;
        let began = gateway.clock.now();
        let ran = match kept {
            Ok(()) => {
                let tool = gateway.catalogue.tool(&self.params.tool);
                let arguments = match self.params.arguments {
                    Value::Object(arguments) => arguments,
                    _ => Map::new(),
                };
                let job = Job {
                    gateway: &gateway,
                    session: &session,
                    tool: tool.as_ref(),
                    arguments,
                    permit,
                    decision: record.digest(),
                };
                execute(job, self.in_flight, cut).await
            }
            Err(error) => Execution::refused(&error, gateway.clock.now()),
        };
        let salt = random();
        let result = result_payload(&ran, salt);
        let outcome = outcome(record, &ran, result.as_ref(), bytes_out);
        self.trace.worked(began, &outcome);
        let digest = result.as_ref().map(|result| casemate_ledger::digest(&result.bytes));
        let ended = Ended::of(&outcome, digest);
        let task = &session.caller.claims.task;
        if let Some(error) = result.and_then(|result| gateway.payloads.keep(task, &result).err()) {
            // The tool has run: its outcome and answer matter more than the payload.
            tracing::error!(%error, "a result's payload is not kept");
        }
        let grant = self.invocation.grant.map(|grant| grant.id).unwrap_or_default();
        let closing = (grant, permit.clauses.as_slice(), record.digest());
        let recorded = match close(&gateway, outcome, closing, ended) {
            Ok(written) => written.durable().await,
            Err(error) => Err(error),
        };
        let (index, outcome) = match recorded {
            Ok(recorded) => recorded,
            Err(error) => {
                tracing::error!(%error, "a call's outcome is not recorded");
                self.trace.unrecorded();
                return unknown(receipt);
            }
        };
        step!("call.outcome-durable");
        self.trace.recorded(index);
        receipt.outcome = Some(index);
        let committed = outcome.result.is_some();
        receipt.result_salt = salt.filter(|_| committed).map(|salt| text::base64url(&salt));
        answer(ran, receipt)
    }
}

/// Writes the outcome of a call under the grant of this id and these clauses,
/// with this decision, and does to the state what it says.
fn close(
    gateway: &Gateway,
    outcome: Outcome,
    (grant, clauses, decision): ([u8; 16], &[usize], [u8; 32]),
    ended: Ended,
) -> Result<Written<Outcome>, StoreError> {
    let mut state = locked(&gateway.state);
    let written = gateway.journal.write(LeafKind::Outcome, outcome)?;
    step!("call.outcome-written");
    state.finish(&grant, clauses);
    state.learn(&decision, &written.record, ended, gateway.clock.now());
    state.close(written.index, &written.record);
    Ok(written)
}

/// A keyed digest of tool and arguments, the volatile ones left out.
fn fingerprint(gateway: &Gateway, params: &Params, tool: Option<&Tool>) -> [u8; 32] {
    let volatile = tool.map_or(&[][..], |tool| &tool.pinned.volatile);
    let mut arguments = params.arguments.clone();
    if let (false, Some(entries)) = (volatile.is_empty(), arguments.as_object_mut()) {
        entries.retain(|name, _| !volatile.contains(name));
    }
    let without = args::canonical(Some(&arguments)).ok().filter(|_| !volatile.is_empty());
    let canonical = without.as_ref().unwrap_or(&params.canonical);
    gateway.fingerprints.of(&[params.tool.as_bytes(), canonical.as_slice()])
}

/// The result as it is committed to, which needs a random salt.
fn result_payload(ran: &Execution, salt: Option<[u8; 32]>) -> Option<Payload> {
    let bytes = args::canonical(Some(ran.result.as_ref()?)).ok()?;
    Some(Payload { kind: PayloadKind::Result, salt: salt?, bytes })
}

/// The outcome's record.
fn outcome(
    decision: &Authentic<Decision>,
    ran: &Execution,
    result: Option<&Payload>,
    bytes_out: u64,
) -> Outcome {
    let result = result.map(Payload::commitment);
    Outcome {
        decision: decision.digest(),
        status: ran.status,
        reason: ran.reason.map(str::to_owned),
        result,
        upstream: ran.upstream.clone(),
        started_ms: ran.started_ms,
        ended_ms: ran.ended_ms,
        bytes_out: if ran.started_ms == 0 { 0 } else { bytes_out },
        bytes_in: result.map_or(0, |result| result.length),
    }
}

fn answer(ran: Execution, receipt: &ReceiptPointer) -> Value {
    let mut result = ran.result.unwrap_or_else(|| {
        let reason = ran.reason.unwrap_or_else(|| ran.status.name());
        let text = format!("The call did not end in a result: {reason}.");
        json!({
            "resultType": "complete",
            "isError": true,
            "content": [{"type": "text", "text": text}],
            "structuredContent": {"casemate": {"status": ran.status.name(), "reason": reason}},
        })
    });
    attach(&mut result, receipt);
    result
}

/// The answer to a call that was allowed and whose end the log does not have.
fn unknown(receipt: &ReceiptPointer) -> Value {
    let text = "The call was allowed and may have had its effect, but its outcome could not be \
                recorded. It must not be repeated without looking at what it did.";
    let about = json!({"code": "outcome_unknown", "status": "unknown", "retryable": false});
    let mut result = json!({
        "resultType": "complete",
        "isError": true,
        "content": [{"type": "text", "text": text}],
        "structuredContent": {"casemate": about},
    });
    attach(&mut result, receipt);
    result
}

fn denied(denial: &Denial, receipt: &ReceiptPointer) -> Value {
    let text = format!(
        "Denied ({}): expected {}, got {}. {}.",
        denial.code.name(),
        denial.expected,
        denial.actual,
        denial.hint
    );
    let mut result = json!({
        "resultType": "complete",
        "isError": true,
        "content": [{"type": "text", "text": text}],
        "structuredContent": {"casemate": denial},
    });
    attach(&mut result, receipt);
    result
}

fn attach(result: &mut Value, receipt: &ReceiptPointer) {
    if let Some(result) = result.as_object_mut() {
        result.insert("_meta".to_owned(), json!({ meta::RECEIPT: receipt }));
    }
}

fn read_params(params: Value) -> Result<Params, RpcError> {
    let wrong = |text: &str| RpcError::new(error_code::INVALID_PARAMS, text);
    let Value::Object(mut params) = params else { return Err(wrong("params: expected an object")) };
    let Some(Value::String(tool)) = params.remove("name") else {
        return Err(wrong("params, name: expected a string"));
    };
    let arguments = params.remove("arguments").unwrap_or_else(|| json!({}));
    let about = params.remove("_meta").unwrap_or_default();
    if let Some(key) = params.keys().next() {
        return Err(wrong(&format!("params: unknown key {key:?}")));
    }
    if about.get(meta::PROTOCOL_VERSION).and_then(Value::as_str) != Some(cgp::MCP_VERSION) {
        return Err(wrong("params, _meta, protocolVersion: expected 2026-07-28"));
    }
    let bytes = |key| about.get(key).and_then(Value::as_str).and_then(text::from_base64url);
    let invocation = bytes(meta::INVOCATION)
        .ok_or_else(|| RpcError::new(error_code::ENVELOPE, "_meta: expected dev.casemate/inv"))?;
    let salt = bytes(meta::SALT).and_then(|salt| salt.try_into().ok()).ok_or_else(|| {
        RpcError::new(error_code::ENVELOPE, "_meta: expected dev.casemate/salt of 32 bytes")
    })?;
    let canonical = args::canonical(Some(&arguments)).map_err(|error| wrong(&error.to_string()))?;
    if canonical.len() > MAX_ARGS_BYTES {
        return Err(wrong("params, arguments: expected at most 1 MiB in canonical form"));
    }
    // From here on there is only what was signed: 1.0 was signed as 1, and what
    // gates see and tools get is that.
    let arguments =
        json::parse(&canonical, MAX_ARGS_BYTES).map_err(|error| wrong(&error.to_string()))?;
    Ok(Params { tool, arguments, canonical, invocation, salt })
}
