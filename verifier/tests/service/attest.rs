//! Who is admitted, and every way not to be.

use casemate_attestation::crypto::PublicKey;
use casemate_attestation::{
    Bundle, EndorsementKind, IdentityClaims, TrustAnchors, UnixTime, crypto, ear,
};
use casemate_verifier::{Channel, Command, Reply, routes};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::harness::{Guest, HOST, PSP, Session, World, decode, denied, encode, failed, public};

#[tokio::test]
async fn a_sandbox_is_admitted_and_can_prove_it() {
    let world = World::new().await;
    let guest = Guest::new();
    let mut session = world.session().await;
    let (status, answer) = session.attest(&world, &guest).await;
    assert_eq!(status, 200, "{answer:#}");
    assert_eq!(answer["sandbox"], guest.sandbox());
    assert_eq!(answer["boundary"], "microvm");
    assert_eq!(answer["anchor"], "test model");
    assert_eq!(answer["hardware"], "model");

    let bundle = decode(&answer["bundle"]);
    let anchors = std::fs::read_to_string(world.path("trust.toml")).unwrap();
    let anchors = TrustAnchors::from_toml(&anchors).unwrap();
    let appraisal = Bundle::decode(&bundle).unwrap().reverify(&anchors).unwrap();
    assert_eq!(appraisal.hardware().name(), "model");

    let (_, jwks) = session.send("GET", "/.well-known/jwks.json", vec![]).await;
    let (x, y) = (decode(&jwks["keys"][0]["x"]), decode(&jwks["keys"][0]["y"]));
    let key = PublicKey::p256(&[&[4], &x[..], &y].concat()).unwrap();
    let token = answer["result"].as_str().unwrap();
    let issuer = "https://verifier.test.internal";
    let claims = ear::verify(token, &key, issuer, "casemate-gateway", world.now()).unwrap();
    assert_eq!(claims["sub"], guest.sandbox());
    assert_eq!(claims["casemate_decision"], "allow-medium");

    let pem = answer["certificate_chain"].as_str().unwrap();
    let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert_eq!(leaf.public_key().subject_public_key.as_ref(), guest.identity_key());
    let extension =
        leaf.extensions().iter().find(|e| e.oid.to_id_string() == "1.3.6.1.4.1.59999.1.1");
    let claims = IdentityClaims::decode(extension.unwrap().value).unwrap();
    assert_eq!(claims.bundle, crypto::sha256(&bundle));
    assert_eq!((claims.epoch, claims.task.as_str()), (1, "demo"));

    let Reply::Audit(rows) = world.operator(Command::Audit { limit: 10 }).await.unwrap() else {
        panic!()
    };
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((row.event.as_str(), row.outcome.as_str()), ("attest", "done"));
    assert_eq!(row.subject, guest.sandbox());
}

#[tokio::test]
async fn without_cpu_evidence_it_is_the_hosts_word() {
    let world = World::new().await;
    let guest = Guest::new();
    let mut session = world.session().await;
    let nonce = session.nonce().await;
    let binding = guest.binding(&nonce, &session);
    let mut evidence = guest.evidence(&binding, world.now());
    evidence.items.remove(0);
    let mut body = guest.attestation(&binding, world.now());
    body["evidence"] = json!(encode(&evidence.encode()));
    let (status, answer) = session.post("/v1/attest", &body).await;
    assert_eq!(status, 200, "{answer:#}");
    assert_eq!((&answer["hardware"], &answer["anchor"]), (&json!("none"), &json!("host-1")));
    // Neither is there a yes without the host's: a model proves no boundary.
    let nonce = session.nonce().await;
    let binding = guest.binding(&nonce, &session);
    let mut evidence = guest.evidence(&binding, world.now());
    evidence.items.pop();
    let mut body = guest.attestation(&binding, world.now());
    body["evidence"] = json!(encode(&evidence.encode()));
    denied(session.post("/v1/attest", &body).await, 403, "risk-refused");
}

#[tokio::test]
async fn a_nonce_is_used_once_whatever_its_outcome() {
    let world = World::new().await;
    let mut session = world.session().await;
    let nonce = session.nonce().await;
    let mut wrong = Guest::new();
    wrong.measurement = [0; 48];
    let body = wrong.attestation(&wrong.binding(&nonce, &session), world.now());
    denied(session.post("/v1/attest", &body).await, 403, "appraisal-refused");
    let right = Guest::new();
    let body = right.attestation(&right.binding(&nonce, &session), world.now());
    denied(session.post("/v1/attest", &body).await, 403, "nonce-used");
    denied(session.post("/v1/attest", &body).await, 403, "nonce-used");
    assert_eq!(session.attest(&world, &right).await.0, 200);
}

#[tokio::test]
async fn of_many_at_once_one_has_the_nonce() {
    let world = World::new().await;
    let guest = Guest::new();
    let mut session = world.session().await;
    let nonce = session.nonce().await;
    let body = guest.attestation(&guest.binding(&nonce, &session), world.now());
    let asked: Vec<_> = (0..8).map(|_| tokio::spawn(direct(&world, &session, &body))).collect();
    let mut outcomes = Vec::new();
    for one in asked {
        outcomes.push(one.await.unwrap());
    }
    let (admitted, refused): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|(status, _)| *status == 200);
    assert_eq!(admitted.len(), 1);
    for one in refused {
        denied(one, 403, "nonce-used");
    }
}

/// One request handed to the routes as the connection of `session` would.
fn direct(
    world: &World,
    session: &Session,
    body: &Value,
) -> impl Future<Output = (u16, Value)> + 'static + use<> {
    let verifier = world.service.verifier().clone();
    let channel = Channel { attest: session.attest, release: session.release };
    let body = Full::new(Bytes::from(serde_json::to_vec(body).unwrap()));
    async move {
        let request = hyper::Request::post("/v1/attest").extension(channel).body(body).unwrap();
        let response = routes::answer(&verifier, request).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }
}

#[tokio::test]
async fn a_stale_or_foreign_nonce_is_refused() {
    let world = World::new().await;
    let guest = Guest::new();
    let mut session = world.session().await;
    let nonce = session.nonce().await;
    world.advance(121);
    let body = guest.attestation(&guest.binding(&nonce, &session), world.now());
    denied(session.post("/v1/attest", &body).await, 403, "nonce-expired");

    let other = World::new().await;
    let nonce = other.session().await.nonce().await;
    let body = guest.attestation(&guest.binding(&nonce, &session), world.now());
    denied(session.post("/v1/attest", &body).await, 403, "nonce-foreign");
    let body = guest.attestation(&guest.binding(&[0; 36], &session), world.now());
    denied(session.post("/v1/attest", &body).await, 403, "nonce-foreign");
}

#[tokio::test]
async fn evidence_is_worth_nothing_on_another_connection() {
    let world = World::new().await;
    let guest = Guest::new();
    let (mut here, mut there) = (world.session().await, world.session().await);
    // What was sent there, sent here.
    let nonce = there.nonce().await;
    let body = guest.attestation(&guest.binding(&nonce, &there), world.now());
    denied(here.post("/v1/attest", &body).await, 403, "nonce-foreign");
    // A relay: the nonce of this connection, answered by a guest on that one.
    let nonce = here.nonce().await;
    let body = guest.attestation(&guest.binding(&nonce, &there), world.now());
    let denial = denied(here.post("/v1/attest", &body).await, 403, "appraisal-refused");
    assert!(failed(&denial).contains(&"host.report-data"), "{denial:#}");
    assert!(failed(&denial).contains(&"snp.report-data"), "{denial:#}");
}

#[tokio::test]
async fn keys_and_epoch_must_be_those_in_the_evidence() {
    let world = World::new().await;
    let (guest, other) = (Guest::new(), Guest::new());
    let mut session = world.session().await;
    for (field, value) in [
        ("identity_key", json!(encode(&other.identity_key()))),
        ("sealing_key", json!(encode(&other.sealing.0))),
        ("epoch", json!(2)),
    ] {
        let nonce = session.nonce().await;
        let mut body = guest.attestation(&guest.binding(&nonce, &session), world.now());
        body[field] = value;
        let denial = denied(session.post("/v1/attest", &body).await, 403, "appraisal-refused");
        assert!(failed(&denial).contains(&"snp.report-data"), "{field}: {denial:#}");
    }
}

#[tokio::test]
async fn what_the_policy_does_not_accept_is_listed() {
    let world = World::new().await;
    let mut session = world.session().await;
    let changed = Guest { measurement: [9; 48], ..Guest::new() };
    let denial = denied(session.attest(&world, &changed).await, 403, "appraisal-refused");
    assert_eq!(failed(&denial), ["snp.measurement"]);
    assert!(denial["checks"].as_array().unwrap().len() > 10, "{denial:#}");

    let old = Guest { claim_age: 400, ..Guest::new() };
    let denial = denied(session.attest(&world, &old).await, 403, "appraisal-refused");
    assert!(failed(&denial).contains(&"host.age"), "{denial:#}");
}

#[tokio::test]
async fn what_does_not_verify_is_refused() {
    let world = World::new().await;
    let mut session = world.session().await;
    let host_key = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap();
    let unknown = Guest { host_key, ..Guest::new() };
    let denial = denied(session.attest(&world, &unknown).await, 403, "evidence-refused");
    assert!(denial["rule"].as_str().unwrap().starts_with("host-unknown"), "{denial:#}");

    let renamed = Guest { host: "host-2".to_owned(), ..Guest::new() };
    denied(session.attest(&world, &renamed).await, 403, "evidence-refused");

    let guest = Guest::new();
    let nonce = session.nonce().await;
    let binding = guest.binding(&nonce, &session);
    let mut evidence = guest.evidence(&binding, world.now());
    evidence.items[0].evidence[0x90] ^= 1;
    let mut body = guest.attestation(&binding, world.now());
    body["evidence"] = json!(encode(&evidence.encode()));
    let denial = denied(session.post("/v1/attest", &body).await, 403, "evidence-refused");
    assert!(denial["rule"].as_str().unwrap().starts_with("signature"), "{denial:#}");
}

#[tokio::test]
async fn a_task_must_be_permitted_and_its_risk_carried() {
    let world = World::new().await;
    let mut session = world.session().await;
    let other = Guest { task: "mining".to_owned(), ..Guest::new() };
    denied(session.attest(&world, &other).await, 403, "task-not-permitted");
    let risky = Guest { task: "trading".to_owned(), ..Guest::new() };
    let denial = denied(session.attest(&world, &risky).await, 403, "risk-refused");
    assert!(denial["hint"].as_str().unwrap().contains("operator_excluded"), "{denial:#}");
    assert!(failed(&denial).is_empty());
}

#[tokio::test]
async fn an_identity_keeps_its_sealing_key_and_never_goes_back() {
    let world = World::new().await;
    let mut session = world.session().await;
    let mut guest = Guest { epoch: 5, ..Guest::new() };
    assert_eq!(session.attest(&world, &guest).await.0, 200);
    assert_eq!(session.attest(&world, &guest).await.0, 200);
    guest.epoch = 4;
    denied(session.attest(&world, &guest).await, 403, "identity-changed");
    guest.epoch = 6;
    assert_eq!(session.attest(&world, &guest).await.0, 200);
    guest.sealing = Guest::new().sealing;
    denied(session.attest(&world, &guest).await, 403, "identity-changed");
}

#[tokio::test]
async fn a_revoked_identity_never_comes_back() {
    let world = World::new().await;
    let mut session = world.session().await;
    let guest = Guest::new();
    assert_eq!(session.attest(&world, &guest).await.0, 200);
    let revoke = || Command::RevokeIdentity { sandbox: guest.sandbox() };
    assert_eq!(world.operator(revoke()).await.unwrap(), Reply::Done);
    denied(session.attest(&world, &guest).await, 403, "identity-revoked");
    let error = world.operator(revoke()).await.unwrap_err().to_string();
    assert!(error.starts_with("identity-unknown"), "{error}");
}

#[tokio::test]
async fn a_dead_store_refuses_everybody() {
    let world = World::new().await;
    let mut session = world.session().await;
    let guest = Guest::new();
    world.service.verifier().store().close().await;
    let denial = denied(session.attest(&world, &guest).await, 503, "store-unavailable");
    assert_eq!(denial["checks"], Value::Null);
    let wrong = Guest { measurement: [0; 48], ..Guest::new() };
    denied(session.attest(&world, &wrong).await, 503, "store-unavailable");
}

#[tokio::test]
async fn each_challenge_outcome_is_in_the_audit() {
    let world = World::new().await;
    let mut session = world.session().await;
    let wrong = Guest { measurement: [0; 48], ..Guest::new() };
    session.attest(&world, &wrong).await;
    let nonce = session.nonce().await;
    world.advance(500);
    let guest = Guest::new();
    let body = guest.attestation(&guest.binding(&nonce, &session), world.now());
    session.post("/v1/attest", &body).await;
    let Reply::Audit(rows) = world.operator(Command::Audit { limit: 10 }).await.unwrap() else {
        panic!()
    };
    let outcomes: Vec<_> = rows.iter().map(|row| row.outcome.as_str()).collect();
    assert_eq!(outcomes, ["appraisal-refused", "nonce-expired"]);
    assert!(rows[0].detail.contains("snp.measurement"), "{}", rows[0].detail);
    assert_eq!(public(&HOST).len(), 32);
}

/// A guest, or who stands between it and the vendor, brings the list of
/// yesterday: refused, after a restart too, and so is no list at all.
#[tokio::test]
async fn endorsements_do_not_go_back() {
    let world = World::with(|config| config + "[lifetimes]\nendorsement_grace_days = 0\n").await;
    let [old, new] = lists(&world);
    for crl in [None, Some(&old), Some(&new), Some(&new)] {
        let (status, answer) = attest_with(&world, crl).await;
        assert_eq!(status, 200, "{answer:#}");
    }
    let said = denied(attest_with(&world, Some(&old)).await, 403, "evidence-refused");
    assert!(said["rule"].as_str().unwrap().starts_with("collateral-rollback"), "{said:#}");
    assert!(said["expected"].as_str().unwrap().contains("known since"), "{said:#}");
    let world = world.restarted().await;
    denied(attest_with(&world, Some(&old)).await, 403, "evidence-refused");
    denied(attest_with(&world, None).await, 403, "evidence-refused");
    assert_eq!(attest_with(&world, Some(&new)).await.0, 200);
}

/// One machine that is first does not lock the others out; a day later it does.
#[tokio::test]
async fn older_endorsements_have_a_grace() {
    let world = World::with(|config| config + "[lifetimes]\nendorsement_grace_days = 1\n").await;
    let [old, new] = lists(&world);
    for crl in [Some(&new), Some(&old), None] {
        let (status, answer) = attest_with(&world, crl).await;
        assert_eq!(status, 200, "{answer:#}");
    }
    world.advance(86_400);
    let world = world.restarted().await;
    denied(attest_with(&world, Some(&old)).await, 403, "evidence-refused");
    denied(attest_with(&world, None).await, 403, "evidence-refused");
    assert_eq!(attest_with(&world, Some(&new)).await.0, 200);
}

/// Two current lists, the older first.
fn lists(world: &World) -> [Vec<u8>; 2] {
    let now = world.now();
    [200, 100]
        .map(|age| PSP.crl(&[], UnixTime(now.0 - age), now.plus_seconds(30 * 86_400)).unwrap())
}

async fn attest_with(world: &World, crl: Option<&Vec<u8>>) -> (u16, Value) {
    let guest = Guest::new();
    let mut session = world.session().await;
    let nonce = session.nonce().await;
    let binding = guest.binding(&nonce, &session);
    let mut evidence = guest.evidence(&binding, world.now());
    let list = crl.map(|crl| (EndorsementKind::Crl, crl.clone()));
    evidence.items[0].endorsements.extend(list);
    let mut body = guest.attestation(&binding, world.now());
    body["evidence"] = json!(encode(&evidence.encode()));
    session.post("/v1/attest", &body).await
}
