//! Control of running machines over a unix socket, one a machine: JSON lines.
//! Format: docs/formats/machine-control.md. The socket lies in a folder that
//! only the host's user may enter.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::backend::MUX_SOCKET;
use crate::machine::{Exit, Shared, Status};
use crate::qemu::QMP_SOCKET;
use crate::socket;
use crate::vmm::CONTROL_SOCKET;

/// One request line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// How the machine is; the answer is [`Status`].
    Status {},
    /// End it now; the answer, [`Killed`], comes when nothing of it runs.
    Kill {},
}

/// The answer to [`Request::Kill`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Killed {
    /// How the machine ended: `killed`, unless something else was faster.
    pub exit: Exit,
    /// Milliseconds from the request to the end of its process.
    pub after_ms: u64,
}

/// The answer to a request that is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Refusal {
    error: String,
}

/// Why a machine cannot be controlled.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No machine has this id.
    #[error("machine {id}: expected one of the running ones ({running}), found {found}")]
    Unknown {
        /// What was asked for.
        id: String,
        /// How many fit.
        found: usize,
        /// The ids that run.
        running: String,
    },
    /// Its process is gone, or does not answer.
    #[error("machine {id}: {source}")]
    Io {
        /// The machine.
        id: String,
        /// Why not.
        source: io::Error,
    },
    /// The answer is not one.
    #[error("machine {id}: {reason}")]
    Answer {
        /// The machine.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The ids of the machines that run under the host's `state` folder.
pub fn running(state: &Path) -> Vec<String> {
    let mut ids: Vec<_> = folders(&state.join("run"))
        .into_iter()
        .filter(|folder| answers(folder))
        .filter_map(|folder| Some(folder.file_name()?.to_str()?.to_owned()))
        .collect();
    ids.sort();
    ids
}

/// How the machine `id` is. `id` may be shortened while it is unique.
pub async fn status(state: &Path, id: &str) -> Result<Status, ControlError> {
    ask(state, id, Request::Status {}).await
}

/// Ends the machine `id` and waits until nothing of it runs.
pub async fn kill(state: &Path, id: &str) -> Result<Killed, ControlError> {
    ask(state, id, Request::Kill {}).await
}

async fn ask<T: for<'de> Deserialize<'de>>(
    state: &Path,
    id: &str,
    request: Request,
) -> Result<T, ControlError> {
    let ids = running(state);
    let fitting: Vec<_> = ids.iter().filter(|known| known.starts_with(id)).collect();
    let [id] = fitting.as_slice() else {
        let running = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
        return Err(ControlError::Unknown { id: id.to_owned(), found: fitting.len(), running });
    };
    let io = |source| ControlError::Io { id: (*id).clone(), source };
    let folder = state.join("run").join(id);
    let answer = timeout(PATIENCE, exchange(&folder, request)).await;
    let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(io)?;
    serde_json::from_slice(&answer).map_err(|error| {
        let refusal = serde_json::from_slice::<Refusal>(&answer).map(|refusal| refusal.error);
        ControlError::Answer { id: (*id).clone(), reason: refusal.unwrap_or(error.to_string()) }
    })
}

async fn exchange(folder: &Path, request: Request) -> io::Result<Vec<u8>> {
    let stream = socket::connect(folder, SOCKET)?;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let line = serde_json::to_string(&request)?;
    stream.write_all(format!("{line}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    BufReader::new(stream).take(MAX_ANSWER).read_until(b'\n', &mut answer).await?;
    Ok(answer)
}

/// Answers requests until the machine is over.
pub(crate) fn serve(shared: &Arc<Shared>) -> io::Result<()> {
    let listener = socket::bind(&shared.folder, SOCKET)?;
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        let mut over = shared.over.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = over.wait_for(|over| *over) => break,
            };
            let Ok((stream, _)) = accepted else {
                // What failed, as for want of descriptors, may fail at once again.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                let _ = timeout(PATIENCE, answer(stream, &shared)).await;
                drop(place);
            });
        }
    });
    Ok(())
}

/// One line, one answer, as often as the client asks within [`PATIENCE`].
async fn answer(stream: UnixStream, shared: &Shared) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        (&mut stream).take(MAX_REQUEST).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        let _answering = shared.answering.read().await;
        let answer = match serde_json::from_slice(&line) {
            Ok(Request::Status {}) => serde_json::to_string(&*shared.status.borrow())?,
            Ok(Request::Kill {}) => {
                let started = Instant::now();
                shared.kill.notify_one();
                let exit = shared.wait().await;
                let after_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                serde_json::to_string(&Killed { exit, after_ms })?
            }
            Err(error) => serde_json::to_string(&Refusal { error: error.to_string() })?,
        };
        stream.get_mut().write_all(format!("{answer}\n").as_bytes()).await?;
    }
}

/// Leaves the console and the last status, takes the sockets away.
pub(crate) fn finish(shared: &Shared) {
    for name in [SOCKET, MUX_SOCKET, QMP_SOCKET, CONTROL_SOCKET] {
        let _ = fs::remove_file(shared.folder.join(name));
    }
    if let Ok(status) = serde_json::to_string_pretty(&*shared.status.borrow()) {
        let _ = fs::write(shared.folder.join("status.json"), status);
    }
}

/// Removes the oldest folders of machines that are over, so that they stay few.
pub(crate) fn prune(run: &Path) {
    let mut over: Vec<_> = folders(run)
        .into_iter()
        .filter(|folder| !answers(folder))
        .filter_map(|folder| Some((fs::metadata(&folder).ok()?.modified().ok()?, folder)))
        // A machine that is being launched has no socket yet.
        .filter(|(made, _)| made.elapsed().is_ok_and(|age| age > Duration::from_secs(600)))
        .collect();
    over.sort();
    for (_, folder) in over.iter().rev().skip(MAX_KEPT) {
        let _ = fs::remove_dir_all(folder);
    }
}

/// Whether somebody listens: a host that was killed leaves its socket behind.
fn answers(folder: &Path) -> bool {
    socket::connect(folder, SOCKET).is_ok()
}

fn folders(run: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(run).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

const SOCKET: &str = "control.sock";
const MAX_REQUEST: u64 = 4096;
const MAX_ANSWER: u64 = 256 * 1024;
const MAX_CLIENTS: usize = 8;
const MAX_KEPT: usize = 16;
const PATIENCE: Duration = Duration::from_secs(30);
