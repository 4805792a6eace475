//! Azure's vTPM-wrapped evidence: `DIR/snp/azure-hcl`. Whole evidence is a JSON
//! file; a bare HCL report ends in `.bin`.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use casemate_attestation::anchors::TrustAnchors;
use casemate_attestation::azure::{HclReport, TpmQuote, json};
use casemate_attestation::tdx::claimed_platform;
use casemate_attestation::wire::{hex, unhex};
use casemate_attestation::x509::{PemLimits, der_or_pem};
use casemate_attestation::{
    Claims, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Expected, Outcome,
    Policy, ReferenceValues, UnixTime, Verified, VerifyError, appraise, verify,
};
use serde_json::Value;

use super::names::{names_reason, names_rule};
use super::{Line, Want, file, files, folders, line, listed, text, time};

/// Runs every file in `dir`; collateral comes from the folder `tdx` beside `snp`.
/// A `cases.json` there says which files must be refused, and for what.
pub(super) fn run(dir: &Path) -> anyhow::Result<Vec<Line>> {
    let sets = dir.join("../../tdx/collateral");
    let cases = listed(dir)?.unwrap_or_default();
    let file_of =
        |case: &Value| text(case, "file").or_else(|_| text(case, "id")).map(str::to_owned);
    let mut lines = Vec::new();
    for case in &cases {
        let name = file_of(case).unwrap_or_else(|_| "(no file)".to_owned());
        lines.push(line(&format!("azure-hcl/{name}"), || {
            let want = Want::parse(text(case, "want")?)?;
            let asked = text(case, "nonce").ok();
            judge(want, one(dir, &name, asked, &sets))
        }));
    }
    let is_listed =
        |name: &String| cases.iter().any(|case| file_of(case).is_ok_and(|of| of == *name));
    let names = files(dir)?;
    for name in names.iter().filter(|name| *name != "cases.json" && !is_listed(name)) {
        lines.push(line(&format!("azure-hcl/{name}"), || one(dir, name, None, &sets)));
    }
    Ok(lines)
}

/// Compares what came of a file with what its case wants. Only the library's own
/// refusal counts as one.
fn judge(want: Want, outcome: anyhow::Result<String>) -> anyhow::Result<String> {
    let class = match want {
        Want::Accept => return outcome,
        Want::Reject(class) => class,
        _ => bail!("want: expected accept or reject:CLASS"),
    };
    let error = match outcome {
        Ok(said) => bail!("expected {class}, got: {said}"),
        Err(error) => error,
    };
    let named = match (error.downcast_ref::<VerifyError>(), error.downcast_ref::<RuleFailed>()) {
        (Some(refused), _) => names_reason(&class, refused.reason),
        (_, Some(RuleFailed(rule))) => names_rule(&class, rule.trim_start_matches("azure.")),
        (None, None) => false,
    };
    ensure!(named, "expected {class}, got {error:#}");
    Ok(format!("refused: {error:#}"))
}

/// A rule on the vTPM's answer that does not hold.
#[derive(Debug, thiserror::Error)]
#[error("{0} does not hold")]
struct RuleFailed(&'static str);

fn one(dir: &Path, name: &str, asked: Option<&str>, sets: &Path) -> anyhow::Result<String> {
    match name.rsplit_once('.') {
        Some((_, "bin")) => bare(&file(dir, name)?),
        Some((_, "json")) => whole(json::items(&file(dir, name)?)?, asked, sets),
        _ => bail!("expected a name that ends in .bin or .json"),
    }
}

/// A report whose CPU certificate is not at hand: structure and binding.
fn bare(bytes: &[u8]) -> anyhow::Result<String> {
    let hcl = HclReport::parse(bytes)?;
    hcl.check_binding(&hcl.claimed_report_data()?)?;
    Ok(format!("{:?}, bound to its runtime data", hcl.kind))
}

/// Whole evidence; `asked` is the nonce in hex that it must answer, its own
/// where nobody says.
fn whole(items: Vec<EvidenceItem>, asked: Option<&str>, sets: &Path) -> anyhow::Result<String> {
    let of = |kind| items.iter().find(|item| item.kind == kind);
    let quote = of(EvidenceKind::AzureQuote).context("vTPM quote: none")?;
    // The evidence does not say what was asked: its own nonce, and no other.
    let quote = TpmQuote::decode(&quote.evidence)?;
    let own = quote.claimed_nonce()?.to_vec();
    let nonce = match asked {
        Some(asked) => unhex(asked).context("nonce: expected hex digits")?,
        None => own,
    };
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
        if (wanted, outcome) == (Outcome::Pass, Some(Outcome::Fail)) {
            return Err(RuleFailed("azure.nonce").into());
        }
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
