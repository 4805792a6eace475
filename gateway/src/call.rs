//! One call, from its line to its answer.
//!
//! [`admit`] runs in the order of arrival: envelope, decision, reservation, the
//! decision's place in the log. [`Admitted::finish`] then waits until the
//! decision is on disk, runs the tool, and waits until the outcome is.

use std::collections::BTreeMap;
use std::sync::Arc;

use casemate_ledger::args::{Commitment, MAX_ARGS_BYTES};
use casemate_ledger::cgp::{self, Denial, ReceiptPointer, RpcError, error_code, meta, method};
use casemate_ledger::{
    Authentic, BoundaryCheck, Decision, Event, EventKind, Identity, Invocation, Label, LeafKind,
    Outcome, RaisedRisk, Record, Verdict, args, text,
};
use casemate_ledger_store::{Payload, PayloadKind, StoreError, step};
use serde_json::{Map, Value, json};

use crate::catalogue::Tool;
use crate::clock::Now;
use crate::decide::{
    self, Breaker, Call, Ended, Facts, Held, Level, Loops, Permit, Raised, Ruling, User,
};
use crate::envelope::{self, OutOfOrder, Request};
use crate::execute::{Execution, execute};
use crate::inflight::InFlight;
use crate::journal::Written;
use crate::keys::random;
use crate::service::Gateway;
use crate::session::{Session, freeze};
use crate::state::{Open, Place, State};
use crate::sync::locked;

/// A call that was decided on.
pub(crate) struct Admitted {
    gateway: Arc<Gateway>,
    session: Arc<Session>,
    decision: Written<Decision>,
    invocation: [u8; 32],
    grant: [u8; 16],
    verdict: Result<Permit, Denial>,
    tool: Option<Tool>,
    arguments: Map<String, Value>,
    payload: Payload,
    in_flight: InFlight,
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
    let params = read_params(params)?;
    let caller = &session.caller;
    let invocation = Invocation::verify(&params.invocation, &caller.key)
        .map_err(|error| RpcError::new(error_code::ENVELOPE, error.to_string()))?;
    let arguments = Commitment::to_args(&params.salt, &params.canonical);
    let request = Request { method: method::TOOLS_CALL, tool: &params.tool, arguments };
    envelope::check_content(&invocation, request, caller)?;
    let tool = gateway.catalogue.tool(&params.tool);
    let call = Call {
        caller,
        grant: invocation.grant,
        tool: &params.tool,
        tool_digest: invocation.tool_digest,
        pinned: tool.as_ref().map(|tool| &tool.pinned),
        arguments: &params.arguments,
        arguments_length: arguments.length,
        fingerprint: fingerprint(gateway, &params, tool.as_ref()),
    };
    let (decision, verdict) = decide_in_order(gateway, session, &invocation, &call)?;
    Ok(Admitted {
        gateway: Arc::clone(gateway),
        session: Arc::clone(session),
        decision,
        invocation: invocation.digest(),
        grant: invocation.grant.map(|grant| grant.id).unwrap_or_default(),
        verdict,
        tool,
        payload: Payload {
            kind: PayloadKind::Arguments,
            salt: params.salt,
            bytes: params.canonical,
        },
        in_flight,
        arguments: match params.arguments {
            Value::Object(arguments) => arguments,
            _ => Map::new(),
        },
    })
}

/// Everything that happens under the state's lock.
fn decide_in_order(
    gateway: &Gateway,
    session: &Session,
    invocation: &Authentic<Invocation>,
    call: &Call<'_>,
) -> Result<(Written<Decision>, Result<Permit, Denial>), RpcError> {
    let caller = &session.caller;
    let now = gateway.clock.now();
    let mut guard = locked(&gateway.state);
    let state: &mut State = &mut guard;
    gateway.journal.check().map_err(stopped)?;
    if state.is_ended(caller) {
        return Err(RpcError::new(error_code::LEASE, "the sandbox was stopped by its operator"));
    }
    let instance = (caller.sandbox.clone(), caller.claims.epoch);
    let chain = state.chains.entry(instance.clone()).or_default();
    match envelope::check_order(invocation, chain) {
        Ok(()) => {}
        Err(OutOfOrder::Refused(error)) => return Err(error),
        Err(OutOfOrder::Fork(reason)) => {
            freeze(gateway, chain, caller, &reason).map_err(stopped)?;
            return Err(RpcError::new(error_code::CHAIN, format!("sandbox is frozen: {reason}")));
        }
    }
    envelope::check_fresh(invocation, chain, caller, now)?;
    let named = match call.grant {
        Some(grant) => Some(grant.id),
        None => grant_of_task(&state.grants, caller, now),
    };
    let line = named.map(|id| state.line(&id)).unwrap_or_default();
    let ids: Vec<[u8; 16]> = line.iter().map(|held| held.grant.id).collect();
    let (no_loops, no_failures) = (Loops::default(), Breaker::default());
    let facts = Facts {
        grants: &line,
        floor: &gateway.config.boundary_floor,
        seen: state.labels.get(&caller.sandbox).copied().unwrap_or_default(),
        loops: state.loops.get(&caller.sandbox).unwrap_or(&no_loops),
        loop_limits: &gateway.config.loops,
        breaker: state.breakers.get(call.tool).unwrap_or(&no_failures),
    };
    let ruling = decide::decide(&facts, call, now);
    let verdict = ruling.verdict.clone();
    let number = note_loops(gateway, state, call, &ruling, now)?;
    if verdict.is_ok() {
        activate(gateway, state, call, now)?;
    }
    let label = match (&verdict, call.pinned) {
        (Ok(_), Some(tool)) => tool.label,
        _ => Label::default(),
    };
    let decision = record(gateway, session, invocation.bytes(), (ruling, label), now.unix_ms);
    let written = gateway.journal.write(LeafKind::Decision, decision).map_err(stopped)?;
    step!("call.decided");
    if let Some(chain) = state.chains.get_mut(&instance) {
        chain.sequence = invocation.sequence;
        chain.last = invocation.digest();
        chain.decisions.push(written.index);
    }
    if let Ok(permit) = &verdict {
        let budgets = written.record.budgets.clone();
        let place = Place { sandbox: caller.sandbox.clone(), tool: call.tool.to_owned(), number };
        let open = Open { index: written.index, line: ids, budgets, time_ms: now.unix_ms, place };
        state.reserve(&caller.sandbox, call.tool, label, &open);
        state.start(&open.line, &permit.clauses, now);
        state.open.insert(written.record.digest(), open);
    }
    Ok((written, verdict))
}

/// Takes a call into the search for loops, and suspends its grant if that says
/// so. Returns the call's number there.
fn note_loops(
    gateway: &Gateway,
    state: &mut State,
    call: &Call<'_>,
    ruling: &Ruling,
    now: Now,
) -> Result<u64, RpcError> {
    let Some(finding) = ruling.loops else { return Ok(0) };
    let loops = state.loops.entry(call.caller.sandbox.clone()).or_default();
    let number = loops.record(&gateway.config.loops, finding, call, now);
    if ruling.verdict.is_ok() {
        loops.start(number);
        state.breakers.entry(call.tool.to_owned()).or_default().start(now);
    }
    let stop = finding.filter(|finding| finding.level == Level::Stop);
    let held = call.grant.and_then(|grant| state.grants.get_mut(&grant.id));
    if let (Some(finding), Some(held)) = (stop, held.filter(|held| held.suspended.is_none())) {
        let reason = format!("{} repetitions ({})", finding.count, finding.rule);
        let event = Event {
            sandbox: Some(call.caller.sandbox.clone()),
            grant: call.grant,
            note: Some(reason.clone()),
            ..Event::new(EventKind::Suspended, now.unix_ms)
        };
        gateway.journal.write(LeafKind::Event, event).map_err(stopped)?;
        held.suspended = Some(reason);
    }
    Ok(number)
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
    gateway.fingerprints.of(&[params.tool.as_bytes(), canonical])
}

/// Binds the grant that `call` names to its caller, if nobody used it before.
fn activate(
    gateway: &Gateway,
    state: &mut State,
    call: &Call<'_>,
    now: Now,
) -> Result<(), RpcError> {
    let held = call.grant.and_then(|grant| state.grants.get_mut(&grant.id));
    let Some(held) = held.filter(|held| held.user.is_none()) else { return Ok(()) };
    let user = User::of(call.caller);
    let event = activation(&user, call, now.unix_ms);
    gateway.journal.write(LeafKind::Event, event).map_err(stopped)?;
    held.user = Some(user);
    Ok(())
}

/// A grant that `caller` could use, one that is live before one that is over.
fn grant_of_task(
    grants: &BTreeMap<[u8; 16], Held>,
    caller: &Identity,
    now: Now,
) -> Option<[u8; 16]> {
    let grants = grants.values().filter(|held| held.is_for(caller));
    let best = grants.max_by_key(|held| !held.revoked && held.grant.is_timely(now.unix()));
    best.map(|held| held.grant.id)
}

fn activation(user: &User, call: &Call<'_>, time_ms: u64) -> Event {
    Event {
        sandbox: Some(user.sandbox.clone()),
        epoch: Some(user.epoch),
        key: Some(user.key),
        grant: call.grant,
        ..Event::new(EventKind::Activation, time_ms)
    }
}

fn record(
    gateway: &Gateway,
    session: &Session,
    invocation: &[u8],
    (ruling, label): (Ruling, Label),
    time_ms: u64,
) -> Decision {
    let Raised { effective, reasons } = ruling.raised;
    let reasons: Vec<String> = reasons.into_iter().map(str::to_owned).collect();
    Decision {
        invocation: invocation.to_vec(),
        verdict: match &ruling.verdict {
            Ok(_) => Verdict::Allow,
            Err(denial) => Verdict::Deny(denial.code),
        },
        rules: ruling.rules,
        policy: gateway.policy,
        certificate: session.caller.digest,
        risk: ruling.risk,
        raised: (!reasons.is_empty()).then_some(RaisedRisk { effective, reasons }),
        label,
        boundary: BoundaryCheck {
            required: ruling.required,
            actual: session.caller.claims.properties.clone(),
            gateway: gateway.config.boundary.name().to_owned(),
        },
        budgets: ruling.budgets,
        time_ms,
    }
}

impl Admitted {
    /// Waits for the disk, runs the tool if it may, and answers.
    pub(crate) async fn finish(self) -> Result<Value, RpcError> {
        let Self { gateway, session, decision, grant, verdict, .. } = self;
        let (index, record) = decision.durable().await.map_err(stopped)?;
        step!("call.decision-durable");
        let mut receipt = ReceiptPointer {
            log: gateway.config.log_origin.clone(),
            invocation: self.invocation,
            decision: index,
            outcome: None,
            result_salt: None,
        };
        let task = &session.caller.claims.task;
        let kept = gateway.payloads.keep(task, &self.payload);
        let permit = match verdict {
            Ok(permit) => permit,
            Err(denial) => return Ok(denied(&denial, &receipt)),
        };
        let ran = match kept {
            Ok(()) => {
                let tool = self.tool.as_ref();
                execute(&gateway, &session, tool, self.arguments, &permit, self.in_flight).await
            }
            Err(error) => Execution::refused(&error, gateway.clock.now()),
        };
        let salt = random();
        let result = result_payload(&ran, salt);
        let bytes_out = u64::try_from(self.payload.bytes.len()).unwrap_or(u64::MAX);
        let outcome = outcome(&record, &ran, result.as_ref(), bytes_out);
        let digest = result.as_ref().map(|result| casemate_ledger::digest(&result.bytes));
        let ended = Ended::of(&outcome, digest);
        if let Some(error) = result.and_then(|result| gateway.payloads.keep(task, &result).err()) {
            // The tool has run: its outcome and answer matter more than the payload.
            tracing::error!(%error, "a result's payload is not kept");
        }
        let written = {
            let mut state = locked(&gateway.state);
            let written = gateway.journal.write(LeafKind::Outcome, outcome).map_err(stopped)?;
            step!("call.outcome-written");
            state.finish(&grant, &permit.clauses);
            state.learn(&record.digest(), &written.record, ended, gateway.clock.now());
            state.close(written.index, &written.record);
            written
        };
        let committed = written.record.result.is_some();
        let (index, _) = written.durable().await.map_err(stopped)?;
        step!("call.outcome-durable");
        receipt.outcome = Some(index);
        receipt.result_salt = salt.filter(|_| committed).map(|salt| text::base64url(&salt));
        Ok(answer(ran, &receipt))
    }
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
    Ok(Params { tool, arguments, canonical, invocation, salt })
}

fn stopped(error: StoreError) -> RpcError {
    tracing::error!(%error, "the log does not take records; calls are refused");
    RpcError::new(error_code::LOG, format!("nothing was decided: {error}"))
}
