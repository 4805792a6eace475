//! `casemate verifier`: run the tenant's verifier, or make its keys beforehand.

use std::path::PathBuf;

use casemate_verifier::Config;
use clap::Subcommand;

use crate::{Answer, service};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Makes the verifier's keys and prints the files that others must be given.
    Init {
        /// verifier.toml (docs/formats/verifier-config.md).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Challenges, appraises and releases until it is told to stop.
    Serve {
        /// verifier.toml (docs/formats/verifier-config.md).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

pub(crate) fn run(verb: &Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::Init { config } => {
            let files = casemate_verifier::init(&Config::load(config)?)?;
            println!("tls_ca      {}", files.tls_ca.display());
            println!("identity_ca {}", files.identity_ca.display());
        }
        Verb::Serve { config } => {
            let config = Config::load(config)?;
            service::run(async { Ok(casemate_verifier::run(config).await?) })?;
        }
    }
    Ok(Answer::Yes)
}
