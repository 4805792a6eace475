//! Runs a directory laid out like the project's evidence vectors.
//!
//! `DIR/snp`, `DIR/tdx`, `DIR/measure` and `DIR/nvgpu` each have a file here.
//! A case agrees when the outcome and the class of the reason are those that
//! it expects; one line a case, the count last.

mod ask;
mod azure;
mod launch;
mod measure;
mod names;
mod nvgpu;
mod snp;
mod tdx;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use casemate_attestation::UnixTime;
use serde_json::Value;

/// One case's name and, if it does not agree, what differs.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) outcome: Result<String, String>,
}

/// A kind of vectors: the folder's name, and what runs it.
type Kind = (&'static str, fn(&Path) -> anyhow::Result<Vec<Line>>);

const KINDS: [Kind; 4] =
    [("snp", snp::run), ("tdx", tdx::run), ("measure", measure::run), ("nvgpu", nvgpu::run)];
/// Transcripts of services, which are no evidence: the services' own tests.
const NOT_EVIDENCE: &str = "verifier";

pub(crate) fn run(dir: &Path) -> anyhow::Result<ExitCode> {
    let (mut passed, mut failed) = (0_usize, 0_usize);
    for name in folders(dir)? {
        if name == NOT_EVIDENCE {
            println!("note  {name}: transcripts of services, not evidence; not counted");
            continue;
        }
        for line in run_kind(dir, &name) {
            match line.outcome {
                Ok(what) => {
                    passed += 1;
                    println!("ok    {name}/{} {what}", line.name);
                }
                Err(why) => {
                    failed += 1;
                    println!("FAIL  {name}/{}: {why}", line.name);
                }
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(ExitCode::from(u8::from(failed > 0 || passed == 0)))
}

/// The cases of one folder. A kind that is not supported is one failed case,
/// and so is a folder that cannot be read.
fn run_kind(dir: &Path, name: &str) -> Vec<Line> {
    let Some((_, run)) = KINDS.iter().find(|(known, _)| *known == name) else {
        return vec![Line {
            name: "(unsupported kind)".to_owned(),
            outcome: Err("no runner for vectors of this kind".to_owned()),
        }];
    };
    run(&dir.join(name)).unwrap_or_else(|error| {
        vec![Line { name: "(not readable)".to_owned(), outcome: Err(format!("{error:#}")) }]
    })
}

/// The names of the folders in `dir`, sorted.
fn folders(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.path().is_dir() {
            out.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    out.sort();
    ensure!(!out.is_empty(), "{}: expected folders of vectors, got none", dir.display());
    Ok(out)
}

/// The names of the files in `dir`, sorted.
fn files(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.path().is_file() {
            out.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    out.sort();
    Ok(out)
}

/// The first of `names` that is in `folder`.
fn any_file(folder: &Path, names: &[&str]) -> anyhow::Result<Option<Vec<u8>>> {
    for name in names {
        if let Some(bytes) = optional_file(folder, name)? {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// A part of a kind: what cannot be read is one failed case, and the rest runs.
fn part(lines: &mut Vec<Line>, name: &str, run: impl FnOnce() -> anyhow::Result<Vec<Line>>) {
    match run() {
        Ok(more) => lines.extend(more),
        Err(error) => lines.push(Line {
            name: format!("{name} (not readable)"),
            outcome: Err(format!("{error:#}")),
        }),
    }
}

/// The cases that `folder` lists in its `cases.json`, if it has one: a folder of
/// bare files can say so which of them must be refused, and for what.
fn listed(folder: &Path) -> anyhow::Result<Option<Vec<Value>>> {
    if !folder.join("cases.json").exists() {
        return Ok(None);
    }
    let cases = json(folder, "cases.json")?;
    let list = cases.get("cases").unwrap_or(&cases).as_array().cloned();
    list.map(Some).context("cases.json: expected a list")
}

/// Runs one case; an error says what does not agree.
fn line(name: &str, case: impl FnOnce() -> anyhow::Result<String>) -> Line {
    Line { name: name.to_owned(), outcome: case().map_err(|error| format!("{error:#}")) }
}

/// The file `name` in `folder`.
fn file(folder: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let path = folder.join(name);
    std::fs::read(&path).with_context(|| path.display().to_string())
}

/// The file `name` in `folder`, if it is there.
fn optional_file(folder: &Path, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    if folder.join(name).exists() { file(folder, name).map(Some) } else { Ok(None) }
}

/// The JSON file `name` in `folder`.
fn json(folder: &Path, name: &str) -> anyhow::Result<Value> {
    serde_json::from_slice(&file(folder, name)?)
        .with_context(|| folder.join(name).display().to_string())
}

/// What a case says of itself: its own meta.json, else its entry in the index
/// of its set.
fn meta(case: &Path) -> anyhow::Result<Value> {
    if case.join("meta.json").exists() {
        return json(case, "meta.json");
    }
    let id = case.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let index = json(case.parent().unwrap_or(case), "cases.json")?;
    let entry = |entry: &&Value| entry.get("id").and_then(Value::as_str) == Some(&id);
    let entry = index.as_array().and_then(|cases| cases.iter().find(entry));
    entry.cloned().with_context(|| format!("{id}: no meta.json, and not in cases.json"))
}

/// The text under `key`.
fn text<'a>(value: &'a Value, key: &str) -> anyhow::Result<&'a str> {
    value.get(key).and_then(Value::as_str).with_context(|| format!("{key}: expected text"))
}

/// A time in RFC 3339, in UTC: whole seconds, whatever fraction of one is given,
/// or the midnight at which a date begins.
fn time(text: &str) -> anyhow::Result<UnixTime> {
    let text = if text.len() == 10 { &format!("{text}T00:00:00Z") } else { text };
    let (seconds, zone) = text.split_at_checked(19).unwrap_or_default();
    let fraction = zone.strip_prefix('.');
    let rest = fraction.map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    let zone = rest.filter(|rest| Some(*rest) != fraction).unwrap_or(zone);
    let time = UnixTime::from_rfc3339(&format!("{seconds}Z"));
    time.filter(|_| ["Z", "+00:00"].contains(&zone))
        .with_context(|| format!("time: expected YYYY-MM-DDTHH:MM:SSZ, got {text}"))
}

/// What a case expects.
enum Want {
    /// The evidence verifies.
    Accept,
    /// A refusal of this class, by cryptography or by the default policy.
    Reject(String),
    /// A refusal of this class by a policy that asks for it.
    RejectIf(String),
    /// The TCB status in the result.
    Status(String),
}

impl Want {
    fn parse(want: &str) -> anyhow::Result<Self> {
        if want == "accept" {
            return Ok(Self::Accept);
        }
        if let Some(status) = want.strip_prefix("status:") {
            return Ok(Self::Status(status.to_owned()));
        }
        match want.strip_prefix("reject:").map(|class| class.split_once("-if-")) {
            Some(Some((class, _))) => Ok(Self::RejectIf(class.to_owned())),
            Some(None) => Ok(Self::Reject(want.trim_start_matches("reject:").to_owned())),
            None => bail!("want: expected accept, status:S or reject:CLASS, got {want}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_a_fraction_and_as_a_date() {
        let midnight = time("2026-06-15T00:00:00Z").unwrap();
        for same in ["2026-06-15", "2026-06-15T00:00:00.000Z", "2026-06-15T00:00:00+00:00"] {
            assert_eq!(time(same).unwrap(), midnight, "{same}");
        }
        assert_eq!(time("2026-06-15T00:00:00.9Z").unwrap(), midnight);
        for bad in ["2026-06", "2026-06-15T00:00:00", "2026-06-15T00:00:00.Z", "2026-06-31x"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }
}
