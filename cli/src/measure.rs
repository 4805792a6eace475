//! `casemate measure`: what a launch must measure to, before it runs; and why an
//! observed digest is another one.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use casemate_attestation::measure::MeasureError;
use casemate_attestation::measure::ovmf::Ovmf;
use casemate_attestation::measure::snp::{
    Explanation, KernelHashes, Launch, Search, SvsmLaunch, Vcpu, Vmm, cpu_signature, explain,
    explain_svsm, launch_digest, svsm_launch_digest,
};
use casemate_attestation::measure::tdx::{PageOrder, Tdvf};
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
    },
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
    /// CPU family, model and stepping, as in 25,1,1 for EPYC-Milan.
    #[arg(long, default_value = "25,1,1", value_name = "F,M,S")]
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
}

pub(crate) fn run(verb: &Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::Image { folder, vcpus } => {
            let digest = Image::read(folder)?.files().snp_measurement(*vcpus)?;
            println!("{}", hex::encode(digest));
            Ok(Answer::Yes)
        }
        Verb::Snp(arguments) => snp(arguments),
        Verb::Tdx { firmware, observed } => tdx(firmware, observed.as_deref()),
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
    println!("{}", hex::encode(digest));
    let Some(observed) = &arguments.observed else { return Ok(Answer::Yes) };
    let observed = digest_of(observed)?;
    if observed == digest {
        println!("the observed digest is this one");
        return Ok(Answer::Yes);
    }
    let explanation = explain(&observed)?;
    println!("the observed digest is another one; {} launches tried", explanation.tried);
    explanation.differences.iter().for_each(|difference| println!("  {difference}"));
    Ok(Answer::No)
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
    let numbers: Vec<u8> = arguments
        .cpu
        .split(',')
        .map(|number| number.parse().context("--cpu: expected three numbers, as in 25,1,1"))
        .collect::<anyhow::Result<_>>()?;
    let [family, model, stepping] = numbers.as_slice() else {
        bail!("--cpu: expected three numbers, as in 25,1,1, got {:?}", arguments.cpu);
    };
    let features = arguments.features.trim_start_matches("0x");
    Ok(Vcpu {
        vmm,
        signature: cpu_signature(*family, *model, *stepping),
        features: u64::from_str_radix(features, 16).context("--features: expected hex")?,
    })
}

fn tdx(firmware: &Path, observed: Option<&str>) -> anyhow::Result<Answer> {
    let firmware = read(firmware)?;
    let tdvf = Tdvf::parse(&firmware)?;
    for order in [PageOrder::PerPage, PageOrder::TwoPass] {
        println!("{:<9} {}", order.name(), hex::encode(tdvf.mrtd(order)));
    }
    let Some(observed) = observed else { return Ok(Answer::Yes) };
    match tdvf.explain(&digest_of(observed)?) {
        Some(order) => {
            println!("the observed MRTD is this firmware's, pages added {}", order.name());
            Ok(Answer::Yes)
        }
        None => {
            println!("the observed MRTD is another firmware's, or another page order");
            Ok(Answer::No)
        }
    }
}

fn digest_of(text: &str) -> anyhow::Result<[u8; 48]> {
    let bytes = hex::decode(text).context("--observed: expected hex")?;
    let length = bytes.len();
    bytes.try_into().ok().with_context(|| format!("--observed: expected 48 bytes, got {length}"))
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
