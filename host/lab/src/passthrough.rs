//! A PCI device of the emulated host, given to a guest.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

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
    hand_over("give", &address, "vfio-pci")?;
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
    hand_over("give-back", &address, "nvme")?;
    // The driver finds its disk after it has taken the device.
    let disk = Path::new("/dev/nvme0n1");
    for _ in 0..200 {
        if disk.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(disk.exists(), "the host's driver has no disk");
    Ok("4 MiB read by DMA, 64 KiB written and read back, in two machines; given back".into())
}

/// The device changes its driver, and says which one it has.
fn hand_over(verb: &str, address: &str, driver: &str) -> anyhow::Result<()> {
    let output = Command::new("/casemate-vmm").args([verb, address]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.trim() == format!("{address}: driver {driver}"), "{verb}: {said}{errors}");
    Ok(())
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
