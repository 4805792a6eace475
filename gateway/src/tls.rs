//! TLS 1.3 with both ends authenticated, and nothing else: no resumption, no
//! tickets, no early data. Each connection proves the identity key anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use casemate_attestation::UnixTime;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::keys::{self, KeyError};

/// Why the gateway's TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A key file is missing, open or wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A certificate could not be made.
    #[error("making the gateway's certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The certificates do not serve.
    #[error("{what}: {reason}")]
    Unusable {
        /// Which part.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

const DAY_SECONDS: u64 = 24 * 3600;
const CA_LIFETIME_SECONDS: u64 = 10 * 365 * DAY_SECONDS;
const LEAF_LIFETIME_SECONDS: u64 = 365 * DAY_SECONDS;

/// The server's side. `ca.key` in `directory` is the CA's key and certificate,
/// made at first start; `ca.pem`, which ports pin, its certificate alone.
pub(crate) fn server(
    directory: &Path,
    server_name: &str,
    identity_ca: &[u8],
    now: UnixTime,
) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key) = server_certificate(directory, server_name, now)?;
    let unusable = |what, reason: String| TlsError::Unusable { what, reason };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(identity_ca.to_vec()))
        .map_err(|error| unusable("the identity CA", error.to_string()))?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| unusable("the identity CA", error.to_string()))?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable("TLS 1.3", error.to_string()))?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .map_err(|error| unusable("the gateway's certificate", error.to_string()))?;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.max_early_data_size = 0;
    Ok(Arc::new(server))
}

/// Makes the CA if it is not there, so that its certificate can be pinned
/// before the gateway first runs.
pub(crate) fn make_authority_if_missing(
    directory: &Path,
    server_name: &str,
    now: UnixTime,
) -> Result<(), TlsError> {
    authority(directory, server_name, now).map(drop)
}

/// The file with the certificate that ports pin.
pub(crate) fn ca_file(directory: &Path) -> PathBuf {
    directory.join("ca.pem")
}

type Certified = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn server_certificate(
    directory: &Path,
    server_name: &str,
    now: UnixTime,
) -> Result<Certified, TlsError> {
    let (issuer, ca) = authority(directory, server_name, now)?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(vec![server_name.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, server_name);
    params.not_before = yesterday(now)?;
    params.not_after = date(now.plus_seconds(LEAF_LIFETIME_SECONDS))?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::try_from(key.serialize_der())
        .map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
    Ok((vec![certificate.der().clone(), ca], key))
}

/// The gateway's CA, made at first start.
fn authority(
    directory: &Path,
    server_name: &str,
    now: UnixTime,
) -> Result<(Issuer<'static, KeyPair>, CertificateDer<'static>), TlsError> {
    let path = directory.join("ca.key");
    let mut failed = None;
    let made = keys::read_or_make(&path, || {
        make_authority(server_name, now).map_err(|error| failed = Some(error)).ok()
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    let text = made?;
    let wrong = || KeyError::Content {
        path: path.clone(),
        expected: "a private key and a certificate in PEM",
    };
    let certificate = CertificateDer::from_pem_slice(&text).map_err(|_| wrong())?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| wrong())?;
    let key = KeyPair::from_der_and_sign_algo(&key, &rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|_| wrong())?;
    let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|_| wrong())?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let public = text.find("-----BEGIN CERTIFICATE-----").and_then(|at| text.get(at..));
    let public_path = ca_file(directory);
    std::fs::write(&public_path, public.ok_or_else(wrong)?)
        .map_err(|source| KeyError::File { path: public_path, source })?;
    Ok((issuer, certificate))
}

fn make_authority(server_name: &str, now: UnixTime) -> Result<Zeroizing<Vec<u8>>, rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Casemate gateway {server_name}"));
    params.not_before = yesterday(now)?;
    params.not_after = date(now.plus_seconds(CA_LIFETIME_SECONDS))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key)?;
    let key = Zeroizing::new(key.serialize_pem());
    Ok(Zeroizing::new([key.as_bytes(), certificate.pem().as_bytes()].concat()))
}

fn yesterday(now: UnixTime) -> Result<time::OffsetDateTime, rcgen::Error> {
    date(UnixTime(now.0.saturating_sub(DAY_SECONDS)))
}

fn date(time: UnixTime) -> Result<time::OffsetDateTime, rcgen::Error> {
    i64::try_from(time.0)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(rcgen::Error::Time)
}
