//! The gateway's operator socket, as the verbs that act on it share it.

use std::path::PathBuf;

use anyhow::bail;
use casemate_gateway::{Client, Command, Reply};
use clap::Args;

use crate::{Answer, Refused, service};

/// Which gateway: its operator socket.
#[derive(Args)]
pub(crate) struct Admin {
    /// The gateway's admin socket.
    #[arg(long, value_name = "SOCKET")]
    admin: PathBuf,
}

impl Admin {
    /// Asks the gateway; a refusal is an error that says why.
    pub(crate) fn ask(&self, command: &Command) -> anyhow::Result<Reply> {
        match service::block_on(Client::call(&self.admin, command))?? {
            Reply::Refused(reason) => Err(Refused(reason).into()),
            reply => Ok(reply),
        }
    }

    /// Has the gateway do something, and says where the log has it.
    pub(crate) fn act(&self, command: &Command) -> anyhow::Result<Answer> {
        match self.ask(command)? {
            Reply::Done(leaf) => {
                println!("done, leaf {leaf}");
                Ok(Answer::Yes)
            }
            other => bail!("the gateway answered something else: {other:?}"),
        }
    }
}
