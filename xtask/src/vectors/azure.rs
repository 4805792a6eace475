//! Azure's vTPM-wrapped evidence: `DIR/snp/azure-hcl`. Whole evidence is a JSON
//! file with `snp` or `tdx` in its name; a bare HCL report ends in `.bin`.

use std::path::Path;

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use casemate_attestation::UnixTime;
use casemate_attestation::anchors::TrustAnchors;
use casemate_attestation::azure::{
    HclKind, HclReport, TpmQuote, VtpmClaims, verify_snp, verify_tdx,
};
use casemate_attestation::snp::PreparedVek;
use casemate_attestation::tdx::{Prepared, claimed_platform};
use casemate_attestation::wire::{hex, unhex};
use casemate_attestation::x509::{PemLimits, der_or_pem};
use serde_json::Value;

use super::{Line, file, folders, json, line, text, time};

/// Runs every file in `dir`; collateral comes from the folder `tdx` beside `snp`.
pub(super) fn run(dir: &Path) -> anyhow::Result<Vec<Line>> {
    let mut names: Vec<String> = std::fs::read_dir(dir)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let sets = dir.join("../../tdx/collateral");
    let case = |name: &str| match name.rsplit_once('.') {
        Some((_, "bin")) => bare(&file(dir, name)?),
        _ => whole(&json(dir, name)?, &sets),
    };
    Ok(names.iter().map(|name| line(&format!("azure-hcl/{name}"), || case(name))).collect())
}

/// A report whose CPU certificate is not at hand: structure and binding.
fn bare(bytes: &[u8]) -> anyhow::Result<String> {
    let hcl = HclReport::parse(bytes)?;
    hcl.check_binding(&hcl.claimed_report_data()?)?;
    Ok(format!("{:?}, bound to its runtime data", hcl.kind))
}

fn whole(evidence: &Value, sets: &Path) -> anyhow::Result<String> {
    let report = octets(evidence.get("report").or(evidence.get("hcl_report")))?;
    let hcl = HclReport::parse(&report)?;
    let tpm = tpm_quote(evidence.get("quote").or(evidence.get("tpm_quote")))?;
    // The evidence does not say what was asked: its own nonce, and no other.
    let nonce = tpm.claimed_nonce()?.to_vec();
    let vtpm = match hcl.kind {
        HclKind::Snp => snp(evidence, &hcl, &tpm, &nonce)?,
        HclKind::Tdx => tdx(evidence, &hcl, &tpm, &nonce, sets)?,
    };
    ensure!(vtpm.pcrs.len() == 24, "expected 24 PCRs, got {}", vtpm.pcrs.len());
    Ok(format!("{:?}, report, key, quote, nonce and PCRs hold", hcl.kind))
}

fn snp(
    evidence: &Value,
    hcl: &HclReport<'_>,
    tpm: &TpmQuote,
    nonce: &[u8],
) -> anyhow::Result<VtpmClaims> {
    let vek = match text(evidence, "vcek")? {
        pem if pem.starts_with("-----") => pem.as_bytes().to_vec(),
        _ => octets(evidence.get("vcek"))?,
    };
    let vek = der_or_pem(&vek, PemLimits::CHAIN)?.into_iter().next().context("vcek: none")?;
    let now = vek.not_before().plus_seconds(86_400);
    let vek = PreparedVek::new(vek, &[], &[], &TrustAnchors::vendor(), now)?;
    let refused = verify_snp(hcl, tpm, b"another nonce", &vek, now);
    ensure!(refused.is_err(), "another nonce: expected a refusal");
    Ok(verify_snp(hcl, tpm, nonce, &vek, now)?.1.into_inner())
}

/// With whatever dated collateral fits the platform.
fn tdx(
    evidence: &Value,
    hcl: &HclReport<'_>,
    tpm: &TpmQuote,
    nonce: &[u8],
    sets: &Path,
) -> anyhow::Result<VtpmClaims> {
    let quote = octets(evidence.get("td_quote"))?;
    let (platform, _) = claimed_platform(&quote)?;
    let fmspc = hex(&platform.fmspc);
    let anchors = TrustAnchors::vendor();
    let anchor = anchors.intel.first().context("anchors: none of Intel")?;
    let mut last = anyhow::anyhow!("no collateral for {fmspc}");
    for date in folders(sets)? {
        let collateral = super::tdx::collateral(&sets.join(&date), &fmspc)?;
        if collateral.tcb_info.is_empty() {
            continue;
        }
        let now: UnixTime = time(&format!("{date}T00:00:00Z"))?;
        let prepared = Prepared::new(&collateral, anchor)?;
        let refused = verify_tdx(hcl, &quote, tpm, b"another nonce", &prepared, now);
        ensure!(refused.is_err(), "another nonce: expected a refusal");
        match verify_tdx(hcl, &quote, tpm, nonce, &prepared, now) {
            Ok((_, vtpm)) => return Ok(vtpm.into_inner()),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

fn tpm_quote(quote: Option<&Value>) -> anyhow::Result<TpmQuote> {
    let quote = quote.context("TPM quote: none")?;
    let pcrs = quote.get("pcrs").and_then(Value::as_array).context("PCRs: none")?;
    let pcr = |value| -> anyhow::Result<[u8; 32]> {
        octets(Some(value))?.try_into().map_err(|_| anyhow::anyhow!("PCR: expected 32 bytes"))
    };
    Ok(TpmQuote {
        message: octets(quote.get("message"))?,
        signature: octets(quote.get("signature"))?,
        pcrs: pcrs.iter().map(pcr).collect::<Result<_, _>>()?,
    })
}

/// Bytes as these files write them: numbers, hex or base64url.
fn octets(value: Option<&Value>) -> anyhow::Result<Vec<u8>> {
    let value = value.context("expected bytes, got none")?;
    if let Some(numbers) = value.as_array() {
        let octet = |number: &Value| u8::try_from(number.as_u64()?).ok();
        return numbers.iter().map(octet).collect::<Option<_>>().context("expected octets");
    }
    let text = value.as_str().context("expected bytes as text")?;
    match unhex(text) {
        Some(bytes) => Ok(bytes),
        None => Ok(URL_SAFE_NO_PAD.decode(text.trim_end_matches('='))?),
    }
}
