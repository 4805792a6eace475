//! `casemate revoke`: what is revoked is over for good, from the next decision on.

use casemate_gateway::Command;
use clap::Args;

use crate::Answer;
use crate::operator::Admin;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    admin: Admin,
    #[command(flatten)]
    target: Target,
    /// Why; it goes into the log.
    #[arg(long)]
    reason: String,
}

/// What is over: one of these.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// A grant, by its id.
    #[arg(long, value_name = "ID")]
    grant: Option<String>,
    /// An identity, by its key's id: it connects and calls no more.
    #[arg(long, value_name = "KEY")]
    identity: Option<String>,
    /// A sandbox, by its URI: its connection ends, its calls are cancelled.
    #[arg(long, value_name = "URI")]
    sandbox: Option<String>,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<Answer> {
    let Arguments { admin, target, reason } = arguments;
    let command = match target {
        Target { grant: Some(id), .. } => Command::GrantRevoke { id, reason },
        Target { identity: Some(key), .. } => Command::RevokeIdentity { key, reason },
        Target { sandbox, .. } => Command::Kill { sandbox: sandbox.unwrap_or_default(), reason },
    };
    admin.act(&command)
}
