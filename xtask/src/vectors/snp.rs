//! SEV-SNP cases: real reports in `DIR/snp/<case>`, synthetic ones in
//! `DIR/snp/synthetic/<case>` under their own roots, certificate tables.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use casemate_attestation::anchors::{AmdAnchor, TrustAnchors};
use casemate_attestation::snp::{IdBlock, Product, SnpClaims, Tcb, VekOwner};
use casemate_attestation::wire::hex;
use casemate_attestation::x509::{Certificate, PemLimits, der_or_pem};
use casemate_attestation::{
    EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Expected, Outcome, Reason,
    ReferenceValues, UnixTime, VerifyError, appraise, verify,
};
use serde_json::Value;

use super::ask::Asked;
use super::names::{names_reason, names_rule};
use super::{
    Line, Want, any_file, ask, file, files, folders, line, listed, meta, optional_file, part, text,
    time,
};

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
        part(&mut lines, "cert-tables", || self::tables(dir, &vendor));
    }
    let azure = dir.join("azure-hcl");
    if azure.is_dir() {
        part(&mut lines, "azure-hcl", || super::azure::run(&azure));
    }
    let synthetic = dir.join("synthetic");
    if synthetic.is_dir() {
        let anchors = local_anchors(&synthetic.join("roots"), &mut lines);
        part(&mut lines, "synthetic", || {
            let names = folders(&synthetic)?;
            let cases = names.iter().filter(|name| *name != "roots");
            let run = |name: &String| {
                let case = || self::synthetic(&synthetic.join(name), &anchors);
                line(&format!("synthetic/{name}"), case)
            };
            Ok(cases.map(run).collect())
        });
    }
    Ok(lines)
}

/// The roots beside the synthetic cases, as anchors of a model. A folder that is
/// none is a failed case of its own.
fn local_anchors(roots: &Path, lines: &mut Vec<Line>) -> TrustAnchors {
    let mut anchors = TrustAnchors::default();
    let names = folders(roots).unwrap_or_else(|error| {
        lines.push(line("synthetic/roots", || Err(error)));
        vec![]
    });
    for name in names {
        match local_anchor(&roots.join(&name), &name) {
            Ok(anchor) => anchors.amd.push(anchor),
            Err(error) => lines.push(line(&format!("synthetic/roots/{name}"), || Err(error))),
        }
    }
    anchors
}

fn local_anchor(folder: &Path, name: &str) -> anyhow::Result<AmdAnchor> {
    let product = Product::from_name(name).with_context(|| format!("roots: {name}"))?;
    let read = |names: &[&str]| -> anyhow::Result<Option<Certificate>> {
        let Some(bytes) = any_file(folder, names)? else { return Ok(None) };
        Ok(der_or_pem(&bytes, PemLimits::CHAIN)?.into_iter().next())
    };
    let ark = read(&["ark.der", "ark.pem"])?.context("ark: expected ark.der")?;
    let intermediates = [read(&["ask.der", "ask.pem"])?, read(&["asvk.der", "asvk.pem"])?];
    Ok(AmdAnchor::new(name, product, ark, intermediates.into_iter().flatten().collect())?)
}

/// What came along with a report, under whichever name.
fn endorsements(case: &Path) -> anyhow::Result<Vec<(EndorsementKind, Vec<u8>)>> {
    use EndorsementKind::{CertificateChain, Crl, SnpCertTable};
    let files: [(EndorsementKind, &[&str]); 7] = [
        (CertificateChain, &["vek.der", "vek.pem", "vcek.der", "vcek.pem", "vlek.der", "vlek.pem"]),
        (CertificateChain, &["ask.der", "ask.pem"]),
        (CertificateChain, &["asvk.der", "asvk.pem"]),
        (CertificateChain, &["ark.der", "ark.pem"]),
        (CertificateChain, &["cert_chain.pem", "chain.pem"]),
        (SnpCertTable, &["cert_table.bin", "auxblob.bin", "auxblob"]),
        (Crl, &["crl.der", "crl.pem"]),
    ];
    let mut out = Vec::new();
    for (kind, names) in files {
        out.extend(any_file(case, names)?.map(|bytes| (kind, bytes)));
    }
    Ok(out)
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
    let mut endorsements = endorsements(case)?;
    if let Ok(name) = text(&meta, "vek") {
        endorsements.push((EndorsementKind::CertificateChain, file(case, name)?));
    }
    let item = item(report, endorsements);
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
    let actual = failures(&claims, &Asked::default(), now)?;
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
        "migrate-ma" => "migration-agent",
        other => other,
    }
    .to_owned()
}

/// The classes of the rules that fail where a relying party asks this.
fn failures(
    claims: &casemate_attestation::Verified<casemate_attestation::Claims>,
    asked: &Asked,
    now: UnixTime,
) -> anyhow::Result<BTreeSet<String>> {
    let report = &claims.snp().context("claims: expected SNP claims")?.report;
    let references = ReferenceValues::from_toml(&format!(
        "[[image]]\nlabel = \"vector\"\nsnp_measurements = [\"{}\"]\n",
        hex(&asked.measurement(&report.measurement))
    ))?;
    let expected = Expected::ReportData(asked.report_data(&report.report_data));
    let appraisal = appraise(claims, &asked.policy, &references, expected, now);
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
    let endorsements = endorsements(case)?;
    let evidence = Evidence { items: vec![item(file(case, "report.bin")?, endorsements)] };
    let anchors = if brings_ca(case) { &without_ca(anchors)? } else { anchors };
    let result = verify(&evidence, anchors, &Endorsements::default(), now);
    let result = result.and_then(|claims| check_id_block(case, &claims).map(|()| claims));
    match (want, result) {
        (Want::Accept, Ok(_)) => Ok("accept".to_owned()),
        (Want::Accept, Err(error)) => bail!("expected accept, got {error}"),
        // A policy that asks gets no further where verification refuses already.
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
            let asks = ask::snp(claims.snp().context("claims: expected SNP claims")?);
            ask::check(&class, &asks, |asked| failures(&claims, asked, now))
        }
        (Want::Status(status), _) => bail!("want: an SNP report has no status {status}"),
    }
}

/// Whether a case is about its own signing CA: then none that is known helps it.
fn brings_ca(case: &Path) -> bool {
    let is_ca = |certificate: &Certificate| {
        !["SEV-VCEK", "SEV-VLEK"].contains(&certificate.subject().common_name.as_str())
    };
    let chain = ["cert_chain.pem", "chain.pem"].iter().find_map(|name| file(case, name).ok());
    let chain = chain.and_then(|pem| der_or_pem(&pem, PemLimits::CHAIN).ok()).unwrap_or_default();
    let named = ["ask.der", "ask.pem", "asvk.der", "asvk.pem"];
    chain.iter().any(is_ca) || named.iter().any(|name| case.join(name).exists())
}

/// The roots alone.
fn without_ca(anchors: &TrustAnchors) -> anyhow::Result<TrustAnchors> {
    let mut out = TrustAnchors::default();
    for anchor in &anchors.amd {
        let name = &anchor.anchor().label;
        out.amd.push(AmdAnchor::new(name, anchor.product(), anchor.ark().clone(), vec![])?);
    }
    Ok(out)
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
        (None, None, _) | (_, _, None) => Ok(()),
        (block, _, _) => Err(VerifyError::new(
            Reason::IdBlock,
            "id_block.bin and id_auth.bin",
            "both, or none",
            if block.is_some() { "the block alone" } else { "the authentication alone" },
        )),
    }
}

/// The certificate tables in `DIR/snp/cert-tables`: those that `cases.json`
/// lists with what it wants of them, every other one a table that a real host
/// handed out.
fn tables(dir: &Path, vendor: &TrustAnchors) -> anyhow::Result<Vec<Line>> {
    let folder = dir.join("cert-tables");
    let listed = listed(&folder)?.unwrap_or_default();
    let mut lines = Vec::new();
    for case in &listed {
        let name = text(case, "file").or_else(|_| text(case, "id")).unwrap_or("(no file)");
        lines.push(line(&format!("cert-tables/{name}"), || {
            let want = Want::parse(text(case, "want")?)?;
            let (class, error) = match (want, table(dir, name, text(case, "report").ok(), vendor)) {
                (Want::Accept, outcome) => return outcome.map(|()| "accept".to_owned()),
                (Want::Reject(class), Err(error)) => (class, error),
                (Want::Reject(class), Ok(())) => bail!("expected {class}, got a verified report"),
                _ => bail!("want: expected accept or reject:CLASS"),
            };
            let refused = error.downcast_ref::<VerifyError>();
            let named = refused.is_some_and(|error| names_reason(&class, error.reason));
            ensure!(named, "expected {class}, got {error:#}");
            Ok(format!("refused: {error:#}"))
        }));
    }
    let is_listed =
        |name: &str| listed.iter().any(|case| text(case, "file").is_ok_and(|file| file == name));
    for name in files(&folder)?.iter().filter(|name| *name != "cases.json" && !is_listed(name)) {
        let accepted = || table(dir, name, None, vendor).map(|()| "accept".to_owned());
        lines.push(line(&format!("cert-tables/{name}"), accepted));
    }
    Ok(lines)
}

/// Tries the table with the report of the case `wanted`, or with whichever real
/// report it belongs to.
fn table(
    dir: &Path,
    name: &str,
    wanted: Option<&str>,
    vendor: &TrustAnchors,
) -> anyhow::Result<()> {
    let table = file(&dir.join("cert-tables"), name)?;
    let mut last = anyhow::anyhow!("no report to try it with");
    let cases = folders(dir)?;
    let usable = |case: &&String| !NO_CASES.contains(&case.as_str());
    for case in cases.iter().filter(usable).filter(|case| wanted.is_none_or(|one| one == *case)) {
        let case = dir.join(case);
        let (Ok(meta), Some(report)) = (meta(&case), optional_file(&case, "report.bin")?) else {
            continue;
        };
        let not_before = meta.pointer("/expect/vek/not_before").and_then(Value::as_str);
        let now = time(not_before.context("meta.json, not_before")?)?.plus_seconds(86_400);
        let item = item(report, vec![(EndorsementKind::SnpCertTable, table.clone())]);
        match verify(&Evidence { items: vec![item] }, vendor, &Endorsements::default(), now) {
            Ok(_) => return Ok(()),
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
