//! Counts the instructions of verification and compares them with those that
//! are committed, so that a slower path shows as a changed number.
//!
//! Only Rust functions of the measured program count. The cryptographic
//! library chooses its code by the processor, and the C library differs
//! between systems: neither would be the same elsewhere. The build is the
//! unoptimized one that the tests have made anyway, by the pinned compiler.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};

const PATHS: [&str; 6] =
    ["snp-cold", "snp-known", "snp-warm", "tdx-full", "tdx-known", "tdx-prepared"];
const COMMITTED: &str = "model/examples/instructions.txt";
/// How far a count may lie from the committed one, in thousandths.
const TOLERANCE: u64 = 50;

/// Counts every path; with `accept`, writes the counts down instead of comparing.
pub(crate) fn run(accept: bool) -> anyhow::Result<ExitCode> {
    let program = build()?;
    let dir = program.with_file_name("instructions-evidence");
    std::fs::create_dir_all(&dir)?;
    succeed(Command::new(&program).arg("make").arg(&dir))?;
    let mut counts = BTreeMap::new();
    for path in PATHS {
        counts.insert(path.to_owned(), count(&program, path, &dir)?);
    }
    if accept {
        let lines: Vec<_> = counts.iter().map(|(path, count)| format!("{path} {count}")).collect();
        std::fs::write(COMMITTED, format!("{}\n", lines.join("\n")))?;
        println!("instructions: wrote {COMMITTED}: {}", lines.join(", "));
        return Ok(ExitCode::SUCCESS);
    }
    let committed = read_counts(&std::fs::read_to_string(COMMITTED).context(COMMITTED)?)?;
    let mut failed = false;
    for (path, actual) in &counts {
        let expected = *committed.get(path).with_context(|| format!("{COMMITTED}: no {path}"))?;
        let within = within(expected, *actual);
        failed |= !within;
        let mark = if within { "ok  " } else { "FAIL" };
        println!("instructions: {mark} {path}: expected {expected} (within 5 %), got {actual}");
    }
    if failed {
        println!(
            "instructions: if the change is meant, accept the new counts with \
             `cargo run -p xtask -- instructions --accept` and commit {COMMITTED}"
        );
    }
    Ok(ExitCode::from(u8::from(failed)))
}

fn within(expected: u64, actual: u64) -> bool {
    actual.abs_diff(expected).saturating_mul(1000) <= expected.saturating_mul(TOLERANCE)
}

/// Builds the measured program; where it lies, cargo says itself.
fn build() -> anyhow::Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked", "--quiet", "--workspace"]);
    cargo.args(["--example", "instructions", "--message-format", "json"]);
    let output =
        cargo.stderr(std::process::Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "the measured program does not build");
    let text = String::from_utf8(output.stdout)?;
    let executable = text.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    });
    executable.context("cargo named no executable")
}

/// Runs one path under callgrind.
fn count(program: &Path, path: &str, dir: &Path) -> anyhow::Result<u64> {
    let out = dir.join(format!("{path}.callgrind"));
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--quiet", "--tool=callgrind", "--toggle-collect=*instructions::measured*"])
        .args(["--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .arg(path)
        .arg(dir);
    succeed(&mut valgrind)?;
    let count = of_rust(&std::fs::read_to_string(&out)?);
    ensure!(count > 0, "{path}: callgrind counted nothing of ours");
    Ok(count)
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// The instructions of Rust functions alone, in callgrind's format: `fn=` names
/// a function, a line of numbers is its own cost, and the line after `calls=`
/// is another's.
fn of_rust(profile: &str) -> u64 {
    let (mut rust, mut callee, mut total) = (false, false, 0_u64);
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            rust = name.contains("::");
        } else if line.starts_with("calls=") {
            callee = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            let cost = line.split_ascii_whitespace().nth(1).and_then(|cost| cost.parse().ok());
            if rust && !callee {
                total = total.saturating_add(cost.unwrap_or(0));
            }
            callee = false;
        }
    }
    total
}

fn read_counts(text: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let line = |line: &str| -> anyhow::Result<(String, u64)> {
        let (path, count) = line.split_once(' ').context("expected a path and a count")?;
        Ok((path.to_owned(), count.parse()?))
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_cost_of_rust_functions_counts() {
        let profile = "events: Ir\n\nob=/p\nfl=a.rs\nfn=core::fmt::write\n0 10\ncfn=bn_mul\n\
                       calls=2 0\n0 500\n0 7\n\nfn=bn_mul\n0 500\ncfn=a::b\ncalls=1 0\n0 3\n\n\
                       fn=a::b\n0 3\n\ntotals: 520\n";
        assert_eq!(of_rust(profile), 20);
    }

    #[test]
    fn the_tolerance_holds_both_ways() {
        assert!(within(1000, 1050) && within(1000, 950));
        assert!(!within(1000, 1051) && !within(1000, 949));
    }
}
