//! Azure's vTPM-wrapped evidence: `DIR/snp/azure-hcl`. Whole evidence is a JSON
//! file; a bare HCL report ends in `.bin`.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use casemate_attestation::anchors::TrustAnchors;
use casemate_attestation::azure::{HclReport, TpmQuote, json};
use casemate_attestation::tdx::claimed_platform;
use casemate_attestation::wire::hex;
use casemate_attestation::x509::{PemLimits, der_or_pem};
use casemate_attestation::{
    Claims, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Expected, Outcome,
    Policy, ReferenceValues, UnixTime, Verified, appraise, verify,
};

use super::{Line, file, files, folders, line, time};

/// Runs every file in `dir`; collateral comes from the folder `tdx` beside `snp`.
pub(super) fn run(dir: &Path) -> anyhow::Result<Vec<Line>> {
    let names = files(dir)?;
    let sets = dir.join("../../tdx/collateral");
    let case = |name: &str| match name.rsplit_once('.') {
        Some((_, "bin")) => bare(&file(dir, name)?),
        Some((_, "json")) => whole(json::items(&file(dir, name)?)?, &sets),
        _ => bail!("expected a name that ends in .bin or .json"),
    };
    Ok(names.iter().map(|name| line(&format!("azure-hcl/{name}"), || case(name))).collect())
}

/// A report whose CPU certificate is not at hand: structure and binding.
fn bare(bytes: &[u8]) -> anyhow::Result<String> {
    let hcl = HclReport::parse(bytes)?;
    hcl.check_binding(&hcl.claimed_report_data()?)?;
    Ok(format!("{:?}, bound to its runtime data", hcl.kind))
}

fn whole(items: Vec<EvidenceItem>, sets: &Path) -> anyhow::Result<String> {
    let of = |kind| items.iter().find(|item| item.kind == kind);
    let quote = of(EvidenceKind::AzureQuote).context("vTPM quote: none")?;
    // The evidence does not say what was asked: its own nonce, and no other.
    let quote = TpmQuote::decode(&quote.evidence)?;
    let nonce = quote.claimed_nonce()?.to_vec();
    let hcl = of(EvidenceKind::AzureHcl).context("HCL report: none")?.clone();
    let (claims, now) = match of(EvidenceKind::TdxQuote).cloned() {
        None => snp(&hcl, items)?,
        Some(quote) => tdx(&quote.evidence, items, sets)?,
    };
    for (asked, wanted) in [(&nonce[..], Outcome::Pass), (b"another nonce", Outcome::Fail)] {
        let (policy, references) = (Policy::default(), ReferenceValues::default());
        let appraisal = appraise(&claims, &policy, &references, Expected::TpmNonce(asked), now);
        let answered = appraisal.checks().iter().find(|check| check.rule == "azure.nonce");
        let outcome = answered.map(|check| check.outcome);
        ensure!(outcome == Some(wanted), "nonce: expected {wanted:?}, got {outcome:?}");
    }
    let kind = claims.azure().context("claims: expected Azure claims")?.kind;
    Ok(format!("{kind:?}, report, key, quote, nonce and PCRs hold"))
}

/// At a time when the certificate beside the report is valid.
fn snp(
    hcl: &EvidenceItem,
    items: Vec<EvidenceItem>,
) -> anyhow::Result<(Verified<Claims>, UnixTime)> {
    let (_, vcek) = hcl.endorsements.first().context("vcek: none")?;
    let vcek = der_or_pem(vcek, PemLimits::CHAIN)?.into_iter().next().context("vcek: none")?;
    let now = vcek.not_before().plus_seconds(86_400);
    let evidence = Evidence { items };
    let claims = verify(&evidence, &TrustAnchors::vendor(), &Endorsements::default(), now)?;
    Ok((claims, now))
}

/// With whatever dated collateral fits the platform.
fn tdx(
    quote: &[u8],
    items: Vec<EvidenceItem>,
    sets: &Path,
) -> anyhow::Result<(Verified<Claims>, UnixTime)> {
    let fmspc = hex(&claimed_platform(quote)?.0.fmspc);
    let evidence = Evidence { items };
    let mut last = anyhow::anyhow!("no collateral for {fmspc}");
    for date in folders(sets)? {
        let collateral = super::tdx::collateral(&sets.join(&date), &fmspc)?;
        if collateral.tcb_info.is_empty() {
            continue;
        }
        let now: UnixTime = time(&format!("{date}T00:00:00Z"))?;
        let items = vec![(EndorsementKind::TdxCollateral, collateral.encode())];
        match verify(&evidence, &TrustAnchors::vendor(), &Endorsements { items }, now) {
            Ok(claims) => return Ok((claims, now)),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}
