//! TDX cases: real quotes in `DIR/tdx/<case>` against each dated set in
//! `DIR/tdx/collateral`, synthetic ones in `DIR/tdx/synthetic/<case>` under
//! their own root, event logs in `DIR/tdx/eventlog`.

mod fields;
mod logs;
mod names;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use casemate_attestation::anchors::{IntelAnchor, TrustAnchors};
use casemate_attestation::tdx::{Collateral, Quote, TcbStatus};
use casemate_attestation::wire::hex;
use casemate_attestation::x509::{PemLimits, der_or_pem};
use casemate_attestation::{
    Claims, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Expected, Outcome,
    Policy, Reason, ReferenceValues, UnixTime, Verified, VerifyError, appraise, verify,
};
use serde_json::Value;

pub(super) use names::ALIASES;

use super::ask::Asked;
use super::names::{names_reason, names_rule};
use super::{
    Line, Want, any_file, ask, file, files, folders, json, line, meta, optional_file, part, text,
    time,
};

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
        part(&mut lines, "eventlog", || logs::run(dir));
    }
    let synthetic = dir.join("synthetic");
    if synthetic.is_dir() {
        part(&mut lines, "synthetic", || self::cases(&synthetic));
    }
    Ok(lines)
}

/// The synthetic cases, under the root beside them.
fn cases(synthetic: &Path) -> anyhow::Result<Vec<Line>> {
    let anchors = anchors(&synthetic.join("roots"))?;
    let newest = newest_evaluation(synthetic)?;
    let mut lines = Vec::new();
    for name in folders(synthetic)?.iter().filter(|name| *name != "roots") {
        let outcome = || self::synthetic(&synthetic.join(name), &anchors, newest);
        lines.push(line(&format!("synthetic/{name}"), outcome));
    }
    Ok(lines)
}

/// The collateral in `folder` for the platform family `fmspc`. A part that is
/// not there is left empty, which the library refuses.
pub(super) fn collateral(folder: &Path, fmspc: &str) -> anyhow::Result<Collateral> {
    let part = |names: &[&str]| any_file(folder, names).map(Option::unwrap_or_default);
    let mut pck_crls = Vec::new();
    for name in files(folder)?.iter().filter(|name| name.starts_with("pck_crl")) {
        pck_crls.push(file(folder, name)?);
    }
    let own = [fmspc.to_owned(), fmspc.to_lowercase(), fmspc.to_uppercase()]
        .map(|fmspc| format!("tcb_info_tdx_{fmspc}.json"));
    let mut names: Vec<&str> = own.iter().map(String::as_str).collect();
    names.push("tcb_info.json");
    Ok(Collateral {
        tcb_info: part(&names)?,
        qe_identity: part(&["qe_identity_td.json", "qe_identity.json"])?,
        tcb_signing_chain: part(&["tcb_signing_chain.pem", "tcb_signing.pem"])?,
        root_crl: part(&["root_ca_crl.der", "root_ca_crl.pem"])?,
        pck_crls,
    })
}

/// The platform family that a folder has TCB info for.
fn family_of(folder: &Path) -> anyhow::Result<Option<String>> {
    let family =
        |name: &String| Some(name.strip_prefix("tcb_info_tdx_")?.strip_suffix(".json")?.to_owned());
    Ok(files(folder)?.iter().find_map(family))
}

fn anchors(roots: &Path) -> anyhow::Result<TrustAnchors> {
    let root =
        any_file(roots, &["root_ca.der", "root_ca.pem"])?.context("roots: no root_ca.der")?;
    let root = der_or_pem(&root, PemLimits::CHAIN)?.into_iter().next().context("roots: no root")?;
    let root = IntelAnchor::new("vectors", root)?;
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
    compare_advisories(expect, &tdx.tcb.advisories)?;
    let strict = Policy::from_toml("[tdx]\nrequire_sept_ve_disable = true\n")?;
    let actual = failures(&claims, &Asked { policy: strict, ..Asked::default() }, now)?;
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

/// Compares the advisories with those that `expect` lists, if it does, as sets.
fn compare_advisories(expect: &Value, actual: &[String]) -> anyhow::Result<()> {
    let Some(listed) = expect.get("advisories") else { return Ok(()) };
    let listed: BTreeSet<String> = serde_json::from_value(listed.clone()).context("advisories")?;
    let actual: BTreeSet<String> = actual.iter().cloned().collect();
    ensure!(actual == listed, "advisories: expected {listed:?}, got {actual:?}");
    Ok(())
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

/// The classes of the rules that fail where a relying party asks this.
fn failures(
    claims: &Verified<Claims>,
    asked: &Asked,
    now: UnixTime,
) -> anyhow::Result<BTreeSet<String>> {
    let report = &claims.tdx().context("claims: expected TDX claims")?.report;
    let [_, rtmr1, rtmr2, _] = report.rtmrs;
    let references = ReferenceValues::from_toml(&format!(
        "[[image]]\nlabel = \"vector\"\n[[image.tdx]]\nmrtd = \"{}\"\nrtmr1 = \"{}\"\nrtmr2 = \"{}\"\n",
        hex(&asked.measurement(&report.mrtd)),
        hex(&rtmr1),
        hex(&rtmr2),
    ))?;
    let expected = Expected::ReportData(asked.report_data(&report.report_data));
    let appraisal = appraise(claims, &asked.policy, &references, expected, now);
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
            let tcb = &claims.tdx().context("claims: expected TDX claims")?.tcb;
            ensure!(tcb.status.name() == wanted, "expected {wanted}, got {}", tcb.status);
            compare_advisories(&meta, &tcb.advisories)?;
            Ok(format!("status:{wanted}"))
        }
        (Want::Reject(class) | Want::RejectIf(class), Err(error)) => {
            let actual = error.reason.code();
            ensure!(names_reason(&class, error.reason), "expected {class}, got {actual}: {error}");
            Ok(format!("refused: {actual}"))
        }
        (Want::Reject(class), Ok(claims)) => {
            let failed = failures(&claims, &Asked::default(), now)?;
            let named = failed.iter().any(|rule| names_rule(&class, rule));
            ensure!(named, "expected {class}, got {failed:?} by the policy");
            Ok(format!("refused by the default policy: {failed:?}"))
        }
        (Want::RejectIf(class), Ok(claims)) => {
            let asks = ask::tdx(claims.tdx().context("claims: expected TDX claims")?, newest);
            ask::check(&class, &asks, |asked| failures(&claims, asked, now))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advisories_are_compared_where_a_case_has_them() {
        let actual = ["b".to_owned(), "a".to_owned()];
        let check = |expect| compare_advisories(&expect, &actual);
        assert!(check(serde_json::json!({})).is_ok());
        assert!(check(serde_json::json!({ "advisories": ["a", "b"] })).is_ok());
        for bad in [serde_json::json!(["a"]), serde_json::json!([]), serde_json::json!("a")] {
            assert!(check(serde_json::json!({ "advisories": bad })).is_err());
        }
    }
}
