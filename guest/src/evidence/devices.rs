//! Evidence of NVIDIA devices: what is on the bus, and what each says of itself.
//!
//! Every NVIDIA function on the PCI bus is listed, so that a device without
//! evidence cannot hide. Asking a real device needs NVIDIA's libraries, which
//! are not in this image: such a function is listed as not in confidential
//! mode, and a verifier refuses it. A function of a class that we do not know
//! counts as a GPU. Model devices are asked over the mux, but not in a TEE.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use casemate_attestation::gpu::{ConfidentialState, DeviceKind, Function, Inventory, device_nonce};
use casemate_attestation::{Binding, Evidence, EvidenceItem, EvidenceKind};
use casemate_mux::Guest;
use tokio::io::AsyncWriteExt;

use crate::host::{HostError, read_block, within};

/// Where the kernel lists PCI functions (Documentation/ABI/testing/sysfs-bus-pci).
pub const BUS: &str = "/sys/bus/pci/devices";
const NVIDIA: &str = "0x10de";
/// The mux service of model devices.
const SERVICE: &str = "gpu";
/// Eight GPUs and four switches with manifests have about 200 KiB.
const MAX_EVIDENCE_BYTES: usize = 1024 * 1024;
/// More functions than any machine has; an inventory holds 64.
const MAX_FUNCTIONS: usize = 4096;

/// Why the devices' evidence is not there.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// The bus cannot be read.
    #[error("{path}: {source}")]
    Bus {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The bus has more functions than are listed.
    #[error("{BUS}: expected at most {MAX_FUNCTIONS} functions")]
    Many,
    /// The model's answer is not evidence of devices.
    #[error("model devices: expected {expected}, got {actual}")]
    Answer {
        /// What it must be.
        expected: &'static str,
        /// What it is.
        actual: String,
    },
}

/// The machine's NVIDIA devices.
#[derive(Debug)]
pub struct Devices {
    bus: PathBuf,
    model: Option<Guest>,
}

impl Devices {
    /// Those listed in `bus`, which is [`BUS`] but in tests, and model devices
    /// if the host offers any on the mux.
    pub fn new(bus: &Path, model: Option<Guest>) -> Self {
        Self { bus: bus.to_owned(), model }
    }

    /// Those on the bus alone.
    pub(super) fn without_model(self) -> Self {
        Self { model: None, ..self }
    }

    pub(super) fn name(&self) -> Option<&'static str> {
        self.model.is_some().then_some("model devices of NVIDIA's kind")
    }

    /// The inventory and every device's answer to the nonce that `binding`
    /// gives; nothing if there is no NVIDIA function at all.
    pub(super) async fn collect(
        &self,
        binding: &Binding,
    ) -> Result<Vec<EvidenceItem>, super::EvidenceError> {
        let mut inventory = Inventory { functions: scan(&self.bus)? };
        let mut reports = Vec::new();
        if let Some(mux) = &self.model {
            let answer = ask(mux, binding).await?;
            let (listed, devices) = sort(Evidence::decode(&answer).map_err(|error| {
                DevicesError::Answer { expected: "an evidence envelope", actual: error.to_string() }
            })?)?;
            inventory.functions.extend(listed.functions);
            reports = devices;
        }
        if inventory.functions.is_empty() && reports.is_empty() {
            return Ok(Vec::new());
        }
        let inventory = EvidenceItem {
            kind: EvidenceKind::DeviceInventory,
            evidence: inventory.encode(),
            endorsements: Vec::new(),
        };
        Ok([inventory].into_iter().chain(reports).collect())
    }
}

async fn ask(mux: &Guest, binding: &Binding) -> Result<Vec<u8>, HostError> {
    let nonces = [DeviceKind::Gpu, DeviceKind::Switch].map(|kind| device_nonce(binding, kind));
    within(SERVICE, async {
        let mut stream = mux.open(SERVICE).await?;
        let io = |source| HostError::Io { asked: SERVICE, source };
        stream.write_all(nonces.as_flattened()).await.map_err(io)?;
        stream.flush().await.map_err(io)?;
        read_block(SERVICE, &mut stream, MAX_EVIDENCE_BYTES).await
    })
    .await
}

/// The model's inventory and its devices; anything else is not the model's to say.
fn sort(evidence: Evidence) -> Result<(Inventory, Vec<EvidenceItem>), DevicesError> {
    let mut inventory = Inventory::default();
    let mut devices = Vec::new();
    for item in evidence.items {
        match item.kind {
            EvidenceKind::GpuReport => devices.push(item),
            EvidenceKind::DeviceInventory => {
                let listed = Inventory::decode(&item.evidence).map_err(|error| {
                    DevicesError::Answer { expected: "an inventory", actual: error.to_string() }
                })?;
                inventory.functions.extend(listed.functions);
            }
            other => {
                return Err(DevicesError::Answer {
                    expected: "device reports and an inventory",
                    actual: format!("{other:?}"),
                });
            }
        }
    }
    Ok((inventory, devices))
}

/// The NVIDIA functions on the bus. Nothing in this image can ask them, and so
/// each is listed as what it is to us: not known to be in confidential mode.
fn scan(bus: &Path) -> Result<Vec<Function>, DevicesError> {
    let failed = |path: &Path, source| DevicesError::Bus { path: path.to_owned(), source };
    let entries = match fs::read_dir(bus) {
        Ok(entries) => entries,
        // A kernel without PCI has no device on it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(bus, error)),
    };
    let mut found = Vec::new();
    for (number, entry) in entries.enumerate() {
        if number >= MAX_FUNCTIONS {
            return Err(DevicesError::Many);
        }
        let path = entry.map_err(|error| failed(bus, error))?.path();
        let read = |name: &str| {
            let file = path.join(name);
            fs::read_to_string(&file).map_err(|error| failed(&file, error))
        };
        if read("vendor")?.trim() != NVIDIA {
            continue;
        }
        let address = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.push((address, Class::of(read("class")?.trim())));
    }
    found.sort_unstable();
    let listed = found.iter().filter(|(address, class)| !is_sound_of_gpu(address, *class, &found));
    let function = |(address, class): &(String, Class)| {
        let kind = if *class == Class::Switch { DeviceKind::Switch } else { DeviceKind::Gpu };
        Function { address: address.clone(), kind, state: ConfidentialState::Off }
    };
    Ok(listed.map(function).collect())
}

/// What a function says it is. The host sets this code, so none is a reason to
/// leave a function out but the sound of a GPU that is itself listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Gpu,
    Switch,
    Sound,
    Other,
}

impl Class {
    /// GPUs are display (0x03) or accelerator (0x12) functions, NVSwitches are
    /// bridges of the kind "other" (0x0680), a GPU's sound is 0x0403 (PCI Code
    /// and ID Assignment, 1.1 to 1.19).
    fn of(class: &str) -> Self {
        match class.strip_prefix("0x").and_then(|class| class.get(..4)) {
            Some("0680") => Self::Switch,
            Some("0403") => Self::Sound,
            Some(class) if class.starts_with("03") || class.starts_with("12") => Self::Gpu,
            _ => Self::Other,
        }
    }
}

/// Whether the function is the sound of a GPU in its slot.
fn is_sound_of_gpu(address: &str, class: Class, all: &[(String, Class)]) -> bool {
    let slot = |address: &str| address.rsplit_once('.').map(|(slot, _)| slot.to_owned());
    let beside = |(other, class): &(String, Class)| {
        *class == Class::Gpu && slot(other).is_some() && slot(other) == slot(address)
    };
    class == Class::Sound && all.iter().any(beside)
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
