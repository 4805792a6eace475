//! The workload's only way out: an MCP server with several doors and one
//! handler. It translates between the client's protocol era and the gateway's,
//! refuses what is not strict JSON, and decides nothing.
//!
//! Doors: lines over a unix socket; the same over the standard streams of a
//! program that joins them with that socket; Streamable HTTP over another unix
//! socket, and over the loopback of the workload's network. The workload's
//! environment names them ([`environment`]).

mod desk;
mod http;
mod limits;
mod lines;
#[cfg(test)]
mod stand_in;
pub mod stdio;
mod translate;

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::config;
use crate::console::say;
use crate::gateway::Tools;
use desk::Desk;
pub use http::{ADDRESS as HTTP_ADDRESS, PATH as HTTP_PATH};
use limits::RequestRate;

/// The socket for lines in the port's directory.
pub const SOCKET: &str = "mcp.sock";
/// The socket for HTTP in the port's directory.
pub const HTTP_SOCKET: &str = "mcp.sock.http";

/// The variables of the workload's environment that begin so are the port's.
pub const ENVIRONMENT_PREFIX: &str = "CASEMATE_";

/// How a client finds the doors: by URL, by program, by socket in `directory`.
pub fn environment(directory: &Path) -> [(String, String); 3] {
    let path = |name| directory.join(name).display().to_string();
    [
        ("MCP_URL", format!("http://{HTTP_ADDRESS}{HTTP_PATH}")),
        ("MCP_COMMAND", path(stdio::PROGRAM)),
        ("MCP_SOCKET", path(SOCKET)),
    ]
    .map(|(name, value)| (format!("{ENVIRONMENT_PREFIX}{name}"), value))
}

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
#[error("port, {path}: {source}")]
pub struct PortError {
    path: PathBuf,
    source: std::io::Error,
}

/// The listening port.
#[derive(Debug)]
pub struct Port {
    lines: UnixListener,
    http: UnixListener,
    directory: PathBuf,
    uid: u32,
    limits: config::Port,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Limits of the configuration.
    pub(crate) limits: config::Port,
    /// Places for calls at one time.
    pub(crate) calls: Arc<Semaphore>,
    /// Requests a second.
    pub(crate) rate: RequestRate,
}

impl Shared {
    pub(crate) fn new(limits: config::Port) -> Arc<Self> {
        Arc::new(Self {
            calls: Arc::new(Semaphore::new(limits.concurrent_calls)),
            rate: RequestRate::new(limits.requests_per_second),
            limits,
        })
    }
}

impl Port {
    /// Listens in `directory` for the workload's user.
    pub fn bind(
        directory: &Path,
        uid: u32,
        gid: u32,
        limits: config::Port,
    ) -> Result<Self, PortError> {
        let error = |path: PathBuf| move |source| PortError { path, source };
        std::fs::create_dir_all(directory).map_err(error(directory.to_owned()))?;
        let program = directory.join(stdio::PROGRAM);
        // The place where the workload's view has the program.
        std::fs::write(&program, b"").map_err(error(program.clone()))?;
        let listen = |name| {
            let path = directory.join(name);
            listen(&path, uid, gid).map_err(error(path))
        };
        let (lines, http) = (listen(SOCKET)?, listen(HTTP_SOCKET)?);
        Ok(Self { lines, http, directory: directory.to_owned(), uid, limits })
    }

    /// Serves connections until a listener fails. `loopback` gives the listener
    /// in the workload's network, when there is to be one.
    pub async fn serve<T: Tools>(
        self,
        tools: T,
        loopback: Option<oneshot::Receiver<std::net::TcpListener>>,
    ) -> PortError {
        let places = Arc::new(Semaphore::new(self.limits.connections));
        let most = self.limits.connections;
        let desk = Desk::new(Shared::new(self.limits), tools);
        let door = http::Door::new(desk.clone());
        let loopback = listener(loopback);
        tokio::pin!(loopback);
        let mut tcp = None;
        let broken = |name: &str, source| PortError { path: self.directory.join(name), source };
        loop {
            let place = || Arc::clone(&places).try_acquire_owned().ok();
            tokio::select! {
                stream = self.lines.accept() => match stream {
                    Ok((stream, _)) if is_user(&stream, self.uid) => match place() {
                        Some(place) => spawn(lines::serve(desk.clone(), stream), place),
                        None => drop(tokio::spawn(lines::refuse(most, stream))),
                    },
                    Ok(_) => say("port: a connection of another user was closed"),
                    Err(source) => return broken(SOCKET, source),
                },
                stream = self.http.accept() => match stream {
                    Ok((stream, _)) if is_user(&stream, self.uid) => match place() {
                        Some(place) => spawn(door.clone().serve(stream), place),
                        None => drop(tokio::spawn(http::refuse(most, stream))),
                    },
                    Ok(_) => say("port: a connection of another user was closed"),
                    Err(source) => return broken(HTTP_SOCKET, source),
                },
                opened = &mut loopback, if tcp.is_none() => match opened {
                    Ok(listener) => tcp = Some(listener),
                    Err(source) => return broken("loopback", source),
                },
                stream = accept(tcp.as_ref()) => match (stream, place()) {
                    (Ok(stream), Some(place)) => spawn(door.clone().serve(stream), place),
                    (Ok(stream), None) => drop(tokio::spawn(http::refuse(most, stream))),
                    (Err(source), _) => return broken("loopback", source),
                },
            }
        }
    }
}

fn listen(path: &Path, uid: u32, gid: u32) -> std::io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    chown(path, Some(uid), Some(gid))?;
    Ok(listener)
}

/// The listener once it is there; never, if there is to be none.
async fn listener(
    given: Option<oneshot::Receiver<std::net::TcpListener>>,
) -> std::io::Result<TcpListener> {
    // Whoever was to give it tells by itself why it did not.
    let given = match given {
        Some(given) => given.await.ok(),
        None => None,
    };
    let Some(given) = given else { return std::future::pending().await };
    given.set_nonblocking(true)?;
    TcpListener::from_std(given)
}

async fn accept(listener: Option<&TcpListener>) -> std::io::Result<tokio::net::TcpStream> {
    match listener {
        None => std::future::pending().await,
        Some(listener) => {
            let (stream, _) = listener.accept().await?;
            // What is wrong with one connection is the matter of who serves it.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
    }
}

/// Serves one connection in its place.
fn spawn(serving: impl Future<Output = ()> + Send + 'static, place: OwnedSemaphorePermit) {
    tokio::spawn(async move {
        serving.await;
        drop(place);
    });
}

/// Whether the other end is of `uid`. Name spaces do not change the number.
fn is_user(stream: &UnixStream, uid: u32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == uid)
}
