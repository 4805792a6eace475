//! Spans of calls, at a collector that this test is.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

mod harness;

use std::time::Duration;

use casemate_ledger::cgp::{Message, method};
use casemate_ledger::{Approvals, Clause, Grant, args, text};
use casemate_ledger_store::failpoint::{Fault, set_fault};
use harness::scene::Scene;
use harness::{House, code, grant, text_of};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A collector: its URL, and the bodies that it gets.
async fn collector() -> (String, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (give, bodies) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let give = give.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let give = give.clone();
                async move {
                    assert_eq!(request.uri().path(), "/v1/traces");
                    assert_eq!(request.headers()["content-type"], "application/json");
                    let body = request.into_body().collect().await?.to_bytes();
                    let _ = give.send(String::from_utf8(body.to_vec()).unwrap());
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from_static(b"{}"))))
                }
            });
            let stream = TokioIo::new(stream);
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(stream, service),
            );
        }
    });
    (url, bodies)
}

fn house(url: &str) -> House {
    let mut house = House::new();
    house.settings = format!("traces = {url:?}");
    house
}

/// All spans of `bodies`.
fn spans(bodies: &[String]) -> Vec<Value> {
    let bodies = bodies.iter().map(|body| serde_json::from_str::<Value>(body).unwrap());
    let mut spans = Vec::new();
    for body in bodies {
        for resource in body["resourceSpans"].as_array().unwrap() {
            let name = attribute(&resource["resource"], "service.name");
            assert_eq!(name.as_deref(), Some("casemate-gateway"), "{resource}");
            for scope in resource["scopeSpans"].as_array().unwrap() {
                spans.extend(scope["spans"].as_array().unwrap().clone());
            }
        }
    }
    spans
}

fn attribute(span: &Value, key: &str) -> Option<String> {
    let all = span["attributes"].as_array().unwrap();
    let value = &all.iter().find(|one| one["key"] == key)?["value"];
    let text = value["stringValue"].as_str().or(value["intValue"].as_str());
    text.map(str::to_owned).or_else(|| value["intValue"].as_i64().map(|number| number.to_string()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_a_trace_of_its_receipt_and_says_nothing_of_what_was_said() {
    let (url, mut bodies) = collector().await;
    let (scene, mut port) = Scene::with_in(house(&url), grant(&["fx.echo"], 5)).await;
    let words = json!({"patient": "Ada Lovelace"});
    let result = port.call("fx.echo", words.clone()).await.unwrap();
    assert!(text_of(&result).contains("Lovelace"));
    let invocation = text::hex(&port.previous);
    let denied = port.call("fx.leak-by-name", json!({})).await.unwrap();
    assert_eq!(code(&denied), "tool_not_granted");
    // A stop sends what is left.
    scene.stop().await;
    let mut seen = Vec::new();
    while let Ok(body) = bodies.try_recv() {
        seen.push(body);
    }
    let all = seen.concat();
    for secret in ["Lovelace", "patient", "leak-by-name", &text::base64url(&[7; 32])] {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
    let spans = spans(&seen);
    assert_eq!(spans.len(), 5, "{all}");
    let of = |digest: &str| -> Vec<&Value> {
        let trace = digest.get(..32).unwrap();
        spans.iter().filter(|span| span["traceId"] == trace).collect()
    };
    let call = of(&invocation);
    assert_eq!(call.len(), 3);
    let root = call.iter().find(|span| span["kind"] == 2).unwrap();
    assert_eq!(root["name"], "tools/call fx.echo");
    for (key, expected) in [
        ("gen_ai.tool.name", "fx.echo"),
        ("casemate.invocation", invocation.as_str()),
        ("casemate.verdict", "allow"),
        ("casemate.status", "executed"),
        ("casemate.sequence", "1"),
    ] {
        assert_eq!(attribute(root, key).as_deref(), Some(expected), "{key} in {root}");
    }
    let canonical = args::canonical(Some(&words)).unwrap();
    let arguments = text::hex(&args::Commitment::to_args(&[7; 32], &canonical).digest);
    assert_eq!(attribute(root, "casemate.arguments"), Some(arguments));
    let receipt = &result["_meta"]["dev.casemate/receipt"];
    for part in ["decision", "outcome"] {
        let index = receipt[part].as_u64().unwrap().to_string();
        assert_eq!(attribute(root, &format!("casemate.{part}")), Some(index), "{part}");
    }
    assert_eq!(attribute(root, "error.type"), None);
    for (kind, name) in [(1, "decide"), (3, "tools/call fx.echo")] {
        let part = call.iter().find(|span| span["kind"] == kind).unwrap();
        assert_eq!((&part["name"], &part["parentSpanId"]), (&json!(name), &root["spanId"]));
        let time = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
        let (begin, end) = ("startTimeUnixNano", "endTimeUnixNano");
        assert!(time(root, begin) <= time(part, begin) && time(part, begin) <= time(part, end));
        assert!(time(part, end) <= time(root, end));
    }
    let other = of(&text::hex(&port.previous));
    let root = other.iter().find(|span| span["kind"] == 2).unwrap();
    assert_eq!(root["name"], "tools/call");
    assert_eq!(attribute(root, "error.type").as_deref(), Some("tool_not_granted"));
    assert_eq!(other.len(), 2);
}

/// The root spans of a house after `act` was done in it.
async fn roots<F: Future<Output = Scene>>(act: impl FnOnce(House) -> F) -> Vec<Value> {
    let (url, mut bodies) = collector().await;
    act(house(&url)).await.stop().await;
    let bodies: Vec<String> = std::iter::from_fn(|| bodies.try_recv().ok()).collect();
    spans(&bodies).into_iter().filter(|span| span["kind"] == 2).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_outcome_is_in_no_record_shows_no_success() {
    let roots = roots(async |house| {
        // The second write after the fault is set: the decision's comes first.
        let place = format!("{}/state/log/wal/", house.directory.display());
        let (scene, mut port) = Scene::with_in(house, grant(&["fx.echo"], 5)).await;
        assert_eq!(code(&port.call("fx.echo", json!({"first": 1})).await.unwrap()), "none");
        let (operation, place) = ("write", place.leak());
        set_fault(Some(Fault { operation, place, after: 1, errno: 28 }));
        let result = port.call("fx.echo", json!({})).await.unwrap();
        set_fault(None);
        assert_eq!(code(&result), "outcome_unknown", "{result}");
        let about = &result["structuredContent"]["casemate"];
        assert_eq!((&about["retryable"], &result["isError"]), (&json!(false), &json!(true)));
        let receipt = &result["_meta"]["dev.casemate/receipt"];
        assert!(receipt["decision"].is_u64() && receipt["outcome"].is_null(), "{receipt}");
        scene
    })
    .await;
    let [_, root] = roots.as_slice() else { unreachable!("{roots:?}") };
    for (key, expected) in [
        ("casemate.verdict", Some("allow")),
        ("casemate.status", Some("unknown")),
        ("error.type", Some("outcome_unknown")),
        ("casemate.result", None),
        ("casemate.outcome", None),
    ] {
        assert_eq!(attribute(root, key).as_deref(), expected, "{key} in {root}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waits_for_people_is_held_not_denied() {
    let roots = roots(async |house| {
        let (people, _keys) = harness::people::approving();
        let mut house = house;
        house.controls = people.controls;
        let clause = Clause { approvals: Approvals::One, ..Clause::of("fx.echo") };
        let granted = Grant { tools: vec![clause], ..grant(&["fx.echo"], 5) };
        let (scene, mut port) = Scene::with_in(house, granted).await;
        let id = port.start("fx.echo", json!({}), &|_| ()).await;
        scene.waiting(1).await;
        let gone = Message::notification(method::CANCELLED, json!({ "requestId": id }));
        port.wire.send(&gone).await;
        assert_eq!(code(&port.answer(id).await.unwrap()), "approval_pending");
        scene
    })
    .await;
    let [root] = roots.as_slice() else { unreachable!("{roots:?}") };
    assert_eq!(attribute(root, "casemate.verdict").as_deref(), Some("hold"), "{root}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_or_silent_holds_no_call_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = |at| format!("http://{at}/v1/traces");
    for url in [url(silent.local_addr().unwrap()), url("127.0.0.1:1".parse().unwrap())] {
        let (scene, mut port) = Scene::with_in(house(&url), grant(&["fx.echo"], 50)).await;
        for at in 0..20 {
            assert_eq!(code(&port.call("fx.echo", json!({"at": at})).await.unwrap()), "none");
        }
        let stopping = tokio::time::timeout(Duration::from_secs(20), scene.stop());
        assert!(stopping.await.is_ok(), "{url} holds the stop up");
    }
}
