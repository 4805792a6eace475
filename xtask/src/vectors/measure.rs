//! Launch digests: `DIR/measure/*/cases.json`.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use casemate_attestation::eventlog::EventLog;
use casemate_attestation::measure::MeasureError;
use casemate_attestation::measure::tdx::{PageOrder, Tdvf, rtmr};
use casemate_attestation::wire::{hex, unhex_array};
use serde_json::Value;

use super::launch;
use super::{Line, file, json, line, part, text};

/// Runs every list of cases under `dir` (the folder `measure` itself).
pub(crate) fn run(dir: &Path) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for name in super::folders(dir)? {
        part(&mut lines, &name, || folder(&dir.join(&name), &name));
    }
    Ok(lines)
}

fn folder(path: &Path, name: &str) -> anyhow::Result<Vec<Line>> {
    let cases = json(path, "cases.json")?;
    let mut lines = Vec::new();
    // A plain list holds launch digests; an object has one list for each kind.
    let lists = match cases {
        Value::Array(list) => vec![("snp".to_owned(), list)],
        Value::Object(map) => {
            let mut lists = Vec::new();
            for (key, value) in map {
                match value {
                    Value::Array(list) => lists.push((key, list)),
                    // Texts about the folder, and its table of firmware files.
                    Value::Object(_) if key != "firmware" => lines
                        .push(line(&format!("{name}/{key}"), || {
                            bail!("cases.json, {key}: expected a list of cases, got an object")
                        })),
                    _ => {}
                }
            }
            lists
        }
        _ => bail!("cases.json: expected a list or an object"),
    };
    for (kind, list) in lists {
        for case in list {
            let id = text(&case, "id").unwrap_or("(no id)").to_owned();
            lines.push(line(&format!("{name}/{id}"), || one(path, &kind, &case)));
        }
    }
    Ok(lines)
}

/// A case says what it is by its mode, else the list does that it is in.
fn one(folder: &Path, list: &str, case: &Value) -> anyhow::Result<String> {
    let mode = text(case, "mode").ok();
    let kind = match mode.map(|mode| mode.split([':', '-']).next().unwrap_or(mode)) {
        Some(mode @ ("mrtd" | "rtmr" | "pages" | "page" | "explain")) => mode,
        _ => list,
    };
    match kind {
        "snp" | "svsm" | "cases" => compare(case, launch::digest(folder, case)),
        "pages" | "page" | "page_list" => compare(case, launch::pages(folder, case)),
        "explain" => launch::explain(folder, case),
        "mrtd" | "tdx" => compare(case, mrtd(folder, case)),
        "rtmr" | "rtmrs" => compare(case, register(folder, case)),
        other => bail!("no calculator for {other}"),
    }
}

/// Compares a digest, or its absence, with what the case expects. Only the
/// measuring itself refuses: a file that is missing, or a case that does not
/// read, is no refusal.
fn compare(case: &Value, digest: anyhow::Result<[u8; 48]>) -> anyhow::Result<String> {
    match (case.get("expected").and_then(Value::as_str), digest) {
        (Some(expected), Ok(digest)) => {
            let same = expected.eq_ignore_ascii_case(&hex(&digest));
            ensure!(same, "expected {expected}, got {}", hex(&digest));
            Ok("digest".to_owned())
        }
        (None, Ok(digest)) => bail!("expected a refusal, got {}", hex(&digest)),
        (None, Err(error)) => {
            let wanted = text(case, "expected_error")?;
            match error.downcast_ref::<launch::Unmeasurable>() {
                Some(refused) => {
                    ensure!(refused.is_about(wanted), "expected {wanted}, got {error}")
                }
                None if error.is::<MeasureError>() => {}
                None => return Err(error),
            }
            Ok(format!("refused: {error}"))
        }
        (_, Err(error)) => Err(error),
    }
}

fn mrtd(folder: &Path, case: &Value) -> anyhow::Result<[u8; 48]> {
    let name = text(case, "firmware").or_else(|_| text(case, "ovmf"))?;
    let image = launch::image(folder, name)?;
    let order = text(case, "order")?;
    let order = PageOrder::ALL.into_iter().find(|known| known.name() == order);
    Ok(Tdvf::parse(&image)?.mrtd(order.context("order: expected per-page or two-pass")?))
}

/// A run-time register: of digests that are listed, or of an event log.
fn register(folder: &Path, case: &Value) -> anyhow::Result<[u8; 48]> {
    if let Ok(name) = text(case, "log") {
        let index = usize::try_from(launch::number(case, "index")?)?;
        let replayed = EventLog::parse(&file(folder, name)?)?.replay();
        return replayed.0.get(index).copied().context("index: expected 0 to 3");
    }
    let digests = case.get("digests").and_then(Value::as_array);
    let digest = |value: &Value| value.as_str().and_then(unhex_array::<48>);
    let digests: Option<Vec<_>> = digests.and_then(|all| all.iter().map(digest).collect());
    Ok(rtmr(&digests.context("digests: expected a list of 96 hex digits each")?))
}
