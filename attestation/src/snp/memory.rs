//! Chains checked once and kept, beside the root that they lead to.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::chain::PreparedVek;
use crate::crypto::sha256;
use crate::evidence::EndorsementKind;
use crate::x509::Crl;

/// The chains under one root that reports were verified with, by the SHA-256
/// of all that came along. Only what AMD signed gets in, and of that no more
/// than a fixed number.
#[derive(Debug, Default)]
pub(crate) struct Memory(RwLock<HashMap<[u8; 32], Arc<Kept>>>);

/// A chain that held.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(super) prepared: PreparedVek,
    /// The lists that the attester sent, each of which must be current.
    pub(super) sent: Vec<Crl>,
}

const MAX_CHAINS: usize = 256;

impl Memory {
    /// The chain that was kept under `key`.
    pub(crate) fn chain(&self, key: &[u8; 32]) -> Option<Arc<Kept>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Keeps a chain under which a report has verified.
    pub(crate) fn keep(&self, key: [u8; 32], kept: Kept) {
        let mut chains = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if chains.len() >= MAX_CHAINS {
            chains.clear();
        }
        chains.insert(key, Arc::new(kept));
    }
}

/// What a chain is kept under: every endorsement that it could be made of,
/// each by source, kind and digest.
pub(crate) fn key(sources: &[&[(EndorsementKind, Vec<u8>)]]) -> [u8; 32] {
    let mut digests = Vec::new();
    for (source, endorsements) in (0_u8..).zip(sources) {
        for (kind, bytes) in endorsements.iter().filter(|(kind, _)| is_of_a_chain(*kind)) {
            digests.push(source);
            digests.extend(kind.code().to_be_bytes());
            digests.extend(sha256(bytes));
        }
    }
    sha256(&digests)
}

fn is_of_a_chain(kind: EndorsementKind) -> bool {
    use EndorsementKind::{CertificateChain, Crl, SnpCertTable};
    matches!(kind, CertificateChain | Crl | SnpCertTable)
}
