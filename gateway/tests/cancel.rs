//! What runs is cancelled in time by whoever may cancel it; the outcome says by
//! whom, and the tool's server hears of it in its own era's way.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod harness;
mod web;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use casemate_attestation::cose::KeyId;
use casemate_gateway::{Command, Reply};
use casemate_ledger::cgp::{Message, method};
use casemate_ledger::{Approvals, Clause, Effect, Grant, GrantRef, Invocation, text};
use harness::scene::Scene;
use harness::{House, Port, code, grant};
use serde_json::{Value, json};

/// The promise is half a second, and what it took is printed. A machine that is
/// busy with other tests gets ten times that, of a call that would take 60 s.
const BOUND: Duration = Duration::from_secs(5);

async fn log(scene: &Scene) -> Vec<String> {
    let Reply::Log(entries) = scene.admin(Command::Log { from: 0, count: 256 }).await else {
        panic!()
    };
    entries.into_iter().map(|entry| entry.text).collect()
}

fn marks(scene: &Scene) -> usize {
    lines(scene, "mark")
}

fn lines(scene: &Scene, wanted: &str) -> usize {
    let text = std::fs::read_to_string(scene.house.directory.join("marks")).unwrap();
    text.lines().filter(|line| *line == wanted).count()
}

/// Waits until a tool has written the line `wanted`.
async fn written(scene: &Scene, wanted: &str) {
    let begun = Instant::now();
    while lines(scene, wanted) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "no {wanted}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the log has a line that starts so; says how long that took.
async fn logged(scene: &Scene, start: &str) -> Duration {
    let begun = Instant::now();
    while !log(scene).await.iter().any(|text| text.starts_with(start)) {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "no {start:?} in {:?}",
            log(scene).await
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

fn a_minute(scene: &Scene) -> Value {
    json!({"ms": 60_000, "begun": true, "path": scene.house.directory.join("marks")})
}

/// A call that its server works on.
async fn running(scene: &Scene, port: &mut Port) -> u64 {
    let id = port.start("fx.slow", a_minute(scene), &|_| ()).await;
    written(scene, "begun").await;
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_s_word_ends_what_runs_within_half_a_second() {
    for (who, expected) in [
        ("grant", "cancelled (grant_revoked)"),
        ("parent", "cancelled (grant_revoked)"),
        ("identity", "cancelled (identity_revoked)"),
        ("sandbox", "cancelled (sandbox_stopped)"),
        ("stop", "cancelled (sandbox_stopped)"),
    ] {
        let scene = Scene::new().await;
        let above = grant(&["fx.slow"], 9);
        let parent = scene.house.sign(above.clone());
        scene.add(above.clone()).await;
        let digest = casemate_ledger::digest(&parent);
        let parent = Some(GrantRef { id: above.id, digest });
        let granted = match who {
            "parent" => Grant { id: [9; 16], parent, ..grant(&["fx.slow"], 5) },
            _ => grant(&["fx.slow"], 5),
        };
        let id = text::hex(&granted.id);
        if who != "grant" || granted.id != above.id {
            assert!(matches!(scene.add(granted.clone()).await, Reply::Done(_)), "{who}");
        }
        let mut port = scene.port().await;
        // The grant that the call names is the one that is meant.
        let meant = GrantRef {
            id: granted.id,
            digest: casemate_ledger::digest(&scene.house.sign(granted)),
        };
        let change = |call: &mut Invocation| call.grant = Some(meant);
        let call = port.start("fx.slow", a_minute(&scene), &change).await;
        written(&scene, "begun").await;
        let (reason, sandbox) = ("enough".to_owned(), port.credential.sandbox.clone());
        let key = KeyId::of(&port.credential.key.public()).to_string();
        let command = match who {
            "grant" => Command::GrantRevoke { id, reason },
            "parent" => Command::GrantRevoke { id: text::hex(&above.id), reason },
            "identity" => Command::RevokeIdentity { key, reason },
            "sandbox" => Command::Kill { sandbox, reason },
            _ => Command::Stop {
                scope: format!("sandbox:{sandbox}"),
                level: "pause".to_owned(),
                reason,
            },
        };
        assert!(matches!(scene.admin(command).await, Reply::Done(_)), "{who}");
        let took = logged(&scene, expected).await;
        println!("{who:<10} {expected:<28} {:>4} ms", took.as_millis());
        assert!(took < BOUND, "{who}: {took:?}");
        if matches!(who, "grant" | "parent") {
            assert_eq!(code(&port.answer(call).await.unwrap()), "grant_revoked", "{who}");
            // The server was told, in the way of 2026-07-28 over stdio.
            written(&scene, "mark").await;
            assert_eq!(marks(&scene), 1, "{who}");
        } else {
            // The connection is over as well, and its calls' answers with it.
            while port.wire.receive().await.is_some() {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_grant_s_calls_end_and_no_retry_follows_a_revocation() {
    let mut house = House::new();
    house.controls = "[loops]\nidentical = [2, 3, 4]\n".to_owned();
    house.upstreams = house.upstreams.replace("idempotent = true", "idempotent = false");
    let (scene, mut port) = Scene::with_in(house, grant(&["fx.slow", "fx.echo"], 50)).await;
    let slow = running(&scene, &mut port).await;
    for _ in 0..3 {
        port.call("fx.echo", json!({})).await.unwrap();
    }
    let last = port.start("fx.echo", json!({}), &|_| ()).await;
    let begun = Instant::now();
    // The two answers come in any order.
    let mut said = BTreeMap::new();
    while said.len() < 2 {
        if let Some(Message::Response { id, result }) = port.wire.receive().await {
            said.insert(id, code(&result.unwrap()).to_owned());
        }
    }
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    let expected = [(slow, "grant_suspended".to_owned()), (last, "loop_stop".to_owned())];
    assert_eq!(said, BTreeMap::from(expected));
    logged(&scene, "cancelled (grant_suspended)").await;
    // An operator who lets the grant go on says nothing of what may have run.
    let id = text::hex(&grant(&["fx.slow", "fx.echo"], 50).id);
    let resumed = scene.admin(Command::GrantResume { id, reason: "looked".to_owned() }).await;
    assert!(matches!(resumed, Reply::Done(_)));
    let again = port.call("fx.slow", a_minute(&scene)).await.unwrap();
    assert_eq!(code(&again), "duplicate_suppressed", "{again}");
    assert_eq!(code(&port.call("fx.echo", json!({})).await.unwrap()), "none");
    // Each attempt of this one fails after 0.3 s and would be made again.
    let clause = Clause { effect: Effect::Write, ..Clause::of("fx.flaky") };
    let granted = Grant { tools: vec![clause], ..grant(&["fx.flaky"], 9) };
    let id = text::hex(&granted.id);
    let (scene, mut port) = Scene::with(granted).await;
    let path = scene.house.directory.join("marks");
    let call = port.start("fx.flaky", json!({"path": path, "fails": 9, "ms": 300}), &|_| ()).await;
    while marks(&scene) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scene.admin(Command::GrantRevoke { id, reason: "enough".to_owned() }).await;
    assert!(logged(&scene, "cancelled (grant_revoked)").await < BOUND);
    assert_eq!(code(&port.answer(call).await.unwrap()), "grant_revoked");
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert_eq!(marks(&scene), 1, "a retry after the revocation");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waits_for_people_is_told_at_once() {
    let (house, _keys) = harness::people::approving();
    let clause = Clause { approvals: Approvals::One, ..Clause::of("fx.echo") };
    let granted = Grant { tools: vec![clause], ..grant(&["fx.echo"], 5) };
    let id = text::hex(&granted.id);
    let (scene, mut port) = Scene::with_in(house, granted).await;
    let call = port.start("fx.echo", json!({}), &|_| ()).await;
    scene.waiting(1).await;
    let begun = Instant::now();
    scene.admin(Command::GrantRevoke { id, reason: "enough".to_owned() }).await;
    assert_eq!(code(&port.answer(call).await.unwrap()), "grant_revoked");
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_over_http_hears_of_it_in_its_era_s_way() {
    for (path, notices) in [("hand", 0), ("legacy", 1)] {
        let server = web::start().await;
        let mut house = House::new();
        std::fs::write(house.directory.join("root.pem"), &server.root).unwrap();
        house.upstreams = format!(
            "[[upstream]]\nname = \"far\"\n[upstream.remote]\n\
             url = \"https://localhost:{}/{path}\"\nroots = \"root.pem\"\n\
             networks = [\"127.0.0.0/8\", \"::1/128\"]\n\
             [[upstream.tool]]\nname = \"wait\"\nrisk = \"low\"\n",
            server.port
        );
        let (_scene, mut port) = Scene::with_in(house, grant(&["far.wait"], 9)).await;
        let id = port.start("far.wait", json!({}), &|_| ()).await;
        let begun = Instant::now();
        while server.hand.opened.load(Ordering::Acquire) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "{path}: not asked");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(server.hand.closed.load(Ordering::Acquire), 0, "{path}");
        let gone = Message::notification(method::CANCELLED, json!({ "requestId": id }));
        port.wire.send(&gone).await;
        assert_eq!(code(&port.answer(id).await.unwrap()), "cancelled", "{path}");
        let begun = Instant::now();
        let heard = || {
            let of = |count: &std::sync::atomic::AtomicUsize| count.load(Ordering::Acquire);
            (of(&server.hand.closed), of(&server.hand.cancelled))
        };
        while heard().0 == 0 && heard().1 == 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "{path}: never told");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        println!("{path}: streams closed {}, notices {}", heard().0, heard().1);
        assert_eq!(heard().1, notices, "{path}");
        assert!(notices > 0 || heard().0 == 1, "{path}: the stream stays open");
    }
}
