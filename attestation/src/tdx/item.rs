//! A quote inside an evidence envelope: finding the collateral it needs.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::collateral::Collateral;
use super::prepared::{Prepared, TdxClaims};
use crate::anchors::{IntelAnchor, TrustAnchors};
use crate::crypto::sha256;
use crate::error::{Reason, VerifyError};
use crate::evidence::{EndorsementKind, EvidenceItem};
use crate::time::UnixTime;
use crate::verify::{Endorsements, Verified};

/// Collateral that was prepared under one root, by the SHA-256 of its bundle.
/// Only what Intel signed gets in, and of that no more than a fixed number.
#[derive(Debug, Default)]
pub struct Memory(RwLock<HashMap<[u8; 32], Arc<Prepared>>>);

const MAX_PREPARED: usize = 64;

impl Memory {
    /// The collateral in `bundle`, checked under `anchor` now or before.
    pub fn prepare(
        &self,
        bundle: &[u8],
        anchor: &IntelAnchor,
    ) -> Result<Arc<Prepared>, VerifyError> {
        let digest = sha256(bundle);
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned();
        if let Some(prepared) = known {
            return Ok(prepared);
        }
        let collateral = Collateral::decode(bundle).map_err(|error| {
            let (field, expected) = ("TDX collateral", "a bundle as docs/formats says");
            VerifyError::new(Reason::CollateralMalformed, field, expected, error)
        })?;
        let prepared = Arc::new(Prepared::new(&collateral, anchor)?);
        let mut sets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if sets.len() >= MAX_PREPARED {
            sets.clear();
        }
        sets.insert(digest, Arc::clone(&prepared));
        Ok(prepared)
    }
}

/// Verifies a quote against what the caller supplied, else against what the
/// attester sent. Collateral for another platform family is passed over.
pub(crate) fn verify_item(
    item: &EvidenceItem,
    anchors: &TrustAnchors,
    endorsements: &Endorsements,
    now: UnixTime,
) -> Result<Verified<TdxClaims>, VerifyError> {
    let mut last = missing();
    for (_, bundle) in endorsements
        .items
        .iter()
        .chain(&item.endorsements)
        .filter(|(kind, _)| *kind == EndorsementKind::TdxCollateral)
    {
        match prepare(bundle, anchors)?.verify(&item.evidence, now) {
            Err(error) if matches!(error.reason, Reason::Fmspc | Reason::PceId) => last = error,
            outcome => return outcome,
        }
    }
    Err(last)
}

/// Prepares `bundle` under that anchor whose key it is by.
fn prepare(bundle: &[u8], anchors: &TrustAnchors) -> Result<Arc<Prepared>, VerifyError> {
    let (field, expected) = ("TDX collateral", "a trusted Intel root");
    let mut last = VerifyError::new(Reason::Chain, field, expected, "none");
    for anchor in &anchors.intel {
        match anchor.prepare(bundle) {
            Ok(prepared) => return Ok(prepared),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn missing() -> VerifyError {
    let expected = "collateral for the platform, sent along or supplied";
    VerifyError::new(Reason::CollateralMissing, "TDX collateral", expected, "none")
}
