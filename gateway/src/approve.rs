//! People's words on calls that wait: what they are shown, and what they say.

use casemate_ledger::{Approval, Approvals, LeafKind, MAX_APPROVAL_SECONDS, Record, record, text};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::admin::Reply;
use crate::decide::{Call, Pending, Statement};
use crate::journal::wait;
use crate::service::Gateway;
use crate::sync::locked;

/// A call that waits for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// What to approve: SHA-256 of the decision that holds it, in hex.
    pub id: String,
    /// The sandbox that calls.
    pub sandbox: String,
    /// The tool.
    pub tool: String,
    /// How many people must say yes.
    pub needed: usize,
    /// How many did.
    pub given: usize,
    /// Who did.
    pub people: Vec<String>,
    /// Milliseconds since 1970 since when it waits.
    pub since_ms: u64,
    /// Milliseconds since 1970 at which it no longer waits.
    pub expires_ms: u64,
    /// What a person must see before saying yes: the call, as JSON. Nothing
    /// after a restart of the gateway, until the call is made again.
    pub display: Option<String>,
}

/// What people are shown of a call. Its digest stands in their approvals, so
/// it has a salt that nobody outside can guess.
pub(crate) fn display(gateway: &Gateway, call: &Call<'_>, needed: Approvals) -> String {
    let salt = gateway.fingerprints.of(&[b"display", &call.exact]);
    let hex = |bytes: Option<[u8; 32]>| bytes.map(|bytes| text::hex(&bytes));
    let shown = json!({
        "approvals": needed.name(),
        "arguments": call.arguments,
        "grant": call.grant.map(|grant| text::hex(&grant.id)),
        "grant_digest": hex(call.grant.map(|grant| grant.digest)),
        "policy": text::hex(&gateway.policy),
        "salt": text::hex(&salt),
        "sandbox": call.caller.sandbox,
        "task": call.caller.claims.task,
        "tool": call.tool,
        "tool_definition": hex(call.tool_digest),
    });
    let bytes = casemate_ledger::json::canonical(&shown).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

/// The most bytes of one list, far below what a reply may have.
const MAX_LIST_BYTES: usize = 8 << 20;

/// The calls that wait, in the order of their ids, from the one behind `after`
/// on: as many as fit into a reply, and one at least while there is one.
pub(crate) fn list(gateway: &Gateway, after: Option<[u8; 32]>) -> Vec<Waiting> {
    let now = gateway.clock.now();
    let state = locked(&gateway.state);
    let calls = state.holds.iter(now.unix_ms).filter(|(id, _)| after.is_none_or(|a| **id > a));
    let mut left = MAX_LIST_BYTES;
    let fitting = calls.enumerate().take_while(|(at, (_, pending))| {
        // A text grows to twice its length at most: it holds no control characters.
        let bytes = pending.display.as_ref().map_or(0, |text| text.len().saturating_mul(2));
        left = left.saturating_sub(bytes.saturating_add(1024));
        *at == 0 || left > 0
    });
    fitting.map(|(_, (id, pending))| show(id, pending)).collect()
}

fn show(id: &[u8; 32], pending: &Pending) -> Waiting {
    Waiting {
        id: text::hex(id),
        sandbox: pending.exact.sandbox.clone(),
        tool: pending.tool.clone(),
        needed: pending.needed.count(),
        given: pending.given(),
        people: pending.people().map(str::to_owned).collect(),
        // A call waits for as long as an approval may be used.
        since_ms: pending.expires_ms.saturating_sub(MAX_APPROVAL_SECONDS * 1000),
        expires_ms: pending.expires_ms,
        display: pending.display.clone(),
    }
}

/// Takes a signed approval: checks it, logs it, and lets the call be decided.
pub(crate) async fn take(gateway: &Gateway, approval: &str) -> Result<Reply, String> {
    let bytes = text::from_base64url(approval);
    let bytes = bytes.ok_or("approval: expected base64url without padding")?;
    let (_, claimed) = record::peek::<Approval>(&bytes).map_err(|error| error.to_string())?;
    let approver = gateway.config.approvers.iter().find(|one| one.name == claimed.approver);
    let approver = approver.ok_or_else(|| {
        format!("approval, approver: expected a listed one, got {:?}", claimed.approver)
    })?;
    let key = approver.public_key().map_err(|error| error.to_string())?;
    let approval = Approval::verify(&bytes, &key).map_err(|error| error.to_string())?;
    let now = gateway.clock.now();
    let ahead = approval.expires.0.saturating_sub(now.unix().0);
    if ahead == 0 || ahead > MAX_APPROVAL_SECONDS {
        return Err("approval, expires: expected a time within the next 15 minutes".to_owned());
    }
    let (index, durable) = {
        let mut state = locked(&gateway.state);
        let pending = state.holds.get(&approval.hold, now.unix_ms);
        let pending = pending.ok_or("approval, hold: expected a call that waits")?;
        let display = pending.display.as_ref().ok_or(
            "approval, display: expected one that the gateway knows; the call must be made again",
        )?;
        if casemate_ledger::digest(display.as_bytes()) != approval.display {
            return Err("approval, display: expected what the gateway shows of this call".into());
        }
        let statement = Statement {
            hold: approval.hold,
            approve: approval.approve,
            person: approver.person.clone(),
            approval: approval.digest(),
            expires_ms: approval.expires.0.saturating_mul(1000),
        };
        // Nothing is logged that is not taken.
        state.holds.check(&statement, now.unix_ms)?;
        let appended = gateway.journal.append(LeafKind::Approval, approval.bytes());
        let written = appended.map_err(|error| error.to_string())?;
        state.holds.take(statement, now.unix_ms)?;
        state.answers.send_modify(|count| *count += 1);
        written
    };
    wait(durable).await.map_err(|error| error.to_string())?;
    Ok(Reply::Done(index))
}
