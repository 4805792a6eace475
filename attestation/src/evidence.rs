//! The envelope in which evidence travels: bytes, labelled, not yet believed.
//!
//! Format: docs/formats/evidence.md. The attester makes it, everything between
//! passes it on, and only [`crate`] looks inside the items.

use ciborium::Value;

use crate::cbor::{CborError, Fields, Map};

/// What an evidence item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EvidenceKind {
    /// An SEV-SNP ATTESTATION_REPORT (AMD 56860).
    SnpReport,
    /// A TDX quote, version 4 or 5.
    TdxQuote,
    /// An Azure HCL report: an SNP report or a TDREPORT, and the vTPM's key.
    AzureHcl,
    /// A quote by the vTPM whose key an HCL report names.
    AzureQuote,
    /// The host's signed statement of the boundary it built.
    HostClaim,
    /// An NVIDIA GPU or NVSwitch SPDM measurement report.
    GpuReport,
    /// A TCG event log (CCEL).
    EventLog,
    /// The measured guest's list of its NVIDIA devices.
    DeviceInventory,
}

/// What an endorsement sent along with an item is. All of them are hints:
/// trust comes from the anchors alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndorsementKind {
    /// The certificate table of an extended SNP report (GHCB, section 4.1.8.1).
    SnpCertTable,
    /// Certificates in PEM, leaf first.
    CertificateChain,
    /// A certificate revocation list in DER.
    Crl,
    /// TDX collateral: TCB info, QE identity, their chain and CRLs, as one bundle.
    TdxCollateral,
    /// A signed NVIDIA reference manifest.
    Rim,
    /// A stapled OCSP response in DER.
    Ocsp,
}

/// One piece of evidence and what its attester sent to support it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceItem {
    /// What the evidence is.
    pub kind: EvidenceKind,
    /// The evidence, as the hardware or the host made it.
    pub evidence: Vec<u8>,
    /// What was sent along with it.
    pub endorsements: Vec<(EndorsementKind, Vec<u8>)>,
}

/// All evidence of one machine, the lead item first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The items.
    pub items: Vec<EvidenceItem>,
}

/// The largest envelope that is read.
pub const MAX_EVIDENCE_BYTES: usize = 4 * 1024 * 1024;
/// The most items in one envelope: a CPU, its log, the host's claim, 8 GPUs, 4 switches, spare.
pub const MAX_EVIDENCE_ITEMS: usize = 32;
const MAX_ENDORSEMENTS: usize = 16;
const WHAT: &str = "evidence envelope";

impl Evidence {
    /// The envelope's one encoding.
    pub fn encode(&self) -> Vec<u8> {
        let items = self.items.iter().map(EvidenceItem::to_value).collect();
        Map::new().set(1, 1).set(2, Value::Array(items)).encode()
    }

    /// Reads an envelope; the items stay bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode(WHAT, bytes, MAX_EVIDENCE_BYTES)?;
        fields.version(1, 1)?;
        let items = fields.items(2)?;
        if items.is_empty() || items.len() > MAX_EVIDENCE_ITEMS {
            return Err(fields.wrong(2, "1 to 32 items"));
        }
        fields.end()?;
        let items = items.into_iter().map(EvidenceItem::from_value).collect::<Result<_, _>>()?;
        Ok(Self { items })
    }
}

impl EvidenceItem {
    fn to_value(&self) -> Value {
        let endorsements = self
            .endorsements
            .iter()
            .map(|(kind, bytes)| Map::new().set(1, kind.code()).bytes(2, bytes).into_value())
            .collect();
        Map::new()
            .set(1, self.kind.code())
            .bytes(2, &self.evidence)
            .set(3, Value::Array(endorsements))
            .into_value()
    }

    fn from_value(value: Value) -> Result<Self, CborError> {
        let mut fields = Fields::of(WHAT, value)?;
        let kind = fields.uint(1)?;
        let kind = EvidenceKind::from_code(kind)
            .ok_or_else(|| fields.wrong(1, "a known evidence kind (1 to 8)"))?;
        let evidence = fields.bytes(2)?;
        let endorsements = fields.items(3)?;
        if endorsements.len() > MAX_ENDORSEMENTS {
            return Err(fields.wrong(3, "at most 16 endorsements"));
        }
        fields.end()?;
        let endorsements =
            endorsements.into_iter().map(endorsement_from_value).collect::<Result<_, _>>()?;
        Ok(Self { kind, evidence, endorsements })
    }
}

fn endorsement_from_value(value: Value) -> Result<(EndorsementKind, Vec<u8>), CborError> {
    let mut fields = Fields::of(WHAT, value)?;
    let kind = fields.uint(1)?;
    let kind = EndorsementKind::from_code(kind)
        .ok_or_else(|| fields.wrong(1, "a known endorsement kind (1 to 6)"))?;
    let bytes = fields.bytes(2)?;
    fields.end()?;
    Ok((kind, bytes))
}

impl EvidenceKind {
    const CODES: [(u64, Self); 8] = [
        (1, Self::SnpReport),
        (2, Self::TdxQuote),
        (3, Self::HostClaim),
        (4, Self::GpuReport),
        (5, Self::EventLog),
        (6, Self::DeviceInventory),
        (7, Self::AzureHcl),
        (8, Self::AzureQuote),
    ];

    fn code(self) -> u64 {
        code_of(&Self::CODES, self)
    }

    fn from_code(code: u64) -> Option<Self> {
        Self::CODES.iter().find(|(known, _)| *known == code).map(|(_, kind)| *kind)
    }
}

impl EndorsementKind {
    const CODES: [(u64, Self); 6] = [
        (1, Self::SnpCertTable),
        (2, Self::CertificateChain),
        (3, Self::Crl),
        (4, Self::TdxCollateral),
        (5, Self::Rim),
        (6, Self::Ocsp),
    ];

    pub(crate) fn code(self) -> u64 {
        code_of(&Self::CODES, self)
    }

    pub(crate) fn from_code(code: u64) -> Option<Self> {
        Self::CODES.iter().find(|(known, _)| *known == code).map(|(_, kind)| *kind)
    }
}

fn code_of<T: Copy + PartialEq>(codes: &[(u64, T)], kind: T) -> u64 {
    codes.iter().find(|(_, known)| *known == kind).map_or(0, |(code, _)| *code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelope_reads_back() {
        let evidence = Evidence {
            items: vec![EvidenceItem {
                kind: EvidenceKind::SnpReport,
                evidence: vec![1, 2, 3],
                endorsements: vec![(EndorsementKind::SnpCertTable, vec![4])],
            }],
        };
        assert_eq!(Evidence::decode(&evidence.encode()), Ok(evidence));
    }

    #[test]
    fn empty_and_unknown_are_refused() {
        assert!(Evidence::decode(&Evidence::default().encode()).is_err());
        let item = Map::new().set(1, 99).bytes(2, b"x").set(3, Value::Array(vec![]));
        let bytes = Map::new().set(1, 1).set(2, Value::Array(vec![item.into_value()])).encode();
        let error = Evidence::decode(&bytes).unwrap_err().to_string();
        assert!(error.contains("known evidence kind"), "{error}");
    }
}
