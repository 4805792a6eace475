//! Azure evidence inside an envelope: the HCL report, and the vTPM's quote
//! over a nonce.

use ciborium::Value;

use super::{HclKind, HclReport, PCRS, TpmQuote};
use crate::anchors::TrustAnchors;
use crate::cbor::{CborError, Fields, Map};
use crate::crypto::PublicKey;
use crate::error::{Reason, VerifyError};
use crate::evidence::{EvidenceItem, EvidenceKind};
use crate::snp::{self, SnpClaims};
use crate::time::UnixTime;
use crate::verify::{Claims, Endorsements};

/// What an HCL report says: of the CPU inside it, and of the vTPM it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AzureClaims {
    /// Which CPU made the report.
    pub kind: HclKind,
    /// The SNP report inside. A TDX machine's quote is an item of its own.
    pub snp: Option<SnpClaims>,
    /// What the CPU's report data must be: the digest of the runtime data.
    pub report_data: [u8; 64],
    /// The vTPM's attestation key, an RSAPublicKey in DER.
    pub attestation_key: Vec<u8>,
    /// The 64 bytes the guest chose when the HCL report was made, if any.
    pub user_data: Option<[u8; 64]>,
    /// The machine's configuration, as the paravisor states it.
    pub configuration: serde_json::Value,
}

const WHAT: &str = "vTPM quote";
const MAX_QUOTE_BYTES: usize = 8 * 1024;

impl TpmQuote {
    /// The quote as an item of evidence (docs/formats/evidence.md).
    pub fn encode(&self) -> Vec<u8> {
        let pcrs = self.pcrs.iter().map(|pcr| Value::Bytes(pcr.to_vec())).collect();
        Map::new()
            .set(1, 1)
            .bytes(2, &self.message)
            .bytes(3, &self.signature)
            .set(4, Value::Array(pcrs))
            .encode()
    }

    /// Reads a quote; nothing in it is believed yet.
    pub fn decode(bytes: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode(WHAT, bytes, MAX_QUOTE_BYTES)?;
        fields.version(1, 1)?;
        let (message, signature) = (fields.bytes(2)?, fields.bytes(3)?);
        let pcr = |value: Value| value.into_bytes().ok()?.try_into().ok();
        let pcrs: Option<Vec<_>> = fields.items(4)?.into_iter().map(pcr).collect();
        let pcrs = pcrs.filter(|pcrs| pcrs.len() == PCRS);
        let pcrs = pcrs.ok_or_else(|| fields.wrong(4, "24 registers of 32 bytes"))?;
        fields.end()?;
        Ok(Self { message, signature, pcrs })
    }
}

/// Reads the quote in `item`. Its signature is checked by [`check`], because the
/// key is another item's.
pub(crate) fn read_quote(item: &EvidenceItem) -> Result<TpmQuote, VerifyError> {
    let quote = TpmQuote::decode(&item.evidence).map_err(|error| {
        let expected = "a vTPM quote as docs/formats/evidence.md says";
        VerifyError::new(Reason::Malformed, WHAT, expected, error)
    })?;
    quote.claimed_nonce()?;
    Ok(quote)
}

/// Verifies an HCL report: an SNP report inside it wholly, a TDREPORT as far
/// as that it names the runtime data.
pub(crate) fn verify_item(
    item: &EvidenceItem,
    anchors: &TrustAnchors,
    endorsements: &Endorsements,
    now: UnixTime,
) -> Result<AzureClaims, VerifyError> {
    let hcl = HclReport::parse(&item.evidence)?;
    let snp = match hcl.kind {
        HclKind::Tdx => None,
        HclKind::Snp => {
            let report = EvidenceItem {
                kind: EvidenceKind::SnpReport,
                evidence: hcl.report.to_vec(),
                endorsements: item.endorsements.clone(),
            };
            Some(snp::verify_item(&report, anchors, endorsements, now)?.into_inner())
        }
    };
    let report_data = hcl.claimed_report_data()?;
    hcl.check_binding(&report_data)?;
    let (key, user_data) = hcl.runtime_claims()?;
    Ok(AzureClaims {
        kind: hcl.kind,
        snp,
        report_data,
        attestation_key: key.bytes().to_vec(),
        user_data,
        configuration: hcl.configuration()?,
    })
}

/// The rules between items: the TDX quote names the runtime data, and the
/// key in it signed the vTPM's quote.
pub(crate) fn check(claims: &Claims) -> Result<(), VerifyError> {
    let Some(azure) = claims.azure() else {
        return match claims.vtpm() {
            None => Ok(()),
            Some(_) => Err(absent(WHAT, "an HCL report beside it, which names its key")),
        };
    };
    match (azure.kind, claims.tdx()) {
        (HclKind::Tdx, None) => {
            return Err(absent("HCL report of a TDX machine", "the TDX quote beside it"));
        }
        (HclKind::Tdx, Some(tdx)) if tdx.report.report_data != azure.report_data => {
            return Err(VerifyError::new(
                Reason::HclBinding,
                "REPORTDATA of the TDX quote",
                crate::wire::hex(&azure.report_data),
                crate::wire::hex(&tdx.report.report_data),
            ));
        }
        (HclKind::Snp, Some(_)) => {
            return Err(VerifyError::new(Reason::Malformed, "CPU reports", "at most one", 2));
        }
        (HclKind::Tdx, Some(_)) | (HclKind::Snp, None) => {}
    }
    let Some(quote) = claims.vtpm() else { return Ok(()) };
    let key = PublicKey::rsa(&azure.attestation_key).map_err(|error| {
        VerifyError::new(Reason::HclQuote, "HCLAkPub", "an RSA key", error.to_string())
    })?;
    let nonce = quote.claimed_nonce()?;
    quote.verify(&key, nonce)
}

fn absent(field: &str, expected: &str) -> VerifyError {
    VerifyError::new(Reason::HclBinding, field, expected, "none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_reads_back_and_has_all_registers() {
        let quote = TpmQuote { message: vec![1], signature: vec![2], pcrs: vec![[3; 32]; PCRS] };
        assert_eq!(TpmQuote::decode(&quote.encode()).unwrap(), quote);
        let short = TpmQuote { pcrs: vec![[3; 32]; 23], ..quote };
        assert!(TpmQuote::decode(&short.encode()).is_err());
    }
}
