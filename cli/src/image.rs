//! `casemate image`: build the measured image; show one and check its files.

use std::path::PathBuf;

use anyhow::Context;
use casemate_image::{BuildSpec, ExtraFile, Manifest, Progress, Step};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::Answer;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Writes kernel, initrd, cmdline and manifest.toml into a folder.
    Build(Build),
    /// Compares the files of an image with its manifest.
    Check {
        /// The image's folder.
        folder: PathBuf,
    },
}

#[derive(Args)]
pub(crate) struct Build {
    /// PID 1: the static `casemate-guest`.
    #[arg(long, value_name = "FILE")]
    init: PathBuf,
    /// The guest's measured configuration (docs/formats/guest-config.md).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// One more file for the image, such as the workload: HERE=/PATH/IN/GUEST[:MODE].
    #[arg(long = "file", value_name = "HERE=THERE", value_parser = extra_file)]
    files: Vec<ExtraFile>,
    /// The kernel's command line instead of the default.
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// The Debian mirror, if not the machine's own.
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Where the kernel package is kept between builds.
    #[arg(long, value_name = "DIR", default_value = ".casemate/cache")]
    cache: PathBuf,
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn run(verb: &Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::Build(arguments) => build(arguments),
        Verb::Check { folder } => {
            let manifest = Manifest::read(folder)?;
            if let Err(error) = manifest.check(folder) {
                println!("{error}");
                return Ok(Answer::No);
            }
            print(&manifest);
            Ok(Answer::Yes)
        }
    }
}

fn build(arguments: &Build) -> anyhow::Result<Answer> {
    let mut spec = BuildSpec::new(&arguments.init, &arguments.config, &arguments.out);
    spec.extra_files.clone_from(&arguments.files);
    spec.cache.clone_from(&arguments.cache);
    spec.mirror.clone_from(&arguments.mirror);
    if let Some(cmdline) = &arguments.cmdline {
        spec.cmdline.clone_from(cmdline);
    }
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template(
        "      {msg:<28} {wide_bar} {bytes}/{total_bytes}",
    )?);
    let manifest = casemate_image::build(&spec, &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    print(&manifest?);
    Ok(Answer::Yes)
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_message(match progress.step {
        Step::Index => "reading the mirror's index",
        Step::Download => "fetching the pinned kernel",
        Step::Unpack => "unpacking kernel, modules",
        Step::Assemble => "writing the image",
    });
    bar.set_length(progress.total);
    bar.set_position(progress.done);
}

fn print(manifest: &Manifest) {
    let digest = |name: &str, bytes: &[u8; 32]| println!("{name:<8} sha256 {}", hex::encode(bytes));
    println!("package  {} {}", manifest.kernel.package, manifest.kernel.version);
    digest("kernel", &manifest.files.kernel);
    digest("initrd", &manifest.files.initrd);
    digest("cmdline", &manifest.files.cmdline);
}

fn extra_file(text: &str) -> anyhow::Result<ExtraFile> {
    let (source, target) = text.split_once('=').context("expected HERE=/PATH/IN/GUEST[:MODE]")?;
    let (path, mode) = match target.rsplit_once(':') {
        Some((path, mode)) => (path, u32::from_str_radix(mode, 8).context("MODE is octal")?),
        None => (target, 0o644),
    };
    Ok(ExtraFile { source: source.into(), path: path.to_owned(), mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_files_are_read() {
        let file = extra_file("target/agent=/workload/agent:0755").unwrap();
        assert_eq!((file.path.as_str(), file.mode), ("/workload/agent", 0o755));
        assert_eq!(extra_file("a=/b").unwrap().mode, 0o644);
        assert!(extra_file("a").is_err());
        assert!(extra_file("a=/b:9").is_err());
    }
}
