//! The plain page list: what stands for a direct kernel boot in an SEV-SNP
//! launch digest. Builder and host both call this, each on the bytes it has.
//!
//! Page by page: one NORMAL page at [`HASH_PAGE_GPA`] with the SEV hash table
//! (SHA-256 of command line, initramfs and kernel, as QEMU and OVMF lay it
//! out), then one VMSA page for each vCPU in its reset state, as QEMU makes it
//! for [`CPU`]. docs/formats/image-manifest.md has the layout.

use casemate_attestation::crypto::sha256;
use casemate_attestation::host_claim::LaunchDigests;
use casemate_attestation::measure::MeasureError;
use casemate_attestation::measure::snp::{
    BSP_EIP, KernelHashes, LaunchDigest, PageType, Vcpu, Vmm, cpu_signature, vmsa,
};

/// Where the hash page lies in guest memory.
pub const HASH_PAGE_GPA: u64 = 0x1_0000;
/// The most vCPUs that a page list is made for.
pub const MAX_VCPUS: u32 = 64;

/// The three inputs of a direct kernel boot.
#[derive(Debug, Clone, Copy)]
pub struct BootFiles<'a> {
    /// The bzImage.
    pub kernel: &'a [u8],
    /// The initramfs.
    pub initrd: &'a [u8],
    /// The command line, without a terminating NUL.
    pub cmdline: &'a str,
}

impl BootFiles<'_> {
    /// SHA-256 of each, as host claims and reference values name them.
    pub fn digests(&self) -> LaunchDigests {
        LaunchDigests {
            kernel: sha256(self.kernel),
            initrd: sha256(self.initrd),
            cmdline: sha256(self.cmdline.as_bytes()),
        }
    }

    /// The SEV-SNP launch digest of the plain page list with `vcpus` vCPUs.
    pub fn snp_measurement(&self, vcpus: u32) -> Result<[u8; 48], MeasureError> {
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return Err(MeasureError::new("vCPUs", format!("1 to {MAX_VCPUS}"), vcpus));
        }
        let hashes = KernelHashes::new(self.kernel, self.initrd, self.cmdline);
        let mut digest = LaunchDigest::new();
        digest.page(PageType::Normal, HASH_PAGE_GPA, &hashes.page(0)?)?;
        // There is no firmware that would give the others another start.
        let (family, model, stepping) = CPU;
        let signature = cpu_signature(family, model, stepping);
        let page = vmsa(&Vcpu { vmm: Vmm::Qemu, signature, features: SNP_ACTIVE }, BSP_EIP);
        for _ in 0..vcpus {
            digest.vmsa(&page);
        }
        Ok(digest.finish())
    }
}

/// Family, model and stepping that the VMSA pages are made for: Genoa.
pub const CPU: (u8, u8, u8) = (0x19, 0x11, 0);
/// SEV_FEATURES bit 0 (AMD 24593, table B-4).
const SNP_ACTIVE: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_counts() {
        let files = BootFiles { kernel: b"k", initrd: b"i", cmdline: "quiet" };
        let base = files.snp_measurement(1).unwrap();
        assert_eq!(files.snp_measurement(1).unwrap(), base);
        for changed in [
            BootFiles { kernel: b"K", ..files },
            BootFiles { initrd: b"", ..files },
            BootFiles { cmdline: "quieT", ..files },
        ] {
            assert_ne!(changed.snp_measurement(1).unwrap(), base);
        }
        assert_ne!(files.snp_measurement(2).unwrap(), base);
        assert!(files.snp_measurement(0).is_err() && files.snp_measurement(65).is_err());
    }
}
