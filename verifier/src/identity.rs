//! Issues the short-lived certificate of an attested identity key.
//!
//! Format: docs/formats/identity-certificate.md. The CA signs nothing else.

use std::path::PathBuf;

use casemate_attestation::identity::IDENTITY_EXTENSION_OID;
use casemate_attestation::{IdentityClaims, UnixTime, cose::KeyId};
use rcgen::{
    CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};

use crate::keys::{KeyDir, KeyError};
use crate::pki::{self, Authority};

/// The CA of the identities of one tenant.
pub struct IdentityCa {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    public_file: PathBuf,
    prefix: String,
    lifetime_seconds: u64,
}

/// Seconds by which a certificate starts in the past, for clocks that differ.
const BACKDATE_SECONDS: u64 = 30;

/// The DER of an Ed25519 SubjectPublicKeyInfo up to the key (RFC 8410 section 4).
const ED25519_SPKI: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0];

impl IdentityCa {
    /// Opens the CA in `keys`, making it if it is not there.
    pub(crate) fn open(
        keys: &KeyDir,
        config: &crate::Config,
        now: UnixTime,
    ) -> Result<Self, KeyError> {
        let authority = Authority::open(
            keys,
            "identity-ca",
            &format!("Casemate identities of {}", config.tenant),
            &rcgen::PKCS_ED25519,
            now,
        )?;
        Ok(Self {
            issuer: authority.issuer,
            certificate_pem: authority.certificate_pem,
            public_file: authority.public_file,
            prefix: format!("spiffe://{}/{}/sb/", config.trust_domain, config.tenant),
            lifetime_seconds: config.lifetimes.certificate_seconds,
        })
    }

    /// The SPIFFE ID of the sandbox that holds `identity_key`.
    pub fn sandbox_id(&self, identity_key: &[u8; 32]) -> String {
        format!("{}{}", self.prefix, KeyId::of(identity_key))
    }

    /// The CA's certificate in PEM, and the file that holds it.
    pub fn certificate(&self) -> (&str, &std::path::Path) {
        (&self.certificate_pem, &self.public_file)
    }

    /// The certificate for `identity_key` with `claims`, and the CA's, in PEM.
    pub fn issue(
        &self,
        identity_key: &[u8; 32],
        claims: &IdentityClaims,
        now: UnixTime,
    ) -> Result<String, rcgen::Error> {
        let spki = [&ED25519_SPKI[..], identity_key].concat();
        let key = SubjectPublicKeyInfo::from_der(&spki)?;
        let params = self.params(identity_key, claims, now)?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(leaf.pem() + &self.certificate_pem)
    }

    fn params(
        &self,
        identity_key: &[u8; 32],
        claims: &IdentityClaims,
        now: UnixTime,
    ) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        let start = UnixTime(now.0.saturating_sub(BACKDATE_SECONDS));
        params.not_before = pki::date(start)?;
        params.not_after = pki::date(now.plus_seconds(self.lifetime_seconds))?;
        params.serial_number = Some(serial()?);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, KeyId::of(identity_key).to_string());
        params.subject_alt_names = vec![SanType::URI(self.sandbox_id(identity_key).try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.custom_extensions =
            vec![CustomExtension::from_oid_content(&IDENTITY_EXTENSION_OID, claims.encode())];
        Ok(params)
    }
}

impl std::fmt::Debug for IdentityCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdentityCa({})", self.prefix)
    }
}

/// 16 random bytes, positive as a DER integer.
fn serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyDir;
    use casemate_attestation::Boundary;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    const NOW: UnixTime = UnixTime(1_794_000_000);

    fn claims() -> IdentityClaims {
        IdentityClaims {
            epoch: 1,
            boundary: Boundary::MicroVm,
            properties: Default::default(),
            bundle: [1; 32],
            measurement: vec![2; 48],
            task: "demo".to_owned(),
            anchor: "model".to_owned(),
            hardware: "model".to_owned(),
        }
    }

    #[test]
    fn the_certificate_is_an_svid_with_the_claims() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::config::tests::minimal();
        let ca = IdentityCa::open(&KeyDir::open(dir.path()).unwrap(), &config, NOW).unwrap();
        let pem = ca.issue(&[9; 32], &claims(), NOW).unwrap();
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect();
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        let san = leaf.subject_alternative_name().unwrap().unwrap();
        let [x509_parser::extensions::GeneralName::URI(id)] = san.value.general_names[..] else {
            panic!("{san:?}")
        };
        assert_eq!(id, ca.sandbox_id(&[9; 32]));
        assert!(id.starts_with("spiffe://demo.internal/demo/sb/") && id.len() == 31 + 32, "{id}");
        assert_eq!(leaf.public_key().subject_public_key.as_ref(), [9; 32]);
        assert!(!leaf.is_ca());
        let oid = x509_parser::der_parser::Oid::from(&IDENTITY_EXTENSION_OID).unwrap();
        let extension = leaf.get_extension_unique(&oid).unwrap().unwrap();
        assert_eq!(IdentityClaims::decode(extension.value), Ok(claims()));
        let anchor = webpki::anchor_from_trusted_cert(&chain[1]).unwrap();
        let verify = |at: u64| {
            let leaf = webpki::EndEntityCert::try_from(&chain[0]).unwrap();
            let time =
                rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(at));
            let usage = webpki::KeyUsage::client_auth();
            leaf.verify_for_usage(
                &[webpki::aws_lc_rs::ED25519],
                std::slice::from_ref(&anchor),
                &[],
                time,
                usage,
                None,
                None,
            )
            .map(drop)
        };
        verify(NOW.0).unwrap();
        assert!(verify(NOW.0 + 901).is_err());
        assert!(verify(NOW.0 - 31).is_err());
    }
}
