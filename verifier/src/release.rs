//! Secrets leave here, and only here: sealed to an attested key, for a lease.
//!
//! Format: docs/formats/release.md. [`seal`] takes an [`Affirmed`] by value, and
//! only an appraisal can make one; a lease is on the disk before its answer.

use casemate_attestation::release::{ReleaseProof, SECRET_INFO, secret_aad};
use casemate_attestation::{Affirmed, UnixTime};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{Hpke, HpkePublicKey};

use crate::admitted::Admitted;
use crate::body;
use crate::denial::{Code, Denial};
use crate::judge;
use crate::store::{AuditRow, Leased, Refusal, Write};
use crate::tls::Channel;
use crate::vault::Terms;
use crate::verifier::Verifier;

/// A released secret: its lease, and its value for one key only.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Released {
    /// The lease's id.
    pub lease: String,
    /// When the lease ends, in seconds since 1970.
    pub expires_at: u64,
    /// The sealed value.
    pub sealed: Sealed,
}

/// An HPKE ciphertext (RFC 9180, base mode).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Sealed {
    /// The encapsulated key, base64url.
    pub enc: String,
    /// The ciphertext, base64url.
    pub ciphertext: String,
}

/// Releases the secret `name` to the sandbox that `proof` names, or says why not.
pub(crate) async fn release(
    verifier: &Verifier,
    channel: &Channel,
    name: &str,
    proof: &[u8],
) -> Result<Released, Denial> {
    let now = verifier.now();
    let unread = |error| {
        let expected = "a proof as in docs/formats/release.md";
        Denial::new(Code::ProofRefused, "proof", expected, format!("{error}"))
    };
    let claimed = ReleaseProof::unverified_sandbox(proof).map_err(unread);
    let sandbox = claimed.as_deref().unwrap_or("unknown").to_owned();
    let released = match claimed {
        Ok(_) => give(verifier, channel, name, proof, &sandbox, now).await,
        Err(denial) => Err(denial),
    };
    match released {
        // An answer that says that the store is dead cannot be in the store.
        Err(denial) if denial.status < 500 => {
            let audit = row(now, denial.code.as_ref(), &sandbox, name, &denial);
            verifier.store().write(Write::Audit(audit)).await?.map_err(unexpected)?;
            Err(denial)
        }
        other => other,
    }
}

async fn give(
    verifier: &Verifier,
    channel: &Channel,
    name: &str,
    proof: &[u8],
    sandbox: &str,
    now: UnixTime,
) -> Result<Released, Denial> {
    let (released, terms) = decide(verifier, channel, name, proof, sandbox, now).await?;
    lease(verifier, released, &terms, sandbox, now).await
}

/// Everything that must hold, in the order in which it is cheapest to refuse.
async fn decide(
    verifier: &Verifier,
    channel: &Channel,
    name: &str,
    proof: &[u8],
    claimed: &str,
    now: UnixTime,
) -> Result<(Released, Terms), Denial> {
    let admitted = verifier.admitted(claimed).await?;
    check_proof(&admitted, channel, name, proof)?;
    admitted.check_current(now, verifier.config().lifetimes.result_seconds)?;
    check_permitted(verifier, &admitted, name)?;
    let (terms, stored) = verifier.store().secret(name).await?.ok_or_else(|| {
        Denial::new(Code::SecretUnknown, "secret", "a secret that is stored", name)
    })?;
    let affirmed = admitted
        .appraisal
        .affirmed(terms.risk)
        .map_err(|cause| judge::denial(&admitted.appraisal, terms.risk, cause))?;
    let value = verifier.vault().open(&terms, &stored).map_err(Denial::internal)?;
    let sealed = seal(affirmed, &admitted, &terms, &value)?;
    let expires_at = now.plus_seconds(terms.ttl_seconds).0;
    Ok((Released { lease: lease_id()?, expires_at, sealed }, terms))
}

/// Seals `value` to the attested key of `admitted`, for the risk that was affirmed.
pub(crate) fn seal(
    affirmed: Affirmed,
    admitted: &Admitted,
    terms: &Terms,
    value: &[u8],
) -> Result<Sealed, Denial> {
    if affirmed.risk() != terms.risk || affirmed.appraisal() != &*admitted.appraisal {
        return Err(Denial::internal("affirmed for another risk or another sandbox"));
    }
    let hpke: &dyn Hpke = DH_KEM_X25519_HKDF_SHA256_AES_256;
    let key = HpkePublicKey(admitted.sealing_key.to_vec());
    let aad = secret_aad(&terms.name, &admitted.sandbox);
    let (enc, ciphertext) = hpke.seal(SECRET_INFO, &aad, value, &key).map_err(Denial::internal)?;
    Ok(Sealed { enc: body::encode(&enc.0), ciphertext: body::encode(&ciphertext) })
}

fn check_proof(
    admitted: &Admitted,
    channel: &Channel,
    name: &str,
    proof: &[u8],
) -> Result<(), Denial> {
    let refuse = |rule: &str, expected: &str, actual: String| {
        Err(Denial::new(Code::ProofRefused, rule, expected, actual))
    };
    let proof = match ReleaseProof::verify(proof, &admitted.identity_key) {
        Ok(proof) => proof,
        Err(error) => {
            return refuse(
                "proof.signature",
                "one by the attested identity key",
                error.to_string(),
            );
        }
    };
    if proof.secret != name {
        return refuse("proof.secret", name, proof.secret);
    }
    if proof.channel != channel.release {
        return refuse(
            "proof.channel",
            "the exporter of this connection",
            "another one".to_owned(),
        );
    }
    Ok(())
}

fn check_permitted(verifier: &Verifier, admitted: &Admitted, name: &str) -> Result<(), Denial> {
    let secrets = verifier.config().task(&admitted.task).map_or(&[][..], |task| &task.secrets);
    if secrets.iter().any(|permitted| permitted == name) {
        return Ok(());
    }
    let expected = format!("one of {secrets:?} for task {}", admitted.task);
    Err(Denial::new(Code::SecretNotPermitted, "task.secrets", expected, name))
}

/// Writes the lease; the identity must stand at that very moment.
async fn lease(
    verifier: &Verifier,
    released: Released,
    terms: &Terms,
    sandbox: &str,
    now: UnixTime,
) -> Result<Released, Denial> {
    let detail = serde_json::json!({
        "lease": released.lease, "risk": terms.risk, "expires_at": released.expires_at,
    });
    let leased = Leased {
        id: released.lease.clone(),
        secret: terms.name.clone(),
        sandbox: sandbox.to_owned(),
        expires_at: UnixTime(released.expires_at),
        audit: row(now, "done", sandbox, &terms.name, &detail),
    };
    match verifier.store().write(Write::Leased(leased)).await? {
        Ok(()) => Ok(released),
        Err(Refusal::Revoked) => Err(crate::admitted::revoked(sandbox)),
        Err(refusal) => Err(unexpected(refusal)),
    }
}

fn row(
    now: UnixTime,
    outcome: &str,
    sandbox: &str,
    secret: &str,
    detail: &impl serde::Serialize,
) -> AuditRow {
    let detail = serde_json::json!({"secret": secret, "detail": detail});
    AuditRow {
        at: now.0,
        event: "release".to_owned(),
        outcome: outcome.to_owned(),
        subject: sandbox.to_owned(),
        detail: detail.to_string(),
    }
}

fn unexpected(refusal: Refusal) -> Denial {
    Denial::internal(format!("the store refused a row: {refusal:?}"))
}

/// 32 random bytes: who knows the id was told it.
fn lease_id() -> Result<String, Denial> {
    let mut id = [0; 32];
    aws_lc_rs::rand::fill(&mut id).map_err(Denial::internal)?;
    Ok(body::encode(&id))
}
