//! A tool server cannot reach its gateway, told by the server itself.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod harness;

use harness::scene::Scene;
use harness::{House, grant, text_of};
use serde_json::{Value, json};

const PROBE: &str = "fx.probe";

async fn probe(house: House) -> (Scene, Value) {
    let scene = Scene::in_house(house).await;
    scene.add(grant(&[PROBE], 5)).await;
    let mut port = scene.port().await;
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let arguments = json!({
        "path": scene.house.directory.join("state/keys/record.key"),
        "process": std::process::id(),
        "port": host.local_addr().unwrap().port(),
    });
    let result = port.call(PROBE, arguments).await.unwrap();
    let found = serde_json::from_str(text_of(&result)).unwrap();
    (scene, found)
}

/// How often the log's segments name the upstream's kind.
fn named(scene: &Scene, kind: &str) -> usize {
    let text = bytes_below(&scene.house.directory.join("state/log"));
    text.windows(kind.len()).filter(|part| *part == kind.as_bytes()).count()
}

fn bytes_below(path: &std::path::Path) -> Vec<u8> {
    if !path.is_dir() {
        let is_segment = path.extension().is_some_and(|extension| extension == "wal");
        return if is_segment { std::fs::read(path).unwrap() } else { Vec::new() };
    }
    let entries = std::fs::read_dir(path).unwrap().flatten();
    entries.flat_map(|entry| bytes_below(&entry.path())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confined_server_has_no_way_to_the_gateway() {
    let (scene, found) = probe(House::new()).await;
    assert_eq!((named(&scene, "mcp-stdio"), named(&scene, "mcp-stdio-unconfined")), (1, 0));
    for way in ["read", "signal", "connect"] {
        assert_eq!(found[way], false, "{way}: {found}");
    }
    assert_eq!(found["process"], 2);
    if rustix::process::getuid().is_root() {
        assert_eq!(found["user"], "1900000000");
    }
}

/// The same probe finds all three ways when nothing is taken away: it can fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unconfined_server_has_and_its_outcomes_say_so() {
    let mut house = House::new();
    house.upstreams = house.upstreams.replacen("confine =", "confinement = \"none\"\nconfine =", 1);
    let (scene, found) = probe(house).await;
    for way in ["read", "signal", "connect"] {
        assert_eq!(found[way], true, "{way}: {found}");
    }
    assert_eq!(named(&scene, "mcp-stdio-unconfined"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_network_it_reaches_the_host_and_nothing_else() {
    let mut house = House::new();
    house.upstreams = house.upstreams.replacen("confine = {", "confine = { network = true,", 1);
    let (_scene, found) = probe(house).await;
    assert_eq!(found["connect"], true);
    assert_eq!((&found["read"], &found["signal"]), (&json!(false), &json!(false)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_be_confined_stops_the_gateway() {
    let mut house = House::new();
    house.upstreams = house.upstreams.replacen("write = [", "write = [\"/nowhere/at/all\", ", 1);
    let error = casemate_gateway::Gateway::open(house.config()).await.err().unwrap().to_string();
    assert!(error.contains("not started: take a path"), "{error}");
}

#[test]
fn the_gateways_own_files_are_never_shown() {
    let mut house = House::new();
    let before = house.upstreams.clone();
    for path in ["state", "state/keys", "."] {
        house.upstreams = before.replacen("write = [", &format!("read = [{path:?}], write = ["), 1);
        let error = house.try_config().unwrap_err().to_string();
        assert!(error.starts_with("upstream: expected paths without"), "{path}: {error}");
    }
}
