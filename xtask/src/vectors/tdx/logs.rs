//! Event logs: `DIR/tdx/eventlog/expected.json` lists what each replays to.

use std::path::Path;

use anyhow::{Context, ensure};
use casemate_attestation::eventlog::EventLog;
use casemate_attestation::tdx::Quote;
use casemate_attestation::wire::hex;
use serde_json::Value;

use super::{Line, file, json, line, text};

pub(super) fn run(dir: &Path) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let expected = json(&dir.join("eventlog"), "expected.json")?;
    for case in expected.as_array().context("eventlog/expected.json: expected a list")? {
        let name = text(case, "log").unwrap_or("(no name)");
        lines.push(line(&format!("eventlog/{name}"), || one(dir, case)));
    }
    Ok(lines)
}

fn one(dir: &Path, case: &Value) -> anyhow::Result<String> {
    let bytes = file(&dir.join("eventlog"), text(case, "log")?)?;
    let log = EventLog::parse(&bytes)?;
    let replayed = log.replay();
    if let Some(events) = case.get("events").and_then(Value::as_u64) {
        // The vectors count the first entry, which only describes the log.
        let actual = u64::try_from(log.events.len())?;
        ensure!(events == actual + 1 || events == actual, "expected {events} events, got {actual}");
    }
    for (index, rtmr) in replayed.0.iter().enumerate() {
        let wanted = case.get("rtmr").and_then(|all| all.get(index.to_string()));
        let wanted = wanted.and_then(Value::as_str).context("rtmr: expected four registers")?;
        ensure!(hex(rtmr) == wanted, "rtmr{index}: expected {wanted}, got {}", hex(rtmr));
    }
    let Some(quote) = case.get("matches_quote") else { return Ok("replayed".to_owned()) };
    let quote = file(&dir.join(text(quote, "case")?), "quote.bin")?;
    replayed.check(&Quote::parse(&quote)?.report.rtmrs)?;
    Ok("replayed to the quote's registers".to_owned())
}
