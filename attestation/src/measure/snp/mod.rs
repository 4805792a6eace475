//! The SEV-SNP launch digest (AMD 56860 section 8.17.2, table 67).

mod explain;
mod firmware;
mod kernel;
mod vmsa;

pub use explain::{Explanation, Search, Variant, cpu_signature_of, explain, explain_svsm};
pub use firmware::{Launch, SvsmLaunch, launch_digest, svsm_launch_digest};
pub use kernel::{KERNEL_HASHES_BYTES, KernelHashes};
pub use vmsa::{BSP_EIP, Vcpu, Vmm, cpu_signature, svsm_vmsa, vmsa};

use super::MeasureError;
use crate::crypto::sha384;

/// The size of a page.
pub const PAGE_BYTES: usize = 4096;
/// The guest physical address that VMSA pages are measured at.
pub const VMSA_GPA: u64 = 0xffff_ffff_f000;

/// How a page is measured (PAGE_TYPE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageType {
    /// A page with content.
    Normal,
    /// The saved state of a virtual CPU.
    Vmsa,
    /// A page of zeros.
    Zero,
    /// A page that is private but not measured.
    Unmeasured,
    /// The secrets page, filled by firmware.
    Secrets,
    /// The CPUID page, checked by firmware; its content is not measured.
    Cpuid,
}

/// A launch digest under construction. The order of the pages matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchDigest([u8; 48]);

impl Default for LaunchDigest {
    fn default() -> Self {
        Self::new()
    }
}

impl LaunchDigest {
    /// The digest before any page.
    pub fn new() -> Self {
        Self([0; 48])
    }

    /// The digest after pages that were measured elsewhere.
    pub fn resume(digest: [u8; 48]) -> Self {
        Self(digest)
    }

    /// Adds one page. `content` is measured for [`PageType::Normal`] and
    /// [`PageType::Vmsa`], and must be one whole page; the others have none.
    pub fn page(
        &mut self,
        page_type: PageType,
        gpa: u64,
        content: &[u8],
    ) -> Result<&mut Self, MeasureError> {
        let measured = matches!(page_type, PageType::Normal | PageType::Vmsa);
        let length = if measured { PAGE_BYTES } else { 0 };
        if content.len() != length {
            return Err(MeasureError::new(
                format!("{page_type:?} page at {gpa:#x}"),
                format!("{length} bytes of content"),
                content.len(),
            ));
        }
        self.extend(page_type, gpa, if measured { sha384(content) } else { [0; 48] });
        Ok(self)
    }

    /// Adds whole pages with content from `gpa` on.
    pub fn normal_pages(&mut self, gpa: u64, bytes: &[u8]) -> Result<&mut Self, MeasureError> {
        let mut at = gpa;
        for page in bytes.chunks(PAGE_BYTES) {
            self.page(PageType::Normal, at, page)?;
            at = at.saturating_add(PAGE_U64);
        }
        Ok(self)
    }

    /// Adds `count` pages without content from `gpa` on.
    pub fn empty_pages(
        &mut self,
        page_type: PageType,
        gpa: u64,
        count: u32,
    ) -> Result<&mut Self, MeasureError> {
        for index in 0..u64::from(count) {
            self.page(page_type, gpa.saturating_add(index.saturating_mul(PAGE_U64)), &[])?;
        }
        Ok(self)
    }

    /// Adds the saved state of one virtual CPU.
    pub fn vmsa(&mut self, page: &[u8; PAGE_BYTES]) -> &mut Self {
        self.extend(PageType::Vmsa, VMSA_GPA, sha384(page));
        self
    }

    /// Adds a virtual CPU whose page has the SHA-384 digest `contents`.
    fn vmsa_digest(&mut self, contents: [u8; 48]) {
        self.extend(PageType::Vmsa, VMSA_GPA, contents);
    }

    /// The digest of everything that was added: MEASUREMENT in a report.
    pub fn finish(self) -> [u8; 48] {
        self.0
    }

    /// One PAGE_INFO. Permissions of lower VMPLs and the IMI flag are zero, as
    /// KVM, EC2 and GCE launch.
    fn extend(&mut self, page_type: PageType, gpa: u64, contents: [u8; 48]) {
        let mut info = [0; PAGE_INFO_BYTES];
        let fields: [&[u8]; 6] = [
            &self.0,
            &contents,
            &PAGE_INFO_LENGTH.to_le_bytes(),
            &[page_type.code()],
            &[0; 5],
            &gpa.to_le_bytes(),
        ];
        let mut rest = info.as_mut_slice();
        for field in fields {
            let (head, tail) = rest.split_at_mut(field.len());
            head.copy_from_slice(field);
            rest = tail;
        }
        self.0 = sha384(&info);
    }
}

impl PageType {
    fn code(self) -> u8 {
        match self {
            Self::Normal => 1,
            Self::Vmsa => 2,
            Self::Zero => 3,
            Self::Unmeasured => 4,
            Self::Secrets => 5,
            Self::Cpuid => 6,
        }
    }
}

const PAGE_U64: u64 = 4096;
const PAGE_INFO_BYTES: usize = 0x70;
const PAGE_INFO_LENGTH: u16 = 0x70;
const _: () = assert!(48 + 48 + 2 + 1 + 5 + 8 == PAGE_INFO_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_type_and_address_matter() {
        let page = [7; PAGE_BYTES];
        let digest = |steps: &[(PageType, u64)]| {
            let mut digest = LaunchDigest::new();
            for (kind, gpa) in steps {
                let content = if *kind == PageType::Normal { &page[..] } else { &[] };
                digest.page(*kind, *gpa, content).unwrap();
            }
            digest.finish()
        };
        let base = digest(&[(PageType::Normal, 0), (PageType::Zero, 4096)]);
        assert_ne!(base, digest(&[(PageType::Zero, 4096), (PageType::Normal, 0)]));
        assert_ne!(base, digest(&[(PageType::Normal, 0), (PageType::Zero, 8192)]));
        assert_ne!(base, digest(&[(PageType::Normal, 0), (PageType::Unmeasured, 4096)]));
    }

    #[test]
    fn parts_of_pages_are_refused() {
        assert!(LaunchDigest::new().normal_pages(0, &[0; 4097]).is_err());
        assert!(LaunchDigest::new().page(PageType::Zero, 0, &[0; 4096]).is_err());
    }
}
