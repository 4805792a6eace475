//! A control group (cgroup v2) of one machine's process: what it may use of
//! memory, CPUs and processes. Linux, Documentation/admin-guide/cgroup-v2.rst.
//!
//! The process joins before it is the backend: memory that it touched earlier
//! would stay charged elsewhere. The group goes when its value is dropped, and
//! whatever is left in it is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::backend::START_LIMIT;
use crate::config::HostConfig;
use crate::launch::LaunchError;
use crate::machine::MachineSpec;

/// A group of its own below the configured one.
#[derive(Debug)]
pub(crate) struct Cgroup {
    folder: PathBuf,
}

/// What a backend needs beside its guest's memory, in MiB.
pub(crate) const VMM_BESIDE_MIB: u64 = 64;
/// QEMU with its emulator's translations.
pub(crate) const QEMU_BESIDE_MIB: u64 = 2048;

impl Cgroup {
    /// Makes the group of machine `id`; `None` where none is configured. A group that
    /// is configured and cannot be had is an error before anything runs.
    pub(crate) fn make(
        config: &HostConfig,
        id: &str,
        spec: &MachineSpec,
        beside_mib: u64,
    ) -> Result<Option<Self>, LaunchError> {
        let Some(parent) = &config.cgroup else { return Ok(None) };
        controllers(parent)?;
        sweep(parent);
        let folder = parent.join(format!("casemate-{id}"));
        fs::create_dir(&folder).map_err(at("make", &folder))?;
        let group = Self { folder };
        let guest = u64::from(spec.memory_mib);
        // Page tables of host, nested and IOMMU are charged too: 8 bytes a page each.
        let memory = (guest + guest / 64 + beside_mib) << 20;
        group.set("memory.max", &memory.to_string())?;
        // Without swap in the kernel there is no such file, and nothing to limit.
        if group.folder.join("memory.swap.max").exists() {
            group.set("memory.swap.max", "0")?;
        }
        group.set("pids.max", &(THREADS + u64::from(spec.vcpus)).to_string())?;
        // The guest's CPUs, and one for the devices.
        let time = (u64::from(spec.vcpus) + 1) * PERIOD_US;
        group.set("cpu.max", &format!("{time} {PERIOD_US}"))?;
        Ok(Some(group))
    }

    /// The file through which a process joins.
    pub(crate) fn procs(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    fn set(&self, name: &str, value: &str) -> Result<(), LaunchError> {
        let file = self.folder.join(name);
        fs::write(&file, value).map_err(at("limit", &file))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Kernels before 5.14 lack the file; the backend's process is dead by then anyway.
        let _ = fs::write(self.folder.join("cgroup.kill"), "1");
        for _ in 0..REMOVE_TRIES {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        tracing::warn!(group = %self.folder.display(), "a control group stays behind");
    }
}

/// Removes groups of machines whose host was killed. The kernel refuses to remove one in which
/// something lives; a young one may be about to get its process.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with("casemate-");
        let age = entry.metadata().and_then(|found| found.modified());
        let age = age.ok().and_then(|made| made.elapsed().ok()).unwrap_or_default();
        if ours && age > 2 * START_LIMIT {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The parent can give its children the three controllers.
fn controllers(parent: &Path) -> Result<(), LaunchError> {
    let file = parent.join("cgroup.controllers");
    let has = fs::read_to_string(&file).map_err(at("read", &file))?;
    if let Some(missing) =
        NEEDED.iter().find(|name| !has.split_whitespace().any(|had| had == **name))
    {
        return Err(LaunchError::Spec {
            field: "cgroup",
            expected: format!("a group with the controller {missing}"),
            actual: format!("{} with {:?}", parent.display(), has.trim()),
        });
    }
    let file = parent.join("cgroup.subtree_control");
    let all: Vec<String> = NEEDED.iter().map(|name| format!("+{name}")).collect();
    fs::write(&file, all.join(" ")).map_err(at("give controllers by", &file))
}

fn at(action: &str, path: &Path) -> impl FnOnce(std::io::Error) -> LaunchError {
    let action = format!("{action} {}", path.display());
    move |source| LaunchError::Io { action, source }
}

const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
/// Threads of a backend beside its vCPUs', and the two programs that become it.
const THREADS: u64 = 64;
const PERIOD_US: u64 = 100_000;
const REMOVE_TRIES: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn config(parent: &Path) -> HostConfig {
        let text = format!("name = \"h\"\nstate = \"/s\"\ncgroup = \"{}\"", parent.display());
        HostConfig::from_toml(&text).unwrap()
    }

    #[test]
    fn a_group_that_cannot_be_had_is_an_error_that_names_it() {
        let spec = MachineSpec::new("/image", "task");
        let parent = tempfile::tempdir().unwrap();
        let error = Cgroup::make(&config(parent.path()), "1", &spec, 1).unwrap_err().to_string();
        assert!(error.contains("cgroup.controllers"), "{error}");
        fs::write(parent.path().join("cgroup.controllers"), "cpuset cpu pids\n").unwrap();
        let error = Cgroup::make(&config(parent.path()), "1", &spec, 1).unwrap_err().to_string();
        assert!(error.contains("memory") && error.contains("cpuset cpu pids"), "{error}");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1, "something was made");
        let none = HostConfig::from_toml("name = \"h\"\nstate = \"/s\"").unwrap();
        assert!(Cgroup::make(&none, "1", &spec, 1).unwrap().is_none());
    }
}
