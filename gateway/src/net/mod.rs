//! The gateway's own way to HTTPS servers, for MCP over HTTP and for the HTTP
//! tool.
//!
//! A name is looked up once; every address that it has must be one that may be
//! reached, and the connection goes to an address that was looked at. There is
//! no proxy, no redirect and no plain HTTP.

mod address;

pub use address::Network;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Connects to the servers of one upstream.
#[derive(Clone)]
pub(crate) struct Client {
    tls: TlsConnector,
    networks: Arc<[Network]>,
}

/// Why a server was not reached, or did not answer as HTTP asks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    /// The certificates of those who may vouch for servers cannot be read.
    #[error("{}: {reason}", path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The name has no address, or one that may not be reached.
    #[error("{host}: expected public addresses or those of the configuration, got {actual}")]
    Address {
        /// The name.
        host: String,
        /// What it resolved to.
        actual: String,
    },
    /// The server does not answer, or not within TLS.
    #[error("{host}: {source}")]
    Connect {
        /// The server.
        host: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The server does not speak HTTP/1.1.
    #[error("{host}: {source}")]
    Http {
        /// The server.
        host: String,
        /// What is wrong.
        source: hyper::Error,
    },
}

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one of several addresses may take, and how many are tried.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(2);
const MAX_ADDRESSES: usize = 4;
/// The most that the head of an answer may need.
const HEAD_BYTES: usize = 64 * 1024;
/// The most headers of an answer.
const MAX_HEADERS: usize = 100;
/// Where Debian keeps the certificates of public authorities.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

impl Client {
    /// A client that believes the authorities in `roots` (PEM), else the
    /// system's, and may reach `networks` beside public addresses.
    pub(crate) fn new(roots: Option<&Path>, networks: &[Network]) -> Result<Self, NetError> {
        let path = roots.unwrap_or(Path::new(SYSTEM_ROOTS));
        let wrong = |reason: String| NetError::Roots { path: path.to_owned(), reason };
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))? {
            let root = root.map_err(|error| wrong(error.to_string()))?;
            store.add(root).map_err(|error| wrong(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), networks: networks.into() })
    }

    /// Sends `request`, whose target is a path, over a connection of its own.
    pub(crate) async fn send(
        &self,
        host: &str,
        port: u16,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, NetError> {
        let connect = |source| NetError::Connect { host: host.to_owned(), source };
        let http = |source| NetError::Http { host: host.to_owned(), source };
        let addresses = self.addresses(host, port).await?;
        let connecting = async {
            let stream = reach(&addresses).await?;
            let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
            self.tls.connect(name, stream).await
        };
        let stream = timeout(PATIENCE, connecting)
            .await
            .map_err(|_| connect(std::io::ErrorKind::TimedOut.into()))?
            .map_err(connect)?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(http)?;
        // It ends when the answer was read or is no longer wanted.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(http)
    }

    /// The addresses to connect to: the one look at the name decides.
    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, NetError> {
        let connect = |source| NetError::Connect { host: host.to_owned(), source };
        let found = timeout(PATIENCE, lookup_host((host, port)))
            .await
            .map_err(|_| connect(std::io::ErrorKind::TimedOut.into()))?
            .map_err(connect)?;
        let found: Vec<SocketAddr> = found.collect();
        if may_all(&found, &self.networks) {
            return Ok(found);
        }
        let found: Vec<String> = found.iter().map(|one| one.ip().to_string()).collect();
        Err(NetError::Address { host: host.to_owned(), actual: found.join(", ") })
    }
}

/// Whether there is an address and every one may be reached: a name that also
/// points inside is a name that may point there alone the next time.
fn may_all(found: &[SocketAddr], networks: &[Network]) -> bool {
    !found.is_empty() && found.iter().all(|one| address::may_reach(one.ip(), networks))
}

/// A connection to the first of `addresses` that takes one. A silent one takes
/// its share of the time at most: a name may have an IPv6 address that its
/// machine, or ours, cannot use.
async fn reach(addresses: &[SocketAddr]) -> std::io::Result<TcpStream> {
    let tries = addresses.get(..MAX_ADDRESSES.min(addresses.len())).unwrap_or_default();
    let mut failed = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for (at, address) in tries.iter().enumerate() {
        let left = u32::try_from(tries.len().saturating_sub(at)).unwrap_or(1).max(1);
        let share = if left == 1 { PATIENCE } else { ADDRESS_PATIENCE.min(PATIENCE / left) };
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed = error,
            Err(_) => failed = std::io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &[&str]) -> Vec<SocketAddr> {
        text.iter().map(|one| SocketAddr::new(one.parse().unwrap(), 443)).collect()
    }

    #[test]
    fn one_inner_address_spoils_a_name() {
        let public = addresses(&["93.184.216.34", "2606:4700::1111"]);
        assert!(may_all(&public, &[]));
        for bad in ["127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1", "fd00::1"] {
            let mixed = addresses(&["93.184.216.34", bad]);
            assert!(!may_all(&mixed, &[]), "{bad}");
        }
        assert!(!may_all(&[], &[]));
    }

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_does_not_answer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        // One that refuses; one whose queue is full is silent, and so is a net
        // for documentation, where it has a route at all.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let silent = SocketAddr::new("2001:db8::1".parse().unwrap(), 443);
        for bad in [vec![closed], vec![silent], vec![closed, silent]] {
            let begun = std::time::Instant::now();
            let addresses = [bad, vec![good]].concat();
            assert_eq!(reach(&addresses).await.unwrap().peer_addr().unwrap(), good);
            assert!(begun.elapsed() < ADDRESS_PATIENCE * 3, "{:?}", begun.elapsed());
        }
        assert!(reach(&[closed]).await.is_err());
        assert!(reach(&[]).await.is_err());
    }

    #[tokio::test]
    async fn a_name_for_this_machine_is_not_public() {
        let client = Client::new(None, &[]);
        let Ok(client) = client else {
            println!("skipped: this machine has no {SYSTEM_ROOTS}");
            return;
        };
        for host in
            ["localhost", "127.0.0.1", "::1", "0.0.0.0", "127.1", "0x7f000001", "2130706433"]
        {
            let error = client.addresses(host, 443).await.unwrap_err();
            assert!(
                matches!(error, NetError::Address { .. } | NetError::Connect { .. }),
                "{host}: {error}"
            );
        }
    }
}
