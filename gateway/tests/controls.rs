//! Controls through a whole gateway, with the limits that operators get.

mod harness;

use casemate_attestation::UnixTime;
use casemate_gateway::{Command, Reply};
use casemate_ledger::{Approval, Approvals, Clause, Decimal, Grant, Record, Threshold, text};
use harness::people::approving;
use harness::scene::Scene;
use harness::{House, code, grant};
use serde_json::json;

/// A house with the default limits.
fn strict() -> House {
    let mut house = House::new();
    house.controls.clear();
    house
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_repeats_itself_rests_then_stops_until_the_operator_resumes() {
    let scene = Scene::in_house(strict()).await;
    scene.add(grant(&["fx.echo", "fx.slow"], 100)).await;
    let mut port = scene.port().await;
    let mut codes = Vec::new();
    for _ in 0..13 {
        let result = port.call("fx.echo", json!({"same": true})).await.unwrap();
        codes.push(code(&result).to_owned());
    }
    assert!(codes[..7].iter().all(|code| code == "none"), "{codes:?}");
    assert!(codes[7..11].iter().all(|code| code == "loop_quarantine"), "{codes:?}");
    assert!(codes[11..].iter().all(|code| code == "loop_stop"), "{codes:?}");
    // The grant waits, whatever is called, also after a restart.
    assert_eq!(code(&port.call("fx.slow", json!({"ms": 1})).await.unwrap()), "loop_stop");
    let (mut port, scene) = scene.restart(port).await;
    assert_eq!(code(&port.call("fx.slow", json!({"ms": 1})).await.unwrap()), "loop_stop");
    let id = text::hex(&grant(&["fx.echo", "fx.slow"], 100).id);
    let Reply::Grants(grants) = scene.admin(Command::GrantList).await else { panic!() };
    assert_eq!(grants[0].state, "suspended");
    let resume = || Command::GrantResume { id: id.clone(), reason: "looked".to_owned() };
    assert!(matches!(scene.admin(resume()).await, Reply::Done(_)));
    assert!(matches!(scene.admin(resume()).await, Reply::Refused(_)), "it is not suspended");
    assert_eq!(code(&port.call("fx.slow", json!({"ms": 1})).await.unwrap()), "none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_may_run_twice_to_harm_runs_once() {
    let mut house = strict();
    house.upstreams = house.upstreams.replace("idempotent = true", "idempotent = false");
    let scene = Scene::in_house(house).await;
    scene.add(grant(&["fx.slow"], 100)).await;
    let mut port = scene.port().await;
    let first = port.start("fx.slow", json!({"ms": 700}), &|_| ()).await;
    let second = port.start("fx.slow", json!({"ms": 700}), &|_| ()).await;
    assert_eq!(code(&port.answer(second).await.unwrap()), "duplicate_suppressed");
    assert_eq!(code(&port.answer(first).await.unwrap()), "none");
    assert_eq!(code(&port.call("fx.slow", json!({"ms": 700})).await.unwrap()), "none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_server_that_fails_is_left_alone() {
    let mut house = strict();
    house.controls = "[loops]\nerrors = 100\n".to_owned();
    let scene = Scene::in_house(house).await;
    scene.add(grant(&["fx.crash", "fx.echo"], 100)).await;
    let mut port = scene.port().await;
    for at in 0..5 {
        let result = port.call("fx.crash", json!({"n": at})).await.unwrap();
        assert_eq!(code(&result), "upstream_error", "{at}");
    }
    let result = port.call("fx.crash", json!({"n": 9})).await.unwrap();
    assert_eq!(code(&result), "breaker_open");
    let wait = result["structuredContent"]["casemate"]["retry_after_ms"].as_u64().unwrap();
    assert!((20_000..=36_000).contains(&wait), "{wait}");
    // Another tool of the same server is its own.
    assert_eq!(code(&port.call("fx.echo", json!({})).await.unwrap()), "none");
}

/// Payments by echo: above 10 one person, above 100 two; the task is alice's.
fn payments() -> Grant {
    let above = |amount: u64, approvals| Threshold {
        pointer: "/amount".to_owned(),
        above: Decimal(amount * 1_000_000),
        approvals,
    };
    let thresholds = vec![above(10, Approvals::One), above(100, Approvals::Two)];
    let clause = Clause { thresholds, ..Clause::of("fx.echo") };
    Grant { tools: vec![clause], owner: Some("alice".to_owned()), ..grant(&["fx.echo"], 20) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_persons_approve_one_exact_call_once() {
    let (house, keys) = approving();
    let scene = Scene::in_house(house).await;
    scene.add(payments()).await;
    let mut port = scene.port().await;
    let small = port.call("fx.echo", json!({"amount": "10"})).await.unwrap();
    assert_eq!(code(&small), "none");
    let large = json!({"amount": "250", "to": "x"});
    let id = port.start("fx.echo", large.clone(), &|_| ()).await;
    let call = scene.waiting(1).await.remove(0);
    assert_eq!((call.needed, call.given), (2, 0));
    assert!(call.display.as_ref().unwrap().contains("250"));
    let refused = [
        ("alice", scene.say(&keys, "alice", &call, |_| ()).await),
        ("display", scene.say(&keys, "bob", &call, |one| one.display = [0; 32]).await),
        ("expires", scene.say(&keys, "bob", &call, |one| one.expires = UnixTime(5)).await),
        ("expires", scene.say(&keys, "bob", &call, |one| one.expires.0 += 3600).await),
        ("hold", scene.say(&keys, "bob", &call, |one| one.hold = [0; 32]).await),
        ("approver", scene.say(&keys, "bob", &call, |one| one.approver = "eve".into()).await),
        ("kid", scene.say(&keys, "bob", &call, |one| one.approver = "carol".into()).await),
    ];
    for (word, reply) in refused {
        let Reply::Refused(text) = reply else { panic!("{word}: {reply:?}") };
        assert!(text.contains(word) || text.contains("owner"), "{word}: {text}");
    }
    assert!(matches!(scene.say(&keys, "bob", &call, |_| ()).await, Reply::Done(_)));
    let Reply::Refused(text) = scene.say(&keys, "bob2", &call, |_| ()).await else { panic!() };
    assert!(text.contains("bob"), "{text}");
    assert!(matches!(scene.say(&keys, "carol", &call, |_| ()).await, Reply::Done(_)));
    let result = port.answer(id).await.unwrap();
    assert_eq!(code(&result), "none", "{result}");
    // It is used up: the same call asks anew, and so does another.
    port.start("fx.echo", large, &|_| ()).await;
    port.start("fx.echo", json!({"amount": "251", "to": "x"}), &|_| ()).await;
    let calls = scene.waiting(2).await;
    assert!(calls.iter().all(|again| again.id != call.id && again.given == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_no_is_a_no_and_a_yes_outlives_a_restart() {
    let (house, keys) = approving();
    let scene = Scene::in_house(house).await;
    scene.add(payments()).await;
    let mut port = scene.port().await;
    let id = port.start("fx.echo", json!({"amount": "20"}), &|_| ()).await;
    let call = scene.waiting(1).await.remove(0);
    scene.say(&keys, "bob", &call, |one| one.approve = false).await;
    let denied = port.answer(id).await.unwrap();
    assert_eq!(code(&denied), "approval_denied");
    let again = port.call("fx.echo", json!({"amount": "20"})).await.unwrap();
    assert_eq!(code(&again), "approval_denied");
    // Asked before a restart, approved before it by one of two, and used after it.
    port.start("fx.echo", json!({"amount": "300"}), &|_| ()).await;
    let calls = scene.waiting(1).await;
    let call = calls.into_iter().find(|call| call.needed == 2).unwrap();
    assert!(matches!(scene.say(&keys, "bob", &call, |_| ()).await, Reply::Done(_)));
    let (mut port, scene) = scene.restart(port).await;
    let calls = scene.waiting(1).await;
    let held = calls.into_iter().find(|one| one.id == call.id).unwrap();
    assert_eq!((held.given, held.display.as_ref()), (1, None));
    let blind = scene.say(&keys, "carol", &call, |_| ()).await;
    assert!(matches!(blind, Reply::Refused(text) if text.contains("made again")));
    // The same call, made again, waits for the same people.
    let id = port.start("fx.echo", json!({"amount": "300"}), &|_| ()).await;
    let shown = loop {
        let calls = scene.waiting(1).await;
        let held = calls.into_iter().find(|one| one.id == call.id).unwrap();
        if held.display.is_some() {
            break held;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert!(matches!(scene.say(&keys, "carol", &shown, |_| ()).await, Reply::Done(_)));
    assert_eq!(code(&port.answer(id).await.unwrap()), "none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_yes_does_not_pass_a_revoked_grant() {
    let (house, keys) = approving();
    let scene = Scene::in_house(house).await;
    scene.add(payments()).await;
    let mut port = scene.port().await;
    let id = port.start("fx.echo", json!({"amount": "20"}), &|_| ()).await;
    let call = scene.waiting(1).await.remove(0);
    let grant = text::hex(&payments().id);
    scene.admin(Command::GrantRevoke { id: grant, reason: "over".to_owned() }).await;
    scene.say(&keys, "bob", &call, |_| ()).await;
    assert_eq!(code(&port.answer(id).await.unwrap()), "grant_revoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_of_all_outlives_a_restart_and_takes_two_persons_to_lift() {
    let (house, keys) = approving();
    let scene = Scene::in_house(house).await;
    scene.add(grant(&["fx.echo"], 20)).await;
    let mut port = scene.port().await;
    assert_eq!(code(&port.call("fx.echo", json!({})).await.unwrap()), "none");
    let stop = |scope: &str| Command::Stop {
        scope: scope.to_owned(),
        level: "freeze".to_owned(),
        reason: "test".to_owned(),
    };
    let lift = |scope: &str, approvals: Vec<String>| Command::StopLift {
        scope: scope.to_owned(),
        reason: "over".to_owned(),
        approvals,
    };
    // A task is lifted by the operator alone.
    assert!(matches!(scene.admin(stop("task:report")).await, Reply::Done(_)));
    assert!(port.call("fx.echo", json!({})).await.is_err());
    let sequence = port.sequence - 1;
    assert!(matches!(scene.admin(stop("everybody")).await, Reply::Refused(_)));
    assert!(matches!(scene.admin(lift("task:other", vec![])).await, Reply::Refused(_)));
    assert!(matches!(scene.admin(lift("task:report", vec![])).await, Reply::Done(_)));
    // All takes two persons, also after a restart.
    assert!(matches!(scene.admin(stop("all")).await, Reply::Done(_)));
    let house = scene.stop().await;
    let scene = Scene::in_house(house).await;
    let credential = port.credential;
    let wire = scene.house.connect(&scene.gateway, &credential).await;
    let Err(error) = harness::Port::hello(wire, credential, sequence, [0; 32]).await else {
        panic!("a stopped sandbox may not connect");
    };
    assert_eq!(error.code, casemate_ledger::cgp::error_code::LEASE, "{error}");
    let Reply::Stops(stops) = scene.admin(Command::StopList).await else { panic!() };
    let display = stops[0].display.as_ref().unwrap();
    let word = |name: &str, hold: &str| {
        let key = &keys.iter().find(|(known, _)| *known == name).unwrap().1;
        let approval = Approval {
            hold: text::from_hex(hold).unwrap().try_into().unwrap(),
            approve: true,
            approver: name.to_owned(),
            display: casemate_ledger::digest(display.as_bytes()),
            expires: harness::now().plus_seconds(60),
            reason: None,
        };
        let signed = approval.sign(key.public(), |message| key.sign(message));
        text::base64url(signed.bytes())
    };
    let id = &stops[0].id;
    let zeros = "00".repeat(32);
    for approvals in [
        vec![],
        vec![word("bob", id)],
        vec![word("bob", id), word("bob2", id)],
        vec![word("bob", id), word("carol", &zeros)],
    ] {
        assert!(matches!(scene.admin(lift("all", approvals)).await, Reply::Refused(_)));
    }
    let two = vec![word("bob", id), word("carol", id)];
    assert!(matches!(scene.admin(lift("all", two)).await, Reply::Done(_)));
    let mut port = scene.port().await;
    let _ = port.list().await;
    let Reply::Stops(stops) = scene.admin(Command::StopList).await else { panic!() };
    assert!(stops.is_empty());
}
