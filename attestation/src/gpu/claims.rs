//! A device's verdict under the claim names that the field uses: NVIDIA's
//! tokens, claims version 3.0 (NVIDIA attestation-sdk, and the tokens of its
//! remote service). Ours stand apart, under `casemate`.

use serde_json::{Map, Value, json};

use crate::anchors::AnchorKind;
use crate::time::UnixTime;
use crate::wire::hex;

use super::code::{Code, Finding, Source};
use super::device::{DeviceResult, Outcome, Used};
use super::facts::{DeviceKind, Facts};
use super::ocsp::Status;
use super::revocation::Revocation;

/// The version of NVIDIA's claims that these names are of.
const VERSION: &str = "3.0";

/// What ties the device to the machine, in short; the rule `gpu.location` says it in full.
const BINDING: &str =
    "nonce and digest in the CPU's report data; host and slot not shown before TDISP";

/// What the device's evidence says, for tokens and for people. `nonce_matches`
/// is the appraisal's word; without it nothing is said about freshness.
pub fn device_claims(result: &DeviceResult, nonce_matches: Option<bool>) -> Map<String, Value> {
    let mut out = Map::new();
    let passed = result.outcome() == Outcome::Pass && nonce_matches == Some(true);
    out.insert("measres".into(), (if passed { "success" } else { "fail" }).into());
    let Some(facts) = &result.facts else { return out };
    if passed {
        // NVIDIA's constants: no measurement says them.
        out.insert("secboot".into(), true.into());
        out.insert("dbgstat".into(), "disabled".into());
    }
    let prefix = match facts.kind {
        DeviceKind::Gpu => "x-nvidia-gpu-",
        DeviceKind::Switch => "x-nvidia-switch-",
    };
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            out.insert(format!("{prefix}{name}"), value);
        }
    };
    device(&mut put, result, facts);
    report(&mut put, result, facts, nonce_matches);
    for source in facts.kind.sources() {
        manifest(&mut put, result, *source);
    }
    put("claims-version", VERSION.into());
    out.insert("x-nvidia-device-type".into(), facts.kind.name().into());
    out.insert("eat_nonce".into(), hex(&facts.nonce).into());
    out.insert("hwmodel".into(), json!(facts.hwmodel));
    out.insert("ueid".into(), json!(facts.ueid));
    let manufacturer = result.manifests.iter().find_map(|used| used.manufacturer.clone());
    out.insert("oemid".into(), json!(manufacturer));
    out.insert("x-nvidia-mismatch-measurement-records".into(), mismatches(result));
    out.insert("casemate".into(), ours(result, facts));
    out
}

fn device(put: &mut impl FnMut(&str, Value), result: &DeviceResult, facts: &Facts) {
    let firmware = if facts.kind == DeviceKind::Gpu { "vbios-version" } else { "bios-version" };
    put(firmware, json!(facts.firmware_version));
    put("driver-version", json!(facts.driver_version));
    let chip = [Code::ChipMismatch, Code::RimProduct];
    put("arch-check", (!has(result, None, &chip)).into());
    let peers: Vec<_> = facts.peers.iter().map(ToString::to_string).collect();
    match facts.kind {
        DeviceKind::Gpu => {
            put("mode", json!(facts.mode.map(|mode| mode.name().to_uppercase())));
            put("switch-pdis", json!(peers));
            put("vbios-index-no-conflict", (!has(result, None, &[Code::RimIndexConflict])).into());
        }
        DeviceKind::Switch => {
            put("pdi", json!(facts.reported_pdi.map(|pdi| pdi.to_string())));
            put("gpu-pdis", json!(peers));
        }
    }
}

fn report(
    put: &mut impl FnMut(&str, Value),
    result: &DeviceResult,
    facts: &Facts,
    nonce_matches: Option<bool>,
) {
    put("attestation-report-parsed", true.into());
    put("attestation-report-signature-verified", facts.signed.into());
    put("attestation-report-nonce-match", json!(nonce_matches));
    let fwid = facts.names_fwid.then(|| !has(result, None, &[Code::FwidMismatch]));
    put("attestation-report-cert-chain-fwid-match", json!(fwid));
    let expired = [Code::ChainExpired, Code::ChainNotYetValid];
    let of_chain = Chain {
        source: None,
        held: result.anchor.is_some(),
        expired: has(result, None, &expired),
        not_after: result.not_after,
    };
    put("attestation-report-cert-chain", of_chain.claim(result));
}

fn manifest(put: &mut impl FnMut(&str, Value), result: &DeviceResult, source: Source) {
    let used = result.manifests.iter().find(|used| used.source == source);
    let name = source.name();
    let mut claim = |what: &str, value: Value| put(&format!("{name}-rim-{what}"), value);
    claim("fetched", used.is_some().into());
    let Some(used) = used else { return };
    let without = |codes: &[Code]| Value::from(!has(result, Some(source), codes));
    let schema = [Code::RimXml, Code::RimSchema, Code::RimDuplicateIndex];
    claim("schema-validated", without(&schema));
    claim("signature-verified", without(&[Code::RimDigest, Code::RimSignature]));
    claim("version-match", without(&[Code::RimVersion]));
    claim("measurements-available", without(&schema));
    let expired = [Code::RimChainExpired, Code::RimChainNotYetValid];
    let of_chain = Chain {
        source: Some(source),
        held: used.anchor.is_some(),
        expired: has(result, Some(source), &expired),
        not_after: used.not_after,
    };
    claim("cert-chain", of_chain.claim(result));
}

/// One certificate chain: the device's, or that of a manifest's signer.
struct Chain {
    source: Option<Source>,
    held: bool,
    expired: bool,
    not_after: Option<UnixTime>,
}

impl Chain {
    /// The chain in NVIDIA's words. No nonce is sent to responders, and so the
    /// claim about it is absent: freshness is the response's window.
    fn claim(&self, result: &DeviceResult) -> Value {
        let of_chain = || result.revocation.iter().filter(|one| one.source == self.source);
        let revoked = of_chain().find_map(|one| match &one.status {
            Ok(known) => match known.status {
                Status::Revoked(reason) => Some(reason),
                _ => None,
            },
            Err(_) => None,
        });
        let good = of_chain().next().is_some() && of_chain().all(is_good);
        let status = match (self.held, revoked, self.expired) {
            (false, _, _) => "invalid",
            (true, Some(_), _) => "revoked",
            (true, None, true) => "expired",
            (true, None, false) => "valid",
        };
        let ocsp = match (revoked, good) {
            (Some(_), _) => "revoked",
            (None, true) => "good",
            (None, false) => "unknown",
        };
        let valid = of_chain().next().is_some() && of_chain().all(|one| one.status.is_ok());
        json!({
            "x-nvidia-cert-status": status,
            "x-nvidia-cert-expiration-date": self.not_after.map(UnixTime::rfc3339),
            "x-nvidia-cert-ocsp-status": ocsp,
            "x-nvidia-cert-ocsp-response-valid": valid,
            "x-nvidia-cert-revocation-reason": revoked.flatten().map(reason_name),
        })
    }
}

/// A CRLReason (RFC 5280 5.3.1) by its name.
fn reason_name(code: u8) -> &'static str {
    match code {
        1 => "keyCompromise",
        2 => "cACompromise",
        3 => "affiliationChanged",
        4 => "superseded",
        5 => "cessationOfOperation",
        6 => "certificateHold",
        8 => "removeFromCRL",
        9 => "privilegeWithdrawn",
        10 => "aACompromise",
        _ => "unspecified",
    }
}

fn is_good(one: &Revocation) -> bool {
    matches!(&one.status, Ok(verified) if verified.status == Status::Good)
}

fn mismatches(result: &DeviceResult) -> Value {
    let found = result.comparison.iter().flat_map(|comparison| &comparison.mismatches);
    let record = |one: &super::Mismatch| {
        let golden: Vec<_> = one.references.iter().map(|value| hex(value)).collect();
        let source = if one.source == Source::Driver { "Driver" } else { "Firmware/VBIOS" };
        json!({
            "index": one.index,
            "goldenSize": 48,
            "goldenValue": golden,
            "runtimeSize": if one.measured.is_some() { 48 } else { 0 },
            "runtimeValue": one.measured.map(|value| hex(&value)),
            "measurementSource": source,
        })
    };
    found.map(record).collect()
}

fn ours(result: &DeviceResult, facts: &Facts) -> Value {
    let reference = |used: &Used| {
        json!({
            "id": facts.manifest_id(used.source),
            "sha256": hex(&used.sha256),
            "signer_not_after": used.not_after.map(|time| time.0),
            "anchor": used.anchor.as_ref().map(|anchor| anchor.label.as_str()),
        })
    };
    let ocsp = |one: &Revocation| {
        let (status, window) = match &one.status {
            Ok(known) => {
                (known.status.to_string(), Some((known.this_update.0, known.next_update.0)))
            }
            Err(finding) => (finding.code.to_string(), None),
        };
        let (from, until) = window.unzip();
        json!({
            "certificate": one.certificate,
            "status": status,
            "this_update": from,
            "next_update": until,
        })
    };
    let anchor = result.anchor.as_ref();
    json!({
        "gpu.anchor": anchor.map(|anchor| anchor.label.as_str()),
        "gpu.hardware": anchor.is_some_and(|anchor| anchor.kind == AnchorKind::Hardware),
        "gpu.mode": facts.mode.map(|mode| mode.name()),
        "gpu.pdi": facts.pdi.map(|pdi| pdi.to_string()),
        "gpu.uncovered": result.comparison.as_ref().map(|one| one.uncovered.clone()),
        "gpu.reference": result.manifests.iter().map(reference).collect::<Vec<_>>(),
        "gpu.ocsp": result.revocation.iter().map(ocsp).collect::<Vec<_>>(),
        "gpu.findings": result.findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "gpu.binding": BINDING,
    })
}

fn has(result: &DeviceResult, source: Option<Source>, codes: &[Code]) -> bool {
    let about = |finding: &&Finding| source.is_none() || finding.source == source;
    result.findings.iter().filter(about).any(|finding| codes.contains(&finding.code))
}
