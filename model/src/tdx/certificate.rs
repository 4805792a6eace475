//! Certificates and revocation lists in Intel's profile.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING,
    ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
};
use casemate_attestation::UnixTime;
use casemate_attestation::tdx::{PckTcb, SGX_EXTENSION};

use super::{Flaw, TdxConfig};
use crate::ModelError;
use crate::der;

const ORGANISATION: &str = "Casemate software model, not Intel";
pub(super) const ROOT: &str = "Intel SGX Root CA";
pub(super) const PCK_CA: &str = "Intel SGX PCK Platform CA";
pub(super) const PCK: &str = "Intel SGX PCK Certificate";
pub(super) const TCB_SIGNING: &str = "Intel SGX TCB Signing";

/// A P-256 key and the two forms in which Intel's formats want signatures.
pub(super) struct Key {
    raw: EcdsaKeyPair,
    der: EcdsaKeyPair,
}

impl Key {
    pub(super) fn generate() -> Result<Self, ModelError> {
        let failed = |_| ModelError::Crypto { what: "generating a P-256 key" };
        let raw = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed)?;
        let pkcs8 = raw.to_pkcs8v1().map_err(failed)?;
        let der = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref())
            .map_err(|_| ModelError::Crypto { what: "reading a P-256 key" })?;
        Ok(Self { raw, der })
    }

    /// x then y, 64 bytes.
    pub(super) fn point(&self) -> &[u8] {
        let uncompressed = self.raw.public_key().as_ref();
        uncompressed.strip_prefix(&[4]).unwrap_or(uncompressed)
    }

    /// r then s, 64 bytes.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, ModelError> {
        sign(&self.raw, message)
    }
}

fn sign(key: &EcdsaKeyPair, message: &[u8]) -> Result<Vec<u8>, ModelError> {
    key.sign(&SystemRandom::new(), message)
        .map(|signature| signature.as_ref().to_vec())
        .map_err(|_| ModelError::Crypto { what: "signing with P-256" })
}

/// What a certificate says.
pub(super) struct Spec<'a> {
    pub(super) serial: u8,
    pub(super) subject: &'a str,
    pub(super) key: &'a Key,
    pub(super) not_before: UnixTime,
    pub(super) not_after: UnixTime,
    /// The path length of a CA; none for a leaf.
    pub(super) ca: Option<u8>,
    pub(super) sgx_extension: Option<Vec<u8>>,
    pub(super) flaw: Option<Flaw>,
}

impl Spec<'_> {
    pub(super) fn sign(&self, issuer: &str, key: &Key) -> Result<Vec<u8>, ModelError> {
        let validity =
            der::sequence(&[&der::time(self.not_before.0), &der::time(self.not_after.0)]);
        let (constraints, usage) = match self.ca {
            // keyCertSign and cRLSign; digitalSignature and nonRepudiation.
            Some(length) => (der::sequence(&[&der::yes(), &der::small_integer(length)]), 0x06),
            None => (der::sequence(&[]), 0xc0),
        };
        let bits = if let Some(Flaw::KeyUsage(bits)) = self.flaw { bits } else { usage };
        let usage = [3, 2, u8::try_from(bits.trailing_zeros()).unwrap_or(0), bits];
        let public_key = match self.flaw {
            Some(Flaw::P384Key) => p384_key()?,
            _ => public_key(self.key),
        };
        let mut extensions =
            [extension("2.5.29.19", true, &constraints), extension("2.5.29.15", true, &usage)]
                .concat();
        if let Some(sgx) = &self.sgx_extension {
            extensions.extend(extension(SGX_EXTENSION, false, sgx));
        }
        let tbs = der::sequence(&[
            &der::element(0xa0, &der::small_integer(2)),
            &der::small_integer(self.serial),
            &algorithm(),
            &der::name(ORGANISATION, issuer),
            &validity,
            &der::name(ORGANISATION, self.subject),
            &public_key,
            &der::element(0xa3, &der::sequence(&[&extensions])),
        ]);
        let signature = sign(&key.der, &tbs)?;
        Ok(der::sequence(&[&tbs, &algorithm(), &der::bits(&signature)]))
    }
}

/// A revocation list of `issuer`.
pub(super) fn crl(
    issuer: &str,
    key: &Key,
    revoked: &[u8],
    this_update: UnixTime,
    next_update: UnixTime,
) -> Result<Vec<u8>, ModelError> {
    let entry =
        |serial: &u8| der::sequence(&[&der::small_integer(*serial), &der::time(this_update.0)]);
    let entries: Vec<u8> = revoked.iter().flat_map(entry).collect();
    let entries = if entries.is_empty() { vec![] } else { der::sequence(&[&entries]) };
    let number = extension("2.5.29.20", false, &der::small_integer(1));
    let tbs = der::sequence(&[
        &der::small_integer(1),
        &algorithm(),
        &der::name(ORGANISATION, issuer),
        &der::time(this_update.0),
        &der::time(next_update.0),
        &entries,
        &der::element(0xa0, &der::sequence(&[&number])),
    ]);
    let signature = sign(&key.der, &tbs)?;
    Ok(der::sequence(&[&tbs, &algorithm(), &der::bits(&signature)]))
}

/// The SGX extension of a server's PCK certificate.
pub(super) fn sgx_extension(config: &TdxConfig) -> Vec<u8> {
    let PckTcb { components, pcesvn } = config.tcb;
    let mut tcb = Vec::new();
    for (index, svn) in (1_u8..).zip(components) {
        tcb.extend(member(&format!("2.{index}"), &der::small_integer(svn)));
    }
    tcb.extend(member("2.17", &der::integer(&pcesvn.to_be_bytes())));
    tcb.extend(member("2.18", &der::octets(&components)));
    let flags: Vec<u8> =
        ["7.1", "7.2", "7.3"].iter().flat_map(|id| member(id, &der::yes())).collect();
    der::sequence(&[
        &member("1", &der::octets(&config.ppid)),
        &member("2", &der::sequence(&[&tcb])),
        &member("3", &der::octets(&config.pceid)),
        &member("4", &der::octets(&config.fmspc)),
        &member("5", &der::element(0x0a, &[1])),
        &member("6", &der::octets(&[6; 16])),
        &member("7", &der::sequence(&[&flags])),
    ])
}

fn member(suffix: &str, value: &[u8]) -> Vec<u8> {
    der::sequence(&[&der::oid(&format!("{SGX_EXTENSION}.{suffix}")), value])
}

fn extension(oid: &str, critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { der::yes() } else { vec![] };
    der::sequence(&[&der::oid(oid), &critical, &der::octets(value)])
}

/// ecdsa-with-SHA256.
fn algorithm() -> Vec<u8> {
    der::sequence(&[&der::oid("1.2.840.10045.4.3.2")])
}

fn public_key(key: &Key) -> Vec<u8> {
    key_on("1.2.840.10045.3.1.7", &[&[4], key.point()].concat())
}

fn p384_key() -> Result<Vec<u8>, ModelError> {
    let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING)
        .map_err(|_| ModelError::Crypto { what: "generating a P-384 key" })?;
    Ok(key_on("1.3.132.0.34", key.public_key().as_ref()))
}

fn key_on(curve: &str, point: &[u8]) -> Vec<u8> {
    let algorithm = [der::oid("1.2.840.10045.2.1"), der::oid(curve)].concat();
    der::sequence(&[&der::sequence(&[&algorithm]), &der::bits(point)])
}
