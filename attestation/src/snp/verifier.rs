//! Chains checked once and kept, for a service that sees the same chips again.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::chain::{PreparedVek, SnpClaims};
use crate::anchors::TrustAnchors;
use crate::crypto::sha256;
use crate::error::VerifyError;
use crate::time::UnixTime;
use crate::verify::Verified;
use crate::x509::{Certificate, Crl};

/// Verifies reports under fixed anchors and remembers the chains that held.
/// Safe to share between threads; memory is bounded by the capacity.
#[derive(Debug)]
pub struct Verifier {
    anchors: TrustAnchors,
    capacity: usize,
    known: RwLock<BTreeMap<[u8; 32], Arc<PreparedVek>>>,
}

impl Verifier {
    /// A verifier that keeps up to `capacity` chains.
    pub fn new(anchors: TrustAnchors, capacity: usize) -> Self {
        Self { anchors, capacity, known: RwLock::default() }
    }

    /// Verifies `report` with the certificate `vek` at `now`.
    ///
    /// A certificate that was seen with the same revocation lists costs one
    /// P-384 signature; any other list is checked anew.
    pub fn verify(
        &self,
        report: &[u8],
        vek: &[u8],
        supplied: &[Certificate],
        crls: &[Vec<u8>],
        now: UnixTime,
    ) -> Result<Verified<SnpClaims>, VerifyError> {
        let key = key(vek, crls);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(prepared) = known.filter(|prepared| prepared.holds_at(now)) {
            return prepared.verify(report, now);
        }
        let crls = crls.iter().map(|der| Crl::parse(der)).collect::<Result<Vec<_>, _>>()?;
        let vek = Certificate::parse(vek)?;
        let prepared = PreparedVek::new(vek, supplied, &crls, &self.anchors, now)?;
        let verified = prepared.verify(report, now)?;
        self.remember(key, prepared);
        Ok(verified)
    }

    /// Keeps a chain under which a report has verified.
    fn remember(&self, key: [u8; 32], prepared: PreparedVek) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        while known.len() >= self.capacity && known.pop_first().is_some() {}
        if self.capacity > 0 {
            known.insert(key, Arc::new(prepared));
        }
    }
}

/// What a chain is remembered by: the certificate and the lists, each by digest.
fn key(vek: &[u8], crls: &[Vec<u8>]) -> [u8; 32] {
    let mut digests = sha256(vek).to_vec();
    crls.iter().for_each(|crl| digests.extend(sha256(crl)));
    sha256(&digests)
}
