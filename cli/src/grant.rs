//! `casemate grant`: make and sign a grant, see what was used of it, end it.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use casemate_attestation::UnixTime;
use casemate_gateway::{Command, Reply, SigningKey, grant_from_toml, sign_grant};
use clap::Subcommand;

use crate::operator::Admin;
use crate::{Answer, table};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Makes an issuer's key (issuer.key, mode 0600) and prints its public half.
    Keygen {
        /// The folder for the key.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Signs the grant in a TOML file and gives it to the gateway.
    Create {
        #[command(flatten)]
        admin: Admin,
        /// The issuer's key.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The issuer's name, as the gateway's operator listed it.
        #[arg(long, value_name = "NAME")]
        issuer: String,
        /// The grant (docs/formats/grant.md).
        file: PathBuf,
    },
    /// Lists the grants and what was used of each.
    List {
        #[command(flatten)]
        admin: Admin,
    },
    /// Lets a grant go on that was suspended because its sandbox went round in circles.
    Resume {
        #[command(flatten)]
        admin: Admin,
        /// The grant's id.
        id: String,
        /// Why; it goes into the log.
        #[arg(long)]
        reason: String,
    },
    /// Ends a grant: the next decision knows.
    Revoke {
        #[command(flatten)]
        admin: Admin,
        /// The grant's id.
        id: String,
        /// Why; it goes into the log.
        #[arg(long)]
        reason: String,
    },
}

pub(crate) fn run(verb: &Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::Keygen { out } => {
            std::fs::create_dir_all(out)?;
            let key = SigningKey::open(&out.join("issuer.key"))?;
            println!("key {}", hex::encode(key.public()));
            Ok(Answer::Yes)
        }
        Verb::Create { admin, key, issuer, file } => create(admin, key, issuer, file),
        Verb::List { admin } => list(admin),
        Verb::Resume { admin, id, reason } => {
            admin.act(&Command::GrantResume { id: id.clone(), reason: reason.clone() })
        }
        Verb::Revoke { admin, id, reason } => {
            admin.act(&Command::GrantRevoke { id: id.clone(), reason: reason.clone() })
        }
    }
}

fn create(admin: &Admin, key: &Path, issuer: &str, file: &Path) -> anyhow::Result<Answer> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    if !key.exists() {
        bail!("{}: no such key; `casemate grant keygen` makes one", key.display());
    }
    let grant = grant_from_toml(&text, issuer, now()?)?;
    let id = hex::encode(grant.id);
    let signed = sign_grant(grant, &SigningKey::open(key)?);
    println!("grant {id}");
    admin.act(&Command::GrantAdd { grant: URL_SAFE_NO_PAD.encode(signed.bytes()) })
}

fn list(admin: &Admin) -> anyhow::Result<Answer> {
    let Reply::Grants(grants) = admin.ask(&Command::GrantList)? else {
        bail!("the gateway answered something else than its grants");
    };
    let rows = grants.into_iter().map(|grant| {
        let used = format!("{}/{}", grant.calls, grant.max_calls);
        vec![grant.id, grant.state, grant.task, used, grant.tools.join(" ")]
    });
    table::print(&["GRANT", "STATE", "TASK", "CALLS", "TOOLS"], rows);
    Ok(Answer::Yes)
}

/// This machine's clock: whoever issues a grant says from when it holds.
fn now() -> anyhow::Result<UnixTime> {
    Ok(UnixTime(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()))
}
