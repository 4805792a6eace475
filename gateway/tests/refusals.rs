//! A server that answers with an error has answered: the sandbox is told what
//! it said, its breaker stays closed, and the call may be made again. Only one
//! that says that it failed inside counts as broken.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

mod harness;
mod web;

use std::os::unix::fs::PermissionsExt;

use casemate_gateway::{Command, Reply};
use harness::scene::Scene;
use harness::{House, Port, code, grant, text_of};
use serde_json::{Value, json};

const TOKEN: &str = "9f2c-very-secret-token";

/// A house whose fixture has a credential and does not repeat well.
fn house() -> House {
    let mut house = House::new();
    let token = house.directory.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    std::fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).unwrap();
    house.upstreams = house.upstreams.replace("idempotent = true\n", "");
    let secret = "secret_env = { TOKEN = \"token\" }\ntimeout_ms = 120000";
    house.upstreams = house.upstreams.replace("timeout_ms = 120000", secret);
    house.controls.push_str("errors = 1000\n");
    house
}

async fn refuse(port: &mut Port, arguments: Value) -> Value {
    let result = port.call("fx.refuse", arguments).await.unwrap();
    assert_eq!(result["isError"], true, "{result}");
    result
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_arguments_are_told_and_break_nothing() {
    let (scene, mut port) = Scene::with_in(house(), grant(&["fx.refuse", "fx.echo"], 50)).await;
    // The same call each time: it was answered, and is no duplicate.
    for _ in 0..12 {
        let result = refuse(&mut port, json!({})).await;
        assert_eq!(code(&result), "refused", "{result}");
        assert!(
            text_of(&result).contains("-32602") && text_of(&result).contains("no such account")
        );
    }
    let Reply::Log(entries) = scene.admin(Command::Log { from: 0, count: 100 }).await else {
        unreachable!()
    };
    let errors = entries.iter().filter(|entry| entry.text.starts_with("tool_error")).count();
    assert_eq!(errors, 12, "{entries:?}");
    // The words of the older era for "not found" are those of this one.
    let result = refuse(&mut port, json!({"error": -32002})).await;
    assert_eq!(result["structuredContent"]["casemate"]["error"], -32602, "{result}");
    // Its words are bounded, and never a credential.
    let long = refuse(&mut port, json!({"words": "\u{e9}".repeat(20_000)})).await;
    assert!((1000..2200).contains(&text_of(&long).len()), "{}", text_of(&long).len());
    let secret = refuse(&mut port, json!({"words": "key {token} is wrong"})).await;
    assert_eq!(code(&secret), "response_blocked", "{secret}");
    assert!(!secret.to_string().contains(TOKEN));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_fails_inside_is_left_alone() {
    let (_scene, mut port) = Scene::with_in(house(), grant(&["fx.refuse"], 50)).await;
    for at in 0..5 {
        let result = refuse(&mut port, json!({"error": -32603, "at": at})).await;
        assert_eq!(code(&result), "internal_error", "{result}");
    }
    let result = refuse(&mut port, json!({"error": -32603, "at": 5})).await;
    assert_eq!(code(&result), "breaker_open", "{result}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_a_mistake_is_told_by_status_or_body() {
    let server = web::start().await;
    let mut house = House::new();
    std::fs::write(house.directory.join("root.pem"), &server.root).unwrap();
    house.controls.push_str("errors = 1000\n");
    let tools = ["reject", "nothing", "busy"];
    let tables = tools.map(|name| format!("[[upstream.tool]]\nname = {name:?}\nrisk = \"low\"\n"));
    house.upstreams = format!(
        "[[upstream]]\nname = \"far\"\n[upstream.remote]\n\
         url = \"https://localhost:{}/hand\"\nroots = \"root.pem\"\n\
         networks = [\"127.0.0.0/8\", \"::1/128\"]\n{}",
        server.port,
        tables.concat()
    );
    let names = ["far.reject", "far.nothing", "far.busy"];
    let (_scene, mut port) = Scene::with_in(house, grant(&names, 50)).await;
    for _ in 0..6 {
        let result = port.call("far.reject", json!({})).await.unwrap();
        assert_eq!(code(&result), "refused", "{result}");
        assert!(text_of(&result).contains("no such account"), "{result}");
        let result = port.call("far.nothing", json!({})).await.unwrap();
        assert_eq!(code(&result), "refused", "{result}");
        assert!(text_of(&result).contains("422"), "{result}");
    }
    // One that is busy does not answer.
    for at in 0..5 {
        let result = port.call("far.busy", json!({ "at": at })).await.unwrap();
        assert_eq!(code(&result), "upstream_error", "{result}");
    }
    let result = port.call("far.busy", json!({"at": 5})).await.unwrap();
    assert_eq!(code(&result), "breaker_open", "{result}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_https_server_that_fails_inside_is_left_alone() {
    let server = web::start().await;
    let mut house = House::new();
    std::fs::write(house.directory.join("root.pem"), &server.root).unwrap();
    house.controls.push_str("errors = 1000\n");
    house.upstreams = format!(
        "[[upstream]]\nname = \"web\"\n[upstream.http]\nroots = \"root.pem\"\n\
         networks = [\"127.0.0.0/8\", \"::1/128\"]\n[[upstream.http.rule]]\n\
         host = \"localhost\"\nport = {}\npath = \"/{{any}}\"\n\
         answers = [\"text/plain\", \"application/json\"]\n\
         [[upstream.tool]]\nname = \"request\"\nrisk = \"low\"\n",
        server.port
    );
    let (scene, mut port) = Scene::with_in(house, grant(&["web.request"], 50)).await;
    let get = |path: &str| {
        let url = format!("https://localhost:{}/{path}", server.port);
        json!({"method": "GET", "url": url})
    };
    // A page that is not there is an answer, however often.
    for at in 0..6 {
        let result = port.call("web.request", get(&format!("none{at}"))).await.unwrap();
        assert_eq!(result["structuredContent"]["status"], 404, "{result}");
    }
    for _ in 0..5 {
        let result = port.call("web.request", get("broken")).await.unwrap();
        assert_eq!(result["structuredContent"]["status"], 503, "{result}");
        assert_eq!(result["isError"], true, "{result}");
    }
    let Reply::Log(entries) = scene.admin(Command::Log { from: 0, count: 100 }).await else {
        unreachable!()
    };
    let said = entries.iter().filter(|entry| entry.text.starts_with("tool_error (server_error)"));
    assert_eq!(said.count(), 5, "{entries:?}");
    let result = port.call("web.request", get("none")).await.unwrap();
    assert_eq!(code(&result), "breaker_open", "{result}");
}
