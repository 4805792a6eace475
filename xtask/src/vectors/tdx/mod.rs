//! TDX cases: real quotes in `DIR/tdx/<case>` against each dated set in
//! `DIR/tdx/collateral`, synthetic ones in `DIR/tdx/synthetic/<case>` under
//! their own root, event logs in `DIR/tdx/eventlog`.

mod fields;
mod logs;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use casemate_attestation::anchors::{IntelAnchor, TrustAnchors};
use casemate_attestation::tdx::{Collateral, Quote, TcbStatus};
use casemate_attestation::wire::hex;
use casemate_attestation::x509::Certificate;
use casemate_attestation::{
    Claims, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Expected, Outcome,
    Policy, Reason, ReferenceValues, UnixTime, Verified, VerifyError, appraise, verify,
};
use serde_json::Value;

use super::{Line, Want, file, files, folders, json, line, meta, optional_file, text, time};

/// Folders that hold no case of their own.
const NO_CASES: [&str; 4] = ["collateral", "eventlog", "roots", "synthetic"];

/// Runs everything under `dir` (the folder `tdx` itself).
pub(crate) fn run(dir: &Path) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let vendor = TrustAnchors::vendor();
    for name in folders(dir)?.iter().filter(|name| !NO_CASES.contains(&name.as_str())) {
        real(dir, name, &vendor, &mut lines);
    }
    if dir.join("eventlog").is_dir() {
        logs::run(dir, &mut lines)?;
    }
    let synthetic = dir.join("synthetic");
    if synthetic.is_dir() {
        let anchors = anchors(&synthetic.join("roots"), "root_ca.der")?;
        let newest = newest_evaluation(&synthetic)?;
        for name in folders(&synthetic)?.iter().filter(|name| *name != "roots") {
            let case = synthetic.join(name);
            let outcome = || self::synthetic(&case, &anchors, newest);
            lines.push(line(&format!("synthetic/{name}"), outcome));
        }
    }
    Ok(lines)
}

/// The collateral in `folder` for the platform family `fmspc`. A part that is
/// not there is left empty, which the library refuses.
pub(super) fn collateral(folder: &Path, fmspc: &str) -> anyhow::Result<Collateral> {
    let part = |name: &str| optional_file(folder, name).map(Option::unwrap_or_default);
    let mut pck_crls = Vec::new();
    for name in ["pck_crl_platform.der", "pck_crl_processor.der"] {
        pck_crls.extend(optional_file(folder, name)?);
    }
    Ok(Collateral {
        tcb_info: part(&format!("tcb_info_tdx_{fmspc}.json"))?,
        qe_identity: part("qe_identity_td.json")?,
        tcb_signing_chain: part("tcb_signing_chain.pem")?,
        root_crl: part("root_ca_crl.der")?,
        pck_crls,
    })
}

/// The platform family that a folder has TCB info for.
fn family_of(folder: &Path) -> anyhow::Result<Option<String>> {
    let family =
        |name: &String| Some(name.strip_prefix("tcb_info_tdx_")?.strip_suffix(".json")?.to_owned());
    Ok(files(folder)?.iter().find_map(family))
}

fn anchors(roots: &Path, name: &str) -> anyhow::Result<TrustAnchors> {
    let root = IntelAnchor::new("vectors", Certificate::parse(&file(roots, name)?)?)?;
    Ok(TrustAnchors { intel: vec![root], ..TrustAnchors::default() })
}

fn verify_quote(
    quote: &[u8],
    collateral: &Collateral,
    anchors: &TrustAnchors,
    now: UnixTime,
) -> Result<Verified<Claims>, VerifyError> {
    let item = EvidenceItem {
        kind: EvidenceKind::TdxQuote,
        evidence: quote.to_vec(),
        endorsements: vec![(EndorsementKind::TdxCollateral, collateral.encode())],
    };
    verify(&Evidence { items: vec![item] }, anchors, &Endorsements::default(), now)
}

/// A quote that a machine made: every field compared, then its status and
/// advisories with each set of collateral, one line each.
fn real(dir: &Path, name: &str, vendor: &TrustAnchors, lines: &mut Vec<Line>) {
    let folder = dir.join(name);
    let dates = lines_of(&folder).unwrap_or_default();
    lines.push(line(name, || {
        let meta = json(&folder, "meta.json")?;
        let quote = file(&folder, "quote.bin")?;
        fields::compare(&Quote::parse(&quote)?, &meta)?;
        fields::compare_platform(&quote, &meta)?;
        if dates.is_empty() {
            return other_root(dir, &quote, &meta, vendor);
        }
        Ok("every field".to_owned())
    }));
    for date in dates {
        let outcome = || at_date(dir, &folder, &date, vendor);
        lines.push(line(&format!("{name}@{date}"), outcome));
    }
}

/// The dates for which a case names a status.
fn lines_of(folder: &Path) -> anyhow::Result<Vec<String>> {
    let meta = json(folder, "meta.json")?;
    let statuses = meta.pointer("/expect/tcb_status_at").and_then(Value::as_object);
    Ok(statuses.into_iter().flat_map(|statuses| statuses.keys().cloned()).collect())
}

/// A quote under another root than the vendor's, whatever the collateral.
fn other_root(
    dir: &Path,
    quote: &[u8],
    meta: &Value,
    vendor: &TrustAnchors,
) -> anyhow::Result<String> {
    let expect = meta.pointer("/expect/cryptographic/pck_chain_to_intel_production_root");
    ensure!(expect == Some(&Value::Bool(false)), "expect: no status, and yet Intel's root");
    let sets = dir.join("collateral");
    let date = folders(&sets)?.pop().context("collateral: none")?;
    let set = sets.join(&date);
    let fmspc = family_of(&set)?.context("collateral: no TCB info")?;
    let collateral = collateral(&set, &fmspc)?;
    match verify_quote(quote, &collateral, vendor, midnight(&date)?) {
        Err(error) if error.reason.class() == "chain" => {
            Ok(format!("refused: {}", error.reason.code()))
        }
        Err(error) => bail!("expected chain, got {error}"),
        Ok(_) => bail!("expected chain, got a verified quote"),
    }
}

fn at_date(dir: &Path, folder: &Path, date: &str, vendor: &TrustAnchors) -> anyhow::Result<String> {
    let meta = json(folder, "meta.json")?;
    let expect = meta.pointer("/expect/tcb_status_at").and_then(|all| all.get(date));
    let expect = expect.context("meta.json: no status")?;
    let fmspc =
        meta.pointer("/pck/fmspc").and_then(Value::as_str).context("meta.json: no FMSPC")?;
    let collateral = collateral(&dir.join("collateral").join(date), fmspc)?;
    let quote = file(folder, "quote.bin")?;
    let wanted = text(expect, "final")?;
    let now = midnight(date)?;
    let claims = match verify_quote(&quote, &collateral, vendor, now) {
        Ok(claims) => claims,
        Err(error) => {
            ensure!(refusal(wanted) == Some(error.reason), "expected {wanted}, got {error}");
            return Ok(format!("refused: {}", error.reason.code()));
        }
    };
    let tdx = claims.tdx().context("claims: expected TDX claims")?;
    ensure!(tdx.tcb.status.name() == wanted, "expected {wanted}, got {}", tdx.tcb.status);
    if let Some(advisories) = expect.get("advisories").and_then(Value::as_array) {
        let advisories: Vec<_> = advisories.iter().filter_map(Value::as_str).collect();
        ensure!(
            tdx.tcb.advisories == advisories,
            "advisories: expected {advisories:?}, got {:?}",
            tdx.tcb.advisories
        );
    }
    let strict = strict_policy(0)?;
    let actual = failures(&claims, &strict, now)?;
    let expected: BTreeSet<String> = meta
        .pointer("/expect/strict_policy_rejects")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|reason| reason.as_str().map(rule_of_strict_reason))
        .chain((wanted != TcbStatus::UpToDate.name()).then(|| "tcb-status".to_owned()))
        .collect();
    ensure!(actual == expected, "strict policy: expected {expected:?}, got {actual:?}");
    Ok(format!("status:{wanted}"))
}

/// The vectors' names of what is no status.
fn refusal(wanted: &str) -> Option<Reason> {
    match wanted {
        "PckCertNotYetValid" | "PckCertExpired" => Some(Reason::CertValidity),
        "TdxModuleMismatch" => Some(Reason::TdxModule),
        "PckRevoked" => Some(Reason::Revoked),
        _ => None,
    }
}

/// The vectors' names of strict reasons, as rules of ours.
fn rule_of_strict_reason(reason: &str) -> String {
    match reason {
        "sept-ve-not-disabled" => "sept-ve",
        "service-td-present" => "service-td",
        other => other,
    }
    .to_owned()
}

/// The default policy, and SEPT_VE_DISABLE and an evaluation number with it.
fn strict_policy(min_evaluation: u64) -> anyhow::Result<Policy> {
    Ok(Policy::from_toml(&format!(
        "[tdx]\nrequire_sept_ve_disable = true\nmin_tcb_evaluation_data_number = {min_evaluation}\n"
    ))?)
}

/// A policy that asks for everything a policy may ask for.
fn strictest_policy(min_evaluation: u64) -> anyhow::Result<Policy> {
    let other = |bytes: usize| "fe".repeat(bytes);
    let (h, q) = (other(48), other(16));
    Ok(Policy::from_toml(&format!(
        "[tdx]\nrequire_sept_ve_disable = true\nmin_tcb_evaluation_data_number = {min_evaluation}\n\
         allowed_xfam = 0\nallow_dynamic_platform = false\nallow_cached_keys = false\n\
         allow_smt = false\nmax_collateral_age_days = 0\nfmspcs = [\"{}\"]\nppids = [\"{q}\"]\n\
         mrseams = [\"{h}\"]\nmrconfigids = [\"{h}\"]\nmrowners = [\"{h}\"]\n\
         mrownerconfigs = [\"{h}\"]\n\
         advisories = [{{ id = \"none\", until = \"2000-01-01T00:00:00Z\" }}]\n",
        other(6),
    ))?)
}

/// The classes of the rules that fail under `policy`. Report data and
/// measurement are given as they are: those vectors are not about them.
fn failures(
    claims: &Verified<Claims>,
    policy: &Policy,
    now: UnixTime,
) -> anyhow::Result<BTreeSet<String>> {
    let report = &claims.tdx().context("claims: expected TDX claims")?.report;
    let [_, rtmr1, rtmr2, _] = report.rtmrs;
    let references = ReferenceValues::from_toml(&format!(
        "[[image]]\nlabel = \"vector\"\n[[image.tdx]]\nmrtd = \"{}\"\nrtmr1 = \"{}\"\nrtmr2 = \"{}\"\n",
        hex(&report.mrtd),
        hex(&rtmr1),
        hex(&rtmr2),
    ))?;
    let expected = Expected::ReportData(report.report_data);
    let appraisal = appraise(claims, policy, &references, expected, now);
    Ok(appraisal
        .checks()
        .iter()
        .filter(|check| check.outcome == Outcome::Fail)
        .map(|check| check.rule.trim_start_matches("tdx.").to_owned())
        .collect())
}

/// A case of the synthetic set: what it wants, at its own clock. `newest` is
/// the highest evaluation number in the set, for a verifier that remembers.
fn synthetic(case: &Path, anchors: &TrustAnchors, newest: u64) -> anyhow::Result<String> {
    let meta = meta(case)?;
    let now = time(text(&meta, "verify_at")?)?;
    let fmspc = match meta.get("fmspc").and_then(Value::as_str) {
        Some(fmspc) => Some(fmspc.to_owned()),
        None => family_of(case)?,
    };
    let collateral = collateral(case, &fmspc.unwrap_or_default())?;
    let outcome = verify_quote(&file(case, "quote.bin")?, &collateral, anchors, now);
    match (Want::parse(text(&meta, "want")?)?, outcome) {
        (Want::Accept, Ok(_)) => Ok("accept".to_owned()),
        (Want::Status(wanted), Ok(claims)) => {
            let actual = claims.tdx().context("claims: expected TDX claims")?.tcb.status;
            ensure!(actual.name() == wanted, "expected {wanted}, got {actual}");
            Ok(format!("status:{wanted}"))
        }
        (Want::Reject(class) | Want::RejectIf(class), Err(error)) => {
            let actual = error.reason.class();
            ensure!(actual == class, "expected {class}, got {actual}: {error}");
            Ok(format!("refused: {}", error.reason.code()))
        }
        (Want::Reject(class), Ok(claims)) => {
            let failed = failures(&claims, &Policy::default(), now)?;
            ensure!(failed.contains(&class), "expected {class}, got {failed:?} by the policy");
            Ok(format!("refused by the default policy: {failed:?}"))
        }
        (Want::RejectIf(class), Ok(claims)) => {
            let before = failures(&claims, &Policy::default(), now)?;
            ensure!(!before.contains(&class), "expected no {class} by default");
            // A set of one case names no newer number: then one above its own.
            let own = claims.tdx().map(|tdx| tdx.collateral.tcb_evaluation_data_number);
            let above = own.map_or(0, |own| u64::from(own).saturating_add(1));
            for policy in [strict_policy(newest)?, strictest_policy(above)?] {
                let failed = failures(&claims, &policy, now)?;
                if failed.iter().any(|rule| *rule == class || class.starts_with(rule.as_str())) {
                    return Ok(format!("refused by a policy that asks: {class}"));
                }
            }
            bail!("expected {class} by a strict policy")
        }
        (_, Err(error)) => bail!("expected a verified quote, got {error}"),
    }
}

/// The highest tcbEvaluationDataNumber of any case.
fn newest_evaluation(synthetic: &Path) -> anyhow::Result<u64> {
    let mut newest = 0;
    for name in folders(synthetic)? {
        let Some(bytes) = optional_file(&synthetic.join(name), "qe_identity_td.json")? else {
            continue;
        };
        let identity: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let number = identity.pointer("/enclaveIdentity/tcbEvaluationDataNumber");
        newest = newest.max(number.and_then(Value::as_u64).unwrap_or(0));
    }
    Ok(newest)
}

fn midnight(date: &str) -> anyhow::Result<UnixTime> {
    time(&format!("{date}T00:00:00Z"))
}
