//! Event logs: `DIR/tdx/eventlog/expected.json` lists what each replays to.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use casemate_attestation::VerifyError;
use casemate_attestation::eventlog::{EventLog, Rtmrs};
use casemate_attestation::tdx::Quote;
use casemate_attestation::wire::hex;
use serde_json::Value;

use super::super::Want;
use super::{Line, file, json, line, names_reason, text};

pub(super) fn run(dir: &Path) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let expected = json(&dir.join("eventlog"), "expected.json")?;
    for case in expected.as_array().context("eventlog/expected.json: expected a list")? {
        let name = text(case, "log").unwrap_or("(no name)");
        lines.push(line(&format!("eventlog/{name}"), || one(dir, case)));
    }
    Ok(lines)
}

/// A log that must be refused says so, and for what; any other must replay.
fn one(dir: &Path, case: &Value) -> anyhow::Result<String> {
    let bytes = file(&dir.join("eventlog"), text(case, "log")?)?;
    let want = case.get("want").map_or(Ok("accept"), |_| text(case, "want"))?;
    let class = match Want::parse(want)? {
        Want::Accept => return replay(dir, case, &EventLog::parse(&bytes)?),
        Want::Reject(class) => class,
        _ => bail!("want: expected accept or reject:CLASS, got {want}"),
    };
    let refused = match EventLog::parse(&bytes) {
        Err(error) => Err(error),
        Ok(log) => against_quote(dir, case, &log.replay())?,
    };
    refused_for(&class, refused)
}

fn refused_for(class: &str, outcome: Result<(), VerifyError>) -> anyhow::Result<String> {
    match outcome {
        Ok(()) => bail!("expected {class}, got a log that replays"),
        Err(error) if names_reason(class, error.reason) => {
            Ok(format!("refused: {}", error.reason.code()))
        }
        Err(error) => bail!("expected {class}, got {error}"),
    }
}

fn replay(dir: &Path, case: &Value, log: &EventLog) -> anyhow::Result<String> {
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
    if case.get("matches_quote").is_none() {
        return Ok("replayed".to_owned());
    }
    against_quote(dir, case, &replayed)??;
    Ok("replayed to the quote's registers".to_owned())
}

/// Compares with the quote that the case names.
fn against_quote(
    dir: &Path,
    case: &Value,
    replayed: &Rtmrs,
) -> anyhow::Result<Result<(), VerifyError>> {
    let matches = case.get("matches_quote").context("matches_quote: expected a quote")?;
    let quote = file(&dir.join(text(matches, "case")?), "quote.bin")?;
    let mut rtmrs = Quote::parse(&quote)?.report.rtmrs;
    leave_out_unnamed(&mut rtmrs, replayed, matches)?;
    Ok(replayed.check(&rtmrs))
}

/// Where the case lists registers, the others are not compared: they are taken
/// from the log itself.
fn leave_out_unnamed(
    rtmrs: &mut [[u8; 48]; 4],
    replayed: &Rtmrs,
    matches: &Value,
) -> anyhow::Result<()> {
    let Some(named) = matches.get("rtmr") else { return Ok(()) };
    let named: Vec<usize> = serde_json::from_value(named.clone()).context("rtmr")?;
    let known = named.iter().all(|index| *index < rtmrs.len());
    ensure!(known && !named.is_empty(), "rtmr: expected registers, 0 to 3, got {named:?}");
    for (index, (own, of_log)) in rtmrs.iter_mut().zip(&replayed.0).enumerate() {
        if !named.contains(&index) {
            *own = *of_log;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_attestation::Reason;
    use serde_json::json;

    #[test]
    fn only_the_named_registers_are_compared() {
        let replayed = Rtmrs([[1; 48], [2; 48], [3; 48], [4; 48]]);
        let check = |matches: Value| -> anyhow::Result<()> {
            let mut quote = [[1; 48], [2; 48], [9; 48], [9; 48]];
            leave_out_unnamed(&mut quote, &replayed, &matches)?;
            Ok(replayed.check(&quote)?)
        };
        assert!(check(json!({ "rtmr": [0, 1] })).is_ok());
        for bad in
            [json!({ "rtmr": [0, 2] }), json!({}), json!({ "rtmr": [] }), json!({ "rtmr": [4] })]
        {
            assert!(check(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_refusal_is_for_what_the_case_says() {
        let refused = |reason| Err(VerifyError::new(reason, "rtmr0", "one", "another"));
        assert!(refused_for("event-log", refused(Reason::EventLog)).is_ok());
        assert!(refused_for("malformed", refused(Reason::Malformed)).is_ok());
        assert!(refused_for("malformed", refused(Reason::EventLog)).is_err());
        assert!(refused_for("event-log", Ok(())).is_err());
    }
}
