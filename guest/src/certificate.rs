//! The identity certificate that the verifier issued: checked before use.
//! Format: docs/formats/identity-certificate.md.

use std::sync::Arc;

use casemate_attestation::IdentityClaims;
use casemate_attestation::identity::IDENTITY_EXTENSION_OID;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::Identity;
use crate::tls::{self, TlsError};

/// Why a certificate is not this machine's identity.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The text is not certificates.
    #[error(transparent)]
    Pem(#[from] TlsError),
    /// The chain does not lead to the pinned authority, or is not valid now.
    #[error("identity certificate: {0}")]
    Chain(String),
    /// The certificate is for another key than this machine's.
    #[error("identity certificate, key: expected this machine's identity key, got another")]
    ForeignKey,
    /// The certificate does not say what an identity certificate says.
    #[error("identity certificate, {field}: expected {expected}, got {actual}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it had to be.
        expected: String,
        /// What it is.
        actual: String,
    },
}

/// This machine's identity as its issuer states it.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The sandbox's SPIFFE ID.
    pub sandbox: String,
    /// The attested facts.
    pub claims: IdentityClaims,
    /// When it is over, in seconds since 1970.
    pub expires: u64,
    /// The chain with the key that it is for.
    pub key: CertifiedKey,
}

impl Certificate {
    /// Checks that `chain_pem` was issued for `identity` by `issuer_pem` and is valid at `now`.
    pub fn check(
        chain_pem: &str,
        identity: &Identity,
        issuer_pem: &str,
        now: UnixTime,
    ) -> Result<Self, CertificateError> {
        let chain = tls::certificates("identity certificate chain", chain_pem)?;
        check_chain(&chain, issuer_pem, now)?;
        let key = identity.certified(chain);
        key.keys_match().map_err(|_| CertificateError::ForeignKey)?;
        let leaf = key.cert.first().map(CertificateDer::as_ref).unwrap_or_default();
        let (sandbox, claims, expires) = read(leaf)?;
        if claims.epoch != identity.epoch {
            let (expected, actual) = (identity.epoch.to_string(), claims.epoch.to_string());
            return Err(CertificateError::Field { field: "epoch", expected, actual });
        }
        Ok(Self { sandbox, claims, expires, key })
    }
}

fn check_chain(
    chain: &[CertificateDer<'static>],
    issuer_pem: &str,
    now: UnixTime,
) -> Result<(), CertificateError> {
    let wrong = |error: String| CertificateError::Chain(error);
    let roots = tls::roots("verifier.identity_ca_pem", issuer_pem)?;
    let checker =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), default_provider().into())
            .build()
            .map_err(|error| wrong(error.to_string()))?;
    let (leaf, rest) = chain.split_first().ok_or_else(|| wrong("an empty chain".into()))?;
    checker.verify_client_cert(leaf, rest, now).map_err(|error| wrong(error.to_string()))?;
    Ok(())
}

/// The SPIFFE ID, the attested facts and the end of the certificate `der`.
fn read(der: &[u8]) -> Result<(String, IdentityClaims, u64), CertificateError> {
    let wrong = |field, expected: &str, actual: String| CertificateError::Field {
        field,
        expected: expected.to_owned(),
        actual,
    };
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| wrong("encoding", "an X.509 certificate", error.to_string()))?;
    let names = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|names| names.value.general_names.as_slice())
        .unwrap_or_default();
    let sandbox = match names {
        [GeneralName::URI(uri)] if uri.starts_with("spiffe://") => (*uri).to_owned(),
        other => return Err(wrong("SAN", "one SPIFFE URI", format!("{} names", other.len()))),
    };
    let wanted = IDENTITY_EXTENSION_OID;
    let extension = certificate
        .extensions()
        .iter()
        .find(|extension| extension.oid.iter().is_some_and(|mut arcs| arcs.by_ref().eq(wanted)))
        .ok_or_else(|| wrong("identity extension", "one", "none".into()))?;
    let claims = IdentityClaims::decode(extension.value)
        .map_err(|error| wrong("identity extension", "its format", error.to_string()))?;
    let expires = certificate.validity().not_after.timestamp();
    Ok((sandbox, claims, u64::try_from(expires).unwrap_or(0)))
}
