//! What this machine can do, each fact with its reason: data for `casemate doctor`.

use std::fs;
use std::path::{Path, PathBuf};

use casemate_attestation::boundary::{Boundary, Properties};
use serde::Serialize;

use crate::backend::promised;
use crate::machine::Accelerator;
use crate::{kvm, qemu, vmm};

/// Everything that was found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Doctor {
    /// The single facts, in an order for people.
    pub facts: Vec<Fact>,
    /// NVIDIA devices on the PCI bus.
    pub gpus: Vec<Gpu>,
    /// Every boundary class, and whether it can be built here.
    pub classes: Vec<Class>,
}

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// What was looked at: `kvm`, `qemu`, `sev-snp`, …
    pub name: &'static str,
    /// Whether it can be used.
    pub ok: bool,
    /// What was found, or why it cannot be used.
    pub detail: String,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Its PCI address.
    pub address: String,
    /// Vendor and device, such as `10de:2330`.
    pub id: String,
    /// Its IOMMU group, if it has one.
    pub iommu_group: Option<String>,
    /// The driver that holds it.
    pub driver: Option<String>,
}

/// A boundary class on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Class {
    /// The class.
    pub boundary: Boundary,
    /// Whether this host builds it.
    pub buildable: bool,
    /// The properties that it has here.
    pub properties: Properties,
    /// Why, or why not.
    pub reason: String,
}

/// Looks at this machine. Takes at most some seconds; changes nothing.
pub async fn doctor() -> Doctor {
    let kvm = kvm::usable().await;
    let qemu = qemu::version().await.map_err(|error| error.to_string());
    let gpus = gpus(Path::new("/sys/bus/pci/devices"));
    let monitor = vmm::beside().map(|path| path.display().to_string());
    let classes = classes(&kvm, &qemu, &monitor);
    let facts = vec![
        fact("casemate-vmm", monitor),
        fact("qemu", qemu.map(|version| format!("version {version}"))),
        fact("kvm", kvm.map(|()| "runs a test guest".to_owned())),
        fact("sev-snp", parameter("kvm_amd", "sev_snp")),
        fact("tdx", parameter("kvm_intel", "tdx")),
        fact("iommu", iommu_groups()),
        fact("vfio", device("/dev/vfio/vfio", "the vfio-pci module gives it")),
        fact("iommufd", device("/dev/iommu", "kernels with CONFIG_IOMMUFD have it")),
        fact("setpriv", in_path("setpriv", "util-linux")),
        fact("xz", in_path("xz", "xz-utils")),
        fact("dpkg-deb", in_path("dpkg-deb", "dpkg")),
        fact("musl target", musl_target()),
        fact("gpu", gpu_summary(&gpus)),
    ];
    Doctor { facts, gpus, classes }
}

fn fact(name: &'static str, found: Result<String, String>) -> Fact {
    let ok = found.is_ok();
    Fact { name, ok, detail: found.unwrap_or_else(|reason| reason) }
}

fn classes(
    kvm: &Result<(), String>,
    qemu: &Result<String, String>,
    monitor: &Result<String, String>,
) -> Vec<Class> {
    let class = |boundary, reason: &str| Class {
        boundary,
        buildable: false,
        properties: Properties::default(),
        reason: reason.to_owned(),
    };
    let built = |accelerator, reason: &str| Class {
        buildable: true,
        properties: promised(accelerator),
        ..class(Boundary::MicroVm, reason)
    };
    let microvm = match (kvm, monitor, qemu) {
        (Ok(()), Ok(_), _) => built(Accelerator::Kvm, "our own monitor on KVM"),
        (Ok(()), Err(reason), Ok(_)) => {
            built(Accelerator::Kvm, &format!("QEMU on KVM, where it is named: {reason}"))
        }
        (Err(reason), _, Ok(_)) => built(
            Accelerator::Tcg,
            &format!("QEMU's emulator, because KVM is not usable: {reason}"),
        ),
        (_, _, Err(reason)) => class(Boundary::MicroVm, &format!("no QEMU: {reason}")),
    };
    vec![
        class(Boundary::SameHost, "no process backend in this version"),
        class(Boundary::Container, "no process backend in this version"),
        microvm,
        class(Boundary::MicroVmVfio, "no device assignment in this version"),
        class(Boundary::Tee, "no SEV-SNP or TDX launch in this version"),
    ]
}

/// A switch of a kernel module: `Y` or `1` is on.
fn parameter(module: &str, name: &str) -> Result<String, String> {
    let path = format!("/sys/module/{module}/parameters/{name}");
    match fs::read_to_string(&path) {
        Ok(value) if matches!(value.trim(), "Y" | "1") => Ok(format!("{module}.{name} is on")),
        Ok(value) => Err(format!("{module}.{name} is {}", value.trim())),
        Err(_) if Path::new(&format!("/sys/module/{module}")).exists() => {
            Err(format!("{module} has no {name}: the host kernel is too old for it"))
        }
        Err(_) => Err(format!("the host kernel has no {module}")),
    }
}

fn iommu_groups() -> Result<String, String> {
    match fs::read_dir("/sys/kernel/iommu_groups").map_or(0, Iterator::count) {
        0 => Err("no IOMMU groups: off in firmware or kernel, or there is none".to_owned()),
        count => Ok(format!("{count} groups")),
    }
}

fn device(path: &str, hint: &str) -> Result<String, String> {
    if Path::new(path).exists() { Ok(path.to_owned()) } else { Err(format!("no {path}: {hint}")) }
}

fn in_path(tool: &str, package: &str) -> Result<String, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(tool)).find(|at| at.exists());
    found.map(|at| at.display().to_string()).ok_or_else(|| format!("install Debian's {package}"))
}

fn musl_target() -> Result<String, String> {
    const TARGET: &str = "x86_64-unknown-linux-musl";
    let missing = || format!("rustup target add {TARGET} (needed to build the guest)");
    let asked = std::process::Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = asked.map_err(|_| missing())?.stdout;
    let folder = PathBuf::from(String::from_utf8_lossy(&sysroot).trim());
    let folder = folder.join("lib/rustlib").join(TARGET);
    if folder.exists() { Ok(TARGET.to_owned()) } else { Err(missing()) }
}

fn gpu_summary(gpus: &[Gpu]) -> Result<String, String> {
    match gpus {
        [] => Err("no NVIDIA device on the PCI bus".to_owned()),
        found => Ok(format!("{} NVIDIA devices", found.len())),
    }
}

/// NVIDIA (10de) display controllers (PCI class 03).
fn gpus(bus: &Path) -> Vec<Gpu> {
    let mut found: Vec<_> = fs::read_dir(bus)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let read = |name: &str| {
                let text = fs::read_to_string(entry.path().join(name)).ok()?;
                Some(text.trim().trim_start_matches("0x").to_owned())
            };
            let link = |name: &str| {
                let target = fs::read_link(entry.path().join(name)).ok()?;
                Some(target.file_name()?.to_string_lossy().into_owned())
            };
            if read("vendor")? != "10de" || !read("class")?.starts_with("03") {
                return None;
            }
            Some(Gpu {
                address: entry.file_name().to_string_lossy().into_owned(),
                id: format!("10de:{}", read("device")?),
                iommu_group: link("iommu_group"),
                driver: link("driver"),
            })
        })
        .collect();
    found.sort_by(|a, b| a.address.cmp(&b.address));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_found_by_vendor_and_class() {
        let bus = tempfile::tempdir().unwrap();
        let device = |address: &str, vendor: &str, class: &str| {
            let folder = bus.path().join(address);
            fs::create_dir(&folder).unwrap();
            for (name, value) in [("vendor", vendor), ("class", class), ("device", "0x2330")] {
                fs::write(folder.join(name), format!("{value}\n")).unwrap();
            }
        };
        device("0000:01:00.0", "0x10de", "0x030200");
        device("0000:02:00.0", "0x8086", "0x030000");
        device("0000:03:00.0", "0x10de", "0x068000");
        let found = gpus(bus.path());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].id, "10de:2330");
    }

    #[tokio::test]
    async fn every_class_has_a_reason() {
        let doctor = doctor().await;
        println!("{doctor:#?}");
        assert_eq!(doctor.classes.len(), Boundary::ALL.len());
        assert!(doctor.classes.iter().all(|class| !class.reason.is_empty()));
        assert!(doctor.facts.iter().all(|fact| !fact.detail.is_empty()));
    }
}
