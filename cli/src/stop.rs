//! `casemate stop`: nobody of a scope calls tools any more, until it is lifted.

use std::path::PathBuf;

use anyhow::bail;
use casemate_gateway::{Command, Reply, Stopped};
use clap::Subcommand;

use crate::operator::Admin;
use crate::{Answer, Refused, approve, table};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Stops a scope now: its connections end and its calls are refused.
    Now {
        #[command(flatten)]
        admin: Admin,
        /// all, tenant:NAME, task:NAME or sandbox:URI.
        scope: String,
        /// freeze: the gateway takes no calls; pause: its machines' CPUs stand too; destroy: they end.
        #[arg(long, default_value = "freeze")]
        level: String,
        /// Why; it goes into the log.
        #[arg(long)]
        reason: String,
    },
    /// Lists the stops in force.
    List {
        #[command(flatten)]
        admin: Admin,
    },
    /// Signs an approver's yes to lifting a stop of a tenant or of all, and prints it.
    Sign {
        #[command(flatten)]
        admin: Admin,
        /// The approver's key.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The approver's name, as the gateway's operator listed it.
        #[arg(long, value_name = "NAME")]
        name: String,
        /// The scope that is stopped.
        scope: String,
    },
    /// Lifts a stop; of a tenant or of all by the signed yes of two persons.
    Lift {
        #[command(flatten)]
        admin: Admin,
        /// The scope that is stopped.
        scope: String,
        /// Why; it goes into the log.
        #[arg(long)]
        reason: String,
        /// What `casemate stop sign` printed; twice, for two persons.
        #[arg(long, value_name = "TEXT")]
        approval: Vec<String>,
    },
}

pub(crate) fn run(verb: Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::Now { admin, scope, level, reason } => {
            admin.act(&Command::Stop { scope, level, reason })
        }
        Verb::List { admin } => {
            let rows = stops(&admin)?.into_iter().map(|stop| vec![stop.scope, stop.level, stop.id]);
            table::print(&["SCOPE", "LEVEL", "STOP"], rows);
            Ok(Answer::Yes)
        }
        Verb::Sign { admin, key, name, scope } => {
            let stop = stops(&admin)?.into_iter().find(|stop| stop.scope == scope);
            let Some((id, Some(display))) = stop.map(|stop| (stop.id, stop.display)) else {
                let text = format!("scope: expected a stop that takes two persons, got {scope}");
                return Err(Refused(text).into());
            };
            eprintln!("{}", table::plain(&display));
            println!("{}", approve::sign(&key, &name, (&id, &display), (true, None))?);
            Ok(Answer::Yes)
        }
        Verb::Lift { admin, scope, reason, approval } => {
            admin.act(&Command::StopLift { scope, reason, approvals: approval })
        }
    }
}

/// The stops in force.
pub(crate) fn stops(admin: &Admin) -> anyhow::Result<Vec<Stopped>> {
    match admin.ask(&Command::StopList)? {
        Reply::Stops(stops) => Ok(stops),
        _ => bail!("the gateway answered something else than its stops"),
    }
}
