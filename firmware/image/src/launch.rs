//! The plain page list: what stands for a direct kernel boot in an SEV-SNP
//! launch digest. Builder and host both call this, each on the bytes it has.
//!
//! Page by page: one NORMAL page at [`HASH_PAGE_GPA`] with the SEV hash table
//! (SHA-256 of command line, initramfs and kernel, as QEMU and OVMF lay it
//! out), then one VMSA page for each vCPU in its reset state, as QEMU and KVM
//! make it. docs/formats/image-manifest.md has the layout.

use casemate_attestation::crypto::sha256;
use casemate_attestation::host_claim::LaunchDigests;

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

    /// The page with the SEV hash table (QEMU target/i386/sev.c,
    /// `PaddedSevHashTable`; OVMF reads the same).
    pub fn hash_page(&self) -> Box<[u8; 4096]> {
        // In the table, and only there, the command line has its NUL.
        let cmdline = sha256(&[self.cmdline.as_bytes(), b"\0"].concat());
        let entries = [
            (CMDLINE_GUID, cmdline),
            (INITRD_GUID, sha256(self.initrd)),
            (KERNEL_GUID, sha256(self.kernel)),
        ];
        let mut table = Vec::with_capacity(4096);
        table.extend_from_slice(&TABLE_GUID);
        table.extend_from_slice(&TABLE_LENGTH.to_le_bytes());
        for (guid, digest) in entries {
            table.extend_from_slice(&guid);
            table.extend_from_slice(&ENTRY_LENGTH.to_le_bytes());
            table.extend_from_slice(&digest);
        }
        let mut page = Box::new([0; 4096]);
        for (to, from) in page.iter_mut().zip(table) {
            *to = from;
        }
        page
    }
}

// GUIDs as they lie in memory: the first three groups little-endian.
// 9438d606-4f22-4cc9-b479-a793d411fd21
const TABLE_GUID: [u8; 16] = [
    0x06, 0xd6, 0x38, 0x94, 0x22, 0x4f, 0xc9, 0x4c, 0xb4, 0x79, 0xa7, 0x93, 0xd4, 0x11, 0xfd, 0x21,
];
// 97d02dd8-bd20-4c94-aa78-e7714d36ab2a
const CMDLINE_GUID: [u8; 16] = [
    0xd8, 0x2d, 0xd0, 0x97, 0x20, 0xbd, 0x94, 0x4c, 0xaa, 0x78, 0xe7, 0x71, 0x4d, 0x36, 0xab, 0x2a,
];
// 44baf731-3a2f-4bd7-9af1-41e29169781d
const INITRD_GUID: [u8; 16] = [
    0x31, 0xf7, 0xba, 0x44, 0x2f, 0x3a, 0xd7, 0x4b, 0x9a, 0xf1, 0x41, 0xe2, 0x91, 0x69, 0x78, 0x1d,
];
// 4de79437-abd2-427f-b835-d5b172d2045b
const KERNEL_GUID: [u8; 16] = [
    0x37, 0x94, 0xe7, 0x4d, 0xd2, 0xab, 0x7f, 0x42, 0xb8, 0x35, 0xd5, 0xb1, 0x72, 0xd2, 0x04, 0x5b,
];
const ENTRY_LENGTH: u16 = 50;
const TABLE_LENGTH: u16 = 168;
const _: () = assert!(TABLE_LENGTH == 18 + 3 * ENTRY_LENGTH);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_its_layout_and_every_input_counts() {
        let files = BootFiles { kernel: b"k", initrd: b"i", cmdline: "quiet" };
        let page = files.hash_page();
        assert_eq!(page[16..18], [168, 0]);
        assert_eq!(page[18..34], CMDLINE_GUID);
        assert_eq!(page[36..68], sha256(b"quiet\0"));
        assert_eq!(page[168 - 32..168], sha256(b"k"));
        assert!(page[168..].iter().all(|&byte| byte == 0));
        for changed in [
            BootFiles { kernel: b"K", ..files },
            BootFiles { initrd: b"", ..files },
            BootFiles { cmdline: "quieT", ..files },
        ] {
            assert_ne!(changed.hash_page(), page);
        }
    }
}
