//! The decision on one call: its order, its gates, its reservation and its
//! place in the log, all under the state's lock.

use casemate_ledger::cgp::{Denial, RpcError, error_code};
use casemate_ledger::{
    Approvals, Authentic, BoundaryCheck, Decision, Event, EventKind, Hold, Identity, Invocation,
    Label, LeafKind, MAX_APPROVAL_SECONDS, RaisedRisk, Verdict,
};
use casemate_ledger_store::{StoreError, step};
use tokio::sync::watch;

use crate::approve;
use crate::clock::Now;
use crate::decide::{
    self, Breakers, Call, Exact, Facts, Level, Loops, Pending, Permit, Raised, Ruling, Standing,
    User,
};
use crate::envelope::{self, OutOfOrder};
use crate::journal::Written;
use crate::service::Gateway;
use crate::session::{Session, freeze};
use crate::state::{Open, Place, State};
use crate::sync::locked;

/// A decision in the log, not yet known to be on disk.
pub(crate) struct Decided {
    pub(crate) written: Written<Decision>,
    pub(crate) verdict: Result<Permit, Denial>,
    /// What the call waits for, if people have to be asked.
    pub(crate) waiting: Option<Waiting>,
    /// Says when an allowed call must end, and why.
    pub(crate) cut: watch::Receiver<Option<&'static str>>,
}

/// A call that waits for people.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    /// What they were asked about: the first decision that held this call.
    pub(crate) id: [u8; 32],
    /// The decision that holds it now.
    hold: [u8; 32],
    /// When their time is over.
    pub(crate) expires_ms: u64,
    /// The call's number in the search for loops.
    number: u64,
}

/// A call with what its records need.
#[derive(Clone, Copy)]
pub(crate) struct Case<'a> {
    pub(crate) session: &'a Session,
    pub(crate) invocation: &'a Authentic<Invocation>,
    pub(crate) call: &'a Call<'a>,
}

/// What was found out before a decision is written.
struct Found {
    ruling: Ruling,
    /// The grants that the call was decided under.
    line: Vec<[u8; 16]>,
    standing: Standing,
}

/// Decides on a call that must come next in its chain.
pub(crate) fn decide_in_order(gateway: &Gateway, case: Case<'_>) -> Result<Decided, RpcError> {
    let Case { session, invocation, call } = case;
    let caller = &session.caller;
    // Before the lock: it takes the longer, the larger arguments and definition are.
    let reach = gateway.reach(call.tool, call.arguments);
    let now = gateway.clock.now();
    let mut guard = locked(&gateway.state);
    let state: &mut State = &mut guard;
    gateway.journal.check().map_err(stopped)?;
    if state.is_ended(caller) {
        return Err(RpcError::new(error_code::LEASE, "the sandbox was stopped by its operator"));
    }
    if let Some(wait_ms) = state.denials.wait_ms(&caller.sandbox, now) {
        let text = format!("too many calls of this sandbox were denied; wait {wait_ms} ms");
        return Err(RpcError::new(error_code::OVERLOAD, text));
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
    let found = rule(gateway, state, call, (None, reach.as_ref()), now);
    let number = note_loops(gateway, state, call, &found.ruling, now)?;
    let decided = write(gateway, state, case, found, (number, None), now)?;
    step!("call.decided");
    if let Some(chain) = state.chains.get_mut(&instance) {
        chain.sequence = invocation.sequence;
        chain.last = invocation.digest();
        chain.decisions.push(decided.written.index);
    }
    Ok(decided)
}

/// Decides again on a call that waited. Nothing happens while nobody answered,
/// unless no answer could help it any more.
pub(crate) fn release(
    gateway: &Gateway,
    case: Case<'_>,
    waiting: Waiting,
) -> Result<Option<Decided>, RpcError> {
    let caller = &case.session.caller;
    let reach = gateway.reach(case.call.tool, case.call.arguments);
    let now = gateway.clock.now();
    let mut guard = locked(&gateway.state);
    let state: &mut State = &mut guard;
    gateway.journal.check().map_err(stopped)?;
    if state.is_ended(caller) {
        return Err(RpcError::new(error_code::LEASE, "the sandbox was stopped by its operator"));
    }
    let mut found = rule(gateway, state, case.call, (Some(waiting.number), reach.as_ref()), now);
    let lost = found.ruling.verdict.as_ref().is_err_and(|denial| !denial.retryable);
    let actual = match found.standing {
        _ if now.unix_ms >= waiting.expires_ms => Some("no answer in time"),
        Standing::Waiting(id) if id == waiting.id && !lost => return Ok(None),
        Standing::New | Standing::Waiting(_) => {
            Some("an answer that was used, or is for other things")
        }
        _ => None,
    };
    if let (Some(actual), Some(_)) = (actual, found.ruling.ask.take()) {
        found.ruling.deny(decide::expired(&waiting.id, actual));
    }
    found.ruling.loops = None;
    let numbers = (waiting.number, Some(waiting.hold));
    let decided = write(gateway, state, case, found, numbers, now)?;
    let loops = state.loops.get_mut(&caller.sandbox);
    if let (Some(loops), Ok(_)) = (loops, &decided.verdict) {
        loops.start(waiting.number);
    }
    let chain = state.chains.get_mut(&(caller.sandbox.clone(), caller.claims.epoch));
    if let Some(place) = chain.and_then(|chain| chain.at(case.invocation.sequence)) {
        *place = decided.written.index;
    }
    Ok(Some(decided))
}

/// Asks the gates. `waited` is the number that the call has in the search for
/// loops already, `reach` what is wrong with its arguments.
fn rule(
    gateway: &Gateway,
    state: &State,
    call: &Call<'_>,
    (waited, reach): (Option<u64>, Option<&Denial>),
    now: Now,
) -> Found {
    let caller = call.caller;
    let named = match call.grant {
        Some(grant) => Some(grant.id),
        None => grant_of_task(state, caller, now),
    };
    let line = named.map(|id| state.line(&id)).unwrap_or_default();
    let (no_loops, no_failures) = (Loops::default(), Breakers::default());
    let standing = exact(gateway, call)
        .map_or(Standing::New, |exact| state.holds.standing(&exact, now.unix_ms));
    let facts = Facts {
        grants: &line,
        floor: &gateway.config.boundary_floor,
        seen: state.labels.get(&caller.sandbox).copied().unwrap_or_default(),
        loops: state.loops.get(&caller.sandbox).unwrap_or(&no_loops),
        loop_limits: &gateway.config.loops,
        breakers: state.breakers.get(call.tool).unwrap_or(&no_failures),
        waited,
        standing: &standing,
        reach,
        rules: gateway.rules.as_ref(),
    };
    let ruling = decide::decide(&facts, call, now);
    Found { ruling, line: line.iter().map(|held| held.grant.id).collect(), standing }
}

/// What an approval of this call would be for.
fn exact(gateway: &Gateway, call: &Call<'_>) -> Option<Exact> {
    Some(Exact {
        sandbox: call.caller.sandbox.clone(),
        grant: call.grant?,
        tool_digest: call.tool_digest?,
        call: call.exact,
        policy: gateway.policy,
    })
}

/// Writes the decision, and does to the state what it says.
fn write(
    gateway: &Gateway,
    state: &mut State,
    case: Case<'_>,
    found: Found,
    (number, earlier): (u64, Option<[u8; 32]>),
    now: Now,
) -> Result<Decided, RpcError> {
    let Case { session, invocation, call } = case;
    let Found { ruling, line, standing } = found;
    let verdict = ruling.verdict.clone();
    let asked = ruling.ask;
    let exact = exact(gateway, call).filter(|_| asked.is_some());
    if verdict.is_ok() {
        activate(gateway, state, call, now)?;
    }
    let mut decision = record(gateway, session, invocation.bytes(), (ruling, call), now.unix_ms);
    decision.supersedes = earlier;
    let first_ms = now.unix_ms.saturating_add(MAX_APPROVAL_SECONDS * 1000);
    let expires_ms = match standing {
        Standing::Waiting(id) => {
            state.holds.get(&id, now.unix_ms).map_or(first_ms, |pending| pending.expires_ms)
        }
        _ => first_ms,
    };
    if let (Some(needed), Some(exact)) = (asked, &exact) {
        decision.verdict = Verdict::Hold(Hold { needed, expires_ms, call: exact.call });
    }
    let label = decision.label;
    let written = gateway.journal.write(LeafKind::Decision, decision).map_err(stopped)?;
    if verdict.is_err() {
        // The record stands in the write-ahead log and in a tile.
        let record = u64::try_from(written.record.bytes().len()).unwrap_or(u64::MAX);
        let bytes = call.arguments_length.saturating_add(record.saturating_mul(2));
        state.denials.charge(&call.caller.sandbox, bytes, now);
    }
    let digest = written.record.digest();
    let waiting = asked.zip(exact).map(|(needed, exact)| {
        let id = hold(gateway, state, call, (digest, &standing), (needed, exact, expires_ms), now);
        Waiting { id, hold: digest, expires_ms, number }
    });
    if waiting.is_none() && !written.record.approvals.is_empty() {
        state.holds.finish(&digest, &written.record.approvals);
    }
    let cut = watch::Sender::default();
    let told = cut.subscribe();
    if let Ok(permit) = &verdict {
        let budgets = written.record.budgets.clone();
        let caller = call.caller;
        let place = Place { sandbox: caller.sandbox.clone(), tool: call.tool.to_owned(), number };
        let (index, time_ms) = (written.index, now.unix_ms);
        let open = Open { index, line, budgets, time_ms, place, cut };
        state.reserve(label, &open);
        state.start(&open.line, &permit.clauses, now);
        state.breakers.entry(call.tool.to_owned()).or_default().start(&caller.sandbox, now);
        state.open.insert(digest, open);
    }
    Ok(Decided { written, verdict, waiting, cut: told })
}

/// Puts a call with those that wait, and notes what people are shown of it.
/// Returns what they are asked about.
fn hold(
    gateway: &Gateway,
    state: &mut State,
    call: &Call<'_>,
    (digest, standing): ([u8; 32], &Standing),
    (needed, exact, expires_ms): (Approvals, Exact, u64),
    now: Now,
) -> [u8; 32] {
    let held = state.grants.get(&exact.grant.id);
    let owner = held.and_then(|held| held.grant.owner.clone());
    let display = approve::display(gateway, call, needed);
    let id = match standing {
        Standing::Waiting(id) => *id,
        _ => {
            let pending = Pending::new(exact, call.tool, needed, expires_ms);
            state.holds.insert(digest, pending, now.unix_ms);
            digest
        }
    };
    state.holds.show(&id, display, owner);
    id
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
        let id = held.grant.id;
        state.cut_under(&id, "grant_suspended");
    }
    Ok(number)
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
fn grant_of_task(state: &State, caller: &Identity, now: Now) -> Option<[u8; 16]> {
    let grants = state.of_task(&caller.claims.task).filter(|held| held.is_for(caller));
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
    (ruling, call): (Ruling, &Call<'_>),
    time_ms: u64,
) -> Decision {
    let Raised { effective, reasons } = ruling.raised;
    let reasons: Vec<String> = reasons.into_iter().map(str::to_owned).collect();
    let label = match (&ruling.verdict, call.pinned) {
        (Ok(_), Some(tool)) => tool.label,
        _ => Label::default(),
    };
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
        supersedes: None,
        approvals: ruling.approvals,
    }
}

/// The error of a log that takes no more records, for a call that did not run.
/// Its decision may be on disk all the same: a failed write is not undone.
pub(crate) fn stopped(error: StoreError) -> RpcError {
    tracing::error!(%error, "the log does not take records; calls are refused");
    RpcError::new(error_code::LOG, format!("the call did not run: {error}"))
}
