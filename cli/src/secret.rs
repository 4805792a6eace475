//! `casemate secret`: what the verifier may release, and the leases it gave.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use casemate_attestation::Risk;
use casemate_verifier::{Command, Reply, call};
use clap::{Args, Subcommand};

use crate::{Answer, table};

/// Where the verifier's operator socket is.
#[derive(Args)]
pub(crate) struct Admin {
    /// The verifier's admin socket.
    #[arg(long, value_name = "SOCKET")]
    admin: PathBuf,
}

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Stores or replaces a secret; the value comes from a file or standard input.
    Put {
        #[command(flatten)]
        admin: Admin,
        /// The secret's name.
        name: String,
        /// The harm that its loss could do: low, medium or high.
        #[arg(long)]
        risk: Risk,
        /// Seconds that a lease of it runs.
        #[arg(long, default_value_t = 600, value_name = "SECONDS")]
        ttl: u64,
        /// The file that holds the value; standard input if not given.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Lists the secrets, without their values.
    List {
        #[command(flatten)]
        admin: Admin,
    },
    /// Lists the newest leases.
    Leases {
        #[command(flatten)]
        admin: Admin,
    },
    /// Ends one lease.
    RevokeLease {
        #[command(flatten)]
        admin: Admin,
        /// The lease's id.
        lease: String,
    },
    /// Ends an identity and all its leases, for good.
    RevokeIdentity {
        #[command(flatten)]
        admin: Admin,
        /// The sandbox's SPIFFE ID.
        sandbox: String,
    },
}

pub(crate) fn run(verb: Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::Put { admin, name, risk, ttl, file } => {
            let value = value(file.as_deref())?;
            done(&admin, &Command::put_secret(&name, risk, ttl, &value))
        }
        Verb::List { admin } => list(&admin),
        Verb::Leases { admin } => leases(&admin),
        Verb::RevokeLease { admin, lease } => done(&admin, &Command::RevokeLease { lease }),
        Verb::RevokeIdentity { admin, sandbox } => {
            done(&admin, &Command::RevokeIdentity { sandbox })
        }
    }
}

fn done(admin: &Admin, command: &Command) -> anyhow::Result<Answer> {
    match call(&admin.admin, command)? {
        Reply::Done => {
            println!("done");
            Ok(Answer::Yes)
        }
        other => bail!("the verifier answered something else: {other:?}"),
    }
}

fn list(admin: &Admin) -> anyhow::Result<Answer> {
    let Reply::Secrets(secrets) = call(&admin.admin, &Command::ListSecrets)? else {
        bail!("the verifier answered something else than its secrets");
    };
    let rows = secrets.iter().map(|secret| {
        vec![secret.name.clone(), secret.risk.to_string(), format!("{} s", secret.ttl_seconds)]
    });
    table::print(&["NAME", "RISK", "LEASE"], rows);
    Ok(Answer::Yes)
}

fn leases(admin: &Admin) -> anyhow::Result<Answer> {
    let Reply::Leases(leases) = call(&admin.admin, &Command::ListLeases)? else {
        bail!("the verifier answered something else than its leases");
    };
    for lease in &leases {
        println!("{}", serde_json::to_string(lease)?);
    }
    Ok(Answer::Yes)
}

/// The secret's bytes, as they are: a trailing newline is part of them.
fn value(file: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    match file {
        Some(path) => {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
        }
        None => {
            let mut value = Vec::new();
            std::io::stdin().take(MAX_SECRET_BYTES + 1).read_to_end(&mut value)?;
            Ok(value)
        }
    }
}

/// One byte more than this and the verifier names its own limit.
const MAX_SECRET_BYTES: u64 = 1024 * 1024;
