//! `casemate measure`: what a launch must measure to, before it runs; and why an
//! observed digest is another one.

mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use casemate_attestation::eventlog::EventLog;
use casemate_attestation::measure::MeasureError;
use casemate_attestation::measure::ovmf::Ovmf;
use casemate_attestation::measure::snp::{
    Explanation, KernelHashes, Launch, Search, SvsmLaunch, Vcpu, Vmm, cpu_signature,
    cpu_signature_of, explain, explain_svsm, launch_digest, svsm_launch_digest,
};
use casemate_attestation::measure::tdx::{self, Tdvf};
use casemate_image::Image;
use clap::{Args, Subcommand};

use crate::Answer;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// The SEV-SNP launch digest of one of our images (docs/formats/image-manifest.md).
    Image {
        /// The image's folder.
        folder: PathBuf,
        /// Virtual CPUs.
        #[arg(long, default_value_t = 1)]
        vcpus: u32,
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
pub(crate) struct Rtmr {
    /// The event log (CCEL): all four registers.
    #[arg(long, value_name = "FILE", required_unless_present = "digests")]
    log: Option<PathBuf>,
    /// SHA-384 digests in the order in which they are extended: one register.
    #[arg(long, value_name = "HEX", value_delimiter = ',', conflicts_with = "log")]
    digests: Vec<String>,
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
    #[arg(long, default_value = "", value_name = "TEXT")]
    cmdline: String,
    /// The COCONUT SVSM image that QEMU starts above the firmware.
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    svsm: Option<PathBuf>,
    /// The size of the firmware's variable store, which lies below it.
    #[arg(long, default_value_t = 0, value_name = "BYTES", requires = "svsm")]
    vars_bytes: u32,
    /// The monitor: qemu, ec2, ec2-rdx0 (before 2026-04) or gce.
    #[arg(long, default_value = "qemu", value_name = "NAME")]
    vmm: String,
    /// The CPU model by QEMU's name, as in EPYC-Milan, or its family, model and
    /// stepping, as in 25,1,1.
    #[arg(long, default_value = "EPYC-Milan", value_name = "NAME")]
    cpu: String,
    /// SEV_FEATURES of the virtual CPUs, in hex.
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
    match measure(verb) {
        Err(error) if json => Ok(crate::verify::unknown(&error)),
        outcome => outcome,
    }
}

fn measure(verb: &Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::Image { folder, vcpus, json } => {
            let digest = Image::read(folder)?.files().snp_measurement(*vcpus)?;
            report::launch(&digest, None, *json)
        }
        Verb::Snp(arguments) => snp(arguments),
        Verb::Tdx { firmware, observed, json } => tdx(firmware, observed.as_deref(), *json),
        Verb::Rtmr(arguments) => rtmr(arguments),
    }
}

fn snp(arguments: &Snp) -> anyhow::Result<Answer> {
    let firmware = read(&arguments.firmware)?;
    if let Some(svsm) = &arguments.svsm {
        return snp_svsm(arguments, &firmware, &read(svsm)?);
    }
    let launch = Launch {
        ovmf: Ovmf::parse(&firmware)?,
        ovmf_digest: None,
        kernel: kernel(arguments)?,
        vcpu: vcpu(arguments)?,
        vcpus: arguments.vcpus,
    };
    let digest = launch_digest(&launch)?;
    let search = Search::default();
    compare(arguments, digest, |observed| explain(&launch, observed, search))
}

fn snp_svsm(arguments: &Snp, firmware: &[u8], svsm: &[u8]) -> anyhow::Result<Answer> {
    let launch = SvsmLaunch {
        ovmf: Ovmf::parse(firmware)?,
        vars_bytes: arguments.vars_bytes,
        svsm: Ovmf::parse(svsm)?,
        signature: vcpu(arguments)?.signature,
        vcpus: arguments.vcpus,
    };
    let digest = svsm_launch_digest(&launch)?;
    let search = Search::default();
    compare(arguments, digest, |observed| explain_svsm(&launch, observed, search))
}

/// Prints the digest and, where another was observed, what `explain` makes of it.
fn compare(
    arguments: &Snp,
    digest: [u8; 48],
    explain: impl FnOnce(&[u8; 48]) -> Result<Explanation, MeasureError>,
) -> anyhow::Result<Answer> {
    let observed = arguments.observed.as_deref().map(digest_of).transpose()?;
    let explained = match observed {
        Some(observed) if observed != digest => Some(explain(&observed)?),
        _ => None,
    };
    let observed = observed.as_ref().map(|observed| (observed, explained.as_ref()));
    report::launch(&digest, observed, arguments.json)
}

fn kernel(arguments: &Snp) -> anyhow::Result<Option<KernelHashes>> {
    let Some(kernel) = &arguments.kernel else { return Ok(None) };
    let initrd = arguments.initrd.as_deref().map(read).transpose()?.unwrap_or_default();
    Ok(Some(KernelHashes::new(&read(kernel)?, &initrd, &arguments.cmdline)))
}

fn vcpu(arguments: &Snp) -> anyhow::Result<Vcpu> {
    let vmm = Vmm::from_name(&arguments.vmm).with_context(|| {
        format!("--vmm: expected qemu, ec2, ec2-rdx0 or gce, got {:?}", arguments.vmm)
    })?;
    let features = arguments.features.trim_start_matches("0x");
    Ok(Vcpu {
        vmm,
        signature: signature(&arguments.cpu)?,
        features: u64::from_str_radix(features, 16).context("--features: expected hex")?,
    })
}

/// The CPUID signature of a model's name, or of its three numbers.
fn signature(cpu: &str) -> anyhow::Result<u32> {
    if let Some(signature) = cpu_signature_of(cpu) {
        return Ok(signature);
    }
    let expected = "--cpu: expected QEMU's name of an EPYC, or three numbers as in 25,1,1";
    let numbers: Option<Vec<u8>> = cpu.split(',').map(|number| number.parse().ok()).collect();
    match numbers.as_deref() {
        Some([family, model, stepping]) => Ok(cpu_signature(*family, *model, *stepping)),
        _ => bail!("{expected}, got {cpu:?}"),
    }
}

fn tdx(firmware: &Path, observed: Option<&str>, json: bool) -> anyhow::Result<Answer> {
    let firmware = read(firmware)?;
    let tdvf = Tdvf::parse(&firmware)?;
    let observed = observed.map(digest_of).transpose()?;
    report::mrtd(&tdvf, observed.as_ref(), json)
}

fn rtmr(arguments: &Rtmr) -> anyhow::Result<Answer> {
    let registers = match &arguments.log {
        Some(log) => EventLog::parse(&read(log)?)?.replay().0.to_vec(),
        None => {
            let digests: Vec<[u8; 48]> = arguments
                .digests
                .iter()
                .map(|digest| digest_of(digest))
                .collect::<anyhow::Result<_>>()?;
            vec![tdx::rtmr(&digests)]
        }
    };
    report::registers(&registers, arguments.json)
}

fn digest_of(text: &str) -> anyhow::Result<[u8; 48]> {
    let bytes = hex::decode(text).context("digest: expected hex")?;
    let length = bytes.len();
    bytes.try_into().ok().with_context(|| format!("digest: expected 48 bytes, got {length}"))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let context = || format!("cannot read {}", path.display());
    let size = std::fs::metadata(path).with_context(context)?.len();
    if size > MAX_FILE_BYTES {
        bail!("{}: expected at most {MAX_FILE_BYTES} bytes, got {size}", path.display());
    }
    std::fs::read(path).with_context(context)
}

const MAX_FILE_BYTES: u64 = 1024 * 1024 * 1024;
