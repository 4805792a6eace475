//! Runs the fuzz targets with the stable compiler.
//!
//! libFuzzer needs coverage counters, which stable rustc inserts through LLVM's
//! own options; a sanitizer, which needs nightly, would watch unsafe code that
//! these crates do not have.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

const FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 --cfg fuzzing";
const HOST: &str = "x86_64-unknown-linux-gnu";

/// Builds all targets, then runs those named (all, if none is) for `seconds` each.
pub(crate) fn run(seconds: u64, names: &[&str]) -> anyhow::Result<()> {
    let folder = Path::new("fuzz");
    let build = folder.join("target");
    let status = Command::new("cargo")
        .args(["build", "--release", "--quiet", "--target", HOST])
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", build.canonicalize().unwrap_or_else(|_| PathBuf::from("target")))
        .env("RUSTFLAGS", FLAGS)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the fuzz targets do not build");
    }
    let programs = build.join(HOST).join("release");
    for name in targets(folder)? {
        if names.is_empty() || names.contains(&name.as_str()) {
            fuzz(&programs.join(&name), &name, seconds)?;
        }
    }
    Ok(())
}

/// The targets are the files in fuzz/targets.
fn targets(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder.join("targets"))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn fuzz(program: &Path, name: &str, seconds: u64) -> anyhow::Result<()> {
    // What is found new goes to target/; what is kept in the repository is read only.
    let found = Path::new("fuzz/target/corpus").join(name);
    let kept = Path::new("fuzz/corpus").join(name);
    std::fs::create_dir_all(&found)?;
    println!("fuzz: {name}, {seconds} s");
    let mut command = Command::new(program);
    command.arg(&found);
    if kept.exists() {
        command.arg(&kept);
    }
    let output = command
        .args(["-timeout=5", "-rss_limit_mb=2048", "-max_len=65536", "-print_final_stats=1"])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix=fuzz/target/{name}-"))
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let log = String::from_utf8_lossy(&output.stderr);
    let runs = log.lines().find(|line| line.contains("number_of_executed_units"));
    println!("fuzz: {name}: {}", runs.unwrap_or("no statistics"));
    if !output.status.success() {
        bail!("{name}: a finding\n{log}");
    }
    Ok(())
}
