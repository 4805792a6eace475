//! Who gets which secret, and every way not to.

use casemate_attestation::Risk;
use casemate_verifier::{Command, Reply};
use serde_json::json;

use crate::harness::{Guest, Session, World, denied, encode};

/// A verifier with a secret of each risk, and an admitted guest.
async fn admitted() -> (World, Session, Guest) {
    let world = World::new().await;
    for (name, risk) in [
        ("low-secret", Risk::Low),
        ("medium-secret", Risk::Medium),
        ("high-secret", Risk::High),
        ("other-secret", Risk::Low),
    ] {
        world.put_secret(name, risk, format!("value of {name}").as_bytes()).await;
    }
    let guest = Guest::new();
    let mut session = world.session().await;
    let (status, answer) = session.attest(&world, &guest).await;
    assert_eq!(status, 200, "{answer:#}");
    (world, session, guest)
}

#[tokio::test]
async fn a_secret_leaves_sealed_and_leased() {
    let (world, mut session, guest) = admitted().await;
    for name in ["low-secret", "medium-secret"] {
        let (status, released) = session.secret(&guest, name).await;
        assert_eq!(status, 200, "{released:#}");
        assert_eq!(guest.open(name, &released), format!("value of {name}").as_bytes());
        let path = format!("/v1/leases/{}", released["lease"].as_str().unwrap());
        let (status, lease) = session.send("GET", &path, vec![]).await;
        assert_eq!((status, &lease["secret"]), (200, &json!(name)));
        assert_eq!(lease["expires_at"], released["expires_at"]);
        assert_eq!(lease["revoked_at"], json!(null));
    }
    let Reply::Leases(leases) = world.operator(Command::ListLeases).await.unwrap() else {
        panic!()
    };
    assert_eq!(leases.len(), 2);
}

#[tokio::test]
async fn a_secret_above_the_boundary_is_refused_and_explained() {
    let (world, mut session, guest) = admitted().await;
    let denial = denied(session.secret(&guest, "high-secret").await, 403, "risk-refused");
    assert_eq!(denial["rule"], "risk.high.properties");
    assert!(denial["expected"].as_str().unwrap().contains("operator_excluded"), "{denial:#}");
    assert!(denial["hint"].as_str().unwrap().contains("model, not hardware"), "{denial:#}");
    let Reply::Audit(rows) = world.operator(Command::Audit { limit: 1 }).await.unwrap() else {
        panic!()
    };
    assert_eq!((rows[0].event.as_str(), rows[0].outcome.as_str()), ("release", "risk-refused"));
    let Reply::Leases(leases) = world.operator(Command::ListLeases).await.unwrap() else {
        panic!()
    };
    assert!(leases.is_empty());
}

#[tokio::test]
async fn a_secret_must_be_permitted_and_there() {
    let (_world, mut session, guest) = admitted().await;
    denied(session.secret(&guest, "other-secret").await, 403, "secret-not-permitted");
    denied(session.secret(&guest, "absent-secret").await, 404, "secret-unknown");
    denied(session.secret(&guest, &"s".repeat(64)).await, 403, "secret-not-permitted");
    let long = denied(session.secret(&guest, &"s".repeat(65)).await, 400, "bad-request");
    assert_eq!((&long["rule"], &long["actual"]), (&"secret".into(), &"65 bytes".into()));
}

#[tokio::test]
async fn a_proof_is_for_one_key_one_secret_and_one_connection() {
    let (world, mut session, guest) = admitted().await;
    let ask = |proof: Vec<u8>| json!({"proof": encode(&proof)});
    let path = "/v1/secrets/low-secret";

    let elsewhere = world.session().await;
    let body = ask(guest.proof("low-secret", elsewhere.release));
    let denial = denied(session.post(path, &body).await, 403, "proof-refused");
    assert_eq!(denial["rule"], "proof.channel");
    // The attestation exporter is not the release exporter.
    let body = ask(guest.proof("low-secret", session.attest));
    denied(session.post(path, &body).await, 403, "proof-refused");

    let body = ask(guest.proof("medium-secret", session.release));
    let denial = denied(session.post(path, &body).await, 403, "proof-refused");
    assert_eq!(denial["rule"], "proof.secret");

    let thief = Guest::new();
    let stolen = casemate_attestation::ReleaseProof {
        secret: "low-secret".to_owned(),
        channel: session.release,
        sandbox: guest.sandbox(),
    };
    let stolen = stolen.sign(&thief.identity_key(), |m| crate::harness::sign(&thief.identity, m));
    let denial = denied(session.post(path, &ask(stolen)).await, 403, "proof-refused");
    assert_eq!(denial["rule"], "proof.signature");

    denied(session.secret(&thief, "low-secret").await, 403, "not-attested");
    denied(session.post(path, &ask(vec![0; 40])).await, 403, "proof-refused");

    // The same guest on another connection proves it there.
    let mut other = world.session().await;
    assert_eq!(other.secret(&guest, "low-secret").await.0, 200);
}

#[tokio::test]
async fn an_old_attestation_earns_no_new_lease() {
    let (world, mut session, guest) = admitted().await;
    world.advance(301);
    denied(session.secret(&guest, "low-secret").await, 403, "attestation-expired");
    assert_eq!(session.attest(&world, &guest).await.0, 200);
    assert_eq!(session.secret(&guest, "low-secret").await.0, 200);
}

#[tokio::test]
async fn a_lease_can_be_revoked() {
    let (world, mut session, guest) = admitted().await;
    let (_, released) = session.secret(&guest, "low-secret").await;
    let lease = released["lease"].as_str().unwrap().to_owned();
    let revoke = || Command::RevokeLease { lease: lease.clone() };
    assert_eq!(world.operator(revoke()).await.unwrap(), Reply::Done);
    let (_, seen) = session.send("GET", &format!("/v1/leases/{lease}"), vec![]).await;
    assert!(seen["revoked_at"].is_u64(), "{seen}");
    assert!(world.operator(revoke()).await.is_err());
    denied(session.send("GET", "/v1/leases/unknown", vec![]).await, 404, "lease-unknown");
}

#[tokio::test]
async fn a_revoked_identity_loses_leases_and_gets_none() {
    let (world, mut session, guest) = admitted().await;
    session.secret(&guest, "low-secret").await;
    let revoke = Command::RevokeIdentity { sandbox: guest.sandbox() };
    assert_eq!(world.operator(revoke).await.unwrap(), Reply::Done);
    denied(session.secret(&guest, "low-secret").await, 403, "identity-revoked");
    let Reply::Leases(leases) = world.operator(Command::ListLeases).await.unwrap() else {
        panic!()
    };
    assert!(leases.iter().all(|lease| lease.revoked_at.is_some()) && leases.len() == 1);
}

#[tokio::test]
async fn a_restart_forgets_nothing_and_believes_only_the_bundle() {
    let (world, session, guest) = admitted().await;
    drop(session);
    let world = world.restarted().await;
    let mut session = world.session().await;
    assert_eq!(session.secret(&guest, "medium-secret").await.0, 200);
    denied(session.secret(&guest, "high-secret").await, 403, "risk-refused");

    // The policy of today counts: the image is not known any more.
    std::fs::write(world.path("references.toml"), "").unwrap();
    let world = world.restarted().await;
    let mut session = world.session().await;
    denied(session.secret(&guest, "medium-secret").await, 403, "appraisal-refused");
}

#[tokio::test]
async fn a_dead_store_releases_nothing() {
    let (world, mut session, guest) = admitted().await;
    world.service.verifier().store().close().await;
    let (status, answer) = session.secret(&guest, "low-secret").await;
    assert!(answer.get("sealed").is_none(), "{answer:#}");
    denied((status, answer), 503, "store-unavailable");
}
