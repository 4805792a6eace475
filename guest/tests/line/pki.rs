//! Authorities and TLS servers for the stand-ins.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use casemate_attestation::identity::IDENTITY_EXTENSION_OID;
use casemate_attestation::{Boundary, IdentityClaims};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, PKCS_ED25519, SanType, SubjectPublicKeyInfo,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

pub(crate) const SANDBOX: &str = "spiffe://test/demo/sb/00";
/// SubjectPublicKeyInfo of an Ed25519 key, without the key (RFC 8410).
const ED25519_SPKI: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// One certificate authority.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A TLS 1.3 server called `name`; with `clients` it asks for their certificates.
    pub(crate) fn server(&self, name: &str, clients: Option<&Ca>) -> TlsAcceptor {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.certificate.der().clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }

    /// An identity certificate for `key` with this authority's own behind it.
    pub(crate) fn identity(
        &self,
        key: &[u8; 32],
        epoch: u64,
        bundle: &[u8],
        life: Duration,
    ) -> String {
        let spki = [&ED25519_SPKI[..], key].concat();
        let spki = SubjectPublicKeyInfo::from_der(&spki).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(SANDBOX.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + life).into();
        let claims = claims(epoch, bundle).encode();
        params.custom_extensions =
            vec![CustomExtension::from_oid_content(&IDENTITY_EXTENSION_OID, claims)];
        params.signed_by(&spki, &self.issuer).unwrap().pem() + &self.pem()
    }
}

fn claims(epoch: u64, bundle: &[u8]) -> IdentityClaims {
    IdentityClaims {
        epoch,
        boundary: Boundary::MicroVm,
        properties: Default::default(),
        bundle: casemate_ledger::digest(bundle),
        measurement: vec![2; 48],
        task: "task".to_owned(),
        anchor: "test".to_owned(),
        hardware: "model".to_owned(),
    }
}
