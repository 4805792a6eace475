//! SEV-SNP cases: real reports in `DIR/snp/<case>`, synthetic ones in
//! `DIR/snp/synthetic/<case>` under their own roots, certificate tables.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use casemate_attestation::anchors::{AmdAnchor, TrustAnchors};
use casemate_attestation::snp::{IdBlock, Product, SnpClaims, Tcb, VekOwner};
use casemate_attestation::wire::hex;
use casemate_attestation::x509::Certificate;
use casemate_attestation::{
    EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Expected, Outcome, Policy,
    ReferenceValues, UnixTime, VerifyError, appraise, verify,
};
use serde_json::Value;

use super::{Line, Want, file, files, folders, line, meta, optional_file, text, time};

/// Folders that hold no case of their own.
const NO_CASES: [&str; 4] = ["roots", "cert-tables", "azure-hcl", "synthetic"];

/// Runs everything under `dir` (the folder `snp` itself).
pub(crate) fn run(dir: &Path) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let vendor = TrustAnchors::vendor();
    for name in folders(dir)? {
        if !NO_CASES.contains(&name.as_str()) {
            lines.push(line(&name, || real(&dir.join(&name), &vendor)));
        }
    }
    let tables = dir.join("cert-tables");
    if tables.is_dir() {
        for name in files(&tables)? {
            lines.push(line(&format!("cert-tables/{name}"), || table(dir, &name, &vendor)));
        }
    }
    let azure = dir.join("azure-hcl");
    if azure.is_dir() {
        lines.extend(super::azure::run(&azure)?);
    }
    let synthetic = dir.join("synthetic");
    if synthetic.is_dir() {
        let anchors = local_anchors(&synthetic.join("roots"))?;
        for name in folders(&synthetic)?.iter().filter(|name| *name != "roots") {
            let case = synthetic.join(name);
            lines.push(line(&format!("synthetic/{name}"), || self::synthetic(&case, &anchors)));
        }
    }
    Ok(lines)
}

/// The roots beside the synthetic cases, as anchors of a model.
fn local_anchors(roots: &Path) -> anyhow::Result<TrustAnchors> {
    let mut anchors = TrustAnchors::default();
    for name in folders(roots)? {
        let folder = roots.join(&name);
        let product = Product::from_name(&name).with_context(|| format!("roots: {name}"))?;
        let read = |file_name| -> anyhow::Result<Certificate> {
            Ok(Certificate::parse(&file(&folder, file_name)?)?)
        };
        let mut intermediates = Vec::new();
        for ca in ["ask.der", "asvk.der"] {
            let der = optional_file(&folder, ca)?;
            intermediates.extend(der.map(|der| Certificate::parse(&der)).transpose()?);
        }
        anchors.amd.push(AmdAnchor::new(&name, product, read("ark.der")?, intermediates)?);
    }
    Ok(anchors)
}

/// A report that a machine made: verified under the vendor's roots, every
/// field compared, and refused by the default policy for the reasons listed.
fn real(case: &Path, vendor: &TrustAnchors) -> anyhow::Result<String> {
    let meta = meta(case)?;
    let expect = meta.get("expect").context("meta.json, expect")?;
    let vek_meta = expect.get("vek").context("meta.json, expect.vek")?;
    let now = match meta.get("verify_at").and_then(Value::as_str) {
        Some(at) => time(at)?,
        None => time(text(vek_meta, "not_before")?)?.plus_seconds(86_400),
    };
    let crypto = expect.get("cryptographic").and_then(Value::as_object);
    let sound = crypto.is_some_and(|all| all.values().all(|v| *v != Value::Bool(false)));
    let report = file(case, text(&meta, "report").unwrap_or("report.bin"))?;
    let vek = file(case, text(&meta, "vek").unwrap_or("vek.der"))?;
    let item = item(report, vec![(EndorsementKind::CertificateChain, vek)]);
    let evidence = Evidence { items: vec![item] };
    let claims = match verify(&evidence, vendor, &Endorsements::default(), now) {
        Ok(claims) if sound => claims,
        Ok(_) => bail!("expected a refusal, got a verified report"),
        Err(error) if sound => bail!("expected a verified report, got {error}"),
        Err(error) => return Ok(format!("refused: {}", error.reason.code())),
    };
    let snp = claims.snp().context("claims: expected SNP claims")?;
    compare_vek(snp, vek_meta)?;
    compare_report(snp, expect.get("report").context("meta.json, expect.report")?)?;
    let expected: BTreeSet<String> = expect
        .get("strict_policy_rejects")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|reason| reason.as_str().map(rule_of_strict_reason))
        .collect();
    let actual = failures(&claims, &Policy::default(), now)?;
    ensure!(actual == expected, "default policy: expected {expected:?}, got {actual:?}");
    Ok(if actual.is_empty() {
        "accept".to_owned()
    } else {
        format!("accept, refused by default for {actual:?}")
    })
}

/// The vectors' names of strict reasons, as rules of ours.
fn rule_of_strict_reason(reason: &str) -> String {
    match reason {
        "report-version<3" => "version",
        "alias-check-not-complete" => "alias-check",
        "vmpl-not-0" => "vmpl",
        "debug-policy" => "debug",
        other => other,
    }
    .to_owned()
}

/// The classes of the rules that fail under `policy`. Report data and
/// measurement are given as they are: those vectors are not about them.
fn failures(
    claims: &casemate_attestation::Verified<casemate_attestation::Claims>,
    policy: &Policy,
    now: UnixTime,
) -> anyhow::Result<BTreeSet<String>> {
    let report = &claims.snp().context("claims: expected SNP claims")?.report;
    let references = ReferenceValues::from_toml(&format!(
        "[[image]]\nlabel = \"vector\"\nsnp_measurements = [\"{}\"]\n",
        hex(&report.measurement)
    ))?;
    let expected = Expected::ReportData(report.report_data);
    let appraisal = appraise(claims, policy, &references, expected, now);
    Ok(appraisal
        .checks()
        .iter()
        .filter(|check| check.outcome == Outcome::Fail)
        .map(|check| check.rule.trim_start_matches("snp.").to_owned())
        .collect())
}

/// A case of the synthetic set: what it wants, at its own clock.
fn synthetic(case: &Path, anchors: &TrustAnchors) -> anyhow::Result<String> {
    let meta = meta(case)?;
    let now = time(text(&meta, "verify_at")?)?;
    let want = Want::parse(text(&meta, "want")?)?;
    let mut endorsements = Vec::new();
    for name in ["vek.der", "ask.der", "asvk.der", "ark.der"] {
        let supplied = optional_file(case, name)?;
        endorsements.extend(supplied.map(|der| (EndorsementKind::CertificateChain, der)));
    }
    let table = optional_file(case, "cert_table.bin")?;
    endorsements.extend(table.map(|bytes| (EndorsementKind::SnpCertTable, bytes)));
    let crl = optional_file(case, "crl.der")?;
    endorsements.extend(crl.map(|der| (EndorsementKind::Crl, der)));
    let evidence = Evidence { items: vec![item(file(case, "report.bin")?, endorsements)] };
    let result = verify(&evidence, anchors, &Endorsements::default(), now);
    let result = result.and_then(|claims| check_id_block(case, &claims).map(|()| claims));
    match (want, result) {
        (Want::Accept, Ok(_)) => Ok("accept".to_owned()),
        (Want::Accept, Err(error)) => bail!("expected accept, got {error}"),
        (Want::Reject(class), Err(error)) => {
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
            // First what the report itself suggests; then floors above it.
            for above in [0, 1] {
                let failed = failures(&claims, &strict_policy(&claims, above)?, now)?;
                if failed.iter().any(|rule| rule.contains(&class) || class.contains(rule)) {
                    return Ok(format!("refused by a policy that asks: {class}"));
                }
            }
            bail!("expected {class} by a strict policy")
        }
        (Want::RejectIf(class), Err(error)) => {
            bail!("expected {class} by a policy that asks, got {error}")
        }
        (Want::Status(status), _) => bail!("want: an SNP report has no status {status}"),
    }
}

/// A case may carry the ID block that the guest was launched with.
fn check_id_block(
    case: &Path,
    claims: &casemate_attestation::Verified<casemate_attestation::Claims>,
) -> Result<(), VerifyError> {
    let read = |name| std::fs::read(case.join(name)).ok();
    match (read("id_block.bin"), read("id_auth.bin"), claims.snp()) {
        (Some(block), Some(auth), Some(snp)) => {
            IdBlock::verify(&block, &auth, &snp.report).map(|_| ())
        }
        _ => Ok(()),
    }
}

/// A policy that asks for everything a policy may ask for, with floors `above`
/// what the report says is REPORTED and CURRENT, whichever is more.
fn strict_policy(
    claims: &casemate_attestation::Verified<casemate_attestation::Claims>,
    above: u8,
) -> anyhow::Result<Policy> {
    let snp = claims.snp().context("claims: expected SNP claims")?;
    let (report, low) = (&snp.report, snp.reported_tcb);
    let current = report.current_tcb.components(snp.product).unwrap_or(low);
    let floor = |a: u8, b: u8| a.max(b).saturating_add(above);
    let version = report.current_version;
    let mitigations = report.current_mitigations | (u64::from(above) * 0x7fff);
    let text = format!(
        "[snp]\nallow_smt = false\nallow_provisional_firmware = false\nrequire_tsme = true\n\
         min_report_version = {}\nmin_abi = [255, 255]\nallow_cxl = false\n\
         require_single_socket = true\nrequire_aes_256_xts = true\nrequire_rapl_off = true\n\
         require_page_swap_off = true\nrequire_ciphertext_hiding = true\nrequire_crl = true\n\
         min_crl_number = {}\nrequired_mitigations = {mitigations}\n\
         min_firmware = [{}, {}, {}]\nmin_guest_svn = {}\n\
         chip_ids = [\"ffffffffffffffff\"]\ncsp_ids = [\"none\"]\n\
         host_data = [\"{}\"]\nid_key_digests = [\"{}\"]\nauthor_key_digests = [\"{}\"]\n\
         family_ids = [\"{}\"]\nimage_ids = [\"{}\"]\n\
         [[snp.tcb]]\nproduct = \"{}\"\nfmc = {}\nbootloader = {}\ntee = {}\n\
         snp = {}\nmicrocode = {}\n",
        report.version.saturating_add(u32::from(above)),
        u32::from(above).saturating_mul(u32::MAX),
        version.major,
        version.minor.saturating_add(above),
        version.build,
        report.guest_svn.saturating_add(1),
        "fe".repeat(32),
        "fe".repeat(48),
        "fe".repeat(48),
        "fe".repeat(16),
        "fe".repeat(16),
        snp.product,
        floor(low.fmc, current.fmc),
        floor(low.bootloader, current.bootloader),
        floor(low.tee, current.tee),
        floor(low.snp, current.snp),
        floor(low.microcode, current.microcode),
    );
    Ok(Policy::from_toml(&text)?)
}

/// A certificate table that a real host handed out, with whichever real report
/// it belongs to.
fn table(dir: &Path, name: &str, vendor: &TrustAnchors) -> anyhow::Result<String> {
    let table = file(&dir.join("cert-tables"), name)?;
    let mut last = anyhow::anyhow!("no report to try it with");
    for case in folders(dir)?.iter().filter(|case| !NO_CASES.contains(&case.as_str())) {
        let case = dir.join(case);
        let (Ok(meta), Some(report)) = (meta(&case), optional_file(&case, "report.bin")?) else {
            continue;
        };
        let not_before = meta.pointer("/expect/vek/not_before").and_then(Value::as_str);
        let now = time(not_before.context("meta.json, not_before")?)?.plus_seconds(86_400);
        let item = item(report, vec![(EndorsementKind::SnpCertTable, table.clone())]);
        match verify(&Evidence { items: vec![item] }, vendor, &Endorsements::default(), now) {
            Ok(_) => return Ok("accept".to_owned()),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

fn item(report: Vec<u8>, endorsements: Vec<(EndorsementKind, Vec<u8>)>) -> EvidenceItem {
    EvidenceItem { kind: EvidenceKind::SnpReport, evidence: report, endorsements }
}

fn compare_vek(claims: &SnpClaims, meta: &Value) -> anyhow::Result<()> {
    let (hwid, csp) = match &claims.owner {
        VekOwner::Chip(hwid) => (Some(hex(hwid)), None),
        VekOwner::Provider(csp) => (None, Some(csp.clone())),
    };
    let kind = claims.report.key_info.signing_key.name();
    same(meta, "type", &Value::from(kind))?;
    same(meta, "hwid", &hwid.map_or(Value::Null, Value::from))?;
    same(meta, "csp_id", &csp.map_or(Value::Null, Value::from))?;
    let product = text(meta, "product_name")?;
    ensure!(product.starts_with(claims.product.name()), "product_name: got {}", claims.product);
    compare_tcb(meta.get("spl").context("spl")?, claims.product, claims.reported_tcb)
}

fn compare_tcb(meta: &Value, product: Product, tcb: Tcb) -> anyhow::Result<()> {
    same(meta, "bootloader", &Value::from(tcb.bootloader))?;
    same(meta, "tee", &Value::from(tcb.tee))?;
    same(meta, "snp", &Value::from(tcb.snp))?;
    same(meta, "microcode", &Value::from(tcb.microcode))?;
    if product == Product::Turin {
        same(meta, "fmc", &Value::from(tcb.fmc))?;
    }
    Ok(())
}

fn compare_report(claims: &SnpClaims, meta: &Value) -> anyhow::Result<()> {
    let r = &claims.report;
    let raw = |value: u64| Value::from(format!("{value:#x}"));
    let bytes = |bytes: &[u8]| Value::from(hex(bytes));
    same(meta, "version", &Value::from(r.version))?;
    same(meta, "guest_svn", &Value::from(r.guest_svn))?;
    same(meta, "vmpl", &Value::from(r.vmpl))?;
    same(meta, "family_id", &bytes(&r.family_id))?;
    same(meta, "image_id", &bytes(&r.image_id))?;
    same(meta, "report_data", &bytes(&r.report_data))?;
    same(meta, "measurement", &bytes(&r.measurement))?;
    same(meta, "host_data", &bytes(&r.host_data))?;
    same(meta, "id_key_digest", &bytes(&r.id_key_digest))?;
    same(meta, "author_key_digest", &bytes(&r.author_key_digest))?;
    same(meta, "report_id", &bytes(&r.report_id))?;
    same(meta, "report_id_ma", &bytes(&r.report_id_ma))?;
    same(meta, "chip_id", &bytes(&r.chip_id))?;
    same(meta, "launch_mit_vector", &raw(r.launch_mitigations))?;
    same(meta, "current_mit_vector", &raw(r.current_mitigations))?;
    same(meta, "current_version", &Value::from(r.current_version.to_string()))?;
    same(meta, "committed_version", &Value::from(r.committed_version.to_string()))?;
    same(meta, "signing_key", &Value::from(r.key_info.signing_key.name()))?;
    for (key, tcb) in [
        ("current_tcb", r.current_tcb),
        ("reported_tcb", r.reported_tcb),
        ("committed_tcb", r.committed_tcb),
        ("launch_tcb", r.launch_tcb),
    ] {
        let meta = meta.get(key).with_context(|| key.to_owned())?;
        let tcb =
            tcb.components(claims.product).with_context(|| format!("{key}: reserved bytes"))?;
        compare_tcb(meta, claims.product, tcb)?;
    }
    compare_flags(claims, meta)
}

fn compare_flags(claims: &SnpClaims, meta: &Value) -> anyhow::Result<()> {
    let guest = claims.report.guest_policy;
    let policy = meta.get("policy").context("policy")?;
    same(policy, "raw", &Value::from(format!("{:#x}", guest.0)))?;
    for (key, bit) in [
        ("smt", guest.smt_allowed()),
        ("reserved17", guest.reserved_one()),
        ("migrate_ma", guest.migrate_ma_allowed()),
        ("debug", guest.debug_allowed()),
        ("single_socket", guest.single_socket()),
        ("cxl_allow", guest.cxl_allowed()),
        ("page_swap_disable", guest.page_swap_disabled()),
    ] {
        same(policy, key, &Value::Bool(bit))?;
    }
    let info = claims.report.platform_info;
    let platform = meta.get("platform_info").context("platform_info")?;
    same(platform, "raw", &Value::from(format!("{:#x}", info.0)))?;
    for (key, bit) in [
        ("smt_en", info.smt()),
        ("tsme_en", info.tsme()),
        ("ecc_en", info.ecc()),
        ("alias_check_complete", info.alias_check_complete()),
        ("tio_en", info.tio()),
    ] {
        same(platform, key, &Value::Bool(bit))?;
    }
    Ok(())
}

fn same(meta: &Value, key: &str, actual: &Value) -> anyhow::Result<()> {
    match meta.get(key) {
        // A field that the case does not list is not compared.
        None => Ok(()),
        Some(expected) if expected == actual => Ok(()),
        Some(expected) => bail!("{key}: expected {expected}, got {actual}"),
    }
}
