//! From a nonce and evidence to an identity: judge, issue, record, answer.
//!
//! A nonce has one outcome: yes or no is written in the same transaction that
//! uses it up. Only evidence that cannot even be read leaves it unused.

use std::sync::Arc;

use casemate_attestation::gpu::devices_digest;
use casemate_attestation::{
    Binding, Endorsements, Evidence, IdentityClaims, Mark, Risk, UnixTime, crypto, seen,
};

use crate::admitted::{Admitted, revoked};
use crate::body;
use crate::challenge::Fresh;
use crate::config::Task;
use crate::denial::{Code, Denial};
use crate::judge::{self, Judged};
use crate::store::{Attested, AuditRow, Refusal, Sandbox, Write};
use crate::tls::Channel;
use crate::verifier::Verifier;

/// What a guest brings.
#[derive(Debug, Clone)]
pub(crate) struct Brought {
    pub(crate) nonce: Vec<u8>,
    pub(crate) evidence: Vec<u8>,
    pub(crate) identity_key: [u8; 32],
    pub(crate) sealing_key: [u8; 32],
    pub(crate) epoch: u64,
    pub(crate) task: String,
}

/// What an affirmed guest is given.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Given {
    /// The attestation result, an EAR in a JWT.
    pub result: String,
    /// The identity certificate and its CA's, PEM.
    pub certificate_chain: String,
    /// The sandbox's SPIFFE ID.
    pub sandbox: String,
    /// The attestation bundle, base64url.
    pub bundle: String,
    /// The boundary class that was earned.
    pub boundary: String,
    /// The label of the trust anchor.
    pub anchor: String,
    /// What stands behind the evidence: `genuine`, `model` or `none`.
    pub hardware: String,
}

/// Judges what was brought on `channel` and admits the sandbox, or says why not.
pub(crate) async fn attest(
    verifier: &Arc<Verifier>,
    channel: &Channel,
    brought: Brought,
) -> Result<Given, Denial> {
    let now = verifier.now();
    let evidence = Evidence::decode(&brought.evidence)
        .map_err(|error| Denial::field("evidence", "an evidence envelope", error.to_string()))?;
    let sandbox = verifier.identities().sandbox_id(&brought.identity_key);
    let fresh = match verifier.challenger().open(&brought.nonce, &channel.attest, now) {
        Ok(fresh) => fresh,
        Err(denial) => {
            let audit = denied(now, &denial, &sandbox, &brought.task);
            verifier.store().write(Write::Audit(audit)).await?.map_err(unexpected)?;
            return Err(denial);
        }
    };
    match admit(verifier, channel, &brought, evidence, &fresh, now).await {
        Err(denial) if denial.status < 500 => {
            Err(refuse(verifier, denial, &fresh, &sandbox, &brought.task, now).await?)
        }
        other => other,
    }
}

/// Writes down a refusal, which uses the nonce up; a nonce that was used before is the reason then.
async fn refuse(
    verifier: &Verifier,
    denial: Denial,
    fresh: &Fresh,
    sandbox: &str,
    task: &str,
    now: UnixTime,
) -> Result<Denial, Denial> {
    let nonce = (fresh.digest(), fresh.expires_at);
    let audit = denied(now, &denial, sandbox, task);
    if verifier.store().write(Write::Refused { nonce, audit }).await?.is_ok() {
        return Ok(denial);
    }
    let used = nonce_used();
    let audit = denied(now, &used, sandbox, task);
    verifier.store().write(Write::Audit(audit)).await?.map_err(unexpected)?;
    Ok(used)
}

async fn admit(
    verifier: &Arc<Verifier>,
    channel: &Channel,
    brought: &Brought,
    evidence: Evidence,
    fresh: &Fresh,
    now: UnixTime,
) -> Result<Given, Denial> {
    let task = permitted(verifier, &brought.task)?;
    let binding = Binding {
        nonce: fresh.nonce.clone(),
        identity_key: brought.identity_key,
        sealing_key: brought.sealing_key,
        channel: channel.attest,
        epoch: brought.epoch,
        devices: devices_digest(&evidence),
    };
    let judged = verifier.judge(evidence, Endorsements::default(), binding, now).await?;
    let appraisal = &judged.appraisal;
    appraisal.affirmed(task.risk).map_err(|cause| judge::denial(appraisal, task.risk, cause))?;
    let issued = issue(verifier, brought, judged, task.risk, now)?;
    record(verifier, issued, fresh, brought.epoch, now).await
}

fn permitted<'a>(verifier: &'a Verifier, name: &str) -> Result<&'a Task, Denial> {
    verifier.config().task(name).ok_or_else(|| {
        let known: Vec<_> = verifier.config().tasks.iter().map(|task| &*task.name).collect();
        Denial::new(Code::TaskNotPermitted, "task", format!("one of {known:?}"), name)
    })
}

/// An identity that is ready, but not yet recorded.
struct Issued {
    given: Given,
    bundle: Vec<u8>,
    marks: Vec<Mark>,
    admitted: Admitted,
}

/// Makes what the guest will be given. Nothing of it leaves before [`record`].
fn issue(
    verifier: &Verifier,
    brought: &Brought,
    judged: Judged,
    risk: Risk,
    now: UnixTime,
) -> Result<Issued, Denial> {
    let Judged { appraisal, bundle, marks } = judged;
    let identities = verifier.identities();
    let admitted = Admitted {
        sandbox: identities.sandbox_id(&brought.identity_key),
        identity_key: brought.identity_key,
        sealing_key: brought.sealing_key,
        task: brought.task.clone(),
        bundle: crypto::sha256(&bundle),
        appraisal: Arc::new(appraisal),
    };
    let claims = identity_claims(&admitted, brought.epoch);
    let chain = identities.issue(&brought.identity_key, &claims, now).map_err(Denial::internal)?;
    let given = Given {
        result: verifier.tokens().issue(&admitted, &brought.nonce, risk, now)?,
        certificate_chain: chain,
        sandbox: admitted.sandbox.clone(),
        bundle: body::encode(&bundle),
        boundary: claims.boundary.name().to_owned(),
        anchor: claims.anchor,
        hardware: claims.hardware,
    };
    Ok(Issued { given, bundle, marks, admitted })
}

fn identity_claims(admitted: &Admitted, epoch: u64) -> IdentityClaims {
    let appraisal = &admitted.appraisal;
    IdentityClaims {
        epoch,
        boundary: appraisal.boundary(),
        properties: appraisal.properties().clone(),
        bundle: admitted.bundle,
        measurement: appraisal.measurement().unwrap_or_default().to_vec(),
        task: admitted.task.clone(),
        anchor: appraisal.anchor().map(|anchor| anchor.label.clone()).unwrap_or_default(),
        hardware: appraisal.hardware().name().to_owned(),
    }
}

/// Writes the identity, its bundle and the audit row, and uses the nonce up.
async fn record(
    verifier: &Verifier,
    issued: Issued,
    fresh: &Fresh,
    epoch: u64,
    now: UnixTime,
) -> Result<Given, Denial> {
    let Issued { given, bundle, marks, admitted } = issued;
    let facts = serde_json::json!({
        "task": admitted.task, "epoch": epoch, "boundary": given.boundary,
        "anchor": given.anchor, "hardware": given.hardware,
        "bundle": body::encode(&admitted.bundle),
    });
    let lifetimes = &verifier.config().lifetimes;
    let write = Write::Attested(Box::new(Attested {
        nonce: (fresh.digest(), fresh.expires_at),
        sandbox: Sandbox {
            id: admitted.sandbox.clone(),
            identity_key: admitted.identity_key,
            sealing_key: admitted.sealing_key,
            task: admitted.task.clone(),
            bundle: admitted.bundle,
            expires_at: now.plus_seconds(lifetimes.result_seconds),
            revoked_at: None,
        },
        epoch,
        bundle,
        marks,
        counts_until: seen::counts_until(now, lifetimes.endorsement_grace_days),
        audit: row(now, "done", &admitted.sandbox, facts),
    }));
    match verifier.store().write(write).await? {
        Ok(()) => {
            verifier.keep(Arc::new(admitted));
            Ok(given)
        }
        Err(Refusal::Revoked) => Err(revoked(&admitted.sandbox)),
        Err(Refusal::Changed) => {
            let expected = "the sealing key of the first attestation, and no older epoch";
            let actual = format!("another sealing key, or an epoch before the last: {epoch}");
            Err(Denial::new(Code::IdentityChanged, "identity", expected, actual))
        }
        Err(Refusal::NonceUsed) => Err(nonce_used()),
        Err(Refusal::RolledBack(error)) => Err(judge::refused(*error)),
        Err(Refusal::Absent) => Err(unexpected(Refusal::Absent)),
    }
}

fn nonce_used() -> Denial {
    Denial::new(Code::NonceUsed, "nonce", "a nonce that was never used", "one that was")
}

fn denied(now: UnixTime, denial: &Denial, sandbox: &str, task: &str) -> AuditRow {
    row(now, &denial.code, sandbox, serde_json::json!({"task": task, "denial": denial}))
}

fn row(now: UnixTime, outcome: &str, sandbox: &str, facts: serde_json::Value) -> AuditRow {
    AuditRow {
        at: now.0,
        event: "attest".to_owned(),
        outcome: outcome.to_owned(),
        subject: sandbox.to_owned(),
        detail: facts.to_string(),
    }
}

fn unexpected(refusal: Refusal) -> Denial {
    Denial::internal(format!("the store refused a row: {refusal:?}"))
}
