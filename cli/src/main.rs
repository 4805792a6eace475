//! `casemate`: build, run, verify, prove.
//!
//! A verb is a file. Exit codes: 0 yes, 1 no, 2 could not tell. Output is for
//! people unless `--json` is given. No flag turns a check off.

mod approve;
mod demo;
mod doctor;
mod gateway;
mod grant;
mod image;
mod input;
mod log;
mod machine;
mod measure;
mod operator;
mod output;
mod receipt;
mod revoke;
mod run;
mod secret;
mod service;
mod stop;
mod table;
mod top;
mod verifier;
mod verify;
mod witness;

use std::process::ExitCode;

use casemate_host::LaunchError;
use casemate_verifier::AdminError;
use clap::{Parser, Subcommand};

/// A confidential-computing sandbox for AI agents: run it, verify it, prove what it did.
#[derive(Parser)]
#[command(name = "casemate", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Shows the main job on this machine, start to end.
    Demo(demo::Arguments),
    /// Tells what this machine can do, and which boundary classes follow.
    Doctor(doctor::Arguments),
    /// Builds the measured image, or checks one.
    #[command(subcommand)]
    Image(image::Verb),
    /// Runs a machine from launch to its end.
    Run(run::Arguments),
    /// Lists the machines that run on this host.
    Ps(machine::Here),
    /// Ends a machine now.
    Kill(machine::Kill),
    /// This host's keys, for those who are to believe it.
    #[command(subcommand)]
    Host(machine::Verb),
    /// The tenant's verifier: challenge, appraise, release.
    #[command(subcommand)]
    Verifier(verifier::Verb),
    /// What the verifier may release, and the leases it gave.
    #[command(subcommand)]
    Secret(secret::Verb),
    /// The gateway: decide, execute, record.
    #[command(subcommand)]
    Gateway(gateway::Verb),
    /// What a task may do.
    #[command(subcommand)]
    Grant(grant::Verb),
    /// Calls that wait for people.
    #[command(subcommand)]
    Approve(approve::Verb),
    /// Stops sandboxes, tasks, tenants or all, and lets them go on.
    #[command(subcommand)]
    Stop(stop::Verb),
    /// Ends a grant, an identity or a sandbox at the gateway, for good.
    Revoke(revoke::Arguments),
    /// Sandboxes, budgets, waiting calls and denials of a gateway, live.
    Top(top::Arguments),
    /// What the gateway recorded.
    #[command(subcommand)]
    Log(log::Verb),
    /// A witness of logs: cosigns heads that continue what it saw.
    #[command(subcommand)]
    Witness(witness::Verb),
    /// Judges evidence offline: SNP reports, TDX quotes, envelopes, bundles.
    Verify(verify::Arguments),
    /// Computes what a launch must measure to, and says how an observed digest differs.
    #[command(subcommand)]
    Measure(measure::Verb),
    /// The proof of one call.
    #[command(subcommand)]
    Receipt(receipt::Verb),
}

/// The answer of a verb, as an exit code tells it.
pub(crate) enum Answer {
    /// 0: done, or verified.
    Yes,
    /// 1: refused, or not verified.
    No,
    /// 2: what it would take to tell was not given.
    Unknown,
}

impl Answer {
    /// The answer's name in JSON.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "could not tell",
        }
    }
}

/// A service, or this host, that understood and said no.
#[derive(Debug, thiserror::Error)]
#[error("refused: {0}")]
pub(crate) struct Refused(pub(crate) String);

fn main() -> ExitCode {
    // The gateway starts this program again to confine a tool server.
    let word = std::env::args().nth(1);
    if let Some(code) = casemate_gateway::confine_if_asked(word.as_deref()) {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let answer = match cli.verb {
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Doctor(arguments) => doctor::run(&arguments),
        Verb::Image(verb) => image::run(&verb),
        Verb::Run(arguments) => run::run(&arguments),
        Verb::Ps(here) => machine::list(&here),
        Verb::Kill(arguments) => machine::kill(&arguments),
        Verb::Host(verb) => machine::run(&verb),
        Verb::Verifier(verb) => verifier::run(&verb),
        Verb::Secret(verb) => secret::run(verb),
        Verb::Gateway(verb) => gateway::run(&verb),
        Verb::Grant(verb) => grant::run(&verb),
        Verb::Approve(verb) => approve::run(&verb),
        Verb::Stop(verb) => stop::run(verb),
        Verb::Revoke(arguments) => revoke::run(arguments),
        Verb::Top(arguments) => top::run(&arguments),
        Verb::Log(verb) => log::run(&verb),
        Verb::Witness(verb) => witness::run(&verb),
        Verb::Verify(arguments) => verify::run(&arguments),
        Verb::Measure(verb) => measure::run(&verb),
        Verb::Receipt(verb) => receipt::run(&verb),
    };
    exit_code(&answer)
}

fn exit_code(answer: &anyhow::Result<Answer>) -> ExitCode {
    match answer {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Ok(Answer::Unknown) => ExitCode::from(2),
        Err(error) => {
            output::complain(&output::reason(error));
            ExitCode::from(if is_refusal(error) { 1 } else { 2 })
        }
    }
}

/// Arguments that do not read, or a call for help. Where `--json` is among them, the verbs
/// that promise one object whatever happens keep the promise.
fn misused(error: &clap::Error) -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let promised = words.first().is_some_and(|verb| verb == "verify" || verb == "measure");
    let json = |word: &std::ffi::OsString| word.as_encoded_bytes().starts_with(b"--json");
    if !error.use_stderr() || !promised || !words.iter().any(json) {
        error.exit();
    }
    drop(error.print());
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    // What follows is for people: how it is used, and where there is help.
    let text = text.split("\n\nUsage:").next().unwrap_or_default();
    let text = text.split("\n\nFor more information").next().unwrap_or_default();
    let reason = text.split_whitespace().collect::<Vec<_>>().join(" ");
    exit_code(&output::Said::input(&reason).write())
}

/// Whether an error is a clear no, and not a failure to find out.
fn is_refusal(error: &anyhow::Error) -> bool {
    error.is::<Refused>()
        || matches!(error.downcast_ref(), Some(LaunchError::Unbuildable { .. }))
        || matches!(error.downcast_ref(), Some(AdminError::Refused(_)))
}
