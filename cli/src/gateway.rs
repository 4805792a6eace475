//! `casemate gateway`: run the gateway, or make its keys beforehand.

use std::path::PathBuf;

use casemate_gateway::Config;
use clap::Subcommand;

use crate::{Answer, service};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Makes the gateway's keys and prints what others must be given.
    Init {
        /// gateway.toml (docs/formats/gateway-config.md).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Decides, executes and records calls until it is told to stop.
    Serve {
        /// gateway.toml (docs/formats/gateway-config.md).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

pub(crate) fn run(verb: &Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::Init { config } => {
            let public = casemate_gateway::init(&Config::load(config)?)?;
            println!("ca          {}", public.ca_file.display());
            println!("log_vkey    {}", public.log_vkey);
            println!("gateway_key {}", public.gateway_key);
        }
        Verb::Serve { config } => {
            let config = Config::load(config)?;
            service::run(async { Ok(casemate_gateway::run(config).await?) })?;
        }
    }
    Ok(Answer::Yes)
}
