//! A sandbox that does its worst, with guest root and its own key: each attempt
//! with the refusal that it gets. Replay, reorder, splice and forks are in
//! calls.rs, forged receipts in receipts.rs, rebound approvals in controls.rs.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod harness;

use std::collections::BTreeMap;

use casemate_gateway::{Command, Reply};
use casemate_ledger::cgp::{Message, error_code, meta, method};
use casemate_ledger::constraint::{Constraint, Rule};
use casemate_ledger::{
    Approvals, Budgets, Clause, Decimal, Effect, Grant, GrantRef, Label, Sum, Window, text,
};
use harness::people::approving;
use harness::scene::Scene;
use harness::{House, Port, claims, code, grant, no_arguments, text_of};
use serde_json::{Value, json};

/// Reads the answers of `count` calls and counts them by code.
async fn answers(port: &mut Port, count: usize, codes: &mut BTreeMap<String, usize>) {
    let mut seen = 0;
    while seen < count {
        if let Message::Response { result, .. } = port.wire.receive().await.unwrap() {
            *codes.entry(code(&result.unwrap()).to_owned()).or_default() += 1;
            seen += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_calls_at_once_spend_exactly_the_sum() {
    let sum = Sum { pointer: "/amount".to_owned(), window: Window::Day, max: Decimal(10_000_000) };
    let clause = Clause { sums: vec![sum], ..Clause::of("fx.slow") };
    let scene = Scene::new().await;
    scene.add(Grant { tools: vec![clause], ..grant(&["fx.slow"], 100) }).await;
    let mut port = scene.port().await;
    for number in 0..64 {
        let arguments = json!({"ms": 30, "amount": "0.5", "number": number});
        port.start("fx.slow", arguments, &|_| ()).await;
    }
    let mut codes = BTreeMap::new();
    answers(&mut port, 64, &mut codes).await;
    assert_eq!(codes, [("none".to_owned(), 20), ("budget_exhausted".to_owned(), 44)].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_a_grant_together_spend_exactly_the_whole() {
    let scene = Scene::new().await;
    let whole = Grant { task: "whole".to_owned(), ..grant(&["fx.slow"], 20) };
    let digest = casemate_ledger::digest(&scene.house.sign(whole.clone()));
    let parent = Some(GrantRef { id: whole.id, digest });
    let part = |task: &str, id: u8, calls: u64| Grant {
        id: [id; 16],
        task: task.to_owned(),
        parent,
        budgets: Budgets::of(calls),
        ..whole.clone()
    };
    // A part without its whole, or wider than it, is not taken.
    for (grant, word) in [(part("one", 1, 20), "parent"), (part("one", 1, 21), "parent")] {
        assert!(matches!(scene.add(grant).await, Reply::Refused(text) if text.contains(word)));
    }
    assert!(matches!(scene.add(whole.clone()).await, Reply::Done(_)));
    let wide = scene.add(part("one", 1, 21)).await;
    assert!(matches!(wide, Reply::Refused(text) if text.contains("budgets.calls")));
    let mut ports = Vec::new();
    for (task, id) in [("one", 1), ("two", 2)] {
        assert!(matches!(scene.add(part(task, id, 20)).await, Reply::Done(_)));
        let mut claims = claims();
        task.clone_into(&mut claims.task);
        let credential = scene.house.authority.identity(claims);
        ports.push(scene.house.port(&scene.gateway, credential).await);
    }
    for number in 0..32 {
        for port in &mut ports {
            port.start("fx.slow", json!({"ms": 30, "number": number}), &|_| ()).await;
        }
    }
    let mut codes = BTreeMap::new();
    for port in &mut ports {
        answers(port, 32, &mut codes).await;
    }
    assert_eq!(codes, [("none".to_owned(), 20), ("budget_exhausted".to_owned(), 44)].into());
    // The whole ends its parts.
    let id = text::hex(&whole.id);
    scene.admin(Command::GrantRevoke { id, reason: "over".to_owned() }).await;
    for port in &mut ports {
        let result = port.call("fx.slow", json!({"ms": 1})).await.unwrap();
        assert_eq!(code(&result), "grant_revoked");
        assert_eq!(port.list().await, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_does_not_leave() {
    let mut house = House::new();
    house.upstreams = house.upstreams.replace(
        "name = \"slow\"\nrisk = \"low\"",
        "name = \"slow\"\nrisk = \"low\"\nlabel = \"confidential\"",
    );
    let scene = Scene::in_house(house).await;
    let out = Clause {
        max_in_label: Some(Label::Internal),
        effect: Effect::Read,
        ..Clause::of("fx.echo")
    };
    let read = Clause { effect: Effect::Read, ..Clause::of("fx.slow") };
    scene.add(Grant { tools: vec![out, read], ..grant(&["fx.echo"], 20) }).await;
    let mut port = scene.port().await;
    let steps = [("fx.echo", "none"), ("fx.slow", "none"), ("fx.echo", "flow_label")];
    for (tool, expected) in steps {
        assert_eq!(code(&port.call(tool, json!({"ms": 1})).await.unwrap()), expected, "{tool}");
    }
    // A restart does not wash it off.
    let (mut port, _scene) = scene.restart(port).await;
    assert_eq!(code(&port.call("fx.echo", json!({})).await.unwrap()), "flow_label");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arguments_that_dress_up_are_seen() {
    let rules = vec![
        Constraint::at("/amount", Rule::DecimalMax("100".parse().unwrap(), 2)),
        Constraint::at("", Rule::OnlyKeys(vec!["amount".to_owned(), "path".to_owned()])),
        Constraint {
            optional: true,
            ..Constraint::at("/path", Rule::PathUnder(vec!["/srv".to_owned()]))
        },
    ];
    let clause = Clause { arguments: rules, ..Clause::of("fx.echo") };
    let scene = Scene::new().await;
    scene.add(Grant { tools: vec![clause], ..grant(&["fx.echo"], 50) }).await;
    let mut port = scene.port().await;
    let bad = [
        json!({"amount": 99.5}),
        json!({"amount": "1e2"}),
        json!({"amount": "-5"}),
        json!({"amount": "+5"}),
        json!({"amount": " 5"}),
        json!({"amount": "100.001"}),
        json!({"amount": ["5"]}),
        json!({"amount": null}),
        json!({"Amount": "5"}),
        json!({"amount": "5", "path": "/srv/../etc"}),
        json!({"amount": "5", "path": "/srv/%2e%2e/etc"}),
        json!({"amount": "5", "path": "/srvx"}),
        json!({"amount": "5", "other": 1}),
        json!({}),
    ];
    for arguments in bad {
        let result = port.call("fx.echo", arguments.clone()).await.unwrap();
        assert_eq!(code(&result), "decision_limit", "{arguments}");
    }
    let fine = json!({"amount": "5.00", "path": "/srv/a"});
    assert_eq!(code(&port.call("fx.echo", fine).await.unwrap()), "none");
    // It was signed as 100: that is what the gates see and what the tool gets.
    for same in [json!({"amount": 100.0}), json!({"amount": 1e2}), json!({"amount": 100})] {
        let result = port.call("fx.echo", same.clone()).await.unwrap();
        assert_eq!(text_of(&result), r#"{"amount":100}"#, "{same}: {result}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envelopes_that_are_too_large_or_not_ones_cost_no_number() {
    let scene = Scene::new().await;
    scene.add(grant(&["fx.echo"], 50)).await;
    let mut port = scene.port().await;
    let (good, _) = port.sign("fx.echo", no_arguments(), &|_| ());
    let set = |key: &str, value: Value| {
        let mut params = good.clone();
        params.as_object_mut().unwrap().insert(key.to_owned(), value);
        params
    };
    let with_meta = |key: &str, value: Value| {
        let mut params = good.clone();
        params
            .pointer_mut("/_meta")
            .and_then(Value::as_object_mut)
            .unwrap()
            .insert(key.into(), value);
        params
    };
    let cases = [
        (with_meta(meta::INVOCATION, json!(text::base64url(&[0; 5000]))), error_code::ENVELOPE),
        (with_meta(meta::INVOCATION, json!("AAAA")), error_code::ENVELOPE),
        (with_meta(meta::INVOCATION, json!(7)), error_code::ENVELOPE),
        (with_meta(meta::SALT, json!("AAAA")), error_code::ENVELOPE),
        (set("extra", json!(1)), error_code::INVALID_PARAMS),
        (set("name", json!(null)), error_code::INVALID_PARAMS),
        (set("arguments", json!({"big": "x".repeat(1 << 20)})), error_code::INVALID_PARAMS),
    ];
    for (params, expected) in cases {
        let error = port.request(method::TOOLS_CALL, params).await.unwrap_err();
        assert_eq!(error.code, expected, "{error}");
    }
    assert_eq!(code(&port.call("fx.echo", no_arguments()).await.unwrap()), "none");
    assert_eq!(port.sequence, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_yes_lets_one_of_two_same_calls_run() {
    let (house, keys) = approving();
    let scene = Scene::in_house(house).await;
    let clause = Clause { approvals: Approvals::One, ..Clause::of("fx.echo") };
    scene.add(Grant { tools: vec![clause], ..grant(&["fx.echo"], 20) }).await;
    let mut port = scene.port().await;
    for _ in 0..2 {
        port.start("fx.echo", json!({}), &|_| ()).await;
    }
    port.list().await;
    let waiting = scene.waiting(1).await.remove(0);
    scene.say(&keys, "bob", &waiting, |_| ()).await;
    let mut codes = BTreeMap::new();
    answers(&mut port, 2, &mut codes).await;
    assert_eq!(codes, [("none".to_owned(), 1), ("approval_expired".to_owned(), 1)].into());
}
