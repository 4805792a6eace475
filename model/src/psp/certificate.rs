//! Certificates in AMD's profile, and ones that depart from it for tests.

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA384, RSA_PSS_SHA384,
    RsaEncoding, RsaKeyPair,
};
use casemate_attestation::UnixTime;
use casemate_attestation::snp::Product;

use super::{PspConfig, VekKind, YEAR};
use crate::ModelError;
use crate::der;

const ORGANISATION: &str = "Casemate software model, not AMD";
const AMD: &str = "1.3.6.1.4.1.3704.1.";

/// Who signs a certificate.
#[derive(Clone, Copy)]
pub struct Issuer<'a> {
    /// The issuer's common name.
    pub name: &'a str,
    /// Its key.
    pub key: &'a RsaKeyPair,
}

/// The key that a certificate is for.
#[derive(Debug, Clone)]
pub enum SubjectKey {
    /// A DER RSAPublicKey.
    Rsa(Vec<u8>),
    /// An uncompressed point on P-384.
    P384(Vec<u8>),
    /// An uncompressed point on P-256.
    P256(Vec<u8>),
}

/// What a certificate says. Every field may be changed before signing.
#[derive(Debug, Clone)]
pub struct CertSpec {
    /// The serial number.
    pub serial: Vec<u8>,
    /// The subject's common name.
    pub subject: String,
    /// The first second of validity.
    pub not_before: UnixTime,
    /// The last second of validity.
    pub not_after: UnixTime,
    /// The subject's key.
    pub key: SubjectKey,
    /// Extensions: identifier, critical, value.
    pub extensions: Vec<(String, bool, Vec<u8>)>,
    /// Write trailerField 1 of the PSS parameters, as some of AMD's do.
    pub explicit_trailer: bool,
}

impl CertSpec {
    /// A CA certificate as AMD's roots and signing keys have it.
    pub(super) fn ca(subject: &str, not_before: UnixTime, key: &RsaKeyPair) -> Self {
        let serial = if subject.starts_with("ARK") { vec![1, 0, 0] } else { vec![1, 0, 1] };
        Self {
            serial,
            subject: subject.to_owned(),
            not_before,
            not_after: not_before.plus_seconds(25 * YEAR),
            key: SubjectKey::Rsa(key.public_key().as_ref().to_vec()),
            extensions: vec![
                ("2.5.29.15".to_owned(), true, vec![3, 2, 1, 6]),
                ("2.5.29.19".to_owned(), true, der::sequence(&[&der::yes()])),
            ],
            explicit_trailer: true,
        }
    }

    /// A VEK certificate in AMD's profile: serial 0, eleven private extensions.
    pub fn vek(config: &PspConfig, chip_id: &[u8; 64], point: &[u8]) -> Self {
        let (subject, owner, years) = match &config.kind {
            VekKind::Vcek => {
                let hwid = chip_id.iter().copied().take(config.product.chip_id_bytes());
                ("SEV-VCEK", ("4", hwid.collect()), 7)
            }
            VekKind::Vlek(csp) => ("SEV-VLEK", ("5", der::ia5(csp)), 1),
        };
        let turin = config.product == Product::Turin;
        let name = match (config.product, &config.kind) {
            (Product::Milan, VekKind::Vcek) => "Milan-B0",
            (product, _) => product.name(),
        };
        let tcb = config.tcb;
        let mut list = vec![
            ("1", der::small_integer(u8::from(turin))),
            ("2", der::ia5(name)),
            ("3.1", der::small_integer(tcb.bootloader)),
            ("3.2", der::small_integer(tcb.tee)),
            ("3.3", der::small_integer(tcb.snp)),
            ("3.5", der::small_integer(0)),
            ("3.6", der::small_integer(0)),
            ("3.7", der::small_integer(0)),
            ("3.8", der::small_integer(tcb.microcode)),
            owner,
        ];
        let extra = if turin { ("3.9", tcb.fmc) } else { ("3.4", 0) };
        list.push((extra.0, der::small_integer(extra.1)));
        let extensions =
            list.into_iter().map(|(suffix, value)| (format!("{AMD}{suffix}"), false, value));
        Self {
            serial: vec![0],
            subject: subject.to_owned(),
            not_before: config.not_before,
            not_after: config.not_before.plus_seconds(years * YEAR),
            key: SubjectKey::P384(point.to_vec()),
            extensions: extensions.collect(),
            explicit_trailer: false,
        }
    }

    /// The certificate, signed by `issuer` with RSASSA-PSS and SHA-384.
    pub fn sign(&self, issuer: &Issuer<'_>) -> Result<Vec<u8>, ModelError> {
        let algorithm = pss(self.explicit_trailer);
        let validity =
            der::sequence(&[&der::time(self.not_before.0), &der::time(self.not_after.0)]);
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(oid, critical, value)| {
                let critical = if *critical { der::yes() } else { vec![] };
                der::sequence(&[&der::oid(oid), &critical, &der::octets(value)])
            })
            .collect();
        let tbs = der::sequence(&[
            &der::element(0xa0, &der::small_integer(2)),
            &der::integer(&self.serial),
            &algorithm,
            &der::name(ORGANISATION, issuer.name),
            &validity,
            &der::name(ORGANISATION, &self.subject),
            &self.key.spki(),
            &der::element(0xa3, &der::sequence(&[&extensions])),
        ]);
        let signature = sign_rsa(issuer.key, &RSA_PSS_SHA384, &tbs)?;
        Ok(der::sequence(&[&tbs, &algorithm, &der::bits(&signature)]))
    }
}

impl SubjectKey {
    fn spki(&self) -> Vec<u8> {
        let ec = |curve: &str| der::sequence(&[&der::oid("1.2.840.10045.2.1"), &der::oid(curve)]);
        let (algorithm, bytes) = match self {
            Self::Rsa(bytes) => {
                (der::sequence(&[&der::oid("1.2.840.113549.1.1.1"), &der::null()]), bytes)
            }
            Self::P384(bytes) => (ec("1.3.132.0.34"), bytes),
            Self::P256(bytes) => (ec("1.2.840.10045.3.1.7"), bytes),
        };
        der::sequence(&[&algorithm, &der::bits(bytes)])
    }
}

/// A revocation list, and what is wrong with it, if anything.
#[derive(Debug, Clone, Copy)]
pub struct CrlSpec<'a> {
    /// The octets of its number, high first.
    pub number: &'a [u8],
    /// The serial numbers on it.
    pub revoked: &'a [&'a [u8]],
    /// When it was made.
    pub this_update: UnixTime,
    /// When the next one is due.
    pub next_update: UnixTime,
    /// A departure from AMD's profile.
    pub fault: Option<CrlFault>,
}

/// How a revocation list departs from the profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrlFault {
    /// Extensions, and no version.
    NoVersion,
    /// Version 3, which no list has.
    Version3,
    /// Its number twice.
    NumberTwice,
    /// A number below zero.
    NegativeNumber,
    /// A number that is no INTEGER.
    UnreadableNumber,
    /// Signed as PKCS #1 1.5 has it.
    Pkcs1,
}

/// A revocation list signed by `issuer`.
pub(super) fn crl(issuer: &Issuer<'_>, spec: &CrlSpec<'_>) -> Result<Vec<u8>, ModelError> {
    let is = |fault| spec.fault == Some(fault);
    let made = der::time(spec.this_update.0);
    let entries: Vec<u8> = spec
        .revoked
        .iter()
        .flat_map(|serial| der::sequence(&[&der::integer(serial), &made]))
        .collect();
    let entries = if entries.is_empty() { vec![] } else { der::element(0x30, &entries) };
    let number = match spec.fault {
        Some(CrlFault::NegativeNumber) => der::element(0x02, &[0xff]),
        Some(CrlFault::UnreadableNumber) => der::octets(spec.number),
        _ => der::integer(spec.number),
    };
    let number = der::sequence(&[&der::oid("2.5.29.20"), &der::octets(&number)]);
    let extensions = number.repeat(if is(CrlFault::NumberTwice) { 2 } else { 1 });
    let version = match spec.fault {
        Some(CrlFault::NoVersion) => vec![],
        Some(CrlFault::Version3) => der::small_integer(2),
        _ => der::small_integer(1),
    };
    let algorithm = match is(CrlFault::Pkcs1) {
        true => der::sequence(&[&der::oid("1.2.840.113549.1.1.12"), &der::null()]),
        false => pss(false),
    };
    let tbs = der::sequence(&[
        &version,
        &algorithm,
        &der::name(ORGANISATION, issuer.name),
        &made,
        &der::time(spec.next_update.0),
        &entries,
        &der::element(0xa0, &der::sequence(&[&extensions])),
    ]);
    let padding = if is(CrlFault::Pkcs1) { &RSA_PKCS1_SHA384 } else { &RSA_PSS_SHA384 };
    let signature = sign_rsa(issuer.key, padding, &tbs)?;
    Ok(der::sequence(&[&tbs, &algorithm, &der::bits(&signature)]))
}

/// RSASSA-PSS with SHA-384, MGF1-SHA-384 and a salt of 48 bytes.
fn pss(explicit_trailer: bool) -> Vec<u8> {
    let sha384 = der::sequence(&[&der::oid("2.16.840.1.101.3.4.2.2"), &der::null()]);
    let mgf = der::sequence(&[&der::oid("1.2.840.113549.1.1.8"), &sha384]);
    let trailer = match explicit_trailer {
        true => der::element(0xa3, &der::small_integer(1)),
        false => vec![],
    };
    let parameters = der::sequence(&[
        &der::element(0xa0, &sha384),
        &der::element(0xa1, &mgf),
        &der::element(0xa2, &der::small_integer(48)),
        &trailer,
    ]);
    der::sequence(&[&der::oid("1.2.840.113549.1.1.10"), &parameters])
}

fn sign_rsa(
    key: &RsaKeyPair,
    padding: &'static dyn RsaEncoding,
    message: &[u8],
) -> Result<Vec<u8>, ModelError> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(padding, &SystemRandom::new(), message, &mut signature)
        .map_err(|_| ModelError::Crypto { what: "signing with RSA" })?;
    Ok(signature)
}

pub(super) fn new_rsa() -> Result<RsaKeyPair, ModelError> {
    RsaKeyPair::generate(KeySize::Rsa4096)
        .map_err(|_| ModelError::Crypto { what: "generating an RSA key" })
}

pub(super) fn rsa_from(pkcs8: &[u8]) -> Result<RsaKeyPair, ModelError> {
    RsaKeyPair::from_pkcs8(pkcs8).map_err(|_| ModelError::Crypto { what: "reading an RSA key" })
}

pub(super) fn p384_from(pkcs8: &[u8]) -> Result<EcdsaKeyPair, ModelError> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, pkcs8)
        .map_err(|_| ModelError::Crypto { what: "reading a P-384 key" })
}

pub(super) fn rsa_pkcs8(key: &RsaKeyPair) -> Result<Vec<u8>, ModelError> {
    let der: Pkcs8V1Der<'_> =
        key.as_der().map_err(|_| ModelError::Crypto { what: "writing an RSA key" })?;
    Ok(der.as_ref().to_vec())
}

pub(super) fn p384_pkcs8(key: &EcdsaKeyPair) -> Result<Vec<u8>, ModelError> {
    let der = key.to_pkcs8v1().map_err(|_| ModelError::Crypto { what: "writing a P-384 key" })?;
    Ok(der.as_ref().to_vec())
}
