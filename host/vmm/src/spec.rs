//! What a machine is to be. Format: docs/formats/vmm-spec.md.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything that a machine is made of. Read from TOML; unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// A bzImage with a 64-bit entry.
    pub kernel: PathBuf,
    /// The initial file system, if there is one.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Virtual CPUs, 1 to 32.
    pub vcpus: u8,
    /// Guest memory in MiB, 32 to 1 Mi.
    pub memory_mib: u64,
    /// Where the control socket is made. Without one the machine runs at once.
    pub control: Option<PathBuf>,
    /// The guest's console.
    #[serde(default)]
    pub console: ConsoleSpec,
    /// Named ports (virtio-serial), each a unix socket of the host.
    #[serde(default, rename = "port", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSpec>,
    /// Sockets between guest and host.
    pub vsock: Option<VsockSpec>,
    /// Read-only disks.
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// PCI devices of the host that the guest gets.
    #[serde(default, rename = "device", skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceSpec>,
    /// How long the machine may run without being told to go on.
    pub lease: Option<LeaseSpec>,
    /// What the machine may use.
    #[serde(default)]
    pub limits: LimitSpec,
    /// How the monitor locks itself in.
    #[serde(default)]
    pub jail: JailSpec,
}

/// Where console output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSpec {
    /// A file to write to; without one, the monitor's standard output.
    pub path: Option<PathBuf>,
    /// Bytes kept of the serial port and of the console, each; the rest is dropped.
    #[serde(default = "ConsoleSpec::most")]
    pub bytes_max: u64,
}

impl ConsoleSpec {
    fn most() -> u64 {
        16 << 20
    }
}

impl Default for ConsoleSpec {
    fn default() -> Self {
        Self { path: None, bytes_max: Self::most() }
    }
}

/// A named port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Name that the guest sees.
    pub name: String,
    /// Unix socket that the monitor listens on; one connection at a time.
    pub socket: PathBuf,
}

/// The vsock device: hybrid unix sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// Socket on which the host asks for a connection into the guest ("CONNECT port\n").
    pub socket: PathBuf,
    /// Ports that the guest may connect to; port p leads to the socket `<socket>_p`.
    #[serde(default)]
    pub guest_may_reach: Vec<u32>,
}

/// A read-only disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The image file; its length is rounded down to 512 bytes.
    pub path: PathBuf,
}

/// A PCI device of the host. It is bound to vfio-pci before the machine starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// PCI address, as in /sys/bus/pci/devices: `0000:01:00.0`.
    pub address: String,
}

/// A lease: enforced by the monitor even when nobody talks to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseSpec {
    /// The machine is paused when this time passes without renewal.
    pub seconds: u64,
    /// And destroyed when this time passes after that.
    pub grace_seconds: u64,
}

/// Limits; absent means none of its kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitSpec {
    /// Wall clock seconds from start to end.
    pub wall_seconds: Option<u64>,
    /// Processor seconds of the whole monitor, guest included.
    pub cpu_seconds: Option<u64>,
}

/// The jail. Each measure that is asked for and cannot be had is an error before the guest runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailSpec {
    /// An empty directory that becomes the root directory; sockets are made below it.
    pub root: Option<PathBuf>,
    /// User and group to become; needs root.
    pub user: Option<u32>,
    /// New mount, network, IPC and host name namespaces; needs root or user namespaces.
    #[serde(default)]
    pub namespaces: bool,
}

/// Why a specification is refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not TOML, or not our keys.
    #[error("specification: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A value outside its bounds.
    #[error("{field}: {actual}, expected {expected}")]
    Value {
        /// Key in the file.
        field: &'static str,
        /// What is accepted.
        expected: &'static str,
        /// What was found.
        actual: String,
    },
}

/// Most named ports of one machine.
const PORTS_MAX: usize = 8;
/// Most disks of one machine.
const DISKS_MAX: usize = 8;

impl VmSpec {
    /// Reads and checks a specification.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let spec: Self = toml::from_str(text)?;
        spec.check()?;
        Ok(spec)
    }

    /// The specification as text.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Guest memory in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mib << 20
    }

    /// Checks every bound.
    pub fn check(&self) -> Result<(), SpecError> {
        within("vcpus", "1 to 32", u64::from(self.vcpus), 1, 32)?;
        within("memory_mib", "32 to 1048576", self.memory_mib, 32, 1 << 20)?;
        within(
            "port",
            "at most 8",
            crate::bytes::wide(self.ports.len()),
            0,
            crate::bytes::wide(PORTS_MAX),
        )?;
        within(
            "disk",
            "at most 8",
            crate::bytes::wide(self.disks.len()),
            0,
            crate::bytes::wide(DISKS_MAX),
        )?;
        if let Some(vsock) = &self.vsock {
            within("vsock.cid", "3 or more", u64::from(vsock.cid), 3, u64::from(u32::MAX) - 1)?;
        }
        for port in &self.ports {
            within("port.name", "1 to 64 bytes", crate::bytes::wide(port.name.len()), 1, 64)?;
        }
        Ok(())
    }
}

fn within(
    field: &'static str,
    expected: &'static str,
    actual: u64,
    least: u64,
    most: u64,
) -> Result<(), SpecError> {
    if (least..=most).contains(&actual) {
        return Ok(());
    }
    Err(SpecError::Value { field, expected, actual: actual.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        kernel = "vmlinuz"
        cmdline = "console=ttyS0"
        vcpus = 1
        memory_mib = 128
    "#;

    #[test]
    fn a_small_specification_is_enough_and_comes_back() {
        let spec = VmSpec::parse(SMALL).unwrap();
        assert_eq!(spec.console.bytes_max, 16 << 20);
        assert_eq!(VmSpec::parse(&spec.to_toml().unwrap()).unwrap(), spec);
    }

    #[test]
    fn unknown_keys_and_values_out_of_bounds_are_refused() {
        for (add, names) in [
            ("kernal = 1", "kernal"),
            ("[limits]\nwal_seconds = 3", "wal_seconds"),
            ("[vsock]\ncid = 2\nsocket = \"s\"", "vsock.cid"),
            ("[[port]]\nname = \"\"\nsocket = \"s\"", "port.name"),
        ] {
            let error = VmSpec::parse(&format!("{SMALL}\n{add}")).unwrap_err().to_string();
            assert!(error.contains(names), "{error}");
        }
        let error = VmSpec::parse(&SMALL.replace("128", "16")).unwrap_err().to_string();
        assert_eq!(error, "memory_mib: 16, expected 32 to 1048576");
    }
}
