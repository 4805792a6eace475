//! Keys and certificates in NVIDIA's profile: P-384 and ecdsa-with-SHA384.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
};
use casemate_attestation::UnixTime;

use crate::{ModelError, der};

pub(super) const ORGANISATION: &str = "Casemate software model, not NVIDIA";
const ECDSA_SHA384: &str = "1.2.840.10045.4.3.3";

/// A P-384 key that signs in both encodings.
pub(super) struct Key {
    fixed: EcdsaKeyPair,
    asn1: EcdsaKeyPair,
}

/// What a certificate says.
pub(super) struct CertificateSpec<'a> {
    pub(super) serial: Vec<u8>,
    pub(super) subject: &'a str,
    pub(super) key: &'a Key,
    pub(super) not_before: UnixTime,
    pub(super) not_after: UnixTime,
    pub(super) ca: bool,
    /// Extensions that are not critical: identifier and value.
    pub(super) extensions: Vec<(&'a str, Vec<u8>)>,
}

/// A certificate and the key it is for.
pub(super) struct Authority {
    pub(super) name: String,
    pub(super) key: Key,
    pub(super) der: Vec<u8>,
}

impl Key {
    pub(super) fn generate() -> Result<Self, ModelError> {
        let error = ModelError::Crypto { what: "generating a P-384 key" };
        let algorithm = &ECDSA_P384_SHA384_FIXED_SIGNING;
        let Ok(pkcs8) = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()) else {
            return Err(error);
        };
        Self::from_pkcs8(pkcs8.as_ref())
    }

    /// A key that was kept.
    pub(super) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, ModelError> {
        let error = ModelError::Crypto { what: "reading a P-384 key" };
        let load = |algorithm| EcdsaKeyPair::from_pkcs8(algorithm, pkcs8);
        match (load(&ECDSA_P384_SHA384_FIXED_SIGNING), load(&ECDSA_P384_SHA384_ASN1_SIGNING)) {
            (Ok(fixed), Ok(asn1)) => Ok(Self { fixed, asn1 }),
            _ => Err(error),
        }
    }

    /// The private key as PKCS#8.
    pub(super) fn to_pkcs8(&self) -> Result<Vec<u8>, ModelError> {
        let document = self.fixed.to_pkcs8v1();
        let document = document.map_err(|_| ModelError::Crypto { what: "writing a P-384 key" })?;
        Ok(document.as_ref().to_vec())
    }

    /// The public key: an uncompressed point.
    pub(super) fn point(&self) -> &[u8] {
        self.fixed.public_key().as_ref()
    }

    /// r then s, 48 bytes each.
    pub(super) fn sign_fixed(&self, message: &[u8]) -> Result<Vec<u8>, ModelError> {
        sign(&self.fixed, message)
    }

    /// A DER SEQUENCE of r and s.
    pub(super) fn sign_der(&self, message: &[u8]) -> Result<Vec<u8>, ModelError> {
        sign(&self.asn1, message)
    }

    pub(super) fn spki(&self) -> Vec<u8> {
        let algorithm = der::sequence(&[&der::oid("1.2.840.10045.2.1"), &der::oid("1.3.132.0.34")]);
        der::sequence(&[&algorithm, &der::bits(self.point())])
    }
}

/// The AlgorithmIdentifier ecdsa-with-SHA384.
pub(super) fn algorithm() -> Vec<u8> {
    der::sequence(&[&der::oid(ECDSA_SHA384)])
}

impl CertificateSpec<'_> {
    /// The certificate, signed by the issuer `name` with `key`.
    pub(super) fn sign(&self, name: &str, key: &Key) -> Result<Vec<u8>, ModelError> {
        let usage: &[u8] = if self.ca { &[3, 2, 1, 6] } else { &[3, 2, 7, 0x80] };
        let mut extensions = vec![extension("2.5.29.15", true, usage)];
        if self.ca {
            extensions.push(extension("2.5.29.19", true, &der::sequence(&[&der::yes()])));
        }
        let others = self.extensions.iter().map(|(oid, value)| extension(oid, false, value));
        extensions.extend(others);
        let tbs = der::sequence(&[
            &der::element(0xa0, &der::small_integer(2)),
            &der::integer(&self.serial),
            &algorithm(),
            &der::name(ORGANISATION, name),
            &der::sequence(&[&der::time(self.not_before.0), &der::time(self.not_after.0)]),
            &der::name(ORGANISATION, self.subject),
            &self.key.spki(),
            &der::element(0xa3, &der::sequence(&[&extensions.concat()])),
        ]);
        let signature = key.sign_der(&tbs)?;
        Ok(der::sequence(&[&tbs, &algorithm(), &der::bits(&signature)]))
    }
}

impl Authority {
    /// A self-signed root of `key`.
    pub(super) fn root(name: &str, key: Key, from: UnixTime) -> Result<Self, ModelError> {
        let spec = CertificateSpec {
            serial: vec![1],
            subject: name,
            key: &key,
            not_before: from,
            not_after: NEVER,
            ca: true,
            extensions: vec![],
        };
        let der = spec.sign(name, &key)?;
        Ok(Self { name: name.to_owned(), key, der })
    }

    /// An authority under this one.
    pub(super) fn issue(
        &self,
        name: &str,
        serial: Vec<u8>,
        from: UnixTime,
    ) -> Result<Self, ModelError> {
        let key = Key::generate()?;
        let spec = CertificateSpec {
            serial,
            subject: name,
            key: &key,
            not_before: from,
            not_after: NEVER,
            ca: true,
            extensions: vec![],
        };
        let der = spec.sign(&self.name, &self.key)?;
        Ok(Self { name: name.to_owned(), key, der })
    }
}

/// 9999-12-31T23:59:59Z, as in NVIDIA's device certificates.
pub(super) const NEVER: UnixTime = UnixTime(253_402_300_799);

fn extension(oid: &str, critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { der::yes() } else { vec![] };
    der::sequence(&[&der::oid(oid), &critical, &der::octets(value)])
}

fn sign(key: &EcdsaKeyPair, message: &[u8]) -> Result<Vec<u8>, ModelError> {
    let signature = key.sign(&SystemRandom::new(), message);
    let signature = signature.map_err(|_| ModelError::Crypto { what: "signing with P-384" })?;
    Ok(signature.as_ref().to_vec())
}
