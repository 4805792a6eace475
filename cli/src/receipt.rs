//! `casemate receipt`: take one call's proof out of the gateway, and check one
//! offline, from the log's head to the silicon or its model.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use casemate_gateway::{Command, Reply};
use casemate_ledger::receipt::{self, Check, Outcome, TrustFile, VerificationTree};
use clap::Subcommand;

use crate::Answer;
use crate::operator::Admin;
use crate::table::plain;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Writes the receipt of the call whose decision is this leaf of the log.
    Export {
        #[command(flatten)]
        admin: Admin,
        /// The leaf of the call's decision (`casemate log list` shows it).
        #[arg(long, value_name = "LEAF")]
        decision: u64,
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Proves one call offline.
    Verify {
        /// The receipt.
        file: PathBuf,
        /// Whom the auditor trusts (docs/formats/receipt.md).
        #[arg(long, value_name = "FILE")]
        trust: PathBuf,
        /// The tree as JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(verb: &Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::Export { admin, decision, out } => export(admin, *decision, out),
        Verb::Verify { file, trust, json } => verify(file, trust, *json),
    }
}

fn export(admin: &Admin, decision: u64, out: &Path) -> anyhow::Result<Answer> {
    let Reply::Receipt(text) = admin.ask(&Command::Receipt { decision })? else {
        bail!("the gateway answered something else than a receipt");
    };
    let bytes = URL_SAFE_NO_PAD.decode(text).context("the gateway's receipt is not base64url")?;
    std::fs::write(out, &bytes).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{}: {} bytes", out.display(), bytes.len());
    Ok(Answer::Yes)
}

fn verify(file: &Path, trust: &Path, json: bool) -> anyhow::Result<Answer> {
    let read = |path: &Path| format!("cannot read {}", path.display());
    let size = std::fs::metadata(file).with_context(|| read(file))?.len();
    let limit = u64::try_from(receipt::MAX_RECEIPT_BYTES)?;
    if size > limit {
        bail!("{}: expected at most {limit} bytes, got {size}", file.display());
    }
    let bytes = std::fs::read(file).with_context(|| read(file))?;
    let trust = std::fs::read_to_string(trust).with_context(|| read(trust))?;
    let tree = receipt::verify(&bytes, &TrustFile::from_toml(&trust)?);
    if json {
        println!("{}", serde_json::to_string_pretty(&tree)?);
    } else {
        print(&tree);
    }
    Ok(if tree.holds() { Answer::Yes } else { Answer::No })
}

fn print(tree: &VerificationTree) {
    let colour = std::io::stdout().is_terminal();
    println!("{}", plain(&tree.subject));
    for (at, check) in tree.checks.iter().enumerate() {
        print_check(check, "", at + 1 == tree.checks.len(), colour);
    }
    let failures = tree.failures();
    let open = count(&tree.checks, Outcome::NotCheckable);
    if failures.is_empty() {
        println!("every check that a receipt allows holds; {open} could not be made from it alone");
    } else {
        println!("NOT PROVED: {}", failures.join(", "));
    }
}

fn print_check(check: &Check, indent: &str, last: bool, colour: bool) {
    let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
    let mark = mark(check.outcome, colour);
    let detail = match check.outcome {
        Outcome::Fail if !check.expected.is_empty() => {
            format!(": expected {}, got {}", check.expected, check.actual)
        }
        _ if check.actual.is_empty() => String::new(),
        _ => format!(": {}", check.actual),
    };
    println!("{indent}{branch}{mark} {}{}", check.title, plain(&detail));
    for (at, child) in check.checks.iter().enumerate() {
        print_check(child, &format!("{indent}{below}"), at + 1 == check.checks.len(), colour);
    }
}

fn mark(outcome: Outcome, colour: bool) -> String {
    let (text, code) = match outcome {
        Outcome::Pass => ("ok", "32"),
        Outcome::NotCheckable => ("not checkable", "33"),
        Outcome::Fail => ("FAILED", "31"),
    };
    if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// How many checks, groups aside, came to `outcome`.
fn count(checks: &[Check], outcome: Outcome) -> usize {
    let own = |check: &Check| match check.checks.as_slice() {
        [] => usize::from(check.outcome == outcome),
        below => count(below, outcome),
    };
    checks.iter().map(own).sum()
}
