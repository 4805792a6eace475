//! TLS 1.3 and nothing else: no resumption, no tickets, no early data.
//!
//! A resumed session would carry no new evidence (docs/formats/report-data.md),
//! so each connection is a full handshake with exporters of its own.

use std::path::PathBuf;
use std::sync::Arc;

use casemate_attestation::UnixTime;
use casemate_attestation::binding::EXPORTER_LABEL;
use casemate_attestation::release::RELEASE_EXPORTER_LABEL;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, ServerConnection};
use rustls_pki_types::PrivateKeyDer;

use crate::keys::{KeyDir, KeyError};
use crate::pki::{self, Authority};

/// What ties a request to the one TLS connection that carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channel {
    /// The exporter that is bound into evidence.
    pub attest: [u8; 32],
    /// The exporter that a release proof signs.
    pub release: [u8; 32],
}

/// The service's side of TLS.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) server: Arc<ServerConfig>,
    /// The file with the certificate that guests must pin.
    pub(crate) ca_file: PathBuf,
}

/// Seconds that the certificate of one run of the service is valid.
const LEAF_LIFETIME_SECONDS: u64 = 365 * 24 * 3600;

impl Tls {
    /// Opens the TLS authority in `keys` and makes a certificate for `server_name`.
    pub(crate) fn open(keys: &KeyDir, server_name: &str, now: UnixTime) -> Result<Self, KeyError> {
        let subject = format!("Casemate verifier {server_name}");
        let authority =
            Authority::open(keys, "tls-ca", &subject, &rcgen::PKCS_ECDSA_P256_SHA256, now)?;
        let make = |source| KeyError::Make { what: "the TLS certificate", source };
        let (certificate, key) = leaf(&authority, server_name, now).map_err(make)?;
        let unusable = |_| KeyError::Content {
            path: keys.path("tls-ca.key"),
            expected: "a key that TLS 1.3 can use",
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .map_err(unusable)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { server: Arc::new(server), ca_file: authority.public_file })
    }
}

impl Channel {
    /// The exporters of a connection whose handshake is done (RFC 8446 7.5).
    pub fn of(connection: &ServerConnection) -> Result<Self, rustls::Error> {
        let export = |label| connection.export_keying_material([0; 32], label, None);
        Ok(Self { attest: export(EXPORTER_LABEL)?, release: export(RELEASE_EXPORTER_LABEL)? })
    }
}

type Leaf = (rustls_pki_types::CertificateDer<'static>, PrivateKeyDer<'static>);

fn leaf(authority: &Authority, server_name: &str, now: UnixTime) -> Result<Leaf, rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(vec![server_name.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, server_name);
    params.not_before = pki::yesterday(now)?;
    params.not_after = pki::date(now.plus_seconds(LEAF_LIFETIME_SECONDS))?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &authority.issuer)?;
    let key = PrivateKeyDer::try_from(key.serialize_der())
        .map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
    Ok((certificate.der().clone(), key))
}
