//! What is known of PCK certificates: checked once, then looked up.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::certificates::{self, PckCa};
use super::pck::SgxExtension;
use super::quote::Quote;
use crate::crypto::{PublicKey, sha256};
use crate::error::{Reason, VerifyError};
use crate::x509::{Certificate, Crl, PemLimits, certificates_from_pem};

/// A platform's certification key, its chain checked and not revoked.
#[derive(Debug)]
pub(super) struct Pck {
    /// What the certificate says of the platform.
    pub(super) extension: SgxExtension,
    pub(super) certificate: Certificate,
    pub(super) key: PublicKey,
    pub(super) ca: Arc<PckCa>,
}

/// PCK chains and CAs already checked under one root and one set of CRLs. Only
/// genuine ones get in, and of those no more than a fixed number.
#[derive(Debug, Default)]
pub(super) struct Memo {
    /// By the SHA-256 of the chain's text.
    chains: RwLock<HashMap<[u8; 32], Arc<Pck>>>,
    /// By the text that follows the leaf, as it was received.
    cas: RwLock<Vec<(Vec<u8>, Arc<PckCa>)>>,
}

const MAX_CHAINS: usize = 1024;
const MAX_CAS: usize = 8;

impl Memo {
    /// The PCK of the chain `pem`, leaf first.
    pub(super) fn pck(
        &self,
        pem: &[u8],
        root: &Certificate,
        root_crl: &Crl,
        crls: &[Crl],
    ) -> Result<Arc<Pck>, VerifyError> {
        let digest = sha256(pem);
        if let Some(pck) = read(&self.chains).get(&digest) {
            return Ok(Arc::clone(pck));
        }
        let pck = Arc::new(self.check(pem, root, root_crl, crls)?);
        let mut chains = self.chains.write().unwrap_or_else(PoisonError::into_inner);
        if chains.len() >= MAX_CHAINS {
            chains.clear();
        }
        chains.insert(digest, Arc::clone(&pck));
        Ok(pck)
    }

    /// Checks a chain that was not met before.
    fn check(
        &self,
        pem: &[u8],
        root: &Certificate,
        root_crl: &Crl,
        crls: &[Crl],
    ) -> Result<Pck, VerifyError> {
        let (text, above) = split_leaf(pem);
        let certificate = leaf(text)?;
        let extension = certificates::pck_extension(&certificate)?;
        let ca = self.ca(above, root, root_crl, crls)?;
        certificates::check_pck(&certificate, &ca)?;
        ca.check_not_revoked(&certificate)?;
        Ok(Pck { extension, key: certificate.key().clone(), certificate, ca })
    }

    /// The PCK CA of a chain whose part above the leaf is `above`.
    fn ca(
        &self,
        above: &[u8],
        root: &Certificate,
        root_crl: &Crl,
        crls: &[Crl],
    ) -> Result<Arc<PckCa>, VerifyError> {
        if let Some((_, ca)) = read(&self.cas).iter().find(|(text, _)| text == above) {
            return Ok(Arc::clone(ca));
        }
        if above.iter().all(|byte| byte.is_ascii_whitespace() || *byte == 0) {
            return Err(wrong_length(1));
        }
        let mut certificates = parse(above)?.into_iter();
        let certificate = match (certificates.next(), certificates.next(), certificates.next()) {
            (Some(ca), None, None) => ca,
            (Some(ca), Some(sent), None) => {
                certificates::check_same_root(&sent, root)?;
                ca
            }
            _ => return Err(wrong_length(4)),
        };
        root_crl.check_not_revoked(&certificate)?;
        let ca = Arc::new(certificates::pck_ca(certificate, root, crls)?);
        let mut cas = self.cas.write().unwrap_or_else(PoisonError::into_inner);
        if cas.len() >= MAX_CAS {
            cas.clear();
        }
        cas.push((above.to_vec(), Arc::clone(&ca)));
        Ok(ca)
    }
}

/// Which PCK CA issued a certificate: its CRL is asked for by this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PckCaKind {
    /// Of platforms with several packages, and of all servers.
    Platform,
    /// Of other platforms.
    Processor,
}

/// What a quote claims of its platform, so that collateral can be fetched for
/// it. Nothing is proved: believe [`super::TdxClaims::platform`] alone.
pub fn claimed_platform(quote: &[u8]) -> Result<(SgxExtension, PckCaKind), VerifyError> {
    let quote = Quote::parse(quote)?;
    let certificate = leaf(split_leaf(quote.pck_chain).0)?;
    let extension = certificates::pck_extension(&certificate)?;
    let [platform, processor] = certificates::PCK_CA_NAMES;
    match certificate.issuer().common_name.as_str() {
        name if name == platform => Ok((extension, PckCaKind::Platform)),
        name if name == processor => Ok((extension, PckCaKind::Processor)),
        other => {
            let expected = format!("{platform} or {processor}");
            Err(VerifyError::new(Reason::Chain, "issuer of the PCK", expected, other))
        }
    }
}

fn leaf(pem: &[u8]) -> Result<Certificate, VerifyError> {
    match <[Certificate; 1]>::try_from(parse(pem)?) {
        Ok([certificate]) => Ok(certificate),
        Err(several) => Err(wrong_length(several.len())),
    }
}

fn parse(pem: &[u8]) -> Result<Vec<Certificate>, VerifyError> {
    certificates_from_pem(pem, PemLimits::CHAIN).map_err(|error| match error.reason {
        Reason::CertMalformed => VerifyError { reason: Reason::CertData, ..error },
        _ => error,
    })
}

/// The first PEM block, and what follows.
fn split_leaf(pem: &[u8]) -> (&[u8], &[u8]) {
    let end = pem.windows(END.len()).position(|window| window == END);
    let length = end.map_or(pem.len(), |end| end.saturating_add(END.len()));
    pem.split_at_checked(length).unwrap_or((pem, &[]))
}

fn wrong_length(actual: usize) -> VerifyError {
    let expected = "a PCK, its CA, and at most the root";
    VerifyError::new(Reason::Chain, "PCK chain", expected, format!("{actual} certificates"))
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

const END: &[u8] = b"-----END CERTIFICATE-----";
