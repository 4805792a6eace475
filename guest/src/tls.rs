//! TLS 1.3 to the two services, each with the one authority that the measured
//! configuration pins. No resumption, no early data, no other version.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::ResolvesClientCert;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The longest wait for a handshake. The host relays its bytes, and can hold
/// them back.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate in PEM is not one.
    #[error("{what}: expected {expected}, got {actual}")]
    Pem {
        /// Whose certificate.
        what: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What there was.
        actual: String,
    },
    /// The library refuses the parameters.
    #[error("TLS with {peer}: {source}")]
    Rustls {
        /// The peer's name.
        peer: String,
        /// What it says.
        source: rustls::Error,
    },
    /// The handshake failed.
    #[error("TLS handshake with {peer}: {source}")]
    Handshake {
        /// The peer's name.
        peer: String,
        /// Why.
        source: std::io::Error,
    },
    /// The peer did not finish the handshake in time.
    #[error("TLS handshake with {peer}: timed out after {seconds} s", seconds = PATIENCE.as_secs())]
    Timeout {
        /// The peer's name.
        peer: String,
    },
}

/// A peer as the measured configuration names it.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// The name its certificate must have.
    pub name: &'a str,
    /// The one authority believed, in PEM.
    pub ca_pem: &'a str,
}

/// Connects to `peer` over `stream`; with `identity` both ends are authenticated.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    peer: Peer<'_>,
    identity: Option<CertifiedKey>,
    stream: S,
) -> Result<TlsStream<S>, TlsError> {
    let refused = |source| TlsError::Rustls { peer: peer.name.to_owned(), source };
    let name = ServerName::try_from(peer.name.to_owned()).map_err(|error| TlsError::Pem {
        what: "server_name",
        expected: "a DNS name or an IP address",
        actual: format!("{:?} ({error})", peer.name),
    })?;
    let roots = roots("ca_pem", peer.ca_pem)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let resolver: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(identity));
            builder.with_client_cert_resolver(resolver)
        }
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    timeout(PATIENCE, handshake)
        .await
        .map_err(|_| TlsError::Timeout { peer: peer.name.to_owned() })?
        .map_err(|source| TlsError::Handshake { peer: peer.name.to_owned(), source })
}

/// The 32 bytes of the session's exporter under `label`, without context.
pub fn exporter<S>(stream: &TlsStream<S>, label: &[u8]) -> Result<[u8; 32], rustls::Error> {
    let (_, session) = stream.get_ref();
    session.export_keying_material([0; 32], label, None)
}

/// The authorities in `pem`.
pub fn roots(what: &'static str, pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(what, pem)? {
        roots.add(certificate).map_err(|error| TlsError::Pem {
            what,
            expected: "a certificate authority",
            actual: error.to_string(),
        })?;
    }
    Ok(roots)
}

/// The certificates in `pem`, at least one.
pub fn certificates(
    what: &'static str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |actual| TlsError::Pem { what, expected: "1 to 4 certificates in PEM", actual };
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .take(5)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(error.to_string()))?;
    if (1..=4).contains(&certificates.len()) {
        Ok(certificates)
    } else {
        Err(wrong(format!("{} or more", certificates.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_certificate_is_named() {
        for pem in ["", "-", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            let error = roots("verifier.ca_pem", pem).unwrap_err().to_string();
            assert!(error.starts_with("verifier.ca_pem: expected"), "{error}");
        }
    }
}
