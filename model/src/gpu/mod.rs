//! A synthetic issuer of GPUs and NVSwitches: chains, reports, manifests and
//! OCSP responses in NVIDIA's formats, under locally made roots.
//!
//! A laptop can walk the whole path of device evidence with it. Nothing here
//! is hardware, and a verdict under these roots says so.

mod certificate;
mod machine;
mod manifest;
mod ocsp;
mod report;
mod store;

use casemate_attestation::UnixTime;
use casemate_attestation::anchors::NvidiaAnchor;
use casemate_attestation::crypto::sha384;
use casemate_attestation::evidence::{EndorsementKind, EvidenceItem, EvidenceKind};
use casemate_attestation::gpu::{DeviceKind, Mode, Pdi, Source};
use casemate_attestation::x509::Certificate;

use crate::{ModelError, der};
use certificate::{Authority, CertificateSpec, Key, NEVER};

pub use machine::GpuMachine;
pub use ocsp::OcspStatus;

/// The issuer: one root for devices, one for manifests, and what is under them.
pub struct GpuModel {
    device_root: Authority,
    identity: Authority,
    provisioner: Authority,
    manifest_root: Authority,
    values: Authority,
    signers: Authority,
    from: UnixTime,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// GPU or switch.
    pub kind: DeviceKind,
    /// The chip: `GH100`, `GB100`, `LS10`.
    pub chip: String,
    /// The device's identity.
    pub pdi: Pdi,
    /// The driver's version (GPU).
    pub driver_version: String,
    /// The firmware's version: five pairs of hex digits with dots.
    pub firmware_version: String,
    /// How GPUs are shared out.
    pub mode: Mode,
    /// The devices it is connected to.
    pub peers: Vec<Pdi>,
    /// Whether developer tools are on; the driver then measures itself differently.
    pub devtools: bool,
    /// Whether a switch's configuration is locked.
    pub locked: bool,
}

/// A device with its keys and certificates.
pub struct GpuDevice {
    spec: DeviceSpec,
    leaf: Key,
    fwid: [u8; 48],
    chain: Vec<Vec<u8>>,
    boot_rom: Authority,
}

impl DeviceSpec {
    /// A Hopper GPU passed through alone.
    pub fn gpu(number: u8) -> Self {
        Self {
            kind: DeviceKind::Gpu,
            chip: "GH100".to_owned(),
            pdi: Pdi([0x48, 0xb0, 0x2d, 0, 0, 0, 1, number]),
            driver_version: "999.10.01".to_owned(),
            firmware_version: "96.00.99.00.01".to_owned(),
            mode: Mode::Spt,
            peers: vec![],
            devtools: false,
            locked: false,
        }
    }

    /// A switch of an HGX board.
    pub fn switch(number: u8) -> Self {
        Self {
            kind: DeviceKind::Switch,
            chip: "LS10".to_owned(),
            pdi: Pdi([0x48, 0xb0, 0x2d, 0, 0, 0, 2, number]),
            driver_version: String::new(),
            firmware_version: "96.10.99.00.01".to_owned(),
            locked: true,
            ..Self::gpu(0)
        }
    }

    /// Eight GPUs and four switches in protected-PCIe mode.
    pub fn hgx() -> Vec<Self> {
        let (gpus, switches): (Vec<_>, Vec<_>) =
            ((0..8).map(Self::gpu).collect(), (0..4).map(Self::switch).collect());
        let pdis = |list: &[Self]| list.iter().map(|one| one.pdi).collect::<Vec<_>>();
        let (of_gpus, of_switches) = (pdis(&gpus), pdis(&switches));
        let gpus = gpus.into_iter().map(|gpu| Self {
            mode: Mode::Ppcie,
            peers: of_switches.clone(),
            ..gpu
        });
        let switches = switches.into_iter().map(|one| Self { peers: of_gpus.clone(), ..one });
        gpus.chain(switches).collect()
    }

    /// The parts of the device that have a manifest.
    pub fn sources(&self) -> &'static [Source] {
        self.kind.sources()
    }
}

impl GpuModel {
    /// Makes an issuer whose certificates are valid from `from` on.
    pub fn new(from: UnixTime) -> Result<Self, ModelError> {
        Self::with_roots([Key::generate()?, Key::generate()?], from)
    }

    /// The same under these keys of the roots of devices and of manifests.
    fn with_roots(keys: [Key; 2], from: UnixTime) -> Result<Self, ModelError> {
        let [device_key, manifest_key] = keys;
        let device_root = Authority::root("Model Device Identity CA", device_key, from)?;
        let identity = device_root.issue("Model GPU Identity", vec![2], from)?;
        let provisioner = identity.issue("Model Provisioner ICA 1", vec![3], from)?;
        let manifest_root = Authority::root("Model Reference Value Root CA", manifest_key, from)?;
        let values = manifest_root.issue("Model Reference Value CA", vec![4], from)?;
        let signers = values.issue("Model Reference Value L3", vec![5], from)?;
        Ok(Self { device_root, identity, provisioner, manifest_root, values, signers, from })
    }

    /// The issuer's roots as a trust anchor; always of kind model.
    pub fn anchor(&self, label: &str) -> Result<NvidiaAnchor, ModelError> {
        let root = |authority: &Authority| parse(&authority.der);
        NvidiaAnchor::new(label, root(&self.device_root)?, root(&self.manifest_root)?)
            .map_err(|_| ModelError::Crypto { what: "checking the model's own roots" })
    }

    /// Makes a device.
    pub fn device(&self, spec: DeviceSpec) -> Result<GpuDevice, ModelError> {
        let chip = if spec.chip == "LS10" { "LS_10" } else { &spec.chip };
        let serial = [&[0x41], spec.pdi.0.as_slice()].concat();
        let name = format!("{chip} A01 GSP BROM");
        let boot_rom = self.provisioner.issue(&name, serial, self.from)?;
        let leaf = Key::generate()?;
        let fwid = sha384(spec.firmware_version.as_bytes());
        let subject = format!("{chip} A01 GSP FMC LF");
        let certificate = CertificateSpec {
            serial: sha384(leaf.point()).into_iter().take(16).collect(),
            subject: &subject,
            key: &leaf,
            not_before: self.from,
            not_after: NEVER,
            ca: false,
            extensions: vec![fwid_extension(&spec, &leaf, &fwid)],
        };
        let certificate = certificate.sign(&boot_rom.name, &boot_rom.key)?;
        let above = [&self.provisioner, &self.identity, &self.device_root];
        let mut chain = vec![certificate, boot_rom.der.clone()];
        chain.extend(above.map(|authority| authority.der.clone()));
        Ok(GpuDevice { spec, leaf, fwid, chain, boot_rom })
    }

    /// The manifest for one part of such a device, signed at `from` and good until `until`.
    pub fn manifest(
        &self,
        spec: &DeviceSpec,
        source: Source,
        from: UnixTime,
        until: UnixTime,
    ) -> Result<Vec<u8>, ModelError> {
        let above = [&self.signers, &self.values, &self.manifest_root];
        manifest::signed(spec, source, above, from, until)
    }

    /// OCSP responses for every certificate of a device's chain but leaf and root.
    pub fn ocsp_of_device(
        &self,
        device: &GpuDevice,
        status: OcspStatus,
        at: UnixTime,
    ) -> Result<Vec<Vec<u8>>, ModelError> {
        let boot_rom = parse(&device.boot_rom.der)?;
        let next = at.plus_seconds(DAY);
        let mut out = vec![ocsp::signed(&boot_rom, &self.provisioner, status, at, next)?];
        for (authority, issuer) in
            [(&self.provisioner, &self.identity), (&self.identity, &self.device_root)]
        {
            let certificate = parse(&authority.der)?;
            out.push(ocsp::signed(&certificate, issuer, OcspStatus::Good, at, next)?);
        }
        Ok(out)
    }

    /// OCSP responses for the signer's chain of a manifest.
    pub fn ocsp_of_manifest(
        &self,
        signer: &Certificate,
        at: UnixTime,
    ) -> Result<Vec<Vec<u8>>, ModelError> {
        let next = at.plus_seconds(DAY);
        let (signers, values) = (parse(&self.signers.der)?, parse(&self.values.der)?);
        [(signer, &self.signers), (&signers, &self.values), (&values, &self.manifest_root)]
            .into_iter()
            .map(|(certificate, issuer)| {
                ocsp::signed(certificate, issuer, OcspStatus::Good, at, next)
            })
            .collect()
    }
}

impl GpuDevice {
    /// What the device is.
    pub fn spec(&self) -> &DeviceSpec {
        &self.spec
    }

    /// The device's answer to `nonce`.
    pub fn report(&self, nonce: &[u8; 32]) -> Result<Vec<u8>, ModelError> {
        let mut report = report::unsigned(&self.spec, nonce, &self.fwid);
        let signature = self.leaf.sign_fixed(&report)?;
        report.extend(signature);
        Ok(report)
    }

    /// The device's certificates in PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|der| der::pem("CERTIFICATE", der)).collect()
    }

    /// The device's report and chain as an item of the evidence envelope.
    pub fn evidence(&self, nonce: &[u8; 32]) -> Result<EvidenceItem, ModelError> {
        Ok(EvidenceItem {
            kind: EvidenceKind::GpuReport,
            evidence: self.report(nonce)?,
            endorsements: vec![(EndorsementKind::CertificateChain, self.chain_pem().into_bytes())],
        })
    }
}

const DAY: u64 = 86_400;

/// The firmware's digest in the form of the chip's generation.
fn fwid_extension<'a>(spec: &DeviceSpec, leaf: &Key, fwid: &[u8; 48]) -> (&'a str, Vec<u8>) {
    let pair = der::sequence(&[&der::oid("2.16.840.1.101.3.4.2.2"), &der::octets(fwid)]);
    if spec.chip.starts_with("GB") {
        let model = der::element(0x81, spec.chip.as_bytes());
        let info = der::sequence(&[&model, &der::element(0xa6, &pair)]);
        return ("2.23.133.5.4.1.1", info);
    }
    ("2.23.133.5.4.1", der::sequence(&[&der::small_integer(1), &leaf.spki(), &pair]))
}

fn parse(der: &[u8]) -> Result<Certificate, ModelError> {
    Certificate::parse(der).map_err(|_| ModelError::Crypto { what: "reading an own certificate" })
}
