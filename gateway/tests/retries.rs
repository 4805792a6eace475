//! A call that its server leaves unanswered is made again where that does no
//! harm, and every attempt is in the log. What a definition says of arguments
//! and results holds.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod harness;

use std::time::{Duration, Instant};

use casemate_gateway::{Command, Reply};
use casemate_ledger::cgp::{Message, method};
use casemate_ledger::{Clause, Effect, Grant};
use harness::scene::Scene;
use harness::{Port, code, grant};
use serde_json::json;

async fn flaky(effect: Effect, timeout_ms: u64) -> (Scene, Port) {
    let clause = Clause { effect, timeout_ms: Some(timeout_ms), ..Clause::of("fx.flaky") };
    Scene::with(Grant { tools: vec![clause], ..grant(&["fx.flaky"], 9) }).await
}

fn marks(scene: &Scene) -> usize {
    std::fs::read_to_string(scene.house.directory.join("marks")).unwrap().lines().count()
}

/// What the log says of attempts that were made again.
async fn retried(scene: &Scene) -> Vec<String> {
    let Reply::Log(entries) = scene.admin(Command::Log { from: 0, count: 100 }).await else {
        panic!("no log")
    };
    let events = entries.into_iter().filter(|entry| entry.text.starts_with("retried"));
    events.map(|entry| entry.text).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_made_again_only_where_all_say_that_it_may() {
    for (effect, fails, ran, expected) in [
        (Effect::Write, 2, 3, "none"),
        (Effect::Write, 9, 3, "upstream_error"),
        // The grant does not say that it reaches nobody else.
        (Effect::External, 9, 1, "upstream_error"),
    ] {
        let (scene, mut port) = flaky(effect, 5000).await;
        let path = scene.house.directory.join("marks");
        let result = port.call("fx.flaky", json!({"path": path, "fails": fails})).await.unwrap();
        assert_eq!(code(&result), expected, "{effect:?} {fails}: {result}");
        assert_eq!(marks(&scene), ran, "{effect:?} {fails}");
        let events = retried(&scene).await;
        assert_eq!(events.len(), ran - 1, "{events:?}");
        assert!(events.iter().all(|event| event.contains("upstream_error")), "{events:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_that_does_not_repeat_well_is_not_tried_again() {
    let mut house = harness::House::new();
    let name = "name = \"flaky\"\nrisk = \"low\"\n";
    let repeats = format!("{name}idempotent = true\n");
    assert!(house.upstreams.contains(&repeats));
    house.upstreams = house.upstreams.replace(&repeats, name);
    let scene = Scene::in_house(house).await;
    let clause = Clause { effect: Effect::Read, ..Clause::of("fx.flaky") };
    scene.add(Grant { tools: vec![clause], ..grant(&["fx.flaky"], 9) }).await;
    let mut port = scene.port().await;
    let path = scene.house.directory.join("marks");
    let result = port.call("fx.flaky", json!({"path": path, "fails": 1})).await.unwrap();
    assert_eq!((code(&result), marks(&scene)), ("upstream_error", 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_end_with_the_call_s_time_and_with_its_caller() {
    // Each attempt takes 0.4 s and there are 0.6.
    let (scene, mut port) = flaky(Effect::Write, 600).await;
    let arguments = json!({"path": scene.house.directory.join("marks"), "fails": 9, "ms": 400});
    let begun = Instant::now();
    let result = port.call("fx.flaky", arguments.clone()).await.unwrap();
    assert!(matches!(code(&result), "timeout" | "upstream_error"), "{result}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(marks(&scene) <= 2);
    let (scene, mut port) = flaky(Effect::Write, 5000).await;
    let arguments = json!({"path": scene.house.directory.join("marks"), "fails": 9, "ms": 500});
    let id = port.start("fx.flaky", arguments, &|_| ()).await;
    while marks(&scene) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(550)).await;
    let params = json!({ "requestId": id });
    port.wire.send(&Message::notification(method::CANCELLED, params)).await;
    let result = port.answer(id).await.unwrap();
    assert_eq!(code(&result), "cancelled", "{result}");
    let then = marks(&scene);
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(then <= 2 && marks(&scene) == then, "{then}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_hold_for_arguments_and_results() {
    let (_scene, mut port) = Scene::with(grant(&["fx.typed"], 50)).await;
    for (arguments, expected) in [
        (json!({"answer": {"sum": 1.5}}), "none"),
        (json!({"answer": {"sum": 1}, "count": 2}), "none"),
        (json!({"answer": {"sum": 1}, "count": 0}), "args_invalid"),
        (json!({"answer": {"sum": 1}, "count": "2"}), "args_invalid"),
        (json!({"count": 2}), "args_invalid"),
        (json!({"answer": {"sum": "1.5"}}), "response_invalid"),
        (json!({"answer": {}}), "response_invalid"),
    ] {
        let result = port.call("fx.typed", arguments.clone()).await.unwrap();
        assert_eq!(code(&result), expected, "{arguments}: {result}");
    }
    let result = port.call("fx.typed", json!({"answer": {}, "count": 0})).await.unwrap();
    let about = &result["structuredContent"]["casemate"];
    assert_eq!(
        (about["rule"].as_str(), about["expected"].as_str()),
        (Some("gate/schema"), Some("at least 1 at /count"))
    );
    // None of the refused answers is the server's failure: it is still called,
    // although half of all end so.
    for _ in 0..6 {
        let result = port.call("fx.typed", json!({"answer": {"sum": 1}})).await.unwrap();
        assert_eq!(code(&result), "none");
        let result = port.call("fx.typed", json!({"answer": {"sum": "x"}})).await.unwrap();
        assert_eq!(code(&result), "response_invalid");
    }
}
