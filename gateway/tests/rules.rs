//! The organisation's rules through a whole gateway: forbid wins over every
//! grant, shadow is written down and decides nothing, a permit can be asked for.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod harness;

use casemate_gateway::{Command, Gateway, Reply};
use harness::scene::Scene;
use harness::{House, Port, code, grant};
use serde_json::{Value, json};

const RULES: &str = r#"
@id("no-secret") forbid(principal, action == Action::"call", resource)
  when { context.arguments like "*secret*" };
@id("soon") @shadow("true") forbid(principal, action, resource)
  when { resource.upstream == "fx" };
@id("echo-only") permit(principal, action == Action::"call", resource == Tool::"fx.echo");
@id("slow-too") permit(principal, action == Action::"call", resource == Tool::"fx.slow");
"#;

fn house(require_permit: bool, rules: &str) -> House {
    let mut house = House::new();
    std::fs::write(house.directory.join("rules.cedar"), rules).unwrap();
    let table = format!("[rules]\nfile = \"rules.cedar\"\nrequire_permit = {require_permit}\n");
    house.controls.push_str(&table);
    house
}

/// A call's code, and the rule that denied it.
async fn call(port: &mut Port, tool: &str, arguments: Value) -> (String, String) {
    let result = port.call(tool, arguments).await.unwrap();
    let rule = result.pointer("/structuredContent/casemate/rule").and_then(Value::as_str);
    (code(&result).to_owned(), rule.unwrap_or_default().to_owned())
}

/// What the log says of decisions.
async fn decisions(scene: &Scene) -> Vec<String> {
    let Reply::Log(entries) = scene.admin(Command::Log { from: 0, count: 100 }).await else {
        panic!()
    };
    let of_kind = entries.into_iter().filter(|entry| entry.kind == "decision");
    of_kind.map(|entry| entry.text).collect()
}

fn pair(code: &str, rule: &str) -> (String, String) {
    (code.to_owned(), rule.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forbid_wins_shadow_is_only_written_and_grants_come_first() {
    let granted = grant(&["fx.echo", "fx.mark"], 20);
    let (scene, mut port) = Scene::with_in(house(false, RULES), granted).await;
    assert_eq!(call(&mut port, "fx.echo", json!({"a": 1})).await, pair("none", ""));
    // A permit says nothing against a forbid.
    let forbidden = pair("policy_forbid", "policy/no-secret");
    assert_eq!(call(&mut port, "fx.echo", json!({"a": "the secret"})).await, forbidden);
    // Nor does it give what no grant gives.
    let slow = call(&mut port, "fx.slow", json!({"ms": 1})).await;
    assert_eq!(slow.0, "tool_not_granted");
    // Without require_permit, what no rule speaks of may run.
    let path = scene.house.directory.join("marks");
    assert_eq!(call(&mut port, "fx.mark", json!({ "path": path })).await, pair("none", ""));
    let said = decisions(&scene).await;
    assert_eq!(said.len(), 4, "{said:?}");
    let [echo, secret, _, mark] = said.as_slice() else { panic!() };
    for (text, words) in [
        (echo, ["allow fx.echo", "grant/tools/0", "policy/echo-only", "shadow/policy/soon"]),
        (secret, ["deny policy_forbid", "fx.echo", "policy/no-secret", "shadow/policy/soon"]),
        (mark, ["allow fx.mark", "grant/tools/1", "shadow/policy/soon", "#4"]),
    ] {
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_is_asked_for_and_a_broken_file_stops_the_start() {
    let granted = grant(&["fx.echo", "fx.mark"], 20);
    let (scene, mut port) = Scene::with_in(house(true, RULES), granted).await;
    assert_eq!(call(&mut port, "fx.echo", json!({"a": 1})).await, pair("none", ""));
    let path = scene.house.directory.join("marks");
    let mark = call(&mut port, "fx.mark", json!({ "path": path })).await;
    assert_eq!(mark, pair("policy_forbid", "policy/permit"));
    let marks = std::fs::read_to_string(path).unwrap();
    assert!(marks.is_empty(), "it ran: {marks}");
    let forbidden = pair("policy_forbid", "policy/no-secret");
    assert_eq!(call(&mut port, "fx.echo", json!({"a": "secret"})).await, forbidden);
    for (wrong, words) in [
        ("permit(principal, action, resource);", "@id"),
        ("@id(\"x\") permit(principal, action, resource) when { resource.owner == 1 };", "owner"),
        ("@id(\"x\") forbid(", "rules"),
    ] {
        let house = house(true, wrong);
        let error = Gateway::open(house.config()).await.err().unwrap().to_string();
        assert!(error.contains("rules.cedar") && error.contains(words), "{wrong}: {error}");
    }
}
