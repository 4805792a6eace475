//! Start and stop.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin;
use crate::clock::Clock;
use crate::config::Config;
use crate::judge::DocumentError;
use crate::keys::{KeyDir, KeyError};
use crate::server::{self, Listener};
use crate::store::StoreError;
use crate::tls::Tls;
use crate::verifier::Verifier;

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A policy, reference values or trust anchors cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// An address cannot be used.
    #[error("{what}: {source}")]
    Listen {
        /// The configuration's field and its value.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The cryptographic library refuses a key of the right length.
    #[error("the cryptographic library refuses a 256-bit key")]
    Backend,
}

/// A running verifier.
#[derive(Debug)]
pub struct Service {
    address: Option<SocketAddr>,
    verifier: Arc<Verifier>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// Runs a verifier until SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<(), Error> {
    let what = || "signals".to_owned();
    let signals = |kind| signal(kind).map_err(|source| Error::Listen { what: what(), source });
    let (mut terminate, mut interrupt) =
        (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    let service = Service::start(config, Clock::system()).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    service.stop().await;
    Ok(())
}

impl Service {
    /// Starts a verifier; when this returns it answers.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, Error> {
        let tls = Tls::open(&KeyDir::open(&config.state_dir)?, &config.server_name, clock.now())?;
        let verifier = Arc::new(Verifier::open(config, clock).await?);
        let config = verifier.config();
        let listener = Listener::bind(&config.listen).await.map_err(|source| Error::Listen {
            what: format!("listen, {:?}", config.listen),
            source,
        })?;
        let operators = server::bind_private(&config.admin_socket).await.map_err(|source| {
            Error::Listen { what: format!("admin_socket, {:?}", config.admin_socket), source }
        })?;
        let address = listener.address();
        tracing::info!(listen = ?config.listen, tenant = config.tenant, "verifier is ready");
        let (stop, stopped) = watch::channel(false);
        let tasks = vec![
            tokio::spawn(server::serve(listener, tls, verifier.clone(), stopped.clone())),
            tokio::spawn(admin::serve(operators, verifier.clone(), stopped)),
        ];
        Ok(Self { address, verifier, stop, tasks })
    }

    /// The TCP address that was bound, if it is one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// What requests are answered from.
    pub fn verifier(&self) -> &Arc<Verifier> {
        &self.verifier
    }

    /// Takes no more connections, lets open ones finish, closes the store.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::warn!(%error, "a task ended badly");
            }
        }
        self.verifier.store().close().await;
    }
}
