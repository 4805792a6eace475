//! What hosts are told of their machines, on their socket.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::time::{Duration, Instant};

use casemate_attestation::bundle::{Asked, Verdict};
use casemate_attestation::cose::KeyId;
use casemate_attestation::{
    Boundary, Bundle, Endorsements, Evidence, EvidenceItem, EvidenceKind, HostClaim, LaunchDigests,
};
use casemate_gateway::{Command, Reply};
use casemate_ledger::{digest, text};
use harness::scene::Scene;
use harness::{Credential, House, claims};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

const MACHINE: [u8; 16] = [7; 16];

fn house() -> House {
    let mut house = House::new();
    house.settings = "host_socket = \"hosts.sock\"\n".to_owned();
    house
}

/// A sandbox whose evidence has the claim of `host` for `machine`.
fn credential(house: &House, host: &str, machine: [u8; 16]) -> Credential {
    let key = &house.issuer;
    let launch = LaunchDigests { kernel: [1; 32], initrd: [2; 32], cmdline: [3; 32] };
    let claim = HostClaim {
        host: host.to_owned(),
        machine,
        boundary: Boundary::MicroVm,
        properties: claims().properties,
        backend: "qemu-tcg 7.2.22".to_owned(),
        launch,
        report_data: [4; 64],
        issued_at: harness::now(),
    };
    let evidence = claim.sign(key.public(), |message| key.sign(message));
    let item = EvidenceItem { kind: EvidenceKind::HostClaim, evidence, endorsements: vec![] };
    let bundle = Bundle {
        evidence: Evidence { items: vec![item] }.encode(),
        asked: Asked::Nothing,
        endorsements: Endorsements::default(),
        policy: String::new(),
        references: String::new(),
        time: harness::now(),
        verdict: Verdict {
            boundary: "microvm".to_owned(),
            properties: vec![],
            hardware: "none".to_owned(),
            anchor: String::new(),
            measurement: vec![],
            outcomes: vec![],
        },
    }
    .encode();
    let claims = casemate_attestation::IdentityClaims { bundle: digest(&bundle), ..claims() };
    Credential { bundle, ..house.authority.identity(claims) }
}

/// A host that watches one machine.
struct Watch(BufReader<UnixStream>, u64);

impl Watch {
    async fn open(scene: &Scene) -> Self {
        let socket = scene.house.directory.join("hosts.sock");
        Self(BufReader::new(UnixStream::connect(socket).await.unwrap()), 0)
    }

    async fn send(&mut self, line: &Value) {
        let line = format!("{line}\n");
        self.0.get_mut().write_all(line.as_bytes()).await.unwrap();
    }

    async fn ask(&mut self, sandboxes: &[String]) -> Value {
        self.1 += 1;
        let question = json!({"host": "host-1", "machine": text::hex(&MACHINE), "task": "report",
            "sandboxes": sandboxes, "beat": self.1});
        self.send(&question).await;
        let answer = self.next().await;
        assert_eq!(answer["beat"], self.1, "{answer}");
        answer
    }

    /// The next line, asked for or not.
    async fn next(&mut self) -> Value {
        let mut line = String::new();
        let read = timeout(Duration::from_secs(5), self.0.read_line(&mut line)).await;
        assert!(read.unwrap().unwrap() > 0, "the gateway closed the stream");
        serde_json::from_str(&line).unwrap()
    }
}

fn stop(scope: &str, level: &str) -> Command {
    let (scope, level) = (scope.to_owned(), level.to_owned());
    Command::Stop { scope, level, reason: "test".to_owned() }
}

fn lift(scope: &str) -> Command {
    let (scope, reason) = (scope.to_owned(), "over".to_owned());
    Command::StopLift { scope, reason, approvals: vec![] }
}

async fn done(scene: &Scene, command: Command) {
    let reply = scene.admin(command).await;
    assert!(matches!(reply, Reply::Done(_)), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_nobody_knows_lives_and_is_reached_by_task_tenant_and_all() {
    let scene = Scene::in_house(house()).await;
    let mut watch = Watch::open(&scene).await;
    let live = watch.ask(&[]).await;
    assert_eq!(live, json!({"beat": 1, "sandboxes": []}));
    // What concerns others is not told.
    done(&scene, stop("task:other", "destroy")).await;
    done(&scene, stop("sandbox:spiffe://x", "destroy")).await;
    for level in ["freeze", "pause", "destroy"] {
        let start = Instant::now();
        done(&scene, stop("task:report", level)).await;
        let told = watch.next().await;
        println!("{level}: told {:?} after the operator asked", start.elapsed());
        assert_eq!(told, json!({"beat": 1, "stop": level, "sandboxes": []}));
    }
    // A milder stop of a wider scope changes nothing; asked again, the same.
    done(&scene, stop("tenant:demo", "freeze")).await;
    assert_eq!(watch.ask(&[]).await["stop"], "destroy");
    done(&scene, lift("task:report")).await;
    assert_eq!(watch.next().await["stop"], "freeze");
    done(&scene, stop("all", "pause")).await;
    assert_eq!(watch.next().await["stop"], "pause");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_is_found_by_the_claim_in_its_evidence_and_nothing_else() {
    let scene = Scene::in_house(house()).await;
    let mut watch = Watch::open(&scene).await;
    watch.ask(&[]).await;
    // The same id on another host, and another id on the same host.
    for (host, machine) in [("host-2", MACHINE), ("host-1", [8; 16])] {
        let other = credential(&scene.house, host, machine);
        let sandbox = other.sandbox.clone();
        let _port = scene.house.port(&scene.gateway, other).await;
        done(&scene, stop(&format!("sandbox:{sandbox}"), "destroy")).await;
        assert_eq!(watch.ask(&[]).await.get("stop"), None);
    }
    let ours = credential(&scene.house, "host-1", MACHINE);
    let sandbox = ours.sandbox.clone();
    let port = scene.house.port(&scene.gateway, ours).await;
    assert_eq!(watch.next().await["sandboxes"], json!([sandbox]));
    done(&scene, stop(&format!("sandbox:{sandbox}"), "pause")).await;
    let told = watch.next().await;
    assert_eq!((&told["stop"], &told["sandboxes"]), (&json!("pause"), &json!([sandbox])));
    // The port is cut off and cannot say hello again; the host is told all the same.
    let wire = scene.house.connect(&scene.gateway, &port.credential).await;
    assert!(harness::Port::hello(wire, port.credential, 0, [0; 32]).await.is_err());
    assert_eq!(watch.ask(&[]).await["stop"], "pause");
    done(&scene, lift(&format!("sandbox:{sandbox}"))).await;
    assert_eq!(watch.next().await.get("stop"), None);
    // Killed for good: there is nothing left to wait for.
    done(&scene, Command::Kill { sandbox, reason: "test".to_owned() }).await;
    assert_eq!(watch.next().await["stop"], "destroy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_machine_is_still_paused_after_the_gateways_restart() {
    let scene = Scene::in_house(house()).await;
    let ours = credential(&scene.house, "host-1", MACHINE);
    let sandbox = ours.sandbox.clone();
    let _port = scene.house.port(&scene.gateway, ours).await;
    let mut watch = Watch::open(&scene).await;
    let told: Vec<String> =
        serde_json::from_value(watch.ask(&[]).await["sandboxes"].clone()).unwrap();
    assert_eq!(told, std::slice::from_ref(&sandbox));
    done(&scene, stop(&format!("sandbox:{sandbox}"), "pause")).await;
    let scene = Scene::in_house(scene.stop().await).await;
    // No hello was said since: a paused guest cannot. The host says what it was told.
    let mut watch = Watch::open(&scene).await;
    assert_eq!(watch.ask(&told).await["stop"], "pause");
    done(&scene, lift(&format!("sandbox:{sandbox}"))).await;
    assert_eq!(watch.next().await.get("stop"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_keys_machine_is_destroyed_also_after_the_gateways_restart() {
    let scene = Scene::in_house(house()).await;
    let ours = credential(&scene.house, "host-1", MACHINE);
    let (sandbox, key) = (ours.sandbox.clone(), KeyId::of(&ours.key.public()).to_string());
    let other = credential(&scene.house, "host-1", [8; 16]).sandbox;
    let _port = scene.house.port(&scene.gateway, ours).await;
    let mut watch = Watch::open(&scene).await;
    assert_eq!(watch.ask(&[]).await.get("stop"), None);
    done(&scene, Command::RevokeIdentity { key, reason: "test".to_owned() }).await;
    assert_eq!(watch.next().await["stop"], "destroy");
    // Nobody can say hello under that key again: the host's word is all there is.
    let scene = Scene::in_house(scene.stop().await).await;
    let mut watch = Watch::open(&scene).await;
    assert_eq!(watch.ask(std::slice::from_ref(&other)).await.get("stop"), None);
    assert_eq!(watch.ask(&[other, sandbox]).await["stop"], "destroy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_is_no_question_ends_the_stream() {
    let scene = Scene::in_house(house()).await;
    let machine = text::hex(&MACHINE);
    for line in [
        json!({"host": "h", "machine": "short", "task": "t", "beat": 1}),
        json!({"host": "h", "machine": machine, "task": "t", "beat": -1}),
        json!({"host": "h", "machine": machine, "task": "t", "beat": 1, "colour": "red"}),
        json!({"host": "h", "machine": machine, "task": "t", "beat": 1, "sandboxes": vec!["x"; 17]}),
        json!({"op": "grant_list"}),
    ] {
        let mut watch = Watch::open(&scene).await;
        watch.send(&line).await;
        let mut answer = String::new();
        assert_eq!(watch.0.read_line(&mut answer).await.unwrap_or(0), 0, "{line}: {answer}");
    }
}
