//! Who is stopped. Stops are in the log, so that a gateway that starts knows
//! them before it takes its first connection.

use std::collections::BTreeMap;

use casemate_ledger::{
    Approval, Authentic, Identity, LeafKind, Record, Scope, Stop, StopError, StopLevel, record,
    text,
};
use serde::{Deserialize, Serialize};

use crate::admin::Reply;
use crate::service::Gateway;
use crate::sync::locked;

/// The stops in force, each with the digest of its record.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stops(BTreeMap<Scope, (StopLevel, [u8; 32])>);

/// A stop as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Whom it concerns: `all`, `tenant:…`, `task:…` or `sandbox:…`.
    pub scope: String,
    /// `freeze`, `pause` or `destroy`.
    pub level: String,
    /// SHA-256 of its record in hex.
    pub id: String,
    /// What two persons sign to lift it (docs/formats/stop.md), if it takes two.
    pub display: Option<String>,
}

impl Stops {
    /// Takes a stop, or the end of one. A stop is never made milder by another.
    pub(crate) fn take(&mut self, stop: &Stop, digest: [u8; 32]) {
        match stop.level {
            None => drop(self.0.remove(&stop.scope)),
            Some(level) => {
                let before = self.0.get(&stop.scope).map(|(level, _)| *level);
                let level = before.map_or(level, |before| before.max(level));
                self.0.insert(stop.scope.clone(), (level, digest));
            }
        }
    }

    /// The widest stop that holds `caller`.
    pub(crate) fn of(&self, caller: &Identity) -> Option<(&Scope, StopLevel)> {
        let task = &caller.claims.task;
        self.widest(&caller.tenant, Some(task), &caller.sandbox)
    }

    fn widest(
        &self,
        tenant: &str,
        task: Option<&String>,
        sandbox: &str,
    ) -> Option<(&Scope, StopLevel)> {
        let scope = |scope: &&Scope| concerns(scope, tenant, task, Some(sandbox));
        let scope = self.0.keys().rev().find(scope)?;
        self.0.get_key_value(scope).map(|(scope, (level, _))| (scope, *level))
    }

    /// The hardest of the stops that concern a machine.
    pub(crate) fn level(
        &self,
        tenant: &str,
        task: &String,
        sandbox: Option<&str>,
    ) -> Option<StopLevel> {
        let stops = self.0.iter().filter(|(scope, _)| concerns(scope, tenant, Some(task), sandbox));
        stops.map(|(_, (level, _))| *level).max()
    }

    fn list(&self) -> Vec<Stopped> {
        let one = |(scope, (level, digest)): (&Scope, &(StopLevel, [u8; 32]))| Stopped {
            scope: scope.to_string(),
            level: level.name().to_owned(),
            id: text::hex(digest),
            display: scope.is_wide().then(|| scope.lift_display(digest)),
        };
        self.0.iter().map(one).collect()
    }
}

fn concerns(scope: &Scope, tenant: &str, task: Option<&String>, sandbox: Option<&str>) -> bool {
    match scope {
        Scope::All => true,
        Scope::Tenant(name) => name == tenant,
        Scope::Task(name) => Some(name) == task,
        Scope::Sandbox(uri) => Some(uri.as_str()) == sandbox,
    }
}

/// The stops in force.
pub(crate) fn list(gateway: &Gateway) -> Vec<Stopped> {
    locked(&gateway.state).stops.list()
}

/// Stops a scope at once and in the log; answers when it is durable.
pub(crate) async fn stop(
    gateway: &Gateway,
    (scope, level): (&str, &str),
    reason: String,
    by: &str,
) -> Result<Reply, String> {
    let scope = scope.parse().map_err(|error: StopError| error.to_string())?;
    let level: StopLevel = level.parse().map_err(|error: StopError| error.to_string())?;
    let time_ms = gateway.clock.now().unix_ms;
    let by = by.to_owned();
    let stop = Stop { scope, level: Some(level), reason, by, approvals: Vec::new(), time_ms };
    // What could not be read back must not be written.
    Stop::from_payload(&stop.payload()).map_err(|error| error.to_string())?;
    let written = {
        let mut state = locked(&gateway.state);
        // Whatever the disk says, it is stopped from here on.
        state.stops.take(&stop, [0; 32]);
        state.end_stopped();
        state.stir();
        let written = gateway.journal.write(LeafKind::Stop, stop).map_err(|e| e.to_string())?;
        let digest = written.record.digest();
        state.stops.take(&written.record, digest);
        written
    };
    let (index, _) = written.durable().await.map_err(|error| error.to_string())?;
    Ok(Reply::Done(index))
}

/// Lifts a stop: of a tenant or of all by the word of two persons.
pub(crate) async fn lift(
    gateway: &Gateway,
    scope: &str,
    reason: String,
    approvals: &[String],
    by: &str,
) -> Result<Reply, String> {
    let scope: Scope = scope.parse().map_err(|error: StopError| error.to_string())?;
    let now = gateway.clock.now();
    let written = {
        let mut state = locked(&gateway.state);
        let found = state.stops.0.get(&scope).copied();
        let (_, digest) =
            found.ok_or_else(|| format!("scope: expected a stop, got none of {scope}"))?;
        let signed = if scope.is_wide() {
            two_persons(gateway, (&scope, digest), approvals, now.unix().0)?
        } else {
            Vec::new()
        };
        let lift = Stop {
            scope,
            level: None,
            reason,
            by: by.to_owned(),
            approvals: signed.iter().map(Authentic::digest).collect(),
            time_ms: now.unix_ms,
        };
        Stop::from_payload(&lift.payload()).map_err(|error| error.to_string())?;
        for approval in &signed {
            let appended = gateway.journal.append(LeafKind::Approval, approval.bytes());
            drop(appended.map_err(|error| error.to_string())?);
        }
        let written = gateway.journal.write(LeafKind::Stop, lift).map_err(|e| e.to_string())?;
        state.stops.take(&written.record, [0; 32]);
        state.stir();
        written
    };
    let (index, _) = written.durable().await.map_err(|error| error.to_string())?;
    Ok(Reply::Done(index))
}

/// The signed yes of at least two persons to lifting one stop.
fn two_persons(
    gateway: &Gateway,
    (scope, digest): (&Scope, [u8; 32]),
    approvals: &[String],
    now: u64,
) -> Result<Vec<Authentic<Approval>>, String> {
    let shown = casemate_ledger::digest(scope.lift_display(&digest).as_bytes());
    let mut persons = BTreeMap::new();
    for approval in approvals.iter().take(MAX_APPROVALS) {
        let (person, approval) = word(gateway, approval, (digest, shown), now)?;
        persons.insert(person, approval);
    }
    if persons.len() < 2 {
        return Err(format!("approvals: expected two persons, got {}", persons.len()));
    }
    Ok(persons.into_values().collect())
}

/// The most approvals that a lift is read for.
const MAX_APPROVALS: usize = 4;

/// A person's yes to lifting the stop `hold`.
fn word(
    gateway: &Gateway,
    approval: &str,
    (hold, display): ([u8; 32], [u8; 32]),
    now: u64,
) -> Result<(String, Authentic<Approval>), String> {
    let bytes = text::from_base64url(approval);
    let bytes = bytes.ok_or("approval: expected base64url without padding")?;
    let (_, claimed) = record::peek::<Approval>(&bytes).map_err(|error| error.to_string())?;
    let approver = gateway.config.approvers.iter().find(|one| one.name == claimed.approver);
    let approver = approver.ok_or("approval, approver: expected a listed one")?;
    let key = approver.public_key().map_err(|error| error.to_string())?;
    let approval = Approval::verify(&bytes, &key).map_err(|error| error.to_string())?;
    let ahead = approval.expires.0.saturating_sub(now);
    let fits = approval.approve && approval.hold == hold && approval.display == display;
    if !fits || ahead == 0 || ahead > casemate_ledger::MAX_APPROVAL_SECONDS {
        return Err("approval: expected a yes to this stop, for the next 15 minutes".to_owned());
    }
    Ok((approver.person.clone(), approval))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(scope: &str, level: Option<StopLevel>) -> Stop {
        Stop {
            scope: scope.parse().unwrap(),
            level,
            reason: "test".to_owned(),
            by: "uid:0".to_owned(),
            approvals: Vec::new(),
            time_ms: 0,
        }
    }

    #[test]
    fn a_stop_holds_whom_it_names() {
        let task = "report".to_owned();
        let table = [
            ("all", true),
            ("tenant:demo", true),
            ("tenant:other", false),
            ("task:report", true),
            ("task:other", false),
            ("sandbox:spiffe://x", true),
            ("sandbox:spiffe://y", false),
        ];
        for (scope, expected) in table {
            let mut stops = Stops::default();
            stops.take(&stop(scope, Some(StopLevel::Freeze)), [1; 32]);
            let held = stops.widest("demo", Some(&task), "spiffe://x");
            assert_eq!(held.is_some(), expected, "{scope}");
            stops.take(&stop(scope, None), [2; 32]);
            assert_eq!(stops.widest("demo", Some(&task), "spiffe://x"), None);
        }
    }

    #[test]
    fn a_stop_is_not_made_milder_and_the_widest_is_told() {
        let mut stops = Stops::default();
        stops.take(&stop("task:report", Some(StopLevel::Destroy)), [1; 32]);
        stops.take(&stop("task:report", Some(StopLevel::Freeze)), [2; 32]);
        stops.take(&stop("all", Some(StopLevel::Freeze)), [3; 32]);
        let task = "report".to_owned();
        let (scope, _) = stops.widest("demo", Some(&task), "spiffe://x").unwrap();
        assert_eq!(scope, &Scope::All);
        stops.take(&stop("all", None), [0; 32]);
        let (_, level) = stops.widest("demo", Some(&task), "spiffe://x").unwrap();
        assert_eq!(level, StopLevel::Destroy);
        assert!(stops.list()[0].display.is_none());
    }
}
