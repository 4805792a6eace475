//! The root keys of [`crate::anchors`], as chains are compared with them.

use crate::anchors::{Anchor, NvidiaAnchor};
use crate::crypto::PublicKey;

/// A pinned root key. Certificates of it may change; the key does not.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    pub(crate) anchor: Anchor,
    pub(crate) key: PublicKey,
}

/// The roots of devices and of the signers of reference manifests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roots {
    pub(crate) devices: Vec<Root>,
    pub(crate) manifests: Vec<Root>,
}

impl Roots {
    pub(crate) fn new(anchors: &[NvidiaAnchor]) -> Self {
        let root = |anchor: &NvidiaAnchor, certificate: &crate::x509::Certificate| Root {
            anchor: anchor.anchor().clone(),
            key: certificate.key().clone(),
        };
        Self {
            devices: anchors.iter().map(|one| root(one, one.device_root())).collect(),
            manifests: anchors.iter().map(|one| root(one, one.rim_root())).collect(),
        }
    }
}
