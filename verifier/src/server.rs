//! The accept loop: every wait is bounded, every connection counted.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::{Limits, Listen};
use crate::routes;
use crate::tls::{Channel, Tls};
use crate::verifier::Verifier;

/// A bound address.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A byte stream of either kind.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// The largest request head.
const HEAD_BYTES: usize = 16 * 1024;
const HEADERS: usize = 32;
/// How long open connections may finish after the service was told to stop.
const DRAIN: Duration = Duration::from_secs(10);

impl Listener {
    /// Binds `listen`.
    pub(crate) async fn bind(listen: &Listen) -> std::io::Result<Self> {
        match listen {
            Listen::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            Listen::Unix(path) => Ok(Self::Unix(bind_private(path).await?)),
        }
    }

    /// The TCP address, if it is one.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    async fn accept(&self) -> std::io::Result<Box<dyn Wire>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

/// Binds a unix socket of mode 0600, taking the place of a dead one and of
/// nothing else.
pub(crate) async fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
    // A link is looked at itself: what it points to is not ours to judge.
    if let Ok(found) = path.symlink_metadata() {
        if !found.file_type().is_socket() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::AlreadyExists,
                format!("{}: expected a socket or nothing, got another file", path.display()),
            ));
        }
        if tokio::net::UnixStream::connect(path).await.is_ok() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::AddrInUse,
                format!("{}: expected nobody there, got a running service", path.display()),
            ));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves connections until `stop` says so, then lets open ones finish.
pub(crate) async fn serve(
    listener: Listener,
    tls: Tls,
    verifier: Arc<Verifier>,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(tls.server);
    let places = Arc::new(Semaphore::new(verifier.config().limits.connections));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let (wire, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: waiting is all that helps.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, verifier, stop) = (acceptor.clone(), verifier.clone(), stop.clone());
        connections.spawn(async move {
            converse(wire, acceptor, verifier, stop).await;
            drop(place);
        });
    }
    drop(listener);
    let drained = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(left = connections.len(), "connections cut off at the end");
    }
}

async fn accept(
    listener: &Listener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(Box<dyn Wire>, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    Ok((listener.accept().await?, place))
}

/// One connection from handshake to end.
async fn converse(
    wire: Box<dyn Wire>,
    acceptor: TlsAcceptor,
    verifier: Arc<Verifier>,
    stop: watch::Receiver<bool>,
) {
    let limits = verifier.config().limits.clone();
    let handshake = Duration::from_millis(limits.handshake_timeout_ms);
    let stream = match timeout(handshake, acceptor.accept(wire)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "handshake"),
        Err(_) => return tracing::debug!("handshake: too slow"),
    };
    let channel = match Channel::of(stream.get_ref().1) {
        Ok(channel) => channel,
        Err(error) => return tracing::warn!(%error, "exporter"),
    };
    let life = Duration::from_millis(limits.connection_timeout_ms);
    if timeout(life, speak(stream, channel, &limits, verifier, stop)).await.is_err() {
        tracing::debug!("connection: lived its time");
    }
}

async fn speak(
    stream: TlsStream<Box<dyn Wire>>,
    channel: Channel,
    limits: &Limits,
    verifier: Arc<Verifier>,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        let verifier = verifier.clone();
        request.extensions_mut().insert(channel);
        async move { Ok::<_, Infallible>(routes::answer(&verifier, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.idle_timeout_ms))
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection");
    }
}

/// Waits until the service was told to stop, or is gone.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_dead_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(bind_private(&path).await.unwrap());
        let running = bind_private(&path).await.unwrap();
        let error = bind_private(&path).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        drop(running);

        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "kept").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for other in [&file, &link] {
            let error = bind_private(other).await.unwrap_err().to_string();
            assert!(error.starts_with(&other.display().to_string()), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
        assert!(link.symlink_metadata().unwrap().is_symlink());
    }
}
