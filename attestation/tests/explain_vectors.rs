//! explain() on real firmware, where the directory of evidence vectors is
//! there (CASEMATE_VECTORS): it says how a launch differs from the expected.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::path::PathBuf;

use casemate_attestation::measure::ovmf::Ovmf;
use casemate_attestation::measure::snp::{
    KernelHashes, Launch, Search, SvsmLaunch, Vcpu, Vmm, explain, explain_svsm, launch_digest,
    svsm_launch_digest,
};

/// An SVSM image is not at hand unpacked: any image with its footer entries is
/// one, and the firmware with an SVSM entry stands in for it.
#[test]
fn an_svsm_launch_is_traced() {
    let Some(image) = firmware() else { return };
    let ovmf = Ovmf::parse(&image).unwrap();
    let svsm_image = with_svsm_entry(&image);
    let svsm = Ovmf::parse(&svsm_image).unwrap();
    let expected = SvsmLaunch { ovmf, vars_bytes: 0x2_0000, svsm, signature: 0x80_0f12, vcpus: 1 };
    let search = Search { max_vcpus: 4 };
    let said = |digest: [u8; 48]| explain_svsm(&expected, &digest, search).unwrap().differences;
    assert!(said(svsm_launch_digest(&expected).unwrap()).is_empty());
    let other = SvsmLaunch { vars_bytes: 0x8_4000, signature: 0xa0_0f11, vcpus: 3, ..expected };
    assert_eq!(
        said(svsm_launch_digest(&other).unwrap()),
        [
            "variable store: expected 0x20000, launched with 0x84000",
            "CPU model: expected 0x800f12, launched with 0xa00f11",
            "virtual CPUs: expected 1, launched with 3",
        ]
    );
    let vcpu = Vcpu { vmm: Vmm::Qemu, signature: 0x80_0f12, features: 0x1 };
    let plain = Launch { ovmf, ovmf_digest: None, kernel: None, vcpu, vcpus: 1 };
    let without = said(launch_digest(&plain).unwrap());
    assert_eq!(without, ["SVSM: expected one, launched without"]);
    assert!(said([1; 48])[0].starts_with("no launch that was tried"));
}

/// The image with one more entry in its footer: where an SVSM is entered. The
/// table ends 32 bytes before the image does, with its own size and GUID.
fn with_svsm_entry(image: &[u8]) -> Vec<u8> {
    let mut out = image.to_vec();
    let end = out.len() - 32;
    let size = usize::from(u16::from_le_bytes(out[end - 18..end - 16].try_into().unwrap()));
    let svsm = [
        0x12, 0xa6, 0x89, 0xa7, 0x97, 0x05, 0x4b, 0x4c, 0xa4, 0x9f, 0xcb, 0xb1, 0xfe, 0x9d, 0x1d,
        0xdd,
    ];
    let entry = [&0x1000_u32.to_le_bytes()[..], &22_u16.to_le_bytes(), &svsm].concat();
    let start = end - size;
    out[start - entry.len()..start].copy_from_slice(&entry);
    let size = u16::try_from(size + entry.len()).unwrap().to_le_bytes();
    out[end - 18..end - 16].copy_from_slice(&size);
    out
}

fn firmware() -> Option<Vec<u8>> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors");
    let dir = std::env::var_os("CASEMATE_VECTORS").map_or_else(|| default.into(), PathBuf::from);
    let image = std::fs::read(dir.join("measure/snp/ovmf_AmdSev_suffix.bin")).ok();
    if image.is_none() {
        eprintln!("skipped: no evidence vectors at {}", dir.display());
    }
    image
}

#[test]
fn a_digest_is_traced_to_the_launch_that_gave_it() {
    let Some(image) = firmware() else { return };
    let expected = Launch {
        ovmf: Ovmf::parse(&image).unwrap(),
        ovmf_digest: None,
        kernel: Some(KernelHashes::new(b"kernel", b"initrd", "quiet")),
        vcpu: Vcpu { vmm: Vmm::Qemu, signature: 0x80_0f12, features: 0x1 },
        vcpus: 1,
    };
    let search = Search { max_vcpus: 4 };
    let said = |launch: &Launch<'_>| {
        explain(&expected, &launch_digest(launch).unwrap(), search).unwrap().differences
    };
    assert!(said(&expected).is_empty());
    let debug_swap = Vcpu { features: 0x21, ..expected.vcpu };
    assert_eq!(
        said(&Launch { vcpu: debug_swap, vcpus: 3, ..expected }),
        [
            "SEV_FEATURES: expected 0x1, launched with 0x21",
            "virtual CPUs: expected 1, launched with 3",
        ]
    );
    let ec2 = Vcpu { vmm: Vmm::Ec2, ..expected.vcpu };
    assert_eq!(
        said(&Launch { vcpu: ec2, ..expected }),
        ["monitor: expected qemu, launched with ec2"]
    );
    assert_eq!(
        said(&Launch { kernel: None, ..expected }),
        ["kernel: expected kernel hashes, launched with no kernel hashes"]
    );
    let old_ec2 = Vcpu { vmm: Vmm::Ec2Rdx0, features: 0x2a1, ..expected.vcpu };
    assert_eq!(
        said(&Launch { vcpu: old_ec2, vcpus: 2, kernel: None, ..expected }),
        [
            "monitor: expected qemu, launched with ec2-rdx0",
            "SEV_FEATURES: expected 0x1, launched with 0x2a1",
            "virtual CPUs: expected 1, launched with 2",
            "kernel: expected kernel hashes, launched with no kernel hashes",
        ]
    );
    let other = KernelHashes::new(b"another kernel", b"initrd", "quiet");
    let unknown = said(&Launch { kernel: Some(other), ..expected });
    assert!(unknown[0].starts_with("no launch that was tried"), "{unknown:?}");
}
