//! The JSON in which Azure's attesters send their evidence: Trustee's
//! `az-snp-vtpm` and `az-tdx-vtpm` (confidential-containers/trustee,
//! deps/verifier/src/az_snp_vtpm), versions 0 to 2.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::{PCRS, TpmQuote};
use crate::error::{Reason, VerifyError};
use crate::evidence::{EndorsementKind, EvidenceItem, EvidenceKind};
use crate::wire::unhex;

/// The longest such JSON that is read.
pub const MAX_JSON_BYTES: usize = 128 * 1024;
const WHAT: &str = "Azure evidence in JSON";

/// Names that only such evidence has.
#[derive(Deserialize)]
struct Document {
    #[serde(alias = "report")]
    hcl_report: Octets,
    #[serde(alias = "quote")]
    tpm_quote: Quote,
    #[serde(default)]
    vcek: Option<Octets>,
    #[serde(default)]
    td_quote: Option<Octets>,
}

#[derive(Deserialize)]
struct Quote {
    message: Octets,
    signature: Octets,
    pcrs: Vec<Octets>,
}

/// Bytes as the versions write them: numbers, hex, base64url, or PEM.
#[derive(Deserialize)]
#[serde(untagged)]
enum Octets {
    Numbers(Vec<u8>),
    Text(String),
}

/// Whether `bytes` look like such JSON: whoever has other JSON asks on.
pub fn is_evidence(bytes: &[u8]) -> bool {
    if bytes.len() > MAX_JSON_BYTES {
        return false;
    }
    let names = serde_json::from_slice::<BTreeMap<String, serde::de::IgnoredAny>>(bytes);
    let names = names.unwrap_or_default();
    let has = |name: &str| names.contains_key(name);
    (has("hcl_report") || has("report")) && (has("tpm_quote") || has("quote"))
}

/// The items of an envelope with the same evidence, not yet believed.
pub fn items(bytes: &[u8]) -> Result<Vec<EvidenceItem>, VerifyError> {
    if bytes.len() > MAX_JSON_BYTES {
        let expected = format!("at most {MAX_JSON_BYTES} bytes");
        return Err(VerifyError::new(Reason::Limit, WHAT, expected, bytes.len()));
    }
    // A derived reader also takes a list for an object; this format has none.
    if !is_evidence(bytes) {
        return Err(malformed("an object with hcl_report and tpm_quote", "another JSON"));
    }
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| malformed("the JSON of Trustee", error))?;
    let quote = TpmQuote {
        message: document.tpm_quote.message.read("message")?,
        signature: document.tpm_quote.signature.read("signature")?,
        pcrs: pcrs(document.tpm_quote.pcrs)?,
    };
    let mut endorsements = Vec::new();
    if let Some(vcek) = document.vcek {
        endorsements.push((EndorsementKind::CertificateChain, vcek.read("vcek")?));
    }
    let hcl = document.hcl_report.read("hcl_report")?;
    let mut items = Vec::new();
    if let Some(quote) = document.td_quote {
        items.push(item(EvidenceKind::TdxQuote, quote.read("td_quote")?));
    }
    items.push(EvidenceItem { kind: EvidenceKind::AzureHcl, evidence: hcl, endorsements });
    items.push(item(EvidenceKind::AzureQuote, quote.encode()));
    Ok(items)
}

fn item(kind: EvidenceKind, evidence: Vec<u8>) -> EvidenceItem {
    EvidenceItem { kind, evidence, endorsements: vec![] }
}

fn pcrs(octets: Vec<Octets>) -> Result<Vec<[u8; 32]>, VerifyError> {
    let count = octets.len();
    if count != PCRS {
        return Err(malformed("24 PCRs", count));
    }
    octets
        .into_iter()
        .map(|pcr| {
            let bytes = pcr.read("pcrs")?;
            let length = bytes.len();
            bytes.try_into().map_err(|_| malformed("PCRs of 32 bytes", length))
        })
        .collect()
}

impl Octets {
    /// Hex first: base64url of the sizes here is never all hex digits.
    fn read(self, field: &str) -> Result<Vec<u8>, VerifyError> {
        let text = match self {
            Self::Numbers(bytes) => return Ok(bytes),
            Self::Text(text) if text.starts_with("-----BEGIN") => return Ok(text.into_bytes()),
            Self::Text(text) => text,
        };
        if let Some(bytes) = unhex(&text) {
            return Ok(bytes);
        }
        URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|error| {
            malformed("bytes as numbers, hex or base64url", format!("{field}: {error}"))
        })
    }
}

fn malformed(expected: &str, actual: impl core::fmt::Display) -> VerifyError {
    VerifyError::new(Reason::Malformed, WHAT, expected, actual)
}
