//! Prometheus reads the gateway's numbers on a loopback address, and nothing else there.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod harness;

use std::time::Duration;

use harness::scene::Scene;
use harness::{House, code, grant};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), read).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_are_read_over_http_on_this_host() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let mut house = House::new();
    house.settings = format!("metrics = {address:?}");
    let scene = Scene::in_house(house).await;
    scene.add(grant(&["fx.echo"], 9)).await;
    let mut port = scene.port().await;
    for _ in 0..3 {
        assert_eq!(code(&port.call("fx.echo", json!({})).await.unwrap()), "none");
    }
    let get = |line: &str, host: &str| {
        format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    };
    let page = ask(&address, &get("GET /metrics", &address)).await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(page.contains("content-type: text/plain; version=0.0.4"), "{page}");
    for line in [
        "casemate_gateway_decisions_total{code=\"allow\"} 3\n",
        "casemate_gateway_decide_seconds_count 3\n",
        "casemate_gateway_decide_seconds_bucket{le=\"+Inf\"} 3\n",
        "casemate_gateway_upstream_seconds_count 3\n",
        "# TYPE casemate_gateway_commit_seconds histogram\n",
        "casemate_gateway_waiting_calls 0\n",
        "casemate_gateway_drifted_tools 0\n",
    ] {
        assert!(page.contains(line), "{line}{page}");
    }
    // A record, at least, for each decision and outcome.
    let commits =
        page.lines().find_map(|l| l.strip_prefix("casemate_gateway_commit_seconds_count "));
    assert!(commits.unwrap().parse::<u64>().unwrap() >= 6, "{page}");
    // Another name for this host, another path, another method, too long a head.
    let long =
        format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    for (request, status) in [
        (get("GET /metrics", "evil.example"), "421"),
        (get("GET /", &address), "404"),
        (get("GET /metrics/", &address), "404"),
        (get("POST /metrics", &address), "405"),
        (long, "431"),
    ] {
        let answer = ask(&address, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
    }
}

#[test]
fn only_this_host_may_read_numbers() {
    for bad in ["0.0.0.0:9464", "10.0.0.1:9464", "[::]:9464"] {
        let mut house = House::new();
        house.settings = format!("metrics = {bad:?}");
        let error = house.try_config().unwrap_err().to_string();
        assert!(error.contains("metrics: expected a loopback address"), "{error}");
    }
}
