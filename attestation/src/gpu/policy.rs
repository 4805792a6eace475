//! What a relying party asks of a machine's GPUs (docs/formats/gpu-binding.md).

use serde::Deserialize;

use crate::policy::HexBytes;

/// What is asked of GPUs and switches. By default there must be none.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GpuPolicy {
    /// Exactly how many GPUs there must be. Default 0.
    pub gpus: usize,
    /// Exactly how many switches there must be. Default 0.
    pub switches: usize,
    /// The identities (PDI) that devices may have, GPUs and switches alike; empty: any.
    pub pdis: Vec<HexBytes<8>>,
    /// The modes that GPUs may be in. Default spt, mpt and ppcie.
    pub modes: Vec<String>,
    /// Driver versions to accept; empty: any that a reference manifest vouches for.
    pub driver_versions: Vec<String>,
    /// Firmware versions (VBIOS, BIOS) to accept; empty: any that a manifest vouches for.
    pub firmware_versions: Vec<String>,
    /// SHA-256 of the reference manifests to accept; empty: any that is signed and current.
    pub manifests: Vec<HexBytes<32>>,
    /// Ask that a GPU's report names its firmware's digest; firmware of the
    /// driver branches 535 and 545 does not. Default true.
    pub require_fwid: bool,
    /// Ask that every measurement other than zero has a reference value. Default
    /// false: reported, not refused, since new drivers measure more than their
    /// manifests name.
    pub require_coverage: bool,
    /// Ask for a fresh OCSP answer "good" for every certificate that names a
    /// responder. One that is revoked is refused in any case. Default true.
    pub require_revocation: bool,
    /// How old an OCSP answer may be, even if its responder allows more. Default 86400 seconds.
    pub max_ocsp_age_seconds: u64,
}

impl Default for GpuPolicy {
    fn default() -> Self {
        Self {
            gpus: 0,
            switches: 0,
            pdis: vec![],
            modes: ["spt", "mpt", "ppcie"].map(str::to_owned).to_vec(),
            driver_versions: vec![],
            firmware_versions: vec![],
            manifests: vec![],
            require_fwid: true,
            require_coverage: false,
            require_revocation: true,
            max_ocsp_age_seconds: 86_400,
        }
    }
}
