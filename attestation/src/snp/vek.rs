//! The certificate of a versioned chip endorsement key (AMD 57230, 58369).
//!
//! AMD's profile is its own: no key identifiers, no constraints, exactly
//! eleven private extensions, and a serial number that is not an identity.

use super::flags::SigningKey;
use super::tcb::{Product, Tcb};
use crate::crypto::{KeyKind, Scheme};
use crate::error::{Reason, VerifyError};
use crate::x509::Certificate;

/// A VCEK or VLEK certificate that follows the profile. Not yet tied to a root.
#[derive(Debug, Clone)]
pub struct Vek {
    certificate: Certificate,
    kind: SigningKey,
    product: Product,
    tcb: Tcb,
    owner: VekOwner,
}

/// Whom a VEK certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VekOwner {
    /// VCEK: the chip, by HWID.
    Chip(Vec<u8>),
    /// VLEK: the cloud provider, by CSP id.
    Provider(String),
}

const PREFIX: &str = "1.3.6.1.4.1.3704.1.";
const STRUCT_VERSION: &str = "1.3.6.1.4.1.3704.1.1";
const PRODUCT_NAME: &str = "1.3.6.1.4.1.3704.1.2";
const HWID: &str = "1.3.6.1.4.1.3704.1.4";
const CSP_ID: &str = "1.3.6.1.4.1.3704.1.5";
/// The security patch levels that every product has: suffix, then whether it must be zero.
const LEGACY_SPL: [&str; 8] = ["3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8"];
const TURIN_SPL: [&str; 8] = ["3.1", "3.2", "3.3", "3.5", "3.6", "3.7", "3.8", "3.9"];
const RESERVED_SPL: [&str; 4] = ["3.4", "3.5", "3.6", "3.7"];

impl Vek {
    /// Reads the profile out of `certificate`.
    pub fn parse(certificate: Certificate) -> Result<Self, VerifyError> {
        certificate.check_scheme(Scheme::RsaPssSha384)?;
        if certificate.key().kind() != KeyKind::P384 {
            return Err(VerifyError::new(
                Reason::CertAlgorithm,
                "key of the VEK certificate",
                "P-384",
                format!("{:?}", certificate.key().kind()),
            ));
        }
        let kind = match certificate.subject().common_name.as_str() {
            "SEV-VCEK" => SigningKey::Vcek,
            "SEV-VLEK" => SigningKey::Vlek,
            other => {
                return Err(VerifyError::new(
                    Reason::Chain,
                    "subject of the VEK certificate",
                    "SEV-VCEK or SEV-VLEK",
                    other,
                ));
            }
        };
        let product = product(&certificate)?;
        check_issuer_name(&certificate, kind, product)?;
        check_extension_set(&certificate, kind, product)?;
        let tcb = tcb(&certificate, product)?;
        let owner = owner(&certificate, kind, product)?;
        Ok(Self { certificate, kind, product, tcb, owner })
    }

    /// The certificate itself.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// VCEK or VLEK.
    pub fn kind(&self) -> SigningKey {
        self.kind
    }

    /// The product line that the certificate names.
    pub fn product(&self) -> Product {
        self.product
    }

    /// The TCB that the key was derived for.
    pub fn tcb(&self) -> Tcb {
        self.tcb
    }

    /// The chip or the provider.
    pub fn owner(&self) -> &VekOwner {
        &self.owner
    }

    /// The common name that the issuer of this kind of key has.
    pub fn issuer_name(&self) -> String {
        issuer_name(self.kind, self.product)
    }
}

fn wrong(field: &str, expected: impl Into<String>, actual: impl core::fmt::Display) -> VerifyError {
    VerifyError::new(Reason::CertExtension, format!("VEK certificate, {field}"), expected, actual)
}

/// productName: `Milan-B0`, `Genoa`; a stepping may follow the line's name.
fn product(certificate: &Certificate) -> Result<Product, VerifyError> {
    let name = ia5(certificate, PRODUCT_NAME, "productName")?;
    let line = name.split_once('-').map_or(name.as_str(), |(line, _)| line);
    Product::from_name(line).ok_or_else(|| {
        VerifyError::new(Reason::Product, "productName", "Milan, Genoa or Turin", &name)
    })
}

fn issuer_name(kind: SigningKey, product: Product) -> String {
    match kind {
        SigningKey::Vlek => format!("SEV-VLEK-{product}"),
        _ => format!("SEV-{product}"),
    }
}

/// The issuer must be the CA for this kind of key, and of this product.
fn check_issuer_name(
    certificate: &Certificate,
    kind: SigningKey,
    product: Product,
) -> Result<(), VerifyError> {
    let actual = &certificate.issuer().common_name;
    let expected = issuer_name(kind, product);
    if *actual == expected {
        return Ok(());
    }
    let of_another_product = Product::ALL.into_iter().any(|p| *actual == issuer_name(kind, p));
    let reason = if of_another_product { Reason::Product } else { Reason::Chain };
    Err(VerifyError::new(reason, format!("issuer of the {kind} certificate"), expected, actual))
}

/// Exactly the extensions of the profile: no more, no fewer, no others.
fn check_extension_set(
    certificate: &Certificate,
    kind: SigningKey,
    product: Product,
) -> Result<(), VerifyError> {
    let (spls, version) = match product {
        Product::Turin => (TURIN_SPL, 1),
        Product::Milan | Product::Genoa => (LEGACY_SPL, 0),
    };
    let owner = if kind == SigningKey::Vlek { CSP_ID } else { HWID };
    let mut expected: Vec<String> = spls.iter().map(|suffix| format!("{PREFIX}{suffix}")).collect();
    expected.extend([STRUCT_VERSION, PRODUCT_NAME, owner].map(str::to_owned));
    for extension in certificate.extensions() {
        if !expected.contains(&extension.oid) {
            return Err(wrong("extensions", "none beside AMD's profile", &extension.oid));
        }
    }
    for oid in &expected {
        if certificate.extension(oid).is_none() {
            return Err(wrong(oid, "to be there", "absent"));
        }
    }
    match integer(certificate, STRUCT_VERSION)? {
        actual if actual == version => Ok(()),
        actual => Err(wrong("structVersion", format!("{version} for {product}"), actual)),
    }
}

fn tcb(certificate: &Certificate, product: Product) -> Result<Tcb, VerifyError> {
    let spl = |suffix: &str| integer(certificate, &format!("{PREFIX}{suffix}"));
    for suffix in RESERVED_SPL {
        // Turin has no 3.4; the set was checked before.
        let known = certificate.extension(&format!("{PREFIX}{suffix}")).is_some();
        if known && spl(suffix)? != 0 {
            return Err(wrong(suffix, "0", spl(suffix)?));
        }
    }
    Ok(Tcb {
        fmc: if product == Product::Turin { spl("3.9")? } else { 0 },
        bootloader: spl("3.1")?,
        tee: spl("3.2")?,
        snp: spl("3.3")?,
        microcode: spl("3.8")?,
    })
}

/// HWID is raw bytes and not DER, whatever it looks like.
fn owner(
    certificate: &Certificate,
    kind: SigningKey,
    product: Product,
) -> Result<VekOwner, VerifyError> {
    if kind == SigningKey::Vlek {
        return Ok(VekOwner::Provider(ia5(certificate, CSP_ID, "CSP id")?));
    }
    let hwid = certificate.extension(HWID).unwrap_or_default();
    if hwid.len() != product.chip_id_bytes() {
        let expected = format!("{} bytes for {product}", product.chip_id_bytes());
        return Err(wrong("HWID", expected, format!("{} bytes", hwid.len())));
    }
    Ok(VekOwner::Chip(hwid.to_vec()))
}

/// A DER INTEGER of 0 to 255 in its shortest form.
fn integer(certificate: &Certificate, oid: &str) -> Result<u8, VerifyError> {
    match certificate.extension(oid).unwrap_or_default() {
        [2, 1, value @ 0..=0x7f] | [2, 2, 0, value @ 0x80..=0xff] => Ok(*value),
        other => Err(wrong(oid, "an INTEGER from 0 to 255", crate::wire::hex(other))),
    }
}

/// A DER IA5String of at most 127 characters.
fn ia5(certificate: &Certificate, oid: &str, field: &str) -> Result<String, VerifyError> {
    let value = certificate.extension(oid);
    match value.unwrap_or_default() {
        [0x16, length @ 0..=0x7f, text @ ..]
            if text.len() == usize::from(*length) && text.is_ascii() =>
        {
            Ok(String::from_utf8_lossy(text).into_owned())
        }
        other => Err(wrong(field, "an IA5String", crate::wire::hex(other))),
    }
}
