//! What was verified before and holds for ever: that a certificate was signed
//! by a key, and that a manifest's text was signed by its signer.
//!
//! Only facts that no clock can change are kept, under the SHA-256 of all the
//! bytes that made them true; validity, revocation and versions are checked
//! each time. Only what a pinned root vouches for is kept, so that a stranger
//! cannot fill the memory, and it is emptied when it is full.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use crate::crypto::sha256;
use crate::x509::Certificate;

use super::rim::Checked;

const MAX_LINKS: usize = 1024;
const MAX_MANIFESTS: usize = 128;

/// The memory of a [`super::Verifier`]; shared between threads.
#[derive(Debug, Default)]
pub(crate) struct Memo(RwLock<Inner>);

#[derive(Debug, Default)]
struct Inner {
    links: HashSet<[u8; 32]>,
    manifests: HashMap<[u8; 32], Arc<Checked>>,
}

/// A signature that was checked: who signed what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link([u8; 32]);

impl Link {
    /// `issuer`'s key signed `certificate`.
    pub(crate) fn certificate(certificate: &Certificate, issuer: &Certificate) -> Self {
        Self::new(issuer, certificate.der(), &[])
    }

    /// `signer`'s key made `signature` over `message`.
    pub(crate) fn message(signer: &Certificate, message: &[u8], signature: &[u8]) -> Self {
        Self::new(signer, &sha256(message), &sha256(signature))
    }

    fn new(signer: &Certificate, message: &[u8], signature: &[u8]) -> Self {
        // The key comes first and has a length fixed by its kind: no two inputs run together.
        Self(sha256(&[signer.key().bytes(), message, signature].concat()))
    }
}

impl Memo {
    pub(crate) fn knows(&self, link: Link) -> bool {
        self.read(|inner| inner.links.contains(&link.0))
    }

    pub(crate) fn keep(&self, links: &[Link]) {
        self.write(|inner| {
            if inner.links.len() >= MAX_LINKS {
                inner.links.clear();
            }
            inner.links.extend(links.iter().map(|link| link.0));
        });
    }

    pub(crate) fn manifest(&self, digest: &[u8; 32]) -> Option<Arc<Checked>> {
        self.read(|inner| inner.manifests.get(digest).cloned())
    }

    pub(crate) fn keep_manifest(&self, digest: [u8; 32], checked: &Arc<Checked>) {
        self.write(|inner| {
            if inner.manifests.len() >= MAX_MANIFESTS {
                inner.manifests.clear();
            }
            inner.manifests.insert(digest, Arc::clone(checked));
        });
    }

    // A thread that panicked while it held the lock left whole entries behind.
    fn read<T>(&self, look: impl FnOnce(&Inner) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}
