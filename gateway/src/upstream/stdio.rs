//! A tool server as a child process, confined unless the operator says that
//! it is not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use casemate_confine::tool::{OUTSIDE, PLAN, Plan};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::config::{Confinement, Upstream};
use super::{Means, UpstreamError, sys};
use crate::sync::locked;

/// A server's process and its group, which are ended together. Of a confined
/// server this is the helper, and everything behind it dies with the helper. An
/// unconfined one that clears its parent death signal and leaves the group
/// outlives its connection.
pub(super) struct Group {
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
}

/// The largest program that is hashed.
const MAX_PROGRAM_BYTES: u64 = 512 << 20;
/// What is kept of a server's standard error, to say why it did not start.
const MAX_SAID: usize = 2048;
/// Users of tool servers are numbered from here: above what adduser, systemd
/// and container tools give out.
const FIRST_USER: u32 = 1_900_000_000;

impl Group {
    /// Starts the server in place `at` of the configuration.
    pub(super) fn start(
        config: &Upstream,
        means: &Means<'_>,
        at: usize,
    ) -> Result<(Self, ChildStdout, ChildStdin), UpstreamError> {
        let mut command = match config.confinement {
            Confinement::Full => confined(config, means, at)?,
            Confinement::None => unconfined(config, means),
        };
        command
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        sys::confine(&mut command);
        let mut child = command.spawn().map_err(|error| program_error(config, error))?;
        let said = Arc::default();
        if let Some(stream) = child.stderr.take() {
            tokio::spawn(listen(stream, Arc::clone(&said)));
        }
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(program_error(config, "no pipes"));
        };
        Ok((Self { child, said }, output, input))
    }

    /// The first words of the server's standard error.
    pub(super) fn said(&self) -> String {
        let said = locked(&self.said);
        String::from_utf8_lossy(&said).trim().chars().filter(|c| !c.is_control()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The leader is not reaped before this, so that the number is still its own.
        let leader = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(leader) = leader {
            // An error says that none is left.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// SHA-256 of the server's program.
pub(super) async fn program_digest(config: &Upstream) -> Result<[u8; 32], UpstreamError> {
    let program = config.command.first().map_or("", String::as_str);
    let length = tokio::fs::metadata(program).await.map_err(|e| program_error(config, e))?.len();
    if length > MAX_PROGRAM_BYTES {
        return Err(program_error(config, "expected a program of at most 512 MiB"));
    }
    let bytes = tokio::fs::read(program).await.map_err(|e| program_error(config, e))?;
    Ok(casemate_ledger::digest(&bytes))
}

/// Reads all that comes, so that the server does not wait, and keeps little.
async fn listen(mut stream: impl AsyncRead + Unpin, said: Arc<Mutex<Vec<u8>>>) {
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        let mut said = locked(&said);
        let room = MAX_SAID.saturating_sub(said.len()).min(count);
        said.extend_from_slice(chunk.get(..room).unwrap_or_default());
    }
}

fn confined(config: &Upstream, means: &Means<'_>, at: usize) -> Result<Command, UpstreamError> {
    let confine = &config.confine;
    let default = FIRST_USER.saturating_add(u32::try_from(at).unwrap_or(u32::MAX));
    let plan = Plan {
        command: config.command.clone(),
        env: environment(config, means),
        parent: i32::try_from(std::process::id()).unwrap_or(0),
        uid: confine.uid.unwrap_or(default),
        read: confine.read.clone(),
        write: confine.write.clone(),
        network: confine.network,
        processes: confine.processes,
        memory_mib: confine.memory_mib,
        tmp_mib: confine.tmp_mib,
    };
    let plan = serde_json::to_string(&plan).map_err(|error| program_error(config, error))?;
    let mut command = Command::new(means.helper);
    command.arg(OUTSIDE).env_clear().env(PLAN, plan);
    Ok(command)
}

/// What the configuration says, with the credentials of the files.
fn environment(config: &Upstream, means: &Means<'_>) -> BTreeMap<String, String> {
    let secret = |(name, file): (&String, &PathBuf)| {
        Some((name.clone(), means.secrets.value(file)?.to_owned()))
    };
    let open = config.env.clone().into_iter();
    open.chain(config.secret_env.iter().filter_map(secret)).collect()
}

fn unconfined(config: &Upstream, means: &Means<'_>) -> Command {
    let mut words = config.command.iter();
    let mut command = Command::new(words.next().map_or("", String::as_str));
    command.args(words).env_clear().envs(environment(config, means));
    command
}

fn program_error(config: &Upstream, reason: impl ToString) -> UpstreamError {
    UpstreamError::Program {
        name: config.name.clone(),
        program: config.command.join(" "),
        reason: reason.to_string(),
    }
}
