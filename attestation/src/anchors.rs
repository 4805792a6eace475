//! Whom a verifier believes, and for what.
//!
//! [`TrustAnchors::vendor`] pins the root keys of AMD, Intel and NVIDIA: only
//! they are [`AnchorKind::Hardware`]. A root that an operator configures is
//! [`AnchorKind::Model`], whatever it calls itself, unless its key is a pinned
//! vendor key: "hardware" cannot be configured. Hosts are enrolled by key.

mod toml_form;

pub use toml_form::AnchorsError;

use std::sync::Arc;

use std::sync::OnceLock;

use crate::crypto::{PublicKey, Scheme};
use crate::error::{Reason, VerifyError};
use crate::snp::{self, Product};
use crate::tdx;
use crate::x509::Certificate;

/// How far an anchor's word reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AnchorKind {
    /// A hardware vendor's own root key, pinned in this library.
    Hardware,
    /// A locally made root of a software model: real formats, no hardware.
    Model,
    /// An enrolled host's signing key: that operator's word.
    Host,
}

/// The name and kind of an anchor, as results show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The anchor's label, for people and receipts.
    pub label: String,
    /// How far its word reaches.
    pub kind: AnchorKind,
}

/// An AMD root key (ARK) and the CA certificates known under it.
#[derive(Debug, Clone)]
pub struct AmdAnchor {
    anchor: Anchor,
    product: Product,
    ark: Certificate,
    intermediates: Vec<Certificate>,
    /// Shared by clones: what one of them checked, all know.
    memory: Arc<snp::Memory>,
}

/// An Intel SGX root.
#[derive(Debug, Clone)]
pub struct IntelAnchor {
    anchor: Anchor,
    root: Certificate,
    /// Shared by clones: what one of them checked, all know.
    memory: Arc<tdx::Memory>,
}

/// NVIDIA's device identity root, and the root that signs reference manifests.
#[derive(Debug, Clone)]
pub struct NvidiaAnchor {
    anchor: Anchor,
    device_root: Certificate,
    rim_root: Certificate,
    /// What was verified under it before; clones share it.
    memo: std::sync::Arc<crate::gpu::Memo>,
}

/// An enrolled host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAnchor {
    anchor: Anchor,
    ed25519: [u8; 32],
}

/// Every anchor that a verification may end at.
#[derive(Debug, Clone, Default)]
pub struct TrustAnchors {
    /// AMD roots.
    pub amd: Vec<AmdAnchor>,
    /// Intel roots.
    pub intel: Vec<IntelAnchor>,
    /// NVIDIA roots.
    pub nvidia: Vec<NvidiaAnchor>,
    /// Enrolled hosts.
    pub hosts: Vec<HostAnchor>,
}

impl TrustAnchors {
    /// The pinned roots of the three vendors, and no host.
    pub fn vendor() -> Self {
        Self { amd: vendor_amd(), intel: vendor_intel(), nvidia: vendor_nvidia(), hosts: vec![] }
    }

    /// Reads the operator's file; see docs/formats/trust-anchors.md.
    pub fn from_toml(text: &str) -> Result<Self, AnchorsError> {
        toml_form::read(text)
    }

    /// The enrolled host called `name`.
    pub fn host(&self, name: &str) -> Option<&HostAnchor> {
        self.hosts.iter().find(|host| host.anchor.label == name)
    }
}

impl AmdAnchor {
    /// An anchor at `ark` for `product`. `intermediates` are checked against
    /// it now, so that evidence later costs no more than its own signatures.
    pub fn new(
        label: &str,
        product: Product,
        ark: Certificate,
        intermediates: Vec<Certificate>,
    ) -> Result<Self, VerifyError> {
        check_amd_ca(&ark, &format!("ARK-{}", product.name()))?;
        ark.check_issued_by(&ark)?;
        let vendor = pinned(Roots::Amd, &ark);
        let anchor = Anchor::custom(label, vendor);
        let memory = Arc::default();
        let empty = Self { anchor, product, ark, intermediates: vec![], memory };
        for intermediate in &intermediates {
            empty.check_intermediate(intermediate)?;
        }
        Ok(Self { intermediates, ..empty })
    }

    /// Label and kind.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// The product line that this root issues for.
    pub fn product(&self) -> Product {
        self.product
    }

    /// The root certificate.
    pub fn ark(&self) -> &Certificate {
        &self.ark
    }

    /// The ASK and ASVK known under this root.
    pub fn intermediates(&self) -> &[Certificate] {
        &self.intermediates
    }

    pub(crate) fn memory(&self) -> &snp::Memory {
        &self.memory
    }

    /// Checks that `certificate` is an ASK or ASVK issued by this root's key.
    pub fn check_intermediate(&self, certificate: &Certificate) -> Result<(), VerifyError> {
        let product = self.product.name();
        let name = &certificate.subject().common_name;
        let expected = [format!("SEV-{product}"), format!("SEV-VLEK-{product}")];
        if !expected.contains(name) {
            return Err(VerifyError::new(
                Reason::Chain,
                "subject of the AMD CA certificate",
                expected.join(" or "),
                name,
            ));
        }
        check_amd_ca(certificate, name)?;
        certificate.check_issued_by(&self.ark)
    }
}

impl IntelAnchor {
    /// An anchor at the self-signed `root`.
    pub fn new(label: &str, root: Certificate) -> Result<Self, VerifyError> {
        root.check_scheme(Scheme::EcdsaP256Sha256Der)?;
        root.check_ca()?;
        root.check_issued_by(&root)?;
        let vendor = pinned(Roots::Intel, &root);
        Ok(Self { anchor: Anchor::custom(label, vendor), root, memory: Arc::default() })
    }

    /// Label and kind.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// The root certificate.
    pub fn root(&self) -> &Certificate {
        &self.root
    }

    /// The TDX collateral in `bundle` (docs/formats/tdx-collateral.md), checked
    /// under this root. What was checked once is remembered.
    pub fn prepare(&self, bundle: &[u8]) -> Result<Arc<tdx::Prepared>, VerifyError> {
        self.memory.prepare(bundle, self)
    }
}

impl NvidiaAnchor {
    /// An anchor at the self-signed roots for devices and for manifests.
    pub fn new(
        label: &str,
        device_root: Certificate,
        rim_root: Certificate,
    ) -> Result<Self, VerifyError> {
        for root in [&device_root, &rim_root] {
            root.check_scheme(Scheme::EcdsaP384Sha384Der)?;
            root.check_ca()?;
            root.check_issued_by(root)?;
        }
        let vendor =
            pinned(Roots::NvidiaDevice, &device_root) && pinned(Roots::NvidiaRim, &rim_root);
        let anchor = Anchor::custom(label, vendor);
        Ok(Self { anchor, device_root, rim_root, memo: std::sync::Arc::default() })
    }

    /// Label and kind.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// The root of the devices' identity certificates.
    pub fn device_root(&self) -> &Certificate {
        &self.device_root
    }

    pub(crate) fn memo(&self) -> &std::sync::Arc<crate::gpu::Memo> {
        &self.memo
    }

    /// The root of the reference manifests' signatures.
    pub fn rim_root(&self) -> &Certificate {
        &self.rim_root
    }
}

impl HostAnchor {
    /// A host enrolled as `name` with its signing key.
    pub fn new(name: &str, ed25519: [u8; 32]) -> Self {
        let anchor = Anchor { label: name.to_owned(), kind: AnchorKind::Host };
        Self { anchor, ed25519 }
    }

    /// Label and kind.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// The key that the host signs its claims with.
    pub fn key(&self) -> &[u8; 32] {
        &self.ed25519
    }
}

impl Anchor {
    fn custom(label: &str, is_vendor_key: bool) -> Self {
        let kind = if is_vendor_key { AnchorKind::Hardware } else { AnchorKind::Model };
        Self { label: label.to_owned(), kind }
    }
}

/// What AMD's CA certificates have in common (AMD 57230, VCEK certificates).
fn check_amd_ca(certificate: &Certificate, common_name: &str) -> Result<(), VerifyError> {
    let actual = &certificate.subject().common_name;
    if actual != common_name {
        return Err(VerifyError::new(
            Reason::Chain,
            "subject of the AMD root",
            common_name,
            actual,
        ));
    }
    certificate.check_scheme(Scheme::RsaPssSha384)?;
    if certificate.key().kind() != crate::crypto::KeyKind::Rsa(4096) {
        return Err(VerifyError::new(
            Reason::CertAlgorithm,
            format!("key of {actual}"),
            "RSA of 4096 bits",
            format!("{:?}", certificate.key().kind()),
        ));
    }
    certificate.check_ca()
}

/// Whether `certificate` holds one of the root keys in this library.
fn pinned(roots: Roots, certificate: &Certificate) -> bool {
    static KEYS: OnceLock<Vec<(Roots, PublicKey)>> = OnceLock::new();
    let keys = KEYS.get_or_init(|| {
        let amd = AMD.iter().map(|known| (Roots::Amd, known.ark));
        let others = [
            (Roots::Intel, INTEL),
            (Roots::NvidiaDevice, NVIDIA_DEVICE),
            (Roots::NvidiaRim, NVIDIA_RIM),
        ];
        amd.chain(others)
            .filter_map(|(kind, der)| Some((kind, Certificate::parse(der).ok()?.key().clone())))
            .collect()
    });
    keys.iter().any(|(kind, key)| *kind == roots && key == certificate.key())
}

/// Whose root keys; one vendor's key is no root of another's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Roots {
    Amd,
    Intel,
    NvidiaDevice,
    NvidiaRim,
}

struct VendorAmd {
    product: Product,
    ark: &'static [u8],
    ask: &'static [u8],
    asvk: &'static [u8],
}

/// The certificates that AMD's key distribution service serves at
/// `/vcek/v1/{product}/cert_chain` and `/vlek/v1/{product}/cert_chain`.
const AMD: [VendorAmd; 3] = [
    VendorAmd {
        product: Product::Milan,
        ark: include_bytes!("../anchors/amd-milan-ark.der"),
        ask: include_bytes!("../anchors/amd-milan-ask.der"),
        asvk: include_bytes!("../anchors/amd-milan-asvk.der"),
    },
    VendorAmd {
        product: Product::Genoa,
        ark: include_bytes!("../anchors/amd-genoa-ark.der"),
        ask: include_bytes!("../anchors/amd-genoa-ask.der"),
        asvk: include_bytes!("../anchors/amd-genoa-asvk.der"),
    },
    VendorAmd {
        product: Product::Turin,
        ark: include_bytes!("../anchors/amd-turin-ark.der"),
        ask: include_bytes!("../anchors/amd-turin-ask.der"),
        asvk: include_bytes!("../anchors/amd-turin-asvk.der"),
    },
];
/// Intel SGX Root CA, 2018 to 2049.
const INTEL: &[u8] = include_bytes!("../anchors/intel-sgx-root.der");
/// NVIDIA Device Identity CA.
const NVIDIA_DEVICE: &[u8] = include_bytes!("../anchors/nvidia-device-identity-root.der");
/// NVIDIA CoRIM signing Root CA.
const NVIDIA_RIM: &[u8] = include_bytes!("../anchors/nvidia-rim-root.der");

/// A vendor certificate that did not parse would be left out, and evidence
/// under it refused; the test below shows that all are there.
fn vendor_amd() -> Vec<AmdAnchor> {
    AMD.iter()
        .filter_map(|known| {
            let intermediates =
                vec![Certificate::parse(known.ask).ok()?, Certificate::parse(known.asvk).ok()?];
            let label = format!("AMD ARK-{}", known.product.name());
            AmdAnchor::new(
                &label,
                known.product,
                Certificate::parse(known.ark).ok()?,
                intermediates,
            )
            .ok()
        })
        .collect()
}

fn vendor_intel() -> Vec<IntelAnchor> {
    Certificate::parse(INTEL)
        .and_then(|root| IntelAnchor::new("Intel SGX Root CA", root))
        .into_iter()
        .collect()
}

fn vendor_nvidia() -> Vec<NvidiaAnchor> {
    let (Ok(device), Ok(rim)) = (Certificate::parse(NVIDIA_DEVICE), Certificate::parse(NVIDIA_RIM))
    else {
        return vec![];
    };
    NvidiaAnchor::new("NVIDIA Device Identity CA", device, rim).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vendor_root_is_there_and_is_hardware() {
        let anchors = TrustAnchors::vendor();
        assert_eq!((anchors.amd.len(), anchors.intel.len(), anchors.nvidia.len()), (3, 1, 1));
        assert!(anchors.amd.iter().all(|root| root.anchor().kind == AnchorKind::Hardware));
        assert!(anchors.amd.iter().all(|root| root.intermediates().len() == 2));
        assert_eq!(anchors.intel[0].anchor().kind, AnchorKind::Hardware);
        assert_eq!(anchors.nvidia[0].anchor().kind, AnchorKind::Hardware);
    }

    #[test]
    fn a_root_of_another_product_is_refused() {
        let ark = Certificate::parse(AMD[0].ark).unwrap();
        let error = AmdAnchor::new("x", Product::Genoa, ark, vec![]).unwrap_err();
        assert_eq!(error.reason, Reason::Chain);
    }

    #[test]
    fn an_intermediate_of_another_root_is_refused() {
        let ark = Certificate::parse(AMD[0].ark).unwrap();
        let ask = Certificate::parse(AMD[1].ask).unwrap();
        assert!(AmdAnchor::new("x", Product::Milan, ark, vec![ask]).is_err());
    }
}
