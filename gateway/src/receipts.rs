//! Receipts: everything that proves one call, for those who were not there.

use casemate_ledger::receipt::{Included, Receipt};
use casemate_ledger::{Decision, Invocation, Leaf, LeafKind, record};
use casemate_ledger_store::{Proof, StoreError};

use crate::admin::Reply;
use crate::artefacts;
use crate::service::Gateway;
use crate::sync::locked;

/// The decision on a sandbox's call by its place in the chain.
pub(crate) fn find(gateway: &Gateway, sandbox: String, epoch: u64, sequence: u64) -> Option<u64> {
    let at = usize::try_from(sequence.checked_sub(1)?).ok()?;
    locked(&gateway.state).chains.get(&(sandbox, epoch))?.decisions.get(at).copied()
}

/// Collects everything that proves the call whose decision is leaf `decision`.
pub(crate) async fn receipt(gateway: &Gateway, decision: u64) -> Result<Reply, String> {
    let text = |error: StoreError| error.to_string();
    let leaf = gateway.journal.leaf(decision).map_err(text)?;
    let leaf = Leaf::decode(&leaf).map_err(|error| error.to_string())?;
    if leaf.kind != LeafKind::Decision {
        return Err(format!("decision: expected a decision's leaf, got {:?}", leaf.kind));
    }
    let (_, record) = record::peek::<Decision>(&leaf.record).map_err(|e| e.to_string())?;
    let (_, call) = record::peek::<Invocation>(&record.invocation).map_err(|e| e.to_string())?;
    let (outcome, grant) = {
        let state = locked(&gateway.state);
        let held = call.grant.and_then(|grant| state.grants.get(&grant.id));
        (state.outcomes.get(&decision).copied(), held.map(|held| held.index))
    };
    let indices: Vec<u64> = [Some(decision), outcome, grant].into_iter().flatten().collect();
    let (checkpoint, proofs) = prove(gateway, &indices).map_err(text)?;
    let included = |index: Option<u64>| {
        let proof = proofs.iter().find(|proof| Some(proof.index) == index);
        proof.map(|Proof { index, leaf, hashes }| Included {
            index: *index,
            leaf: leaf.clone(),
            proof: hashes.clone(),
        })
    };
    let files = &gateway.config.state_dir;
    let certificate = artefacts::certificate(files, &record.certificate).await;
    let certificate = certificate.map_err(|error| format!("certificate: {error}"))?;
    let bundle = artefacts::bundle(files, &call.boundary.bundle).await;
    let receipt = Receipt {
        checkpoint,
        decision: included(Some(decision)).ok_or("decision: no proof")?,
        outcome: included(outcome),
        grant: included(grant),
        certificate,
        bundle: bundle.map_err(|error| format!("attestation bundle: {error}"))?,
    };
    Ok(Reply::Receipt(casemate_ledger::text::base64url(&receipt.encode())))
}

/// Proofs under the last head that witnesses saw, if it covers all, or else the last one.
fn prove(gateway: &Gateway, indices: &[u64]) -> Result<(String, Vec<Proof>), StoreError> {
    let last = indices.iter().copied().max().unwrap_or(0);
    match gateway.witnesses.as_ref().and_then(|witnesses| witnesses.covering(last)) {
        Some(seen) => Ok((seen.note, gateway.journal.prove_under(&seen.head, indices)?)),
        None => gateway.journal.prove(indices),
    }
}
