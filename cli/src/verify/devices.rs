//! NVIDIA devices among what was given: reports, and the chains that belong to them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use casemate_attestation::crypto::Scheme;
use casemate_attestation::gpu::Report;
use casemate_attestation::x509::{PemLimits, certificates_from_pem};
use casemate_attestation::{EndorsementKind, EvidenceItem, EvidenceKind};
use serde_json::Value;

type Endorsement = (EndorsementKind, Vec<u8>);

/// Whether `bytes` begin like an SPDM 1.1 GET_MEASUREMENTS request and its answer.
pub(crate) fn is_report(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x11, 0xe0]) && bytes.get(37).is_some_and(|version| *version == 0x11)
}

/// The devices of NVIDIA's JSON form, an array with an object each. Its nonce is not
/// read: the evidence's own word on what was asked proves nothing.
pub(crate) fn from_nvidia_json(bytes: &[u8]) -> Option<Vec<EvidenceItem>> {
    if !bytes.trim_ascii_start().starts_with(b"[") {
        return None;
    }
    let devices: Vec<Value> = serde_json::from_slice(bytes).ok()?;
    let item = |device: &Value| {
        let decode = |name: &str| STANDARD.decode(device.get(name)?.as_str()?).ok();
        Some(EvidenceItem {
            kind: EvidenceKind::GpuReport,
            evidence: decode("evidence")?,
            endorsements: vec![(EndorsementKind::CertificateChain, decode("certificate")?)],
        })
    };
    if devices.is_empty() { None } else { devices.iter().map(item).collect() }
}

/// Gives every device its chain: the one whose leaf signed its report, else the
/// first that signed no other's, so that the verdict names what is wrong.
pub(crate) fn pair(items: &mut [EvidenceItem], endorsements: &mut Vec<Endorsement>) {
    let without = |item: &&mut EvidenceItem| {
        item.kind == EvidenceKind::GpuReport && item.endorsements.is_empty()
    };
    for item in items.iter_mut().filter(without) {
        let signed = |(kind, bytes): &Endorsement| {
            *kind == EndorsementKind::CertificateChain && signs(bytes, &item.evidence)
        };
        // A report that came twice keeps its chain twice.
        if let Some(chain) = endorsements.iter().find(|one| signed(one)) {
            item.endorsements.push(chain.clone());
        }
    }
    endorsements.retain(|one| !items.iter().any(|item| item.endorsements.contains(one)));
    for item in items.iter_mut().filter(without) {
        let is_chain = |(kind, _): &Endorsement| *kind == EndorsementKind::CertificateChain;
        if let Some(at) = endorsements.iter().position(is_chain) {
            item.endorsements.push(endorsements.remove(at));
        }
    }
}

fn signs(chain: &[u8], report: &[u8]) -> bool {
    let limits = PemLimits { blocks: 8, ..PemLimits::CHAIN };
    let (Ok(chain), Ok(report)) = (certificates_from_pem(chain, limits), Report::parse(report))
    else {
        return false;
    };
    chain.first().is_some_and(|leaf| {
        leaf.key().verify(Scheme::EcdsaP384Sha384Raw, report.signed, &report.signature)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_come_from_nvidia_s_json() {
        let json = br#"[{"arch":"HOPPER","nonce":"00","evidence":"EeA=","certificate":"LS0="}]"#;
        let items = from_nvidia_json(json).unwrap();
        assert_eq!(items[0].evidence, [0x11, 0xe0]);
        assert_eq!(items[0].endorsements[0].1, b"--");
        assert!(from_nvidia_json(b"[1]").is_none() && from_nvidia_json(b"{}").is_none());
    }

    #[test]
    fn a_chain_that_signed_nothing_goes_to_a_device_without_one() {
        let report = |evidence: &[u8]| EvidenceItem {
            kind: EvidenceKind::GpuReport,
            evidence: evidence.to_vec(),
            endorsements: vec![],
        };
        let chain = |name: &[u8]| (EndorsementKind::CertificateChain, name.to_vec());
        let mut items = [report(b"a"), report(b"b")];
        let mut endorsements = vec![(EndorsementKind::Rim, vec![1]), chain(b"x"), chain(b"y")];
        pair(&mut items, &mut endorsements);
        assert_eq!(items[0].endorsements, [chain(b"x")]);
        assert_eq!(items[1].endorsements, [chain(b"y")]);
        assert_eq!(endorsements, [(EndorsementKind::Rim, vec![1])]);
    }
}
