//! What both of the service's own authorities share: a key and a certificate
//! in one secret file, the certificate alone in a public one.

use std::path::PathBuf;

use casemate_attestation::UnixTime;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SignatureAlgorithm,
};
use zeroize::Zeroizing;

use crate::keys::{self, KeyDir, KeyError};

/// A certificate authority of this service.
pub(crate) struct Authority {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate_pem: String,
    pub(crate) public_file: PathBuf,
}

const CA_LIFETIME_SECONDS: u64 = 10 * 365 * 24 * 3600;
const DAY_SECONDS: u64 = 24 * 3600;

impl Authority {
    /// Opens the authority `name`, making key and certificate if they are not there.
    pub(crate) fn open(
        keys: &KeyDir,
        name: &str,
        subject: &str,
        algorithm: &'static SignatureAlgorithm,
        now: UnixTime,
    ) -> Result<Self, KeyError> {
        let secret_file = format!("{name}.key");
        let make = |source| KeyError::Make { what: "a certificate authority", source };
        let text =
            keys.read_or_make(&secret_file, || create(subject, algorithm, now).map_err(make))?;
        let path = keys.path(&secret_file);
        let wrong = || KeyError::Content {
            path: path.clone(),
            expected: "a private key and a certificate in PEM",
        };
        let text = std::str::from_utf8(&text).map_err(|_| wrong())?;
        let certificate_pem = text
            .find("-----BEGIN CERTIFICATE-----")
            .and_then(|at| text.get(at..))
            .ok_or_else(wrong)?;
        let key = keys::private_key(&path, text.as_bytes())?;
        let key = KeyPair::from_der_and_sign_algo(&key, algorithm).map_err(|_| wrong())?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_pem(certificate_pem, key).map_err(|_| wrong())?,
            public_file: keys.publish(&format!("{name}.pem"), certificate_pem.as_bytes())?,
            certificate_pem: certificate_pem.to_owned(),
        })
    }
}

/// `time` as certificates carry it.
pub(crate) fn date(time: UnixTime) -> Result<time::OffsetDateTime, rcgen::Error> {
    i64::try_from(time.0)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(rcgen::Error::Time)
}

/// A day before `now`, where certificates that live long start.
pub(crate) fn yesterday(now: UnixTime) -> Result<time::OffsetDateTime, rcgen::Error> {
    date(UnixTime(now.0.saturating_sub(DAY_SECONDS)))
}

fn create(
    subject: &str,
    algorithm: &'static SignatureAlgorithm,
    now: UnixTime,
) -> Result<Zeroizing<Vec<u8>>, rcgen::Error> {
    let key = KeyPair::generate_for(algorithm)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.not_before = yesterday(now)?;
    params.not_after = date(now.plus_seconds(CA_LIFETIME_SECONDS))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    let key = Zeroizing::new(key.serialize_pem());
    Ok(Zeroizing::new([key.as_bytes(), certificate.pem().as_bytes()].concat()))
}
