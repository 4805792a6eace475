//! What a call costs through the gateway, beside the same call without it:
//! `cargo build --release -p casemate-gateway --example fixture`, then `cargo test --release -p casemate-gateway --test round_trip -- --ignored --nocapture`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod harness;

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use casemate_gateway::{Client, Command, Reply};
use casemate_ledger::{Grant, text};
use harness::{House, claims, fixture, grant};
use rmcp::model::CallToolRequestParams;
use serde_json::json;

const CALLS: u64 = 2000;

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times.get((times.len() - 1) * percent / 100).copied().unwrap();
    println!("{name}: p50 {:?}, p99 {:?}", at(50), at(99));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; it says nothing about right or wrong"]
async fn a_call_direct_and_through_the_gateway() {
    let arguments = json!({"a": 1});
    let mut child = tokio::process::Command::new(fixture())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pipes = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
    let direct = rmcp::serve_client((), pipes).await.unwrap();

    // Beside each other in one run, so that a busy machine slows both.
    let house = House::new();
    let gateway = house.gateway().await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let served = Arc::clone(&gateway);
    tokio::spawn(async move { served.serve(stopped).await.unwrap() });
    let socket = house.directory.join("admin.sock");
    while Client::call(&socket, &Command::Status).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let signed = Grant { ..grant(&["fx.echo"], 10 * CALLS) };
    let signed = text::base64url(&house.sign(signed));
    let added = Client::call(&socket, &Command::GrantAdd { grant: signed }).await.unwrap();
    assert!(matches!(added, Reply::Done(_)));
    let mut port = house.port(&gateway, house.authority.identity(claims())).await;

    let (mut without, mut with) = (Vec::new(), Vec::new());
    for at in 0..CALLS + 50 {
        let start = Instant::now();
        let object = arguments.as_object().unwrap().clone();
        let params = CallToolRequestParams::new("echo").with_arguments(object);
        direct.call_tool_once(params).await.unwrap();
        let middle = Instant::now();
        port.call("fx.echo", numbered(&arguments, at)).await.unwrap();
        if at >= 50 {
            without.push(middle - start);
            with.push(middle.elapsed());
        }
    }
    report("direct over stdio", without);
    report("signed, decided, logged twice, over TLS", with);

    let start = Instant::now();
    let mut open = std::collections::VecDeque::new();
    for at in 0..CALLS {
        open.push_back(port.start("fx.echo", numbered(&arguments, at), &|_| ()).await);
        if open.len() == 32 {
            drain(&mut port, &mut open).await;
        }
    }
    drain(&mut port, &mut open).await;
    let rate = f64::from(u32::try_from(CALLS).unwrap()) / start.elapsed().as_secs_f64();
    println!("32 at once from one sandbox: {rate:.0} calls/s");
    stop.send_replace(true);
}

async fn drain(port: &mut harness::Port, open: &mut std::collections::VecDeque<u64>) {
    while !open.is_empty() {
        match port.wire.receive().await {
            Some(casemate_ledger::cgp::Message::Response { id, result }) => {
                result.unwrap();
                open.retain(|wanted| *wanted != id);
            }
            Some(_) => {}
            None => return,
        }
    }
}

/// The arguments with a number: calls that are all the same are stopped.
fn numbered(arguments: &serde_json::Value, at: u64) -> serde_json::Value {
    let mut arguments = arguments.clone();
    if let Some(object) = arguments.as_object_mut() {
        object.insert("number".to_owned(), at.into());
    }
    arguments
}
