//! The workload's only door: an MCP server on a unix socket. It translates
//! between the client's protocol era and the gateway's, refuses what is not
//! strict JSON, and decides nothing.

mod connection;
mod limits;
mod translate;

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::config;
use crate::console::say;
use crate::gateway::Tools;
use connection::Connection;
use limits::RequestRate;

/// The socket's name in the port's directory.
pub const SOCKET: &str = "mcp.sock";

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
    listener: UnixListener,
    path: PathBuf,
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

impl Port {
    /// Listens in `directory` for the workload's user.
    pub fn bind(
        directory: &Path,
        uid: u32,
        gid: u32,
        limits: config::Port,
    ) -> Result<Self, PortError> {
        let path = directory.join(SOCKET);
        let bound = std::fs::create_dir_all(directory)
            .and_then(|()| UnixListener::bind(&path))
            .and_then(|listener| {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
                chown(&path, Some(uid), Some(gid))?;
                Ok(listener)
            });
        match bound {
            Ok(listener) => Ok(Self { listener, path, uid, limits }),
            Err(source) => Err(PortError { path, source }),
        }
    }

    /// Serves connections until the listener fails.
    pub async fn serve<T: Tools>(self, tools: T) -> PortError {
        let places = Arc::new(Semaphore::new(self.limits.connections));
        let shared = Arc::new(Shared {
            calls: Arc::new(Semaphore::new(self.limits.concurrent_calls)),
            rate: RequestRate::new(self.limits.requests_per_second),
            limits: self.limits,
        });
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(source) => return PortError { path: self.path, source },
            };
            if !is_user(&stream, self.uid) {
                say("port: a connection of another user was closed");
                continue;
            }
            let connection = Connection::new(Arc::clone(&shared), tools.clone());
            match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => drop(tokio::spawn(async move {
                    connection.serve(stream).await;
                    drop(place);
                })),
                Err(_) => drop(tokio::spawn(connection.refuse(stream))),
            }
        }
    }
}

/// Whether the other end is of `uid`. Name spaces do not change the number.
fn is_user(stream: &UnixStream, uid: u32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == uid)
}
