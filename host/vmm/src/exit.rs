//! Why a machine ended, as data. Format: docs/formats/vmm-control.md.

use serde::{Deserialize, Serialize};

/// Why a machine ended. The first reason wins; it never changes afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Exit {
    /// The guest powered itself off.
    Shutdown,
    /// The guest asked for a reset. Machines here are never restarted in place.
    Reset,
    /// A CPU of the guest could not even deliver its last exception (triple fault).
    TripleFault {
        /// Which CPU.
        vcpu: u8,
    },
    /// The control side asked for the end.
    Destroyed,
    /// The lease ran out and its grace passed.
    LeaseExpired,
    /// The machine existed longer than its wall clock limit.
    WallLimit,
    /// The machine used more processor time than its limit.
    CpuLimit,
    /// KVM could not run a CPU: host trouble, or an instruction that it cannot emulate.
    Kvm {
        /// Which CPU.
        vcpu: u8,
        /// What happened, in words.
        detail: String,
    },
    /// A part of the monitor itself failed; the machine was stopped rather than continued.
    Monitor {
        /// What happened, in words.
        detail: String,
    },
}

impl Exit {
    /// Whether the guest ended by its own choice.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::Shutdown | Self::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_stable_words() {
        let text = serde_json::to_string(&Exit::LeaseExpired).unwrap();
        assert_eq!(text, r#"{"reason":"lease-expired"}"#);
        let exit = Exit::Kvm { vcpu: 1, detail: "x".into() };
        let text = serde_json::to_string(&exit).unwrap();
        assert_eq!(text, r#"{"reason":"kvm","vcpu":1,"detail":"x"}"#);
        assert_eq!(serde_json::from_str::<Exit>(&text).unwrap(), exit);
    }
}
