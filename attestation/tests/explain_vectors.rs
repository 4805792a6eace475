//! explain() on real firmware, where the directory of evidence vectors is
//! there (CASEMATE_VECTORS): it says how a launch differs from the expected.

use std::path::PathBuf;

use casemate_attestation::measure::ovmf::Ovmf;
use casemate_attestation::measure::snp::{
    KernelHashes, Launch, Search, Vcpu, Vmm, explain, launch_digest,
};

#[test]
fn a_digest_is_traced_to_the_launch_that_gave_it() {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors");
    let dir = std::env::var_os("CASEMATE_VECTORS").map_or_else(|| default.into(), PathBuf::from);
    let Ok(image) = std::fs::read(dir.join("measure/snp/ovmf_AmdSev_suffix.bin")) else {
        eprintln!("skipped: no evidence vectors at {}", dir.display());
        return;
    };
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
    let other = KernelHashes::new(b"another kernel", b"initrd", "quiet");
    let unknown = said(&Launch { kernel: Some(other), ..expected });
    assert!(unknown[0].starts_with("no known variant"), "{unknown:?}");
}
