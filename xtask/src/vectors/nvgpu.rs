//! NVIDIA GPU and NVSwitch cases: `DIR/nvgpu`, laid out as its README says.
//!
//! Every `case.json` is run and every field of its expectation compared; then
//! the manifests of `rims/`, the OCSP responses of `*/ocsp/`, and every folder
//! with a `topology.json`, whole and with a member dropped, repeated or
//! replaced by a stranger.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use casemate_attestation::UnixTime;
use casemate_attestation::anchors::{NvidiaAnchor, TrustAnchors};
use casemate_attestation::gpu::{
    Checked, Comparison, DeviceEvidence, DeviceKind, DeviceResult, Facts, Outcome, Source,
    Verifier, check_topology, ocsp,
};
use casemate_attestation::wire::{hex, unhex_array};
use casemate_attestation::x509::{Certificate, PemLimits, certificates_from_pem};
use serde_json::{Map, Value, json};

use super::Line;

const PEM: PemLimits = PemLimits { bytes: 16 * 1024, blocks: 8 };

/// Runs everything under `dir` (the folder `nvgpu` itself).
pub(crate) fn run(dir: &Path) -> anyhow::Result<Vec<Line>> {
    let mut files = Vec::new();
    find(dir, &mut files)?;
    files.sort();
    let bench = Bench::new(dir)?;
    let mut lines = Vec::new();
    for file in &files {
        let folder = file.parent().unwrap_or(dir);
        match file.file_name().and_then(|name| name.to_str()) {
            Some("case.json") => lines.push(line(dir, folder, || bench.case(folder))),
            Some("topology.json") => bench.topology(dir, folder, &files, &mut lines),
            Some("index.json") if folder.ends_with("rims") => {
                bench.manifests(folder, &mut lines)?
            }
            Some("index.json") if folder.ends_with("ocsp") => bench.ocsp(folder, &mut lines)?,
            _ => (),
        }
    }
    Ok(lines)
}

/// The verifiers, one for each set of roots.
struct Bench {
    nvidia: Verifier,
    synthetic: Verifier,
}

/// One case's evidence, read.
struct Case {
    value: Value,
    kind: DeviceKind,
    report: Vec<u8>,
    chain: Vec<u8>,
    manifests: Vec<(Source, Vec<u8>)>,
    nonce: [u8; 32],
    now: UnixTime,
}

impl Case {
    fn read(folder: &Path) -> anyhow::Result<Self> {
        let value = read_json(&folder.join("case.json"))?;
        let files =
            at(&value, "files").as_object().context("case.json, files: expected an object")?;
        let mut manifests = Vec::new();
        for (key, source) in [
            ("driver_rim", Source::Driver),
            ("vbios_rim", Source::Vbios),
            ("bios_rim", Source::Bios),
        ] {
            if let Some(name) = files.get(key).and_then(Value::as_str) {
                manifests.push((source, read(&folder.join(name))?));
            }
        }
        let name = |key: &str| files.get(key).and_then(Value::as_str).unwrap_or_default();
        Ok(Self {
            kind: match text(&value, "kind")? {
                "gpu" => DeviceKind::Gpu,
                "switch" => DeviceKind::Switch,
                other => bail!("case.json, kind: expected gpu or switch, got {other}"),
            },
            report: read(&folder.join(name("report")))?,
            chain: read(&folder.join(name("chain")))?,
            nonce: unhex_array(text(&value, "nonce")?).context("nonce: expected 64 hex digits")?,
            now: time(text(&value, "verify_at")?)?,
            manifests,
            value,
        })
    }

    fn verify(&self, bench: &Bench) -> anyhow::Result<DeviceResult> {
        let verifier = match text(&self.value, "roots")? {
            "nvidia" => &bench.nvidia,
            "synthetic" => &bench.synthetic,
            other => bail!("case.json, roots: expected nvidia or synthetic, got {other}"),
        };
        let manifests: Vec<_> =
            self.manifests.iter().map(|(source, bytes)| (*source, bytes.as_slice())).collect();
        let evidence = DeviceEvidence {
            report: &self.report,
            chain: &self.chain,
            manifests: &manifests,
            ocsp: &[],
        };
        Ok(verifier.device(&evidence, Some(&self.nonce), self.now))
    }
}

impl Bench {
    fn new(dir: &Path) -> anyhow::Result<Self> {
        let root = |name: &str| -> anyhow::Result<Certificate> {
            let chain = certificates_from_pem(&read(&dir.join("roots").join(name))?, PEM)?;
            chain.into_iter().next().with_context(|| format!("{name}: no certificate"))
        };
        // A folder without synthetic cases need not have their roots.
        let synthetic = if dir.join("roots/synthetic_device_root.pem").exists() {
            let device = root("synthetic_device_root.pem")?;
            vec![NvidiaAnchor::new("synthetic", device, root("synthetic_rim_root.pem")?)?]
        } else {
            Vec::new()
        };
        Ok(Self {
            nvidia: Verifier::new(&TrustAnchors::vendor().nvidia),
            synthetic: Verifier::new(&synthetic),
        })
    }

    fn case(&self, folder: &Path) -> anyhow::Result<String> {
        let case = Case::read(folder)?;
        let result = case.verify(self)?;
        let expected = at(&case.value, "expect").as_object().context("case.json: no expect")?;
        let actual = describe(&result);
        let mut differences = Vec::new();
        for (key, expected) in expected {
            let actual = actual.get(key.as_str()).unwrap_or(&Value::Null);
            if actual != expected {
                differences.push(format!("{key}: expected {expected}, got {actual}"));
            }
        }
        let facts = result.facts.as_ref();
        if let Some(kind) = facts.map(|facts| facts.kind).filter(|kind| *kind != case.kind) {
            differences.push(format!("kind: got {}", kind.name()));
        }
        // A case that says nothing of an outcome is one that must fail.
        if !expected.contains_key("appraisal") && result.outcome() != Outcome::Fail {
            differences.push("appraisal: expected a failure".to_owned());
        }
        ensure!(differences.is_empty(), "{}", differences.join("; "));
        Ok(result.codes().join(", "))
    }

    fn manifests(&self, folder: &Path, lines: &mut Vec<Line>) -> anyhow::Result<()> {
        let index = read_json(&folder.join("index.json"))?;
        for entry in index.as_array().context("rims/index.json: expected an array")? {
            let name = text(entry, "file")?;
            lines.push(line_of(format!("rims/{name}"), || self.manifest(folder, entry)));
        }
        Ok(())
    }

    fn manifest(&self, folder: &Path, entry: &Value) -> anyhow::Result<String> {
        let checked = self.nvidia.manifest(&read(&folder.join(text(entry, "file")?))?);
        let findings = checked.findings_at(time(text(entry, "verify_at")?)?);
        let mut codes: Vec<_> = findings.iter().map(|finding| finding.code.name()).collect();
        codes.dedup();
        same("errors", at(entry, "errors"), &json!(codes))?;
        let manifest = checked.manifest.as_ref().context("the manifest could not be read")?;
        same("version", at(entry, "version"), &json!(manifest.version))?;
        same("product", at(entry, "product"), &json!(manifest.product))?;
        let references = manifest.references.values();
        let active = references.clone().filter(|one| one.active).count();
        same("active", at(entry, "active"), &json!(active))?;
        let most = references.map(|one| one.alternatives.len()).max();
        same("max_alternatives", at(entry, "max_alternatives"), &json!(most))?;
        if let Some(expected) = at(entry, "leaf_not_after").as_str() {
            let not_after = checked.chain.first().map(Certificate::not_after);
            ensure!(not_after == Some(time(expected)?), "leaf_not_after: got {not_after:?}");
        }
        Ok(codes.join(", "))
    }

    fn ocsp(&self, folder: &Path, lines: &mut Vec<Line>) -> anyhow::Result<()> {
        let index = read_json(&folder.join("index.json"))?;
        for entry in index.as_array().context("ocsp/index.json: expected an array")? {
            let name = format!("ocsp/{} for {}", text(entry, "file")?, text(entry, "subject")?);
            lines.push(line_of(name, || self.response(folder, entry)));
        }
        Ok(())
    }

    fn response(&self, folder: &Path, entry: &Value) -> anyhow::Result<String> {
        let subject = text(entry, "subject")?;
        let chain = self.chain_of(folder.parent().unwrap_or(folder), subject)?;
        let number: usize = subject
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'))
            .and_then(|(number, _)| number.parse().ok())
            .context("subject: expected an index in brackets")?;
        let pair = (chain.get(number), chain.get(number.saturating_add(1)));
        let (Some(certificate), Some(issuer)) = pair else { bail!("subject: no such certificate") };
        let der = read(&folder.join(text(entry, "file")?))?;
        let check = |now| ocsp::Response::parse(&der)?.verify(certificate, issuer, now);
        let expect = text(entry, "expect")?;
        if at(entry, "this_update").is_null() {
            let now = time("2025-10-24T12:00:00Z")?;
            let Err(finding) = check(now) else { bail!("expected {expect}, got an answer") };
            let name = finding.code.name();
            let parse = name == "OCSP_PARSE" && expect.contains("parse error");
            ensure!(expect.contains(name) || parse, "expected {expect}, got {name}");
            return Ok(name.to_owned());
        }
        let (this, next) = (time(text(entry, "this_update")?)?, time(text(entry, "next_update")?)?);
        let verified = check(this)?;
        ensure!(
            Some(verified.status.to_string().as_str()) == at(entry, "status").as_str(),
            "{verified:?}"
        );
        ensure!((verified.this_update, verified.next_update) == (this, next), "{verified:?}");
        let stale = check(next.plus_seconds(1)).err().map(|finding| finding.code.name());
        ensure!(stale == Some("OCSP_STALE"), "after next_update: got {stale:?}");
        let early = check(UnixTime(this.0.saturating_sub(1))).err().map(|f| f.code.name());
        ensure!(early == Some("OCSP_NOT_YET_VALID"), "before this_update: got {early:?}");
        Ok("good, then OCSP_STALE".to_owned())
    }

    fn chain_of(&self, folder: &Path, subject: &str) -> anyhow::Result<Vec<Certificate>> {
        let file = subject.split([' ', '[']).next().unwrap_or_default();
        let bytes = read(&folder.join(file))?;
        if file.ends_with(".pem") {
            return Ok(certificates_from_pem(&bytes, PEM)?);
        }
        let checked: std::sync::Arc<Checked> = self.nvidia.manifest(&bytes);
        Ok(checked.chain.clone())
    }

    /// The set as it is, then with one member wrong in each way.
    fn topology(&self, dir: &Path, folder: &Path, files: &[PathBuf], lines: &mut Vec<Line>) {
        let name = |what: &str| format!("{} {what}", relative(dir, folder));
        let (members, strangers) = match self.members(folder, files) {
            Ok(found) => found,
            Err(error) => {
                let outcome = Err(format!("{error:#}"));
                lines.push(Line { name: name("topology"), outcome });
                return;
            }
        };
        lines.push(line_of(name("topology"), || as_listed(folder, &members)));
        let all: Vec<&Facts> = members.values().collect();
        for (at, (member, facts)) in members.iter().enumerate() {
            let mut without = all.clone();
            without.remove(at);
            lines.push(refused(name(&format!("without {member}")), &without));
            let twice = [all.clone(), vec![facts]].concat();
            lines.push(refused(name(&format!("{member} twice")), &twice));
            let fits = |one: &&Facts| one.kind == facts.kind && one.pdi != facts.pdi;
            if let Some(stranger) = strangers.iter().find(fits) {
                let replaced = [without, vec![stranger]].concat();
                lines.push(refused(name(&format!("{member} replaced")), &replaced));
            }
        }
    }

    /// The facts of a set's members, and of devices of other cases.
    fn members(
        &self,
        folder: &Path,
        files: &[PathBuf],
    ) -> anyhow::Result<(BTreeMap<String, Facts>, Vec<Facts>)> {
        let (mut members, mut strangers) = (BTreeMap::new(), Vec::new());
        for file in files.iter().filter(|file| file.ends_with("case.json")) {
            let one = file.parent().unwrap_or(folder);
            let case = Case::read(one)?;
            let facts = case.verify(self)?.facts;
            let Some(facts) = facts else { continue };
            if one.parent() == Some(folder) {
                members.insert(relative(folder, one), facts);
            } else {
                strangers.push(facts);
            }
        }
        Ok((members, strangers))
    }
}

fn as_listed(folder: &Path, members: &BTreeMap<String, Facts>) -> anyhow::Result<String> {
    let listed = read_json(&folder.join("topology.json"))?;
    let pdis = |kind| {
        let mut found: Vec<_> = members
            .values()
            .filter(|facts| facts.kind == kind)
            .filter_map(|facts| facts.pdi.map(|pdi| pdi.to_string()))
            .collect();
        found.sort();
        json!(found)
    };
    same("gpus", at(&listed, "gpus"), &pdis(DeviceKind::Gpu))?;
    same("switches", at(&listed, "switches"), &pdis(DeviceKind::Switch))?;
    for (name, status) in at(&listed, "lock_status").as_object().into_iter().flatten() {
        let locked = members.get(name).and_then(|facts| facts.locked);
        ensure!(locked == Some(status == &json!(1)), "lock of {name}: got {locked:?}");
    }
    let all: Vec<_> = members.values().collect();
    let findings = check_topology(&all);
    let ok = findings.is_empty();
    let shown: Vec<_> = findings.iter().map(ToString::to_string).collect();
    ensure!(*at(&listed, "ok") == json!(ok), "ok: expected {}, got {shown:?}", at(&listed, "ok"));
    Ok(format!("{} members", members.len()))
}

fn refused(name: String, devices: &[&Facts]) -> Line {
    let findings = check_topology(devices);
    let codes: std::collections::BTreeSet<_> = findings.iter().map(|f| f.code.name()).collect();
    let outcome = match codes.is_empty() {
        true => Err("expected a refusal, got none".to_owned()),
        false => Ok(codes.into_iter().collect::<Vec<_>>().join(", ")),
    };
    Line { name, outcome }
}

/// A result in the words of `case.json`.
fn describe(result: &DeviceResult) -> Map<String, Value> {
    let appraisal = match result.outcome() {
        Outcome::Pass => "pass",
        Outcome::Partial => "partial",
        Outcome::Fail => "fail",
    };
    let mut out = Map::new();
    out.insert("errors".into(), json!(result.codes()));
    if let Some(facts) = &result.facts {
        out.insert("appraisal".into(), json!(appraisal));
        out.extend(describe_facts(facts));
    }
    if let Some(comparison) = &result.comparison {
        out.insert("measurements".into(), describe_comparison(comparison));
    }
    out
}

fn describe_facts(facts: &Facts) -> Map<String, Value> {
    let value = json!({
        "measurement_blocks": facts.measurements,
        "trailing_zero_bytes": facts.trailing_zeros,
        "report_nonce": hex(&facts.nonce),
        "report_signature": facts.signed,
        "opaque_data_version": facts.opaque_version,
        "fwid_in_report": facts.names_fwid,
        "chip": facts.chip,
        "driver_version": facts.driver_version,
        "vbios_version": facts.firmware_version,
        "bios_version": facts.firmware_version,
        "driver_rim_id": facts.manifest_id(Source::Driver),
        "vbios_rim_id": facts.manifest_id(Source::Vbios),
        "nvdec0": facts.nvdec0.map(|on| if on { "enabled" } else { "disabled" }),
        "mode": facts.stated_mode.map(|mode| mode.name()),
        "hwmodel": facts.hwmodel,
        "ueid": facts.ueid,
        "pdi_from_chain": facts.pdi.map(|pdi| pdi.to_string()),
        "device_pdi": facts.reported_pdi.map(|pdi| pdi.to_string()),
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn describe_comparison(comparison: &Comparison) -> Value {
    let mismatch: Vec<_> = comparison
        .mismatches
        .iter()
        .map(|one| json!({ "index": one.index, "source": one.source.name() }))
        .collect();
    json!({
        "compared": comparison.compared,
        "skipped": comparison.skipped,
        "mismatch": mismatch,
        "uncovered": comparison.uncovered,
    })
}

fn line(dir: &Path, folder: &Path, check: impl FnOnce() -> anyhow::Result<String>) -> Line {
    line_of(relative(dir, folder), check)
}

fn line_of(name: String, check: impl FnOnce() -> anyhow::Result<String>) -> Line {
    Line { name, outcome: check().map_err(|error| format!("{error:#}")) }
}

fn relative(dir: &Path, folder: &Path) -> String {
    folder.strip_prefix(dir).unwrap_or(folder).display().to_string()
}

fn find(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    Ok(())
}

fn same(field: &str, expected: &Value, actual: &Value) -> anyhow::Result<()> {
    ensure!(expected == actual, "{field}: expected {expected}, got {actual}");
    Ok(())
}

/// The value of `key`, or null.
fn at<'a>(value: &'a Value, key: &str) -> &'a Value {
    value.get(key).unwrap_or(&Value::Null)
}

fn text<'a>(value: &'a Value, key: &str) -> anyhow::Result<&'a str> {
    let found = at(value, key);
    found.as_str().with_context(|| format!("{key}: expected text, got {found}"))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

fn read_json(path: &Path) -> anyhow::Result<Value> {
    serde_json::from_slice(&read(path)?).with_context(|| path.display().to_string())
}

/// `2025-10-24T12:00:00Z` as seconds.
fn time(text: &str) -> anyhow::Result<UnixTime> {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    UnixTime::from_generalized(&format!("{digits}Z"))
        .with_context(|| format!("time: expected YYYY-MM-DDTHH:MM:SSZ, got {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every case of the evidence vectors, where CASEMATE_VECTORS names their folder.
    #[test]
    fn every_case_agrees() {
        let Some(dir) = std::env::var_os("CASEMATE_VECTORS").map(PathBuf::from) else {
            println!("skipped: CASEMATE_VECTORS is not set");
            return;
        };
        let lines = run(&dir.join("nvgpu")).unwrap();
        let wrong: Vec<_> = lines
            .iter()
            .filter_map(|line| Some((&line.name, line.outcome.as_ref().err()?)))
            .collect();
        assert!(lines.len() > 100 && wrong.is_empty(), "{} cases, {wrong:#?}", lines.len());
    }

    #[test]
    fn times_of_cases_are_read() {
        assert_eq!(time("2025-10-24T12:00:00Z").unwrap(), UnixTime(1_761_307_200));
        assert!(time("yesterday").is_err());
    }
}
