//! What a machine says of itself on its control socket. Format: docs/formats/vmm-control.md.

use serde::{Deserialize, Serialize};

/// One answer on the control socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmStatus {
    /// Whether the request was obeyed.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// `created`, `running`, `paused`, `lease-expired` or `ended`.
    #[serde(default)]
    pub state: String,
    /// Time since the machine was made.
    #[serde(default)]
    pub uptime_ms: u64,
    /// Time left on the lease, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_left_ms: Option<u64>,
    /// Processor time of the process, guest included.
    #[serde(default)]
    pub cpu_ms: u64,
    /// Memory that the guest keeps to itself, out of devices' reach.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub private_kib: u64,
    /// What was made, where that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built: Option<Built>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's face")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What the monitor made: read from what stands, not from what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Built {
    /// The monitor's version.
    pub version: String,
    /// What runs the CPUs: `kvm`.
    pub accelerator: String,
    /// CPUs that KVM gave.
    pub vcpus: usize,
    /// Guest memory that is mapped.
    pub memory_mib: u64,
    /// The functions on the PCI bus, by slot, as the guest reads them.
    pub functions: Vec<PciFunction>,
    /// How many of them are devices of the host.
    pub assigned: usize,
}

/// One PCI function, from its own configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciFunction {
    /// Vendor and device, such as `1af4:1043`.
    pub id: String,
    /// Class, subclass and programming interface, such as `078000`.
    pub class: String,
}

impl PciFunction {
    /// Whether its base class is network (PCI Code and ID Assignment Specification 1.16, 1.3).
    #[must_use]
    pub fn is_network(&self) -> bool {
        self.class.starts_with("02")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_strictly() {
        let text = r#"{"ok":true,"state":"running","uptime_ms":1,"cpu_ms":2}"#;
        let status: VmStatus = serde_json::from_str(text).unwrap();
        assert_eq!((status.state.as_str(), status.lease_left_ms), ("running", None));
        assert_eq!(serde_json::to_string(&status).unwrap(), text);
        let refused: VmStatus = serde_json::from_str(r#"{"ok":false,"error":"no"}"#).unwrap();
        assert_eq!(refused.error.as_deref(), Some("no"));
        assert!(serde_json::from_str::<VmStatus>(r#"{"ok":true,"new":1}"#).is_err());
    }
}
