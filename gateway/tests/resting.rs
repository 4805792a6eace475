//! A server that is down when the gateway starts holds nobody else up, and one
//! that changes its tools is seen even when it does not say so.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod harness;
mod web;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use casemate_gateway::{Command, Error, Reply};
use casemate_ledger_store::StoreError;
use harness::scene::Scene;
use harness::{House, code, grant};
use serde_json::json;

/// A second upstream, of the gateway itself, that is never down.
fn house() -> House {
    let mut house = House::new();
    std::fs::create_dir(house.directory.join("data")).unwrap();
    std::fs::write(house.directory.join("data/note"), "hello").unwrap();
    let tool = "[[upstream.tool]]\nname = \"read\"\nrisk = \"low\"\n";
    let files = format!("[[upstream]]\nname = \"fs\"\nfiles = {{ root = \"data\" }}\n{tool}");
    house.upstreams.push_str(&files);
    house
}

async fn resting(scene: &Scene) -> (String, Vec<(String, String)>) {
    let Reply::Metrics(text) = scene.admin(Command::Metrics).await else { panic!() };
    let line = text.lines().find(|line| line.starts_with("casemate_gateway_resting_upstreams "));
    let Reply::Status(status) = scene.admin(Command::Status).await else { panic!() };
    let count = line.unwrap().rsplit(' ').next().unwrap().to_owned();
    (count, status.tools)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_starts_without_one_of_its_servers_and_takes_it_when_it_comes() {
    let tools = ["fx.echo", "fx.mark", "fs.read"];
    for (back, echo) in [("", "none"), ("drift", "tool_drift")] {
        let (scene, mut port) = Scene::with_in(house(), grant(&tools, 50)).await;
        assert_eq!(code(&port.call("fx.echo", json!({})).await.unwrap()), "none");
        assert_eq!(resting(&scene).await.0, "0");
        let drift = scene.house.directory.join("drift");
        std::fs::write(&drift, "down").unwrap();
        let (mut port, scene) = scene.restart(port).await;
        // Others are served; the one that is down is there, and not listed.
        let note = port.call("fs.read", json!({"path": "note"})).await.unwrap();
        assert_eq!(note["structuredContent"]["text"], "hello");
        let denied = port.call("fx.echo", json!({"at": 1})).await.unwrap();
        assert_eq!(code(&denied), "breaker_open", "{denied}");
        let about = &denied["structuredContent"]["casemate"];
        assert_eq!((&about["rule"], &about["retryable"]), (&json!("gate/upstream"), &json!(true)));
        let (count, states) = resting(&scene).await;
        assert_eq!(count, "1");
        assert!(states.contains(&("fx.echo".to_owned(), "resting".to_owned())), "{states:?}");
        let known = port.tools.clone();
        assert_eq!(port.list().await, ["fs.read"]);
        port.tools = known;
        // It comes back, as it was or changed.
        std::fs::write(&drift, back).unwrap();
        let begun = Instant::now();
        while resting(&scene).await.0 != "0" {
            assert!(begun.elapsed() < Duration::from_secs(20), "it is not looked at again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let result = port.call("fx.echo", json!({"at": 2})).await.unwrap();
        assert_eq!(code(&result), echo, "{result}");
        let path = scene.house.directory.join("marks");
        let result = port.call("fx.mark", json!({ "path": path })).await.unwrap();
        assert_eq!(code(&result), "none", "{result}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_far_server_that_was_never_there_rests_and_a_mistake_stops_the_start() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let far = |roots: &str| {
        let mut house = house();
        let far = format!(
            "[[upstream]]\nname = \"far\"\n[upstream.remote]\nurl = \
             \"https://localhost:{closed}/mcp\"\nnetworks = [\"127.0.0.0/8\", \"::1/128\"]\n\
             roots = {roots:?}\n"
        );
        house.upstreams.push_str(&far);
        std::fs::write(house.directory.join("root.pem"), &house.authority.pem).unwrap();
        house
    };
    let (scene, mut port) = Scene::with_in(far("root.pem"), grant(&["fx.echo"], 9)).await;
    assert_eq!(resting(&scene).await.0, "1");
    assert_eq!(code(&port.call("fx.echo", json!({})).await.unwrap()), "none");
    drop(port);
    // A file that is not there and a program that is not there are mistakes,
    // whatever worked before.
    let mut house = scene.stop().await;
    house.upstreams = house.upstreams.replace("root.pem", "none.pem");
    let open = async |house: &House| {
        // The gateway of before may still be letting go of the log.
        loop {
            match casemate_gateway::Gateway::open(house.config()).await {
                Err(Error::Log(StoreError::Locked { .. })) => {
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
                opened => return opened.err().map(|error| error.to_string()),
            }
        }
    };
    let error = open(&house).await.unwrap();
    assert!(error.contains("upstream far") && error.contains("none.pem"), "{error}");
    house.upstreams = house.upstreams.replace("none.pem", "root.pem");
    house.upstreams = house.upstreams.replace("examples/fixture", "examples/no-such-fixture");
    let error = open(&house).await.unwrap();
    assert!(error.contains("upstream fx") && error.contains("No such file"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_definition_under_a_tool_s_name_stops_it_before_the_next_call() {
    let mut house = House::new();
    house.upstreams =
        house.upstreams.replace("timeout_ms = 120000", "timeout_ms = 120000\nrecheck_ms = 1");
    let (scene, mut port) = Scene::with_in(house, grant(&["fx.echo", "fx.mark"], 9)).await;
    assert_eq!(code(&port.call("fx.echo", json!({})).await.unwrap()), "none");
    std::fs::write(scene.house.directory.join("drift"), "twin").unwrap();
    // The genuine one is still offered, and nobody knows which one would run.
    for at in 1..3 {
        let stopped = port.call("fx.echo", json!({ "at": at })).await.unwrap();
        assert_eq!(code(&stopped), "tool_drift", "{stopped}");
    }
    let path = scene.house.directory.join("marks");
    let fine = port.call("fx.mark", json!({ "path": path })).await.unwrap();
    assert_eq!(code(&fine), "none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_definition_is_seen_though_nobody_says_so() {
    // Over HTTP nothing is heard outside of an answer.
    let server = web::start().await;
    let mut house = House::new();
    std::fs::write(house.directory.join("root.pem"), &server.root).unwrap();
    let far = format!(
        "[[upstream]]\nname = \"far\"\nrecheck_ms = 1\n[upstream.remote]\n\
         url = \"https://localhost:{}/hand\"\nroots = \"root.pem\"\n\
         networks = [\"127.0.0.0/8\", \"::1/128\"]\n\
         [[upstream.tool]]\nname = \"greet\"\nrisk = \"low\"\n",
        server.port
    );
    house.upstreams = house.upstreams.replace("timeout_ms = 120000", "recheck_ms = 1");
    house.upstreams.push_str(&far);
    let (scene, mut port) = Scene::with_in(house, grant(&["far.greet", "fx.echo"], 50)).await;
    for tool in ["far.greet", "fx.echo"] {
        assert_eq!(code(&port.call(tool, json!({})).await.unwrap()), "none", "{tool}");
    }
    server.hand.drift.store(true, Ordering::Release);
    std::fs::write(scene.house.directory.join("drift"), "drift").unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    for tool in ["far.greet", "fx.echo"] {
        // Seen before this call is sent, and then by the gates.
        for turn in 0..2 {
            let result = port.call(tool, json!({ "turn": turn })).await.unwrap();
            assert_eq!(code(&result), "tool_drift", "{tool} {turn}: {result}");
        }
    }
    assert!(port.list().await.is_empty());
}
