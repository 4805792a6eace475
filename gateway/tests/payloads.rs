//! Arguments and results are beside the log, under a key that can be deleted.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod harness;

use std::time::Duration;

use casemate_gateway::{Client, Command, Reply};
use casemate_ledger::cgp::{error_code, method};
use casemate_ledger::{Decision, Invocation, Leaf, Outcome, receipt::Receipt, record, text};
use casemate_ledger_store::{PayloadKind, read_payloads};
use harness::scene::Scene;
use harness::{House, Port, claims, code, grant};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payloads_open_with_the_key_and_proofs_outlive_it() {
    let house = House::new();
    let gateway = house.gateway().await;
    let socket = house.directory.join("admin.sock");
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let served = std::sync::Arc::clone(&gateway);
    tokio::spawn(async move { served.serve(stopped).await });
    while Client::call(&socket, &Command::Status).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let signed = text::base64url(&house.sign(grant(&["fx.echo"], 1)));
    Client::call(&socket, &Command::GrantAdd { grant: signed }).await.unwrap();
    let mut port = house.port(&gateway, house.authority.identity(claims())).await;
    port.call("fx.echo", json!({"secret": "alice"})).await.unwrap();
    port.call("fx.echo", json!({"secret": "denied"})).await.unwrap();

    let ask =
        Command::ReceiptOf { sandbox: port.credential.sandbox.clone(), epoch: 1, sequence: 1 };
    let Reply::Receipt(receipt) = Client::call(&socket, &ask).await.unwrap() else { panic!() };
    let receipt = Receipt::decode(&text::from_base64url(&receipt).unwrap()).unwrap();
    let leaf = Leaf::decode(&receipt.decision.leaf).unwrap();
    let (_, decision) = record::peek::<Decision>(&leaf.record).unwrap();
    let (_, call) = record::peek::<Invocation>(&decision.invocation).unwrap();
    let leaf = Leaf::decode(&receipt.outcome.unwrap().leaf).unwrap();
    let (_, outcome) = record::peek::<Outcome>(&leaf.record).unwrap();

    let name = text::hex(&casemate_ledger::digest(b"report"));
    let records = house.directory.join("state/payloads").join(&name);
    let key = house.directory.join("state/keys/payloads").join(format!("{name}.key"));
    let payloads = read_payloads(&records, &key).unwrap();
    assert_eq!(payloads.len(), 3, "the denied call's arguments too");
    let of = |digest| payloads.iter().find(|(known, _)| known.digest == digest).unwrap();
    let (_, arguments) = of(call.arguments.digest);
    assert_eq!(arguments.kind, PayloadKind::Arguments);
    assert_eq!(arguments.bytes, br#"{"secret":"alice"}"#);
    assert_eq!(of(outcome.result.unwrap().digest).1.kind, PayloadKind::Result);
    // Neither the log nor the sealed records show them.
    for part in ["state/log", "state/payloads"] {
        assert!(!shows(&house.directory.join(part), b"alice"), "{part}");
    }

    let shred = Command::PayloadsShred { task: "report".to_owned() };
    assert!(matches!(Client::call(&socket, &shred).await.unwrap(), Reply::Done(_)));
    assert!(!key.exists() && read_payloads(&records, &key).is_err());
    assert!(matches!(Client::call(&socket, &shred).await.unwrap(), Reply::Refused(_)));
    let Reply::Receipt(after) = Client::call(&socket, &ask).await.unwrap() else { panic!() };
    let after = Receipt::decode(&text::from_base64url(&after).unwrap()).unwrap();
    assert_eq!(after.decision.leaf, receipt.decision.leaf, "the leaf stays as it was");
    let Reply::Metrics(text) = Client::call(&socket, &Command::Metrics).await.unwrap() else {
        panic!()
    };
    let denied = "casemate_gateway_decisions_total{code=\"budget_exhausted\"} 1\n";
    assert!(text.contains(denied) && text.contains("{status=\"executed\"} 1\n"), "{text}");
    // The next call of the task has a new key.
    port.call("fx.echo", json!({})).await.unwrap();
    assert_eq!(read_payloads(&records, &key).unwrap().len(), 1);
}

fn shows(path: &std::path::Path, needle: &[u8]) -> bool {
    if path.is_dir() {
        let mut entries = std::fs::read_dir(path).unwrap();
        return entries.any(|entry| shows(&entry.unwrap().path(), needle));
    }
    let bytes = std::fs::read(path).unwrap();
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_calls_do_not_fill_the_disk() {
    let (scene, mut port) = Scene::with(grant(&["fx.echo"], 100)).await;
    let large = json!({ "text": "x".repeat((1 << 20) - 16_000) });
    let (mut denied, mut refused) = (0, 0);
    for _ in 0..12 {
        let (params, digest) = port.sign("fx.none", large.clone(), &|_| ());
        match port.request(method::TOOLS_CALL, params).await {
            Ok(result) => {
                assert_eq!(code(&result), "tool_not_granted");
                assert_eq!(refused, 0, "a pause that ends at once is none");
                (port.sequence, port.previous) = (port.sequence + 1, digest);
                denied += 1;
            }
            Err(error) => {
                assert_eq!(error.code, error_code::OVERLOAD, "{error}");
                assert!(error.message.contains("were denied; wait"), "{error}");
                refused += 1;
            }
        }
    }
    assert_eq!((denied, refused), (9, 3));
    // The refused ones left nothing, and cost no number. Nobody else waits.
    let kept = std::fs::read_dir(scene.house.directory.join("state/payloads")).unwrap();
    let kept: u64 = kept.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(kept < 10 << 20, "{kept}");
    let mut other = scene.port().await;
    assert!(other.call("fx.none", json!({})).await.is_ok());
    // Nor does it fill the disk with hellos, each of which is a record too.
    let (sequence, previous) = (port.sequence, port.previous);
    let wire = scene.house.connect(&scene.gateway, &port.credential).await;
    let refused = Port::hello(wire, port.credential, sequence, previous).await;
    let error = refused.err().unwrap();
    assert_eq!(error.code, error_code::OVERLOAD, "{error}");
}
