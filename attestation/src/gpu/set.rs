//! All devices of one envelope: read, verified, and given their manifests.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::anchors::TrustAnchors;
use crate::error::{Reason, VerifyError};
use crate::evidence::{EndorsementKind, Evidence, EvidenceItem, EvidenceKind};
use crate::time::UnixTime;
use crate::verify::Endorsements;

use super::binding::{DeviceDigests, Inventory};
use super::code::Code;
use super::device::{DeviceEvidence, DeviceResult, Manifests, Verifier};
use super::revocation::Responses;
use super::rim::Checked;

/// More manifests than eight GPUs and four switches of mixed age need.
const MAX_MANIFESTS: usize = 64;

/// The verifier of an envelope's devices, and what they may be judged by.
#[derive(Debug)]
pub(crate) struct Devices<'a> {
    verifier: Verifier,
    manifests: Vec<Arc<Checked>>,
    responses: Responses<'a>,
}

impl<'a> Devices<'a> {
    /// Collects manifests and OCSP responses: the verifier's own, and those that
    /// came with any device.
    pub(crate) fn new(
        evidence: &'a Evidence,
        anchors: &TrustAnchors,
        endorsements: &'a Endorsements,
    ) -> Self {
        let verifier = Verifier::new(&anchors.nvidia);
        let devices = evidence.items.iter().filter(|item| item.kind == EvidenceKind::GpuReport);
        let mut found = Self { verifier, manifests: Vec::new(), responses: Responses::default() };
        let of_items: Vec<_> = devices.flat_map(|item| &item.endorsements).collect();
        if evidence.items.iter().all(|item| item.kind != EvidenceKind::GpuReport) {
            return found;
        }
        let all: Vec<_> = endorsements.items.iter().chain(of_items).collect();
        let manifests = once_each(&all, EndorsementKind::Rim).into_iter().take(MAX_MANIFESTS);
        found.manifests = manifests.map(|bytes| found.verifier.manifest(bytes)).collect();
        found.responses = Responses::parse(&once_each(&all, EndorsementKind::Ocsp));
        found
    }

    /// Verifies one device. The report, its chain and its signature must hold;
    /// what else is wrong is left to the appraisal.
    pub(crate) fn verify(
        &self,
        item: &EvidenceItem,
        now: UnixTime,
    ) -> Result<DeviceResult, VerifyError> {
        let evidence = DeviceEvidence {
            report: &item.evidence,
            chain: chain_of(item),
            manifests: &[],
            ocsp: &[],
        };
        let pool = Manifests::Pool(&self.manifests);
        let result = self.verifier.device_with(&evidence, pool, &self.responses, None, now);
        match result.findings.iter().find(|finding| finding.code < Code::NonceMismatch) {
            None => Ok(result),
            Some(finding) => Err(VerifyError::new(
                reason(finding.code),
                format!("device, {}: {}", finding.name(), finding.field),
                finding.expected.clone(),
                &finding.actual,
            )),
        }
    }
}

/// The items of a kind, in their order: the verifier's own come first, so that what travelled
/// with a device cannot push them over a limit.
fn once_each<'a>(all: &[&'a (EndorsementKind, Vec<u8>)], kind: EndorsementKind) -> Vec<&'a [u8]> {
    let mut seen = BTreeSet::new();
    let some = all.iter().filter(|(one, _)| *one == kind);
    some.map(|(_, bytes)| bytes.as_slice()).filter(|bytes| seen.insert(*bytes)).collect()
}

/// Reads the guest's inventory.
pub(crate) fn verify_inventory(item: &EvidenceItem) -> Result<Inventory, VerifyError> {
    Inventory::decode(&item.evidence).map_err(|error| {
        VerifyError::new(Reason::Malformed, "device inventory", "one that is well-formed", error)
    })
}

/// The certificate chain that came with a device's report.
pub(crate) fn chain_of(item: &EvidenceItem) -> &[u8] {
    let chain =
        item.endorsements.iter().find(|(kind, _)| *kind == EndorsementKind::CertificateChain);
    chain.map_or(&[], |(_, bytes)| bytes.as_slice())
}

/// The digests of a device item, for the binding.
pub(crate) fn digests_of(evidence: &DeviceEvidence<'_>) -> DeviceDigests {
    DeviceDigests::new(evidence.report, evidence.chain)
}

/// The reason class of a code that ends a verification.
fn reason(code: Code) -> Reason {
    match code {
        Code::ChainParse => Reason::CertMalformed,
        Code::ChainExpired | Code::ChainNotYetValid => Reason::CertValidity,
        Code::ChainSignature => Reason::CertSignature,
        Code::ChainLength | Code::ChainRoot | Code::ChainName | Code::ChainNotCa => Reason::Chain,
        Code::ReportSignature => Reason::Signature,
        _ => Reason::GpuReport,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_travelled_with_devices_comes_after_the_verifiers_own() {
        let item = |kind, text: &str| (kind, text.as_bytes().to_vec());
        let items = [
            item(EndorsementKind::Ocsp, "the verifier's"),
            item(EndorsementKind::Rim, "a manifest"),
            item(EndorsementKind::Ocsp, "a device's"),
            item(EndorsementKind::Ocsp, "the verifier's"),
        ];
        let all: Vec<_> = items.iter().collect();
        let found = once_each(&all, EndorsementKind::Ocsp);
        assert_eq!(found, [b"the verifier's".as_slice(), b"a device's"]);
    }
}
