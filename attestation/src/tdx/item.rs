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
use crate::x509::{Crl, crls_der_or_pem};

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

/// Verifies a quote against what the caller supplied; where that says nothing of
/// the platform, against what the attester sent. Of several sets that fit, the
/// newest judges. A caller's set that is unfit otherwise never gives way to one
/// that the attester chose.
pub(crate) fn verify_item(
    item: &EvidenceItem,
    anchors: &TrustAnchors,
    endorsements: &Endorsements,
    now: UnixTime,
) -> Result<Verified<TdxClaims>, VerifyError> {
    let sources = [&endorsements.items, &item.endorsements];
    let lists = lists(&sources)?;
    let mut unfit = None;
    for source in sources {
        if let Some(claims) = judge(&item.evidence, source, &lists, anchors, now, &mut unfit)? {
            return Ok(claims);
        }
        if let Some(error) = unfit.take_if(|error| !is_of_another(error)) {
            return Err(error);
        }
    }
    Err(unfit.unwrap_or_else(missing))
}

/// The revocation lists that are in no set of collateral.
fn lists(sources: &[&Vec<(EndorsementKind, Vec<u8>)>]) -> Result<Vec<Crl>, VerifyError> {
    let all = sources.iter().flat_map(|source| source.iter());
    let lists = all.filter(|(kind, _)| *kind == EndorsementKind::Crl);
    let lists: Result<Vec<_>, _> = lists.map(|(_, bytes)| crls_der_or_pem(bytes)).collect();
    Ok(lists?.into_iter().flatten().collect())
}

/// What the newest set in `source` says of `quote`, if one is of use. Why the
/// others are not goes to `unfit`; a set that refuses the quote is an error.
fn judge(
    quote: &[u8],
    source: &[(EndorsementKind, Vec<u8>)],
    lists: &[Crl],
    anchors: &TrustAnchors,
    now: UnixTime,
    unfit: &mut Option<VerifyError>,
) -> Result<Option<Verified<TdxClaims>>, VerifyError> {
    let mut best: Option<Verified<TdxClaims>> = None;
    for (_, bundle) in source.iter().filter(|(kind, _)| *kind == EndorsementKind::TdxCollateral) {
        let set = match prepare(bundle, anchors) {
            Ok(set) => set,
            Err(error) => {
                note(unfit, error)?;
                continue;
            }
        };
        let outcome = set.verify(quote, now);
        if outcome.is_ok() {
            lists.iter().try_for_each(|list| set.check_list(quote, list))?;
        }
        match outcome {
            Ok(claims) if best.as_ref().is_none_or(|known| age(known) < age(&claims)) => {
                best = Some(claims);
            }
            Ok(_) => {}
            Err(error) if is_unfit(&error) => note(unfit, error)?,
            Err(error) => return Err(error),
        }
    }
    Ok(best)
}

/// Of two sets for one platform, which is newer.
fn age(claims: &TdxClaims) -> (u32, UnixTime) {
    (claims.collateral.tcb_evaluation_data_number, claims.collateral.issued)
}

fn is_of_another(error: &VerifyError) -> bool {
    matches!(error.reason, Reason::Fmspc | Reason::PceId)
}

/// Whether another set may say more of the same quote: this one is of another
/// platform, CA, root or time.
fn is_unfit(error: &VerifyError) -> bool {
    use Reason::{CertValidity, Chain, CollateralStale, CrlIssuer};
    let of_the_set = matches!(error.reason, CollateralStale | CertValidity | CrlIssuer | Chain);
    of_the_set || is_of_another(error)
}

/// Keeps why a set is of no use, the reason that says more. A revocation is never
/// passed over.
fn note(unfit: &mut Option<VerifyError>, error: VerifyError) -> Result<(), VerifyError> {
    if error.reason == Reason::Revoked {
        return Err(error);
    }
    // That a set is of another platform says little, of another TEE a bit more.
    let says = |error: &VerifyError| match error.reason {
        _ if is_of_another(error) => 0,
        Reason::CollateralKind => 1,
        _ => 2,
    };
    if unfit.as_ref().is_none_or(|known| says(known) < says(&error)) {
        *unfit = Some(error);
    }
    Ok(())
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
