//! `casemate log`: what the gateway recorded, leaf by leaf.

use anyhow::bail;
use casemate_gateway::{Command, Reply};
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
