//! Why a digest differs: try the launches that are known and say which one
//! it is.

use super::firmware::before_vcpus;
use super::vmsa::{BSP_EIP, Vcpu, Vmm, vmsa};
use super::{Launch, cpu_signature};
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
/// SEV_FEATURES that hosts are known to set: with and without DebugSwap,
/// vTOM, restricted and alternate injection, SecureTSC.
const FEATURES: [u64; 8] = [0x1, 0x21, 0x3, 0x9, 0x29, 0x11, 0x201, 0x221];

/// Looks for launches of the same inputs that give `observed`.
///
/// The image and the kernel cannot be guessed: no match means that one of
/// them differs, or that the machine was launched in a way not known here.
pub fn explain(
    expected: &Launch<'_>,
    observed: &[u8; 48],
    search: Search,
) -> Result<Explanation, MeasureError> {
    let mut matches = Vec::new();
    let mut tried = 0_usize;
    for launch in prefixes(expected) {
        // A variant that the firmware does not support is no candidate.
        let Ok(prefix) = before_vcpus(&launch) else { continue };
        let reset_eip = launch.ovmf.reset_eip()?;
        for (cpu, vcpu) in vcpus(launch.vcpu) {
            let mut digest = prefix;
            digest.vmsa(&vmsa(&vcpu, BSP_EIP));
            let other = vmsa(&vcpu, reset_eip);
            for count in 1..=search.max_vcpus {
                tried = tried.saturating_add(1);
                if digest.finish() == *observed {
                    matches.push(Variant {
                        vcpu,
                        cpu: cpu.clone(),
                        vcpus: count,
                        kernel_hashes: launch.kernel.is_some(),
                    });
                }
                digest.vmsa(&other);
            }
        }
    }
    let differences = match matches.first() {
        Some(found) => differences(expected, found),
        None => vec![
            "no known variant of these inputs gives the digest: the firmware, the kernel, the \
             initrd or the command line is another one"
                .to_owned(),
        ],
    };
    Ok(Explanation { matches, tried, differences })
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

/// Each CPU model and feature set to try with the monitor of `base`.
fn vcpus(base: Vcpu) -> Vec<(String, Vcpu)> {
    let mut models: Vec<(String, u32)> = vec![(format!("{:#x}", base.signature), base.signature)];
    // Only QEMU's initial state depends on the model.
    if base.vmm == Vmm::Qemu {
        let known = MODELS.iter().map(|(name, family, model, stepping)| {
            ((*name).to_owned(), cpu_signature(*family, *model, *stepping))
        });
        models.extend(known.filter(|(_, signature)| *signature != base.signature));
    }
    let mut features = vec![base.features];
    features.extend(FEATURES.into_iter().filter(|known| *known != base.features));
    models
        .into_iter()
        .flat_map(|(name, signature)| {
            features
                .iter()
                .map(|features| (name.clone(), Vcpu { signature, features: *features, ..base }))
                .collect::<Vec<_>>()
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
