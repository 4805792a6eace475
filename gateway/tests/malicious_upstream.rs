//! A tool server that means harm (examples/malicious.rs): whatever it says, the
//! call has an outcome in time, nothing of it is believed, and the next
//! connection's server works. Definitions that change are in calls.rs, what a
//! confined server can reach in confinement.rs.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod harness;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use casemate_gateway::{Command, Gateway, Reply};
use casemate_ledger::cgp::{Message, method};
use casemate_ledger::checkpoint::VerifierKey;
use casemate_ledger::{Event, EventKind, Leaf, LeafKind, record};
use casemate_ledger_store::Published;
use harness::scene::Scene;
use harness::{House, Port, code, example, grant, text_of};
use serde_json::{Value, json};

const TOKEN: &str = "9f2c-very-secret-token";
const TOOLS: [&str; 17] = [
    "bad.fine",
    "bad.endless_line",
    "bad.notifications",
    "bad.wrong_id",
    "bad.twice",
    "bad.deep",
    "bad.utf8",
    "bad.infinite",
    "bad.digits",
    "bad.half",
    "bad.escapes",
    "bad.secret",
    "bad.requests",
    "bad.progress",
    "bad.whisper",
    "bad.asks",
    "bad.late",
];

/// A house whose one server lists its tools by `malice`.
fn house(malice: &str) -> House {
    let mut house = House::new();
    let token = house.directory.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    std::fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).unwrap();
    house.upstreams = format!(
        "[[upstream]]\nname = \"bad\"\ncommand = [{:?}]\nenv = {{ MALICE = {malice:?} }}\n\
         secret_env = {{ TOKEN = \"token\" }}\ntimeout_ms = 1500\nmax_result_bytes = 65536\n",
        example("malicious")
    );
    let tools = TOOLS.map(|name| name.trim_start_matches("bad.").to_owned());
    for name in tools {
        let table = format!("[[upstream.tool]]\nname = \"{name}\"\nrisk = \"low\"\n");
        house.upstreams.push_str(&table);
    }
    house
}

/// A sandbox of its own, with a process and a grant of its own.
async fn sandbox(scene: &Scene, number: u64) -> Port {
    scene.add(grant(&TOOLS, 100 + number)).await;
    scene.port().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_answer_is_an_outcome_in_time() {
    let scene = Scene::in_house(house("")).await;
    let cases: [(&str, &[&str]); 10] = [
        ("endless_line", &["upstream_error"]),
        ("notifications", &["timeout"]),
        ("wrong_id", &["timeout"]),
        // A line that is no message is no answer.
        ("deep", &["upstream_error", "timeout", "response_blocked"]),
        ("utf8", &["upstream_error", "timeout", "response_blocked"]),
        ("infinite", &["upstream_error", "timeout", "response_blocked"]),
        ("digits", &["upstream_error", "timeout", "response_blocked"]),
        ("half", &["upstream_error"]),
        ("secret", &["response_blocked"]),
        // It wants a person's answer; no grant gives it one.
        ("asks", &["upstream_input_denied"]),
    ];
    for (number, (tool, expected)) in (0..).zip(cases) {
        let mut port = sandbox(&scene, number).await;
        let begun = Instant::now();
        let result = port.call(&format!("bad.{tool}"), json!({})).await.unwrap();
        let took = begun.elapsed();
        println!("{tool:<14} {:<18} {:>5} ms", code(&result), took.as_millis());
        assert!(expected.contains(&code(&result)), "{tool}: {result}");
        assert!(took < Duration::from_secs(10), "{tool}: {took:?}");
        assert!(!result.to_string().contains(TOKEN), "{tool}");
        // The sandbox that met it can go on by another connection of its own.
        let (credential, previous) = (port.credential, port.previous);
        drop(port.wire);
        let wire = scene.house.connect(&scene.gateway, &credential).await;
        let mut port = Port::hello(wire, credential, 1, previous).await.unwrap();
        assert_eq!(text_of(&port.call("bad.fine", json!({})).await.unwrap()), "fine", "{tool}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_counts_once_and_only_for_its_own_call() {
    let scene = Scene::in_house(house("")).await;
    let mut port = sandbox(&scene, 0).await;
    for _ in 0..3 {
        assert_eq!(text_of(&port.call("bad.twice", json!({"n": 1})).await.unwrap()), "first");
        // The second answer of before is not this call's.
        assert_eq!(text_of(&port.call("bad.fine", json!({})).await.unwrap()), "fine");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_asks_of_its_client_is_not_granted() {
    let scene = Scene::in_house(house("")).await;
    let mut port = sandbox(&scene, 0).await;
    let result = port.call("bad.requests", json!({})).await.unwrap();
    let replies: Vec<Value> = serde_json::from_str(text_of(&result)).unwrap();
    assert_eq!(replies.len(), 3, "{result}");
    for (asked, reply) in ["sampling", "elicitation", "roots"].into_iter().zip(&replies) {
        let refused = !reply["error"].is_null();
        let declined =
            reply["result"]["action"] == "decline" && reply["result"]["content"].is_null();
        let nothing = reply["result"]["roots"] == json!([]);
        assert!(refused || declined || nothing, "{asked}: {reply}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_does_not_leave_by_progress() {
    let scene = Scene::in_house(house("")).await;
    let mut port = sandbox(&scene, 0).await;
    port.progress = Some(Vec::new());
    assert_eq!(text_of(&port.call("bad.whisper", json!({})).await.unwrap()), "done");
    let notices = port.progress.take().unwrap();
    let said: Vec<(f64, Option<&str>)> =
        notices.iter().map(|notice| (notice.progress, notice.message.as_deref())).collect();
    assert_eq!(said, [(1.0, Some("plain")), (2.0, None)]);
}

/// What the log says of events and outcomes, by the start of their text.
async fn log(scene: &Scene, start: &str) -> Vec<String> {
    let Reply::Log(entries) = scene.admin(Command::Log { from: 0, count: 256 }).await else {
        unreachable!()
    };
    let texts = entries.into_iter().map(|entry| entry.text);
    texts.filter(|text| text.starts_with(start)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_after_the_cancellation_is_written_down_and_given_to_nobody() {
    let scene = Scene::in_house(house("")).await;
    let mut port = sandbox(&scene, 0).await;
    // It is there already when it is asked for what comes late.
    assert_eq!(text_of(&port.call("bad.fine", json!({"turn": 0})).await.unwrap()), "fine");
    // Once cancelled by its port, once by its time; the server hears of both.
    for (turn, expected) in [(1, "cancelled"), (2, "timeout"), (3, "timeout"), (4, "timeout")] {
        let id = port.start("bad.late", json!({ "turn": turn }), &|_| ()).await;
        if expected == "cancelled" {
            tokio::time::sleep(Duration::from_millis(1000)).await;
            let gone = Message::notification(method::CANCELLED, json!({ "requestId": id }));
            port.wire.send(&gone).await;
        }
        let result = port.answer(id).await.unwrap();
        assert_eq!(code(&result), expected, "{result}");
        assert!(!result.to_string().contains("paid"), "{result}");
        let begun = Instant::now();
        while log(&scene, "late-result").await.len() < turn {
            assert!(begun.elapsed() < Duration::from_secs(30), "the late result is not recorded");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // The outcomes stay what they were, and the connection goes on.
    assert_eq!(log(&scene, "cancelled").await.len() + log(&scene, "timeout").await.len(), 4);
    assert_eq!(text_of(&port.call("bad.fine", json!({})).await.unwrap()), "fine");
    // What came late can be opened like any result: it is among the payloads.
    let house = scene.stop().await;
    // Closed for good, its head covers all.
    let gateway = house.gateway().await;
    let public = gateway.public().clone();
    drop(gateway);
    let key = VerifierKey::parse(&public.log_vkey).unwrap();
    let published = Published::open(&house.directory.join("state/log"), &key).unwrap();
    let leaves = published.bundle(0).unwrap();
    let leaves = leaves.iter().map(|leaf| Leaf::decode(leaf).unwrap());
    let (mut decisions, mut late, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for leaf in leaves {
        if leaf.kind == LeafKind::Decision {
            decisions.push(casemate_ledger::digest(&leaf.record));
        } else if let Ok((_, event)) = record::peek::<Event>(&leaf.record)
            && event.kind == EventKind::LateResult
        {
            late.push((event.digest.unwrap(), event.result.map(|result| result.length)));
            left_out.push(event.note);
        }
    }
    let left_out: Vec<_> = left_out.iter().map(Option::as_deref).collect();
    let [blocked, large, beyond] =
        ["response_blocked", "too large to be kept", "not within the call's limits"].map(Some);
    assert_eq!(left_out, [None, blocked, large, beyond]);
    assert!(late.iter().all(|(of, _)| decisions.contains(of)), "{late:?}");
    // What broke the tool's limit is not measured either.
    let measured: Vec<bool> =
        late.iter().map(|(_, length)| length.is_some_and(|l| l > 20)).collect();
    assert_eq!(measured, [true, true, true, false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_and_escapes_do_not_travel() {
    let scene = Scene::in_house(house("")).await;
    let mut port = sandbox(&scene, 0).await;
    let id = port.start("bad.progress", json!({}), &|_| ()).await;
    let mut notices = 0;
    loop {
        match port.wire.receive().await.unwrap() {
            Message::Response { id: answered, result } if answered == id => {
                assert_eq!(text_of(&result.unwrap()), "done");
                break;
            }
            Message::Notification { params, .. } if params["nonce"].is_null() => notices += 1,
            _ => {}
        }
    }
    assert!(notices <= 20, "{notices}");
    // Its words are data for the sandbox, and no part of what an operator reads.
    let result = port.call("bad.escapes", json!({})).await.unwrap();
    assert!(text_of(&result).starts_with('\u{1b}'));
    let Reply::Log(entries) = scene.admin(Command::Log { from: 0, count: 100 }).await else {
        unreachable!()
    };
    assert!(entries.iter().all(|entry| !entry.text.contains(char::is_control)), "{entries:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_without_an_end_stop_the_gateway_with_a_reason() {
    for (malice, words) in [
        ("pages", "at most 64 pages"),
        ("tools", "at most 256 tools"),
        ("large", "at most 65536 bytes"),
        ("endless", "upstream bad"),
    ] {
        let begun = Instant::now();
        let error = Gateway::open(house(malice).config()).await.err().unwrap().to_string();
        println!("{malice}: {error} ({} ms)", begun.elapsed().as_millis());
        assert!(error.contains(words), "{malice}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(40), "{malice}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_one_tool_s_and_plain() {
    let scene = Scene::in_house(house("names")).await;
    let Reply::Status(status) = scene.admin(Command::Status).await else { unreachable!() };
    let words = |(name, state): &(String, String)| format!("{name} {state}");
    let tools: Vec<String> = status.tools.iter().map(words).collect();
    // Of two definitions of one name neither is called; lookalikes are left out.
    assert_eq!(tools, ["bad.FINE ok", "bad.fine ok", "bad.twin drifted"]);
}

/// A server that keeps its own names takes none of another's by offering it, and
/// stops no gateway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_of_another_is_not_taken() {
    let upstream = |name: &str, program: &str, tool: &str| {
        format!(
            "[[upstream]]\nname = \"{name}\"\ncommand = [{:?}]\nbare_names = true\n\
             env = {{ MALICE = \"others\" }}\n[[upstream.tool]]\nname = \"{tool}\"\nrisk = \"low\"\n",
            example(program)
        )
    };
    let mut house = House::new();
    let (bad, own) = (upstream("bad", "malicious", "fine"), upstream("own", "fixture", "echo"));
    house.upstreams = format!("{bad}{}{own}", house.upstreams);
    let both = house.upstreams.clone() + &upstream("also", "fixture", "echo");
    let scene = Scene::in_house(house).await;
    let Reply::Status(status) = scene.admin(Command::Status).await else { unreachable!() };
    let state = |name: &str| status.tools.iter().find(|tool| tool.0 == name).unwrap().1.as_str();
    // What nobody approved and two offer is nobody's.
    for (name, expected) in
        [("fine", "ok"), ("fx.echo", "ok"), ("echo", "ok"), ("fx.mark", "ok"), ("mark", "drifted")]
    {
        assert_eq!(state(name), expected, "{name}");
    }
    scene.add(grant(&["fx.echo", "echo", "mark"], 9)).await;
    let mut port = scene.port().await;
    for (name, expected) in [("fx.echo", "none"), ("echo", "none"), ("mark", "tool_drift")] {
        let result = port.call(name, json!({"text": "genuine"})).await.unwrap();
        assert_eq!(code(&result), expected, "{name}: {result}");
        // The malicious server answers nothing to a tool called echo.
        assert_eq!(result.to_string().contains("genuine"), expected == "none", "{name}: {result}");
    }
    // Two that the operator approved are a mistake.
    let mut mistaken = House::new();
    mistaken.upstreams = both;
    let error = Gateway::open(mistaken.config()).await.err().unwrap().to_string();
    assert_eq!(error, "tool echo: expected one upstream to have it, got own and also");
}
