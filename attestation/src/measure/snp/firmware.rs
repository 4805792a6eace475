//! The order in which OVMF guests are launched: image, metadata, CPUs.

use super::vmsa::{BSP_EIP, Vcpu, Vmm, svsm_eip, svsm_vmsa, vmsa};
use super::{KernelHashes, LaunchDigest, PageType};
use crate::measure::MeasureError;
use crate::measure::ovmf::{Ovmf, Section, SectionKind};

/// The most virtual CPUs of one machine.
const MAX_VCPUS: u32 = 4096;
/// The most pages that metadata may name: 1 GiB.
const MAX_METADATA_PAGES: u32 = 0x4_0000;
const PAGE: u32 = 4096;

/// The inputs of a launch with OVMF.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The firmware image.
    pub ovmf: Ovmf<'a>,
    /// The digest after the firmware's pages, where only that is known.
    pub ovmf_digest: Option<[u8; 48]>,
    /// Kernel, initrd and command line, where the monitor loads them.
    pub kernel: Option<KernelHashes>,
    /// Monitor, CPU model, features.
    pub vcpu: Vcpu,
    /// How many virtual CPUs.
    pub vcpus: u32,
}

/// The inputs of a launch of a COCONUT SVSM with OVMF below it, by QEMU.
#[derive(Debug, Clone, Copy)]
pub struct SvsmLaunch<'a> {
    /// The firmware image.
    pub ovmf: Ovmf<'a>,
    /// The size of the firmware's variable store.
    pub vars_bytes: u32,
    /// The SVSM image.
    pub svsm: Ovmf<'a>,
    /// CPUID signature.
    pub signature: u32,
    /// How many virtual CPUs.
    pub vcpus: u32,
}

/// The launch digest of an OVMF guest.
pub fn launch_digest(launch: &Launch<'_>) -> Result<[u8; 48], MeasureError> {
    check_vcpus(launch.vcpus)?;
    let mut digest = before_vcpus(launch)?;
    add_vcpus(&mut digest, launch.vcpu, launch.ovmf.reset_eip()?, launch.vcpus);
    Ok(digest.finish())
}

/// The digest of everything that is measured before the first virtual CPU.
pub(super) fn before_vcpus(launch: &Launch<'_>) -> Result<LaunchDigest, MeasureError> {
    let mut digest = match launch.ovmf_digest {
        Some(known) => LaunchDigest::resume(known),
        None => {
            let mut digest = LaunchDigest::new();
            digest.normal_pages(launch.ovmf.gpa(), launch.ovmf.image())?;
            digest
        }
    };
    let sections = launch.ovmf.sections()?;
    check_size(&sections)?;
    check_kernel(launch, &sections)?;
    // EC2 launches the CPUID pages after everything else.
    let late = |section: &Section| launch.vcpu.vmm.is_ec2() && section.kind == SectionKind::Cpuid;
    for section in sections.iter().filter(|section| !late(section)) {
        add_section(&mut digest, launch, section)?;
    }
    for section in sections.iter().filter(|section| late(section)) {
        add_section(&mut digest, launch, section)?;
    }
    Ok(digest)
}

/// The virtual CPUs, the boot processor first.
fn add_vcpus(digest: &mut LaunchDigest, vcpu: Vcpu, reset_eip: u32, count: u32) {
    digest.vmsa(&vmsa(&vcpu, BSP_EIP));
    let other = vmsa(&vcpu, reset_eip);
    for _ in 1..count {
        digest.vmsa(&other);
    }
}

fn add_section(
    digest: &mut LaunchDigest,
    launch: &Launch<'_>,
    section: &Section,
) -> Result<(), MeasureError> {
    let page_type = match (section.kind, launch.kernel) {
        (SectionKind::KernelHashes, Some(kernel)) => {
            return add_kernel(digest, launch, &kernel, section);
        }
        (SectionKind::SecMem, _) if launch.vcpu.vmm == Vmm::Gce => PageType::Unmeasured,
        (SectionKind::SecMem | SectionKind::SvsmCaa | SectionKind::KernelHashes, _) => {
            PageType::Zero
        }
        (SectionKind::Secrets, _) => PageType::Secrets,
        (SectionKind::Cpuid, _) => PageType::Cpuid,
    };
    digest.empty_pages(page_type, u64::from(section.gpa), section.size / PAGE)?;
    Ok(())
}

fn add_kernel(
    digest: &mut LaunchDigest,
    launch: &Launch<'_>,
    kernel: &KernelHashes,
    section: &Section,
) -> Result<(), MeasureError> {
    let area = launch.ovmf.hash_table()?.ok_or_else(|| {
        MeasureError::new("firmware footer", "an entry for the hash table area", "no such entry")
    })?;
    let offset = usize::try_from(area.base & (PAGE - 1)).unwrap_or(usize::MAX);
    if section.size != PAGE {
        return Err(MeasureError::new("kernel hashes section", "one page", section.size));
    }
    digest.page(PageType::Normal, u64::from(section.gpa), &kernel.page(offset)?)?;
    Ok(())
}

/// A kernel whose hashes the firmware does not measure would not be bound.
fn check_kernel(launch: &Launch<'_>, sections: &[Section]) -> Result<(), MeasureError> {
    let has_section = sections.iter().any(|s| s.kind == SectionKind::KernelHashes);
    if launch.kernel.is_some() && !has_section {
        return Err(MeasureError::new(
            "firmware",
            "a kernel hashes section in the SEV metadata",
            "none: this firmware cannot bind a kernel",
        ));
    }
    Ok(())
}

fn check_size(sections: &[Section]) -> Result<(), MeasureError> {
    let pages: u64 = sections.iter().map(|section| u64::from(section.size / PAGE)).sum();
    if pages > u64::from(MAX_METADATA_PAGES) {
        return Err(MeasureError::new("SEV metadata", "at most 1 GiB", format!("{pages} pages")));
    }
    Ok(())
}

fn check_vcpus(vcpus: u32) -> Result<(), MeasureError> {
    if (1..=MAX_VCPUS).contains(&vcpus) {
        return Ok(());
    }
    Err(MeasureError::new("virtual CPUs", format!("1 to {MAX_VCPUS}"), vcpus))
}

/// The launch digest of an SVSM guest: firmware, SVSM, the SVSM's metadata, CPUs.
pub fn svsm_launch_digest(launch: &SvsmLaunch<'_>) -> Result<[u8; 48], MeasureError> {
    check_vcpus(launch.vcpus)?;
    let (mut digest, eip) = before_svsm_vcpus(launch)?;
    let page = svsm_vmsa(launch.signature, eip);
    for _ in 0..launch.vcpus {
        digest.vmsa(&page);
    }
    Ok(digest.finish())
}

/// The digest of everything that is measured before the first virtual CPU, and
/// where each of them starts.
pub(super) fn before_svsm_vcpus(
    launch: &SvsmLaunch<'_>,
) -> Result<(LaunchDigest, u32), MeasureError> {
    let svsm_bytes = u64::try_from(launch.svsm.image().len()).unwrap_or(u64::MAX);
    let svsm_gpa = launch
        .ovmf
        .gpa()
        .checked_sub(u64::from(launch.vars_bytes))
        .and_then(|gpa| gpa.checked_sub(svsm_bytes))
        .ok_or_else(|| {
            MeasureError::new("SVSM image", "one that fits below the firmware", svsm_bytes)
        })?;
    let mut digest = LaunchDigest::new();
    digest.normal_pages(launch.ovmf.gpa(), launch.ovmf.image())?;
    digest.normal_pages(svsm_gpa, launch.svsm.image())?;
    let sections = launch.svsm.sections()?;
    check_size(&sections)?;
    let vcpu = Vcpu { vmm: Vmm::Qemu, signature: launch.signature, features: 1 };
    let plain =
        Launch { ovmf: launch.svsm, ovmf_digest: None, kernel: None, vcpu, vcpus: launch.vcpus };
    for section in &sections {
        add_section(&mut digest, &plain, section)?;
    }
    Ok((digest, svsm_eip(svsm_gpa, launch.svsm.svsm_entry_offset()?)?))
}
