//! `casemate host`, `casemate kill`, `casemate ps`: this host and its machines.

use std::path::{Path, PathBuf};

use casemate_host::{Exit, Host, HostConfig, Paused, State, control};
use clap::{Args, Subcommand};

use crate::{Answer, service, table};

/// Which host: its configuration.
#[derive(Args)]
pub(crate) struct Here {
    /// host.toml (docs/formats/host-config.md).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Prints the trust anchors by which a verifier believes this host, and its model if it has one.
    Enrolment(Here),
}

/// The end of a machine, now.
#[derive(Args)]
pub(crate) struct Kill {
    #[command(flatten)]
    here: Here,
    /// The machine's id, or the beginning of it.
    id: String,
}

pub(crate) fn run(verb: &Verb) -> anyhow::Result<Answer> {
    let Verb::Enrolment(here) = verb;
    let host = Host::open(HostConfig::read(&here.config)?)?;
    print!("{}", host.enrolment());
    let label = format!("software model of the AMD PSP on {}", host.config().name);
    if let Some(anchor) = host.psp_anchor(&label) {
        print!("\n{anchor}");
    }
    let label = format!("software model of NVIDIA devices on {}", host.config().name);
    if let Some(anchor) = host.gpu_anchor(&label) {
        print!("\n{anchor}");
    }
    Ok(Answer::Yes)
}

pub(crate) fn kill(arguments: &Kill) -> anyhow::Result<Answer> {
    let state = state(&arguments.here.config)?;
    let killed = service::block_on(control::kill(&state, &arguments.id))??;
    println!("{} after {} ms", killed.exit, killed.after_ms);
    Ok(if killed.exit == Exit::Killed { Answer::Yes } else { Answer::No })
}

pub(crate) fn list(here: &Here) -> anyhow::Result<Answer> {
    let state = state(&here.config)?;
    let mut rows = Vec::new();
    for id in control::running(&state) {
        let status = service::block_on(control::status(&state, &id))??;
        let state = match status.paused {
            Some(Paused::Stop) => "stopped by the gateway",
            Some(Paused::Lease) => "paused, no gateway",
            None if status.state == State::Launched => "boots",
            None => "runs",
        };
        let boundary = status.boundary.to_string();
        rows.push(vec![status.id, status.task, state.to_owned(), boundary, status.backend]);
    }
    table::print(&["MACHINE", "TASK", "STATE", "BOUNDARY", "BACKEND"], rows.into_iter());
    Ok(Answer::Yes)
}

fn state(config: &Path) -> anyhow::Result<PathBuf> {
    Ok(HostConfig::read(config)?.state)
}
