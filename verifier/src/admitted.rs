//! Sandboxes whose evidence was affirmed, and what of it later requests need.
//!
//! The working copy is a bounded cache. After a restart it is made again from
//! the stored bundle by verifying and appraising it anew, under the policy of
//! today and the time of then: no row of the database is believed for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use casemate_attestation::{Appraisal, UnixTime};

use crate::denial::{Code, Denial};

/// An affirmed sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Admitted {
    /// Its SPIFFE ID.
    pub(crate) sandbox: String,
    /// Its Ed25519 key.
    pub(crate) identity_key: [u8; 32],
    /// Its X25519 key.
    pub(crate) sealing_key: [u8; 32],
    /// The task it was admitted for.
    pub(crate) task: String,
    /// SHA-256 of the bundle.
    pub(crate) bundle: [u8; 32],
    /// What was found.
    pub(crate) appraisal: Arc<Appraisal>,
}

/// The newest affirmed sandboxes, by SPIFFE ID.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<HashMap<String, Arc<Admitted>>>);

const CACHED: usize = 4096;

impl Cache {
    /// The sandbox `id` if its last bundle is `bundle`.
    pub(crate) fn get(&self, id: &str, bundle: &[u8; 32]) -> Option<Arc<Admitted>> {
        let cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cached.get(id).filter(|admitted| admitted.bundle == *bundle).cloned()
    }

    /// Keeps `admitted`, in the place of the oldest if there is no other.
    pub(crate) fn put(&self, admitted: Arc<Admitted>) {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.len() >= CACHED && !cached.contains_key(&admitted.sandbox) {
            let oldest = cached.values().min_by_key(|one| one.appraisal.appraised_at());
            if let Some(oldest) = oldest.map(|one| one.sandbox.clone()) {
                cached.remove(&oldest);
            }
        }
        cached.insert(admitted.sandbox.clone(), admitted);
    }
}

impl Admitted {
    /// Whether the attestation is fresh enough for a new lease.
    pub(crate) fn check_current(&self, now: UnixTime, seconds: u64) -> Result<(), Denial> {
        let until = self.appraisal.appraised_at().plus_seconds(seconds);
        if now <= until {
            return Ok(());
        }
        let expected = format!("an attestation that is used until {until}");
        Err(Denial::new(Code::AttestationExpired, "attestation", expected, format!("it is {now}")))
    }
}

/// The denial for a revoked identity.
pub(crate) fn revoked(sandbox: &str) -> Denial {
    Denial::new(Code::IdentityRevoked, "identity", "an identity that stands", sandbox)
}
