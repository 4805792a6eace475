//! Controls through a whole gateway, with the limits that operators get.

mod harness;

use casemate_gateway::{Command, Reply};
use casemate_ledger::text;
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
