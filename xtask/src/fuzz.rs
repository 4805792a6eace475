//! Runs the fuzz targets with the stable compiler.
//!
//! libFuzzer needs coverage counters, which stable rustc inserts through LLVM's
//! own options; a sanitizer, which needs nightly, would watch unsafe code that
//! these crates do not have.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, bail};

const FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 --cfg fuzzing";
const HOST: &str = "x86_64-unknown-linux-gnu";
/// How libFuzzer ends when it is interrupted.
const INTERRUPTED: i32 = 72;

/// Builds all targets, then runs those named (all, if none is) for `seconds` of
/// processor time each.
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

/// Runs one target until it has used `seconds` of processor time, however busy
/// the machine is.
fn fuzz(program: &Path, name: &str, seconds: u64) -> anyhow::Result<()> {
    // What is found new goes to target/; what is kept in the repository is read only.
    let target = Path::new("fuzz/target");
    let found = target.join("corpus").join(name);
    let kept = Path::new("fuzz/corpus").join(name);
    std::fs::create_dir_all(&found)?;
    let log = target.join(format!("{name}.log"));
    println!("fuzz: {name}, {seconds} s of processor time");
    let mut command = Command::new(program);
    command.arg(&found);
    if kept.exists() {
        command.arg(&kept);
    }
    let mut child = command
        .args(["-timeout=5", "-rss_limit_mb=2048", "-max_len=65536", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix=fuzz/target/{name}-"))
        .stderr(File::create(&log)?)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let (status, used) = watch(&mut child, seconds)?;
    let log = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    let runs = log.lines().find(|line| line.contains("number_of_executed_units"));
    println!("fuzz: {name}: {used} s, {}", runs.unwrap_or("no statistics"));
    if status.success() || status.code() == Some(INTERRUPTED) {
        return Ok(());
    }
    bail!("{name}: a finding\n{log}");
}

/// Waits until the child has used `seconds`, then interrupts it: libFuzzer
/// prints its statistics and ends. Gives how it ended and what it used.
fn watch(child: &mut Child, seconds: u64) -> anyhow::Result<(ExitStatus, u64)> {
    let mut used = 0;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, used));
        }
        used = processor_seconds(child.id())?;
        if used >= seconds {
            let id = child.id().to_string();
            Command::new("kill").args(["-INT", &id]).status().context("cannot run kill")?;
            return Ok((child.wait()?, used));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The user and system time of a process, all threads together (proc(5), stat,
/// fields 14 and 15, in hundredths of a second on Linux).
fn processor_seconds(id: u32) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    ticks(&stat).map(|ticks| ticks / 100).context("/proc/PID/stat has no times")
}

fn ticks(stat: &str) -> Option<u64> {
    // The second field, the name, may hold spaces and brackets.
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace().skip(11);
    let mut time = || fields.next()?.parse::<u64>().ok();
    time()?.checked_add(time()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 9 9 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("7 (a) S 1"), None);
        assert!(processor_seconds(std::process::id()).is_ok());
    }
}
