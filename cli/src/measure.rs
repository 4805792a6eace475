//! `casemate measure`: what a launch must measure to, before it runs; and why an
//! observed digest is another one.

mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use casemate_attestation::eventlog::{EventLog, MAX_LOG_BYTES};
use casemate_attestation::measure::MeasureError;
use casemate_attestation::measure::ovmf::{MAX_FIRMWARE_BYTES, Ovmf};
use casemate_attestation::measure::snp::{
    BSP_EIP, Explanation, KernelHashes, Launch, LaunchDigest, Search, SvsmLaunch, Variant, Vcpu,
    Vmm, cpu_signature, cpu_signature_of, explain, explain_svsm, launch_digest, svsm_launch_digest,
    vmsa,
};
use casemate_attestation::measure::tdx::{self, Tdvf};
use casemate_image::Image;
use casemate_image::launch::{CPU, MAX_VCPUS};
use clap::{ArgGroup, Args, Subcommand};

use crate::output::{Said, complain, reason};
use crate::table::line;
use crate::{Answer, input};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// The SEV-SNP launch digest of one of our images (docs/formats/image-manifest.md).
    Image {
        /// The image's folder.
        folder: PathBuf,
        /// Virtual CPUs.
        #[arg(long, default_value_t = 1)]
        vcpus: u32,
        /// An observed digest: say whether another number of CPUs gives it.
        #[arg(long, value_name = "HEX")]
        observed: Option<String>,
        /// The result as JSON, version 1 (docs/formats/measurement.md).
        #[arg(long)]
        json: bool,
    },
    /// The SEV-SNP launch digest of a guest that starts in OVMF.
    Snp(Snp),
    /// The MRTD of a TDX guest's firmware, in both page orders.
    Tdx {
        /// The firmware image.
        #[arg(long, value_name = "FILE")]
        firmware: PathBuf,
        /// An observed MRTD: say which order gives it.
        #[arg(long, value_name = "HEX")]
        observed: Option<String>,
        /// The result as JSON, version 1 (docs/formats/measurement.md).
        #[arg(long)]
        json: bool,
    },
    /// The run-time registers of a TDX guest, from its event log or from digests.
    Rtmr(Rtmr),
}

#[derive(Args)]
#[command(group(ArgGroup::new("source").required(true).args(["log", "digests"])))]
pub(crate) struct Rtmr {
    /// The event log (CCEL): all four registers.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// SHA-384 digests in the order in which they are extended: one register.
    #[arg(long, value_name = "HEX", value_delimiter = ',')]
    digests: Vec<String>,
    /// The observed registers, four beside a log and one beside digests: say which differ.
    #[arg(long, value_name = "HEX", value_delimiter = ',')]
    observed: Vec<String>,
    /// The result as JSON, version 1 (docs/formats/measurement.md).
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Snp {
    /// The firmware image.
    #[arg(long, value_name = "FILE")]
    firmware: PathBuf,
    /// The kernel, where the monitor loads it and the firmware checks its hash.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initramfs that goes with the kernel.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The command line that goes with the kernel.
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    cmdline: Option<String>,
    /// The COCONUT SVSM image that QEMU starts above the firmware; its CPUs have no other
    /// features than SNPActive.
    #[arg(long, value_name = "FILE",
          conflicts_with_all = ["kernel", "initrd", "cmdline", "vmm", "features"])]
    svsm: Option<PathBuf>,
    /// The size of the firmware's variable store, which lies below it.
    #[arg(long, default_value_t = 0, value_name = "BYTES", requires = "svsm")]
    vars_bytes: u32,
    /// The monitor: qemu, ec2, ec2-rdx0 (before 2026-04) or gce.
    #[arg(long, default_value = "qemu", value_name = "NAME")]
    vmm: String,
    /// The CPU model by QEMU's name, as in EPYC-Milan, or its family, model and
    /// stepping, as in 25,1,1; EPYC-Milan if not given. Only QEMU starts CPUs with it.
    #[arg(long, value_name = "NAME")]
    cpu: Option<String>,
    /// SEV_FEATURES of the virtual CPUs, in hex; bit 0, SNPActive, is every SNP guest's.
    #[arg(long, default_value = "1", value_name = "HEX")]
    features: String,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// An observed digest: try the known variants and say where it parts.
    #[arg(long, value_name = "HEX")]
    observed: Option<String>,
    /// The result as JSON, version 1 (docs/formats/measurement.md).
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(verb: &Verb) -> anyhow::Result<Answer> {
    let json = match verb {
        Verb::Image { json, .. } | Verb::Tdx { json, .. } => *json,
        Verb::Snp(arguments) => arguments.json,
        Verb::Rtmr(arguments) => arguments.json,
    };
    let said = match measure(verb) {
        Err(error) if json => {
            complain(&reason(&error));
            Said::input(&reason(&error))
        }
        outcome => outcome?,
    };
    said.write()
}

fn measure(verb: &Verb) -> anyhow::Result<Said> {
    match verb {
        Verb::Image { folder, vcpus, observed, json } => {
            image(folder, *vcpus, observed.as_deref(), *json)
        }
        Verb::Snp(arguments) => snp(arguments),
        Verb::Tdx { firmware, observed, json } => tdx(firmware, observed.as_deref(), *json),
        Verb::Rtmr(arguments) => rtmr(arguments),
    }
}

fn image(folder: &Path, vcpus: u32, observed: Option<&str>, json: bool) -> anyhow::Result<Said> {
    let observed = observed.map(|text| digest_of("--observed", text)).transpose()?;
    // Its errors name the folder as it came.
    let image = Image::read(folder).map_err(|error| anyhow!(line(&error.to_string())))?;
    let digest = image.files().snp_measurement(vcpus)?;
    let found = match observed {
        Some(observed) if observed != digest => {
            Some(explain_image(image.files().snp_measurement(1)?, vcpus, &observed))
        }
        _ => None,
    };
    let observed = observed.as_ref().map(|observed| (observed, found.as_ref()));
    Ok(report::launch(&digest, observed, json))
}

/// Looks for the number of CPUs with which the image measures to `observed`: `one` is the
/// digest with one, and each CPU more is measured after the others.
fn explain_image(one: [u8; 48], vcpus: u32, observed: &[u8; 48]) -> Explanation {
    let (family, model, stepping) = CPU;
    let signature = cpu_signature(family, model, stepping);
    let vcpu = Vcpu { vmm: Vmm::Qemu, signature, features: SNP_ACTIVE };
    let page = vmsa(&vcpu, BSP_EIP);
    let mut digest = LaunchDigest::resume(one);
    let mut matches = Vec::new();
    for count in 1..=MAX_VCPUS {
        if digest.finish() == *observed {
            matches.push(Variant {
                vcpu,
                cpu: format!("{signature:#x}"),
                vcpus: count,
                kernel_hashes: true,
                svsm_vars_bytes: None,
            });
        }
        digest.vmsa(&page);
    }
    let difference = match matches.first() {
        Some(found) => format!("virtual CPUs: expected {vcpus}, launched with {}", found.vcpus),
        None => "no number of virtual CPUs gives the digest: the kernel, the initrd or the \
                 command line is another one, or the machine is none of ours"
            .to_owned(),
    };
    let tried = usize::try_from(MAX_VCPUS).unwrap_or_default();
    Explanation { matches, tried, differences: vec![difference] }
}

fn snp(arguments: &Snp) -> anyhow::Result<Said> {
    let observed =
        arguments.observed.as_deref().map(|text| digest_of("--observed", text)).transpose()?;
    let vcpu = vcpu(arguments)?;
    let firmware = firmware(&arguments.firmware)?;
    let search = Search::default();
    if let Some(path) = &arguments.svsm {
        let svsm = self::firmware(path)?;
        let launch = SvsmLaunch {
            ovmf: Ovmf::parse(&firmware)?,
            vars_bytes: arguments.vars_bytes,
            svsm: Ovmf::parse(&svsm)?,
            signature: vcpu.signature,
            vcpus: arguments.vcpus,
        };
        let digest = svsm_launch_digest(&launch)?;
        let explain = |observed: &[u8; 48]| explain_svsm(&launch, observed, search);
        return compare(arguments, digest, observed, explain);
    }
    let launch = Launch {
        ovmf: Ovmf::parse(&firmware)?,
        ovmf_digest: None,
        kernel: kernel(arguments)?,
        vcpu,
        vcpus: arguments.vcpus,
    };
    let digest = launch_digest(&launch)?;
    compare(arguments, digest, observed, |observed| explain(&launch, observed, search))
}

/// Says the digest and, where another was observed, what `explain` makes of it.
fn compare(
    arguments: &Snp,
    digest: [u8; 48],
    observed: Option<[u8; 48]>,
    explain: impl FnOnce(&[u8; 48]) -> Result<Explanation, MeasureError>,
) -> anyhow::Result<Said> {
    let explained = match observed {
        Some(observed) if observed != digest => Some(explain(&observed)?),
        _ => None,
    };
    let observed = observed.as_ref().map(|observed| (observed, explained.as_ref()));
    Ok(report::launch(&digest, observed, arguments.json))
}

fn kernel(arguments: &Snp) -> anyhow::Result<Option<KernelHashes>> {
    let Some(kernel) = &arguments.kernel else { return Ok(None) };
    let boot = |path: &Path| input::bytes(path, MAX_BOOT_BYTES);
    let initrd = arguments.initrd.as_deref().map(boot).transpose()?.unwrap_or_default();
    let cmdline = arguments.cmdline.as_deref().unwrap_or_default();
    Ok(Some(KernelHashes::new(&boot(kernel)?, &initrd, cmdline)))
}

fn vcpu(arguments: &Snp) -> anyhow::Result<Vcpu> {
    let vmm = Vmm::from_name(&arguments.vmm).with_context(|| {
        format!("--vmm: expected qemu, ec2, ec2-rdx0 or gce, got {:?}", arguments.vmm)
    })?;
    let text = &arguments.features;
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let features = u64::from_str_radix(digits, 16)
        .with_context(|| format!("--features: expected up to 16 hex digits, got {text:?}"))?;
    ensure!(
        features & SNP_ACTIVE != 0,
        "--features: expected bit 0 (SNPActive), which every SNP guest has, got {features:#x}"
    );
    ensure!(
        vmm == Vmm::Qemu || arguments.cpu.is_none(),
        "--cpu: expected none with --vmm {}, whose launch it does not change, got one",
        vmm.name()
    );
    let cpu = arguments.cpu.as_deref().unwrap_or("EPYC-Milan");
    Ok(Vcpu { vmm, signature: signature(cpu)?, features })
}

/// The CPUID signature of a model's name, or of its three numbers.
fn signature(cpu: &str) -> anyhow::Result<u32> {
    if let Some(signature) = cpu_signature_of(cpu) {
        return Ok(signature);
    }
    let numbers: Option<Vec<u8>> = cpu.split(',').map(|number| number.parse().ok()).collect();
    match numbers.as_deref() {
        Some([family, model, stepping @ 0..=15]) => Ok(cpu_signature(*family, *model, *stepping)),
        Some([_, _, stepping]) => bail!("--cpu: expected a stepping of 0 to 15, got {stepping}"),
        _ => bail!(
            "--cpu: expected QEMU's name of an EPYC, or its family, model and stepping as in \
             25,1,1, got {cpu:?}"
        ),
    }
}

fn tdx(path: &Path, observed: Option<&str>, json: bool) -> anyhow::Result<Said> {
    let observed = observed.map(|text| digest_of("--observed", text)).transpose()?;
    let firmware = firmware(path)?;
    let tdvf = Tdvf::parse(&firmware)?;
    Ok(report::mrtd(&tdvf, observed.as_ref(), json))
}

fn rtmr(arguments: &Rtmr) -> anyhow::Result<Said> {
    let all = |flag: &str, texts: &[String]| {
        texts.iter().map(|text| digest_of(flag, text)).collect::<anyhow::Result<Vec<_>>>()
    };
    let observed = all("--observed", &arguments.observed)?;
    let digests = all("--digests", &arguments.digests)?;
    let registers = match &arguments.log {
        Some(log) => {
            // One byte more, so that the library says what its limit is.
            let log = input::bytes(log, u64::try_from(MAX_LOG_BYTES)?.saturating_add(1))?;
            EventLog::parse(&log)?.replay().0.to_vec()
        }
        None => vec![tdx::rtmr(&digests)],
    };
    let count = observed.len();
    ensure!(
        count == 0 || count == registers.len(),
        "--observed: expected {} digests, one for each register, got {count}",
        registers.len()
    );
    Ok(report::registers(&registers, &observed, arguments.json))
}

/// The SHA-384 digest that `flag` was given, with or without `0x`.
fn digest_of(flag: &str, text: &str) -> anyhow::Result<[u8; 48]> {
    let bytes = input::unhex(text).with_context(|| flag.to_owned())?;
    let length = bytes.len();
    let digest = bytes.try_into().ok();
    digest.with_context(|| format!("{flag}: expected 48 bytes, got {length}"))
}

fn firmware(path: &Path) -> anyhow::Result<Vec<u8>> {
    input::bytes(path, u64::try_from(MAX_FIRMWARE_BYTES)?)
}

/// SEV_FEATURES bit 0 (AMD 24593, table B-4).
const SNP_ACTIVE: u64 = 1;
/// An initramfs may be large.
const MAX_BOOT_BYTES: u64 = 1024 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_cpus_of_an_image_is_found() {
        let files = casemate_image::launch::BootFiles { kernel: b"k", initrd: b"i", cmdline: "c" };
        let measured = |vcpus: u32| files.snp_measurement(vcpus).unwrap();
        let found = explain_image(measured(1), 2, &measured(5));
        assert_eq!(found.matches.len(), 1);
        assert_eq!(found.differences, ["virtual CPUs: expected 2, launched with 5"]);
        let other = explain_image(measured(1), 2, &[0; 48]);
        assert!(other.matches.is_empty() && other.differences[0].contains("no number"));
    }
}
