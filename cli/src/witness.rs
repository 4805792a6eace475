//! `casemate witness`: a small C2SP witness, to be run by somebody else than
//! the log's operator.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use casemate_gateway::SigningKey;
use casemate_ledger::checkpoint::VerifierKey;
use casemate_ledger::cosignature::WitnessKey;
use casemate_ledger_store::Witness;
use clap::{Args, Subcommand};
use tokio::net::TcpListener;

use crate::{Answer, service};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Makes the witness's key and prints its vkey.
    Init(Who),
    /// Cosigns heads that continue what it saw before, until it is told to stop.
    Serve {
        #[command(flatten)]
        who: Who,
        /// Where logs reach it.
        #[arg(long, value_name = "ADDRESS")]
        listen: SocketAddr,
        /// A log that it watches, as a vkey; more than once for more.
        #[arg(long = "log", value_name = "VKEY", required = true)]
        logs: Vec<String>,
    },
}

/// The witness's name and memory.
#[derive(Args)]
pub(crate) struct Who {
    /// The directory of its key and of what it saw; nobody else may write there.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Its name, a URL without a scheme by convention.
    #[arg(long)]
    name: String,
}

pub(crate) fn run(verb: &Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::Init(who) => println!("{}", open(who)?.1),
        Verb::Serve { who, listen, logs } => service::run(serve(who, *listen, logs))?,
    }
    Ok(Answer::Yes)
}

fn open(who: &Who) -> anyhow::Result<(SigningKey, WitnessKey)> {
    make(&who.state)?;
    let key = SigningKey::open(&who.state.join("witness.key"))?;
    let public = WitnessKey::new(&who.name, *key.public())?;
    Ok((key, public))
}

fn make(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))
}

async fn serve(who: &Who, listen: SocketAddr, logs: &[String]) -> anyhow::Result<()> {
    let (key, public) = open(who)?;
    let logs = logs.iter().map(|log| VerifierKey::parse(log)).collect::<Result<Vec<_>, _>>()?;
    let memory = who.state.join("seen");
    let sign = Box::new(move |message: &[u8]| key.sign(message));
    let witness = Witness::open(&memory, public.clone(), sign, logs)?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen {listen}"))?;
    println!("{public} http://{}", listener.local_addr()?);
    tokio::select! {
        () = casemate_ledger_http::serve_witness(listener, Arc::new(witness)) => {}
        ended = service::told_to_stop() => ended?,
    }
    Ok(())
}
