//! The model's devices in one machine, and all of their evidence at once.

use casemate_attestation::evidence::{EndorsementKind, Evidence, EvidenceItem, EvidenceKind};
use casemate_attestation::gpu::{
    ConfidentialState, DeviceKind, Function, Inventory, Source, Verifier,
};
use casemate_attestation::{UnixTime, x509::Certificate};

use super::{DAY, DeviceSpec, GpuDevice, GpuModel, OcspStatus};
use crate::ModelError;

/// Devices of one issuer, as one machine has them.
pub struct GpuMachine {
    model: GpuModel,
    devices: Vec<GpuDevice>,
}

impl GpuMachine {
    /// A machine with these devices.
    pub fn new(model: GpuModel, specs: Vec<DeviceSpec>) -> Result<Self, ModelError> {
        let devices = specs.into_iter().map(|spec| model.device(spec)).collect::<Result<_, _>>()?;
        Ok(Self { model, devices })
    }

    /// The issuer.
    pub fn model(&self) -> &GpuModel {
        &self.model
    }

    /// The functions on the machine's bus, all in confidential mode.
    pub fn inventory(&self) -> Inventory {
        let function = |(slot, device): (usize, &GpuDevice)| Function {
            address: format!("0000:{:02x}:00.0", slot.saturating_add(1)),
            kind: device.spec.kind,
            state: ConfidentialState::On,
        };
        Inventory { functions: self.devices.iter().enumerate().map(function).collect() }
    }

    /// The inventory, and every device's answer to the nonce of its kind. With
    /// them come manifests and OCSP responses, made at `now`.
    pub fn evidence(
        &self,
        nonce: impl Fn(DeviceKind) -> [u8; 32],
        now: UnixTime,
    ) -> Result<Evidence, ModelError> {
        let mut items = vec![EvidenceItem {
            kind: EvidenceKind::DeviceInventory,
            evidence: self.inventory().encode(),
            endorsements: vec![],
        }];
        let mut done: Vec<(DeviceKind, Source)> = Vec::new();
        for device in &self.devices {
            let kind = device.spec.kind;
            let mut item = device.evidence(&nonce(kind))?;
            let said = self.model.ocsp_of_device(device, OcspStatus::Good, now)?;
            item.endorsements.extend(said.into_iter().map(|one| (EndorsementKind::Ocsp, one)));
            for source in device.spec.sources() {
                if !done.contains(&(kind, *source)) {
                    done.push((kind, *source));
                    item.endorsements.extend(self.reference(device, *source, now)?);
                }
            }
            items.push(item);
        }
        Ok(Evidence { items })
    }

    /// A manifest and what responders say of its signer.
    fn reference(
        &self,
        device: &GpuDevice,
        source: Source,
        now: UnixTime,
    ) -> Result<Vec<(EndorsementKind, Vec<u8>)>, ModelError> {
        let manifest =
            self.model.manifest(&device.spec, source, self.model.from, now.plus_seconds(DAY))?;
        let verifier = Verifier::new(&[self.model.anchor("model")?]);
        let checked = verifier.manifest(&manifest);
        let signer: Option<&Certificate> = checked.chain.first();
        let signer = signer.ok_or(ModelError::Crypto { what: "reading an own manifest" })?;
        let said = self.model.ocsp_of_manifest(signer, now)?.into_iter();
        let said = said.map(|one| (EndorsementKind::Ocsp, one));
        Ok([(EndorsementKind::Rim, manifest)].into_iter().chain(said).collect())
    }
}
