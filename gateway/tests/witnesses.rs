//! Witnesses cosign the gateway's heads; no call waits for them.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail the test"
)]

mod harness;

use std::sync::Arc;
use std::time::{Duration, Instant};

use casemate_gateway::{Client, Command, Reply, SigningKey, StatusReport};
use casemate_ledger::audit::Auditor;
use casemate_ledger::checkpoint::{Checkpoint, VerifierKey};
use casemate_ledger::cosignature::WitnessKey;
use casemate_ledger::proof::verify_cose_receipt;
use casemate_ledger::quorum::WitnessPolicy;
use casemate_ledger::receipt::{Receipt, TrustFile};
use casemate_ledger::text;
use casemate_ledger_store::{Export, Published, Witness};
use harness::{House, claims, grant, no_arguments};
use tokio::net::TcpListener;

/// A witness of its own directory and key, at a port of this machine.
async fn witness(house: &House, name: &str, log: &VerifierKey) -> String {
    let key = SigningKey::open(&house.directory.join(format!("{name}.key"))).unwrap();
    let public = WitnessKey::new(name, *key.public()).unwrap();
    let memory = house.directory.join(name);
    let sign = Box::new(move |message: &[u8]| key.sign(message));
    let witness = Witness::open(&memory, public.clone(), sign, [log.clone()]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(casemate_ledger_http::serve_witness(listener, Arc::new(witness)));
    format!("witness {name} {public} http://{address}\n")
}

/// A witness that nobody answers for.
async fn dead_witness(house: &House) -> String {
    let key = SigningKey::open(&house.directory.join("dead.key")).unwrap();
    let public = WitnessKey::new("dead", *key.public()).unwrap();
    // Bound and never accepted: a connection hangs, which is worse than a refusal.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    std::mem::forget(listener);
    format!("witness dead {public} http://{address}\n")
}

async fn status(house: &House) -> StatusReport {
    let socket = house.directory.join("admin.sock");
    match Client::call(&socket, &Command::Status).await {
        Ok(Reply::Status(status)) => *status,
        other => panic!("{other:?}"),
    }
}

struct Running {
    house: House,
    policy: String,
    port: harness::Port,
    log: VerifierKey,
    _stop: tokio::sync::watch::Sender<bool>,
}

async fn running(quorum: &str) -> Running {
    let mut house = House::new();
    let log = casemate_gateway::init(&house.config()).unwrap().log_vkey;
    let log = VerifierKey::parse(&log).unwrap();
    let one = witness(&house, "w1", &log).await;
    let policy = [one, dead_witness(&house).await, quorum.to_owned()].concat();
    std::fs::write(house.directory.join("witnesses"), &policy).unwrap();
    house.settings = "witness_policy_file = \"witnesses\"\ncheckpoint_ms = 50".to_owned();
    let gateway = house.gateway().await;
    let socket = house.directory.join("admin.sock");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let served = Arc::clone(&gateway);
    tokio::spawn(async move { served.serve(stopped).await });
    while Client::call(&socket, &Command::Status).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let signed = text::base64url(&house.sign(grant(&["fx.echo"], 50)));
    Client::call(&socket, &Command::GrantAdd { grant: signed }).await.unwrap();
    let port = house.port(&gateway, house.authority.identity(claims())).await;
    Running { house, policy, port, log, _stop: stop }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_say_when_a_quorum_saw_them() {
    let mut running = running("group g any w1 dead\nquorum g\n").await;
    running.port.call("fx.echo", no_arguments()).await.unwrap();
    let policy = WitnessPolicy::parse(&running.policy).unwrap();
    let socket = running.house.directory.join("admin.sock");
    let sandbox = running.port.credential.sandbox.clone();
    let ask = Command::ReceiptOf { sandbox, epoch: 1, sequence: 1 };
    let start = Instant::now();
    let note = loop {
        let Reply::Receipt(receipt) = Client::call(&socket, &ask).await.unwrap() else { panic!() };
        let receipt = Receipt::decode(&text::from_base64url(&receipt).unwrap()).unwrap();
        if policy.witnessed(&receipt.checkpoint).is_some() {
            break receipt.checkpoint;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", status(&running.house).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    println!("witnessed after {} ms", start.elapsed().as_millis());
    let kept = running.house.directory.join("state/log/checkpoint.witnessed");
    assert!(policy.witnessed(&std::fs::read_to_string(kept).unwrap()).is_some());
    assert!(note.contains("w1"));
    // The same log gives COSE receipts.
    let Reply::Receipt(receipt) =
        Client::call(&socket, &Command::CoseReceipt { leaf: 1 }).await.unwrap()
    else {
        panic!()
    };
    let log = Published::open(&running.house.directory.join("state/log"), &running.log);
    let leaf = log.unwrap().prove(1).unwrap().leaf;
    verify_cose_receipt(&text::from_base64url(&receipt).unwrap(), &leaf, &running.log).unwrap();
    audited(&running, &note);
}

/// An auditor asks for the witnesses that the trust file names.
fn audited(running: &Running, note: &str) {
    let public = casemate_gateway::init(&running.house.config()).unwrap();
    let trust = |quorum: &str| {
        let named = running.policy.split("group").next().unwrap();
        let witnesses = format!("witness_policy = '''\n{named}{quorum}'''\n");
        let text = format!(
            "log = {:?}\ngateway_key = {:?}\nidentity_ca = '''\n{}'''\ntrust_anchors = ''\n{}",
            public.log_vkey,
            public.gateway_key,
            running.house.authority.pem,
            if quorum.is_empty() { "" } else { &witnesses },
        );
        TrustFile::from_toml(&text).unwrap()
    };
    let state = running.house.directory.join("state");
    let export = Export::open(&state, None).unwrap();
    let (one, all) = (trust("quorum w1\n"), trust("group g all w1 dead\nquorum g\n"));
    let count = |trust: &TrustFile| export.audit(trust, None).unwrap().counts["log.witness"];
    assert_eq!((count(&one).pass, count(&one).fail), (1, 0));
    assert_eq!((count(&all).pass, count(&all).fail), (0, 1));
    assert_eq!((count(&trust("")).pass, count(&trust("")).not_checkable), (0, 1));
    // A log that is shorter than what witnesses saw, or another one.
    let log = Published::open(&state.join("log"), &running.log).unwrap();
    let leaves = log.bundle(0).unwrap();
    let seen = usize::try_from(Checkpoint::read(note).unwrap().0.size).unwrap();
    let walk = |note: Option<&str>, change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut leaves = leaves[..seen].to_vec();
        change(&mut leaves);
        let mut auditor = Auditor::new(&one, &export);
        auditor.cosigned(note);
        leaves.iter().for_each(|leaf| auditor.leaf(leaf));
        let count = auditor.finish().counts["log.witness"];
        (count.pass, count.not_checkable, count.fail)
    };
    assert_eq!(walk(Some(note), &|_| ()), (1, 0, 0));
    assert_eq!(walk(Some(note), &|leaves| leaves.push(leaves[0].clone())), (1, 1, 0));
    assert_eq!(walk(Some(note), &|leaves| drop(leaves.pop())), (0, 0, 1));
    assert_eq!(walk(Some(note), &|leaves| leaves[0].push(0)), (0, 0, 1));
    assert_eq!(walk(None, &|_| ()), (0, 0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_hangs_delays_no_call_and_shows_as_lag() {
    let mut running = running("group g all w1 dead\nquorum g\n").await;
    let start = Instant::now();
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let call = Instant::now();
        running.port.call("fx.echo", no_arguments()).await.unwrap();
        slowest = slowest.max(call.elapsed());
    }
    assert!(
        slowest < Duration::from_secs(4),
        "a call waited {slowest:?}, as long as a witness may"
    );
    while status(&running.house).await.witness_lag_s.unwrap() < 1 {
        assert!(start.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("20 calls beside a hanging witness, the slowest {} ms", slowest.as_millis());
}
