//! `casemate log`: what the gateway recorded, leaf by leaf.

mod audit;
mod files;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::bail;
use casemate_gateway::{Command, Reply};
use casemate_ledger::text;
use casemate_ledger_store::read_payloads;
use clap::Subcommand;

use crate::operator::Admin;
use crate::{Answer, table};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// How the gateway and its log stand.
    Status {
        #[command(flatten)]
        admin: Admin,
    },
    /// Prints leaves of the log.
    List {
        #[command(flatten)]
        admin: Admin,
        /// The first leaf.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many, at most 256.
        #[arg(long, default_value_t = 256)]
        count: u64,
        /// One JSON object a leaf.
        #[arg(long)]
        json: bool,
    },
    /// Serves a log's directory over HTTP (C2SP tlog-tiles), read only.
    Serve {
        /// The log (state_dir/log, or a copy).
        #[arg(long, value_name = "DIR")]
        log: PathBuf,
        /// Where readers reach it.
        #[arg(long, value_name = "ADDRESS")]
        listen: SocketAddr,
    },
    /// Writes a leaf and the proof that it is in the log, from the log's files.
    Prove {
        /// The log (state_dir/log, or a copy).
        #[arg(long, value_name = "DIR")]
        log: PathBuf,
        /// The log's key, a vkey.
        #[arg(long, value_name = "VKEY")]
        key: String,
        /// The leaf's index.
        #[arg(long)]
        leaf: u64,
        /// The files to write, with .tlog-proof and .leaf in place of its extension.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Writes the COSE receipt (RFC 9942) of a leaf.
    CoseReceipt {
        #[command(flatten)]
        admin: Admin,
        /// The leaf's index.
        #[arg(long)]
        leaf: u64,
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Checks a .tlog-proof or a COSE receipt of a leaf, offline.
    Check {
        /// The proof.
        proof: PathBuf,
        /// The leaf.
        #[arg(long, value_name = "FILE")]
        leaf: PathBuf,
        /// The log's key, a vkey.
        #[arg(long, value_name = "VKEY")]
        key: String,
        /// Which witnesses must have cosigned: a C2SP tlog-policy.
        #[arg(long, value_name = "FILE")]
        witnesses: Option<PathBuf>,
    },
    /// Checks a whole log offline: signatures, chains, outcomes, and each decision
    /// again from its grant and call. What cannot be checked is said apart.
    Audit {
        /// A copy of the gateway's `log` and `certificates`, and of `payloads` if disclosed.
        export: PathBuf,
        /// Whom the auditor trusts (docs/formats/receipt.md).
        #[arg(long, value_name = "FILE")]
        trust: PathBuf,
        /// The keys of the tasks whose payloads are disclosed.
        #[arg(long, value_name = "DIR")]
        payload_keys: Option<PathBuf>,
    },
    /// Deletes the key of a task's arguments and results. Proofs stay valid.
    Shred {
        #[command(flatten)]
        admin: Admin,
        /// The task.
        #[arg(long)]
        task: String,
    },
    /// Opens a task's arguments and results for who holds their key.
    Payloads {
        /// The task's records (state_dir/payloads).
        #[arg(long, value_name = "FILE")]
        records: PathBuf,
        /// The task's key (state_dir/keys/payloads).
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Only the payload with this commitment, 64 hex digits.
        #[arg(long, value_name = "HEX")]
        commitment: Option<String>,
    },
}

pub(crate) fn run(verb: &Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::Status { admin } => {
            let Reply::Status(status) = admin.ask(&Command::Status)? else {
                bail!("the gateway answered something else than its status");
            };
            println!("{}", serde_json::to_string_pretty(&status)?);
        }
        Verb::List { admin, from, count, json } => list(admin, *from, *count, *json)?,
        Verb::Serve { log, listen } => return files::serve(log, *listen),
        Verb::Prove { log, key, leaf, out } => return files::prove(log, key, *leaf, out),
        Verb::CoseReceipt { admin, leaf, out } => return files::cose_receipt(admin, *leaf, out),
        Verb::Check { proof, leaf, key, witnesses } => {
            return files::check(proof, leaf, key, witnesses.as_deref());
        }
        Verb::Audit { export, trust, payload_keys } => {
            return audit::run(export, trust, payload_keys.as_deref());
        }
        Verb::Shred { admin, task } => {
            return admin.act(&Command::PayloadsShred { task: task.clone() });
        }
        Verb::Payloads { records, key, commitment } => {
            return payloads(records, key, commitment.as_deref());
        }
    }
    Ok(Answer::Yes)
}

fn list(admin: &Admin, from: u64, count: u64, json: bool) -> anyhow::Result<()> {
    let Reply::Log(entries) = admin.ask(&Command::Log { from, count })? else {
        bail!("the gateway answered something else than its log");
    };
    if json {
        for entry in &entries {
            println!("{}", serde_json::to_string(entry)?);
        }
        return Ok(());
    }
    let rows =
        entries.into_iter().map(|entry| vec![entry.index.to_string(), entry.kind, entry.text]);
    table::print(&["LEAF", "KIND", "RECORD"], rows);
    Ok(())
}

/// One line a payload: commitment, kind, JSON. Each was checked against its commitment.
fn payloads(records: &Path, key: &Path, wanted: Option<&str>) -> anyhow::Result<Answer> {
    let mut found = 0;
    for (commitment, payload) in read_payloads(records, key)? {
        let commitment = text::hex(&commitment.digest);
        if wanted.is_none_or(|wanted| wanted == commitment) {
            found += 1;
            let json = String::from_utf8_lossy(&payload.bytes);
            println!("{commitment} {} {}", payload.kind.name(), table::plain(&json));
        }
    }
    Ok(if found == 0 { Answer::No } else { Answer::Yes })
}
