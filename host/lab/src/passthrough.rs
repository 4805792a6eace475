//! A PCI device of the emulated host, given to a guest.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use casemate_vmm::DeviceSpec;

use crate::machine::{Machine, spec};
use crate::traffic::sum;

/// The emulated NVMe disk: refused while it has the host's driver, then used by the guest's
/// own driver, by registers, DMA and MSI-X, and once more by a second machine.
pub(crate) fn vfio(_: bool) -> anyhow::Result<String> {
    let device = nvme()?;
    let address = device.file_name().context("address")?.to_string_lossy().into_owned();
    let mut spec = spec("vfio", 2);
    spec.devices = vec![DeviceSpec { address: address.clone() }];
    let refusal = Machine::start("vfio", &spec).err().map(|error| format!("{error:#}"));
    let refusal = refusal.context("a device of the host's driver was taken")?;
    ensure!(refusal.contains("driver is \"nvme\", expected vfio-pci"), "{refusal}");
    std::fs::write(device.join("driver_override"), "vfio-pci")?;
    std::fs::write(device.join("driver/unbind"), &address)?;
    std::fs::write("/sys/bus/pci/drivers_probe", &address)?;
    let pattern: Vec<u8> =
        (0..4u64 << 20).map(|n| (n % 249).to_le_bytes()).map(|[n, ..]| n).collect();
    for round in ["first", "second"] {
        let mut machine = Machine::start("vfio", &spec)?;
        machine.wait_up()?;
        let answer = machine.tell("disk /dev/nvme0n1")?;
        // The first machine changes it: what the second finds is not the pattern.
        if round == "first" {
            ensure!(
                answer.starts_with(&format!("{} {:x} ", pattern.len(), sum(&pattern))),
                "{answer}"
            );
        }
        machine.tell("overwrite /dev/nvme0n1")?;
        machine.send("off")?;
        machine.end()?;
    }
    Ok("4 MiB read by DMA, 64 KiB written and read back, in two machines".into())
}

fn nvme() -> anyhow::Result<PathBuf> {
    for entry in std::fs::read_dir("/sys/bus/pci/devices")?.flatten() {
        let class = std::fs::read_to_string(entry.path().join("class")).unwrap_or_default();
        if class.trim() == "0x010802" {
            return Ok(entry.path());
        }
    }
    anyhow::bail!("no NVMe device")
}
