//! Evidence: collected as bytes and forwarded, never judged here.

pub mod devices;
mod psp;
pub mod tsm;

use casemate_attestation::gpu::devices_digest;
use casemate_attestation::{Binding, Evidence, EvidenceItem, EvidenceKind};

use crate::host::{Host, HostError};
use devices::{Devices, DevicesError};
pub use psp::Psp;
use tsm::{Tsm, TsmError};

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The TEE's driver failed.
    #[error(transparent)]
    Tsm(#[from] TsmError),
    /// The host did not answer.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The machine's devices cannot be listed or asked.
    #[error(transparent)]
    Devices(#[from] DevicesError),
}

/// Something that states `report_data` together with facts about the machine.
pub trait Source {
    /// The source's name, for people.
    fn name(&self) -> &'static str;

    /// One piece of evidence over `report_data`.
    fn collect(
        &mut self,
        report_data: &[u8; 64],
    ) -> impl Future<Output = Result<EvidenceItem, EvidenceError>>;
}

/// The sources of this machine, the strongest first.
#[derive(Debug)]
pub struct Sources {
    tsm: Option<Tsm>,
    psp: Option<Psp>,
    host: Host,
    devices: Devices,
}

impl Sources {
    /// Finds out what there is: the TEE's driver, else the model of the PSP if
    /// the host offers one, and always the host's claim. In a TEE the models of
    /// the host have no say: the guest's word there is measured, and must not
    /// be the host's repeated.
    pub fn find(host: Host, psp: Option<Psp>, devices: Devices) -> Result<Self, EvidenceError> {
        Ok(Self::of(Tsm::open(tsm::ROOT.as_ref())?, host, psp, devices))
    }

    fn of(tsm: Option<Tsm>, host: Host, psp: Option<Psp>, devices: Devices) -> Self {
        if tsm.is_some() {
            return Self { tsm, psp: None, host, devices: devices.without_model() };
        }
        Self { tsm, psp, host, devices }
    }

    /// The names of the sources, for people.
    pub fn names(&self) -> Vec<&'static str> {
        let tsm = self.tsm.as_ref().map(Source::name);
        let psp = self.psp.as_ref().map(Source::name);
        let devices = self.devices.name();
        tsm.into_iter().chain(psp).chain([self.host.name()]).chain(devices).collect()
    }

    /// Evidence of every source. The devices answer first: the digest of all
    /// that they say goes into `binding`, and so into the report data that CPU
    /// and host state (docs/formats/gpu-binding.md).
    pub async fn collect(&mut self, binding: &mut Binding) -> Result<Evidence, EvidenceError> {
        let devices = Evidence { items: self.devices.collect(binding).await? };
        binding.devices = devices_digest(&devices);
        let report_data = &binding.report_data();
        let mut items = Vec::new();
        if let Some(tsm) = &mut self.tsm {
            items.push(tsm.collect(report_data).await?);
        }
        if let Some(psp) = &mut self.psp {
            items.push(psp.collect(report_data).await?);
        }
        items.extend(devices.items);
        items.push(self.host.collect(report_data).await?);
        Ok(Evidence { items })
    }
}

impl Source for Host {
    fn name(&self) -> &'static str {
        "the host's claim"
    }

    async fn collect(&mut self, report_data: &[u8; 64]) -> Result<EvidenceItem, EvidenceError> {
        let evidence = self.claim(report_data).await?;
        Ok(EvidenceItem { kind: EvidenceKind::HostClaim, evidence, endorsements: Vec::new() })
    }
}
