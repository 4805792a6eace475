//! Why a digest differs: try the launches that are known and say which one
//! it is.

use super::firmware::{before_svsm_vcpus, before_vcpus};
use super::vmsa::{BSP_EIP, Vcpu, Vmm, svsm_vmsa, vmsa};
use super::{Launch, LaunchDigest, SvsmLaunch, cpu_signature};
use crate::crypto::sha384;
use crate::measure::MeasureError;

/// How far [`explain`] looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    /// The most virtual CPUs to try.
    pub max_vcpus: u32,
}

impl Default for Search {
    fn default() -> Self {
        Self { max_vcpus: 256 }
    }
}

impl Search {
    /// Looks beyond `expected` virtual CPUs too; of what no monitor has, not.
    fn at_least(self, expected: u32) -> Self {
        let enough = expected.min(MAX_SEARCHED_VCPUS).saturating_add(MORE_VCPUS);
        Self { max_vcpus: self.max_vcpus.max(enough) }
    }

    /// What is left where no launch gives the digest.
    fn in_vain(self, inputs: &str) -> String {
        format!(
            "no launch that was tried gives the digest: {inputs} is another one, or there are more \
             than {} virtual CPUs, or SEV_FEATURES or a CPU model that are not tried",
            self.max_vcpus
        )
    }
}

/// One way to launch that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    /// Monitor, CPU model, features.
    pub vcpu: Vcpu,
    /// The CPU model's name.
    pub cpu: String,
    /// How many virtual CPUs.
    pub vcpus: u32,
    /// Whether the kernel hashes were measured.
    pub kernel_hashes: bool,
    /// With an SVSM: the size of the variable store between it and the firmware.
    pub svsm_vars_bytes: Option<u32>,
}

/// What was found out about a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The launches that give the observed digest.
    pub matches: Vec<Variant>,
    /// How many launches were tried.
    pub tried: usize,
    /// What differs from the launch that was expected, for people.
    pub differences: Vec<String>,
}

/// The CPU models that QEMU knows, by CPUID signature.
const MODELS: [(&str, u8, u8, u8); 9] = [
    ("EPYC", 0x17, 0x01, 2),
    ("EPYC-Rome", 0x17, 0x31, 0),
    ("EPYC-Milan", 0x19, 0x01, 1),
    ("EPYC-Genoa", 0x19, 0x11, 0),
    ("EPYC-Turin", 0x1a, 0x00, 0),
    ("host Milan", 0x19, 0x01, 0),
    ("host Genoa", 0x19, 0x11, 1),
    ("host Bergamo", 0x19, 0xa0, 2),
    ("host Turin", 0x1a, 0x02, 1),
];
/// The CPUID signature of a CPU model by QEMU's name for it. Versions
/// (`EPYC-v4`, `EPYC-IBPB`) differ in features, not in signature.
pub fn cpu_signature_of(name: &str) -> Option<u32> {
    let is_version = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let plain = match name.rsplit_once("-v") {
        Some((plain, version)) if is_version(version) => plain,
        _ => name.strip_suffix("-IBPB").unwrap_or(name),
    };
    MODELS
        .iter()
        .find(|(known, ..)| known.eq_ignore_ascii_case(plain))
        .map(|(_, family, model, stepping)| cpu_signature(*family, *model, *stepping))
}

/// SEV_FEATURES beside SNPActive that hosts are known to set (AMD APM volume 2,
/// table B-4): vTOM, restricted and alternate injection, DebugSwap, SNPBTBIsolation,
/// SecureTSC. Every combination is tried, alone and with one of `RARE_FEATURES`.
const FEATURES: [u64; 6] = [0x2, 0x8, 0x10, 0x20, 0x80, 0x200];
/// ReflectVC, PreventHostIBS, VmplSSS.
const RARE_FEATURES: [u64; 3] = [0x4, 0x40, 0x100];
const SNP_ACTIVE: u64 = 1;
/// The most that KVM gives a guest.
const MAX_SEARCHED_VCPUS: u32 = 4096;
/// How many more virtual CPUs than expected are tried, whatever the search says.
const MORE_VCPUS: u32 = 16;
/// Sizes of the variable store in builds of OVMF, in bytes.
const VARS_BYTES: [u32; 4] = [0, 0x2_0000, 0x4_0000, 0x8_4000];

/// Looks for launches of the same inputs that give `observed`.
///
/// The image and the kernel cannot be guessed: no match means that one of
/// them differs, or that the machine was launched in a way not tried here.
pub fn explain(
    expected: &Launch<'_>,
    observed: &[u8; 48],
    search: Search,
) -> Result<Explanation, MeasureError> {
    let search = search.at_least(expected.vcpus);
    let mut matches = Vec::new();
    let mut tried = 0_usize;
    for launch in prefixes(expected) {
        // A variant that the firmware does not support is no candidate.
        let Ok(prefix) = before_vcpus(&launch) else { continue };
        let reset_eip = launch.ovmf.reset_eip()?;
        for (cpu, vcpu) in vcpus(launch.vcpu) {
            let pages = [vmsa(&vcpu, BSP_EIP), vmsa(&vcpu, reset_eip)];
            for count in counts(prefix, &pages, observed, search, &mut tried) {
                matches.push(Variant {
                    vcpu,
                    cpu: cpu.clone(),
                    vcpus: count,
                    kernel_hashes: launch.kernel.is_some(),
                    svsm_vars_bytes: None,
                });
            }
        }
    }
    let differences = match matches.first() {
        Some(found) => differences(expected, found),
        None => vec![search.in_vain("the firmware, the kernel, the initrd or the command line")],
    };
    Ok(Explanation { matches, tried, differences })
}

/// Looks for launches of the same SVSM and firmware that give `observed`: other
/// CPUs, another variable store, or the firmware without the SVSM.
pub fn explain_svsm(
    expected: &SvsmLaunch<'_>,
    observed: &[u8; 48],
    search: Search,
) -> Result<Explanation, MeasureError> {
    let vcpu = Vcpu { vmm: Vmm::Qemu, signature: expected.signature, features: SNP_ACTIVE };
    let search = search.at_least(expected.vcpus);
    let mut sizes = vec![expected.vars_bytes];
    sizes.extend(VARS_BYTES.into_iter().filter(|size| *size != expected.vars_bytes));
    let (mut matches, mut tried) = (Vec::new(), 0_usize);
    for vars_bytes in sizes {
        // A store that leaves no place for the SVSM is no candidate.
        let launch = SvsmLaunch { vars_bytes, ..*expected };
        let Ok((prefix, eip)) = before_svsm_vcpus(&launch) else { continue };
        for (cpu, signature) in models(vcpu) {
            let page = svsm_vmsa(signature, eip);
            for count in counts(prefix, &[page, page], observed, search, &mut tried) {
                matches.push(Variant {
                    vcpu: Vcpu { signature, ..vcpu },
                    cpu: cpu.clone(),
                    vcpus: count,
                    kernel_hashes: false,
                    svsm_vars_bytes: Some(vars_bytes),
                });
            }
        }
    }
    if let Some(found) = matches.first() {
        let differences = svsm_differences(expected, found);
        return Ok(Explanation { matches, tried, differences });
    }
    let plain = Launch {
        ovmf: expected.ovmf,
        ovmf_digest: None,
        kernel: None,
        vcpu,
        vcpus: expected.vcpus,
    };
    let mut without = explain(&plain, observed, search)?;
    without.tried = without.tried.saturating_add(tried);
    if without.matches.is_empty() {
        without.differences = vec![search.in_vain("the firmware or the SVSM")];
    } else {
        without.differences.insert(0, "SVSM: expected one, launched without".to_owned());
    }
    Ok(without)
}

/// The numbers of virtual CPUs with which `prefix` becomes `observed`. Of
/// `pages`, the first is the boot processor's, the second all others'.
fn counts(
    prefix: LaunchDigest,
    pages: &[[u8; super::PAGE_BYTES]; 2],
    observed: &[u8; 48],
    search: Search,
    tried: &mut usize,
) -> Vec<u32> {
    let [boot, other] = pages.map(|page| sha384(&page));
    let mut digest = prefix;
    digest.vmsa_digest(boot);
    let mut found = Vec::new();
    for count in 1..=search.max_vcpus {
        *tried = tried.saturating_add(1);
        if digest.finish() == *observed {
            found.push(count);
        }
        digest.vmsa_digest(other);
    }
    found
}

/// The expected launch, with each monitor and with and without a kernel.
fn prefixes<'a>(expected: &Launch<'a>) -> Vec<Launch<'a>> {
    let mut out = Vec::new();
    for vmm in Vmm::ALL {
        let vcpu = Vcpu { vmm, ..expected.vcpu };
        out.push(Launch { vcpu, ..*expected });
        if expected.kernel.is_some() {
            out.push(Launch { vcpu, kernel: None, ..*expected });
        }
    }
    out
}

/// The CPU models to try with the monitor of `base`, that of `base` first.
fn models(base: Vcpu) -> Vec<(String, u32)> {
    let mut models = vec![(format!("{:#x}", base.signature), base.signature)];
    // Only QEMU's initial state depends on the model.
    if base.vmm == Vmm::Qemu {
        let known = MODELS.iter().map(|(name, family, model, stepping)| {
            ((*name).to_owned(), cpu_signature(*family, *model, *stepping))
        });
        models.extend(known.filter(|(_, signature)| *signature != base.signature));
    }
    models
}

/// The sets of features to try, that of `base` first.
fn features(base: Vcpu) -> Vec<u64> {
    let mut sets = vec![SNP_ACTIVE];
    for feature in FEATURES {
        let with: Vec<u64> = sets.iter().map(|set| set | feature).collect();
        sets.extend(with);
    }
    let plain = sets.clone();
    sets.extend(RARE_FEATURES.iter().flat_map(|rare| plain.iter().map(move |set| set | rare)));
    sets.retain(|set| *set != base.features);
    sets.insert(0, base.features);
    sets
}

/// Each CPU model and feature set to try with the monitor of `base`.
fn vcpus(base: Vcpu) -> Vec<(String, Vcpu)> {
    let features = features(base);
    let with = |(name, signature): (String, u32)| {
        let vcpu = move |features: &u64| Vcpu { signature, features: *features, ..base };
        features.iter().map(|set| (name.clone(), vcpu(set))).collect::<Vec<_>>()
    };
    models(base).into_iter().flat_map(with).collect()
}

fn svsm_differences(expected: &SvsmLaunch<'_>, found: &Variant) -> Vec<String> {
    let vars = found.svsm_vars_bytes.unwrap_or_default();
    let pairs = [
        ("variable store", format!("{:#x}", expected.vars_bytes), format!("{vars:#x}")),
        ("CPU model", format!("{:#x}", expected.signature), format!("{:#x}", found.vcpu.signature)),
        ("virtual CPUs", expected.vcpus.to_string(), found.vcpus.to_string()),
    ];
    let differ = pairs.into_iter().filter(|(_, expected, actual)| expected != actual);
    differ
        .map(|(what, expected, actual)| {
            format!("{what}: expected {expected}, launched with {actual}")
        })
        .collect()
}

fn differences(expected: &Launch<'_>, found: &Variant) -> Vec<String> {
    let mut out = Vec::new();
    let mut differ = |what: &str, expected: String, actual: String| {
        if expected != actual {
            out.push(format!("{what}: expected {expected}, launched with {actual}"));
        }
    };
    let wanted = expected.vcpu;
    differ("monitor", wanted.vmm.name().to_owned(), found.vcpu.vmm.name().to_owned());
    differ(
        "SEV_FEATURES",
        format!("{:#x}", wanted.features),
        format!("{:#x}", found.vcpu.features),
    );
    differ("CPU model", format!("{:#x}", wanted.signature), format!("{:#x}", found.vcpu.signature));
    differ("virtual CPUs", expected.vcpus.to_string(), found.vcpus.to_string());
    let hashes = |yes| if yes { "kernel hashes" } else { "no kernel hashes" }.to_owned();
    differ("kernel", hashes(expected.kernel.is_some()), hashes(found.kernel_hashes));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_known_by_name() {
        for name in ["EPYC", "epyc", "EPYC-v4", "EPYC-IBPB"] {
            assert_eq!(cpu_signature_of(name), Some(0x0080_0f12), "{name}");
        }
        assert_eq!(cpu_signature_of("EPYC-Milan-v2"), Some(0x00a0_0f11));
        assert_eq!(cpu_signature_of("EPYC-Turin"), Some(0x00b0_0f00));
        for unknown in ["", "EPYC-v", "EPYC-Naples", "v4"] {
            assert_eq!(cpu_signature_of(unknown), None, "{unknown}");
        }
    }
}
