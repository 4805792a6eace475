//! The page that ties kernel, initrd and command line to the launch digest
//! (QEMU target/i386/sev.c; edk2 OvmfPkg/AmdSev/BlobVerifierLibSevHashes).

use super::PAGE_BYTES;
use crate::crypto::sha256;
use crate::host_claim::LaunchDigests;
use crate::measure::MeasureError;
use crate::measure::ovmf::guid;

/// The table's size, padded to a multiple of 16.
pub const KERNEL_HASHES_BYTES: usize = 176;
const TABLE: [u8; 16] = guid(0x9438_d606_4f22_4cc9_b479_a793_d411_fd21);
const CMDLINE: [u8; 16] = guid(0x97d0_2dd8_bd20_4c94_aa78_e771_4d36_ab2a);
const INITRD: [u8; 16] = guid(0x44ba_f731_3a2f_4bd7_9af1_41e2_9169_781d);
const KERNEL: [u8; 16] = guid(0x4de7_9437_abd2_427f_b835_d5b1_72d2_045b);

/// The three digests of a direct kernel boot, as the firmware checks them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelHashes {
    /// SHA-256 of the kernel file.
    pub kernel: [u8; 32],
    /// SHA-256 of the initrd; of nothing when there is none.
    pub initrd: [u8; 32],
    /// SHA-256 of the command line and its terminating NUL.
    pub cmdline: [u8; 32],
}

impl KernelHashes {
    /// The digests of these three inputs.
    pub fn new(kernel: &[u8], initrd: &[u8], cmdline: &str) -> Self {
        let mut with_nul = cmdline.as_bytes().to_vec();
        with_nul.push(0);
        Self { kernel: sha256(kernel), initrd: sha256(initrd), cmdline: sha256(&with_nul) }
    }

    /// The table: a header, three entries, padding.
    pub fn table(&self) -> [u8; KERNEL_HASHES_BYTES] {
        let mut bytes = Vec::with_capacity(KERNEL_HASHES_BYTES);
        bytes.extend(TABLE);
        bytes.extend(168_u16.to_le_bytes());
        for (guid, digest) in
            [(CMDLINE, self.cmdline), (INITRD, self.initrd), (KERNEL, self.kernel)]
        {
            bytes.extend(guid);
            bytes.extend(50_u16.to_le_bytes());
            bytes.extend(digest);
        }
        let mut out = [0; KERNEL_HASHES_BYTES];
        for (place, byte) in out.iter_mut().zip(bytes) {
            *place = byte;
        }
        out
    }

    /// The page that is measured: the table at `offset`, zero elsewhere.
    pub fn page(&self, offset: usize) -> Result<[u8; PAGE_BYTES], MeasureError> {
        let mut page = [0; PAGE_BYTES];
        let end = offset.saturating_add(KERNEL_HASHES_BYTES);
        let place = page.get_mut(offset..end).ok_or_else(|| {
            MeasureError::new("hash table area", "a table inside one page", format!("{offset:#x}"))
        })?;
        place.copy_from_slice(&self.table());
        Ok(page)
    }
}

/// A host's claim has the command line's digest without the NUL, so the two
/// cannot be converted; this states which of the three are the same.
impl KernelHashes {
    /// Whether kernel and initrd are those of `launch`.
    pub fn same_files(&self, launch: &LaunchDigests) -> bool {
        self.kernel == launch.kernel && self.initrd == launch.initrd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_is_empty_and_the_nul_counts() {
        let hashes = KernelHashes::new(b"", b"", "");
        assert_eq!(hashes.cmdline, sha256(&[0]));
        assert_eq!(hashes.initrd, sha256(&[]));
        let page = hashes.page(0xc00).unwrap();
        assert_eq!(page[0xc00..0xc10], TABLE);
        assert!(page[0xc00 + 168..].iter().all(|byte| *byte == 0));
        assert!(hashes.page(0xf80).is_err());
    }
}
