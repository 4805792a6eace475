//! What the operator types against a live gateway whose sandbox calls, waits
//! and is stopped; and what an auditor types over its files.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../../gateway/tests/harness/mod.rs"]
mod harness;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use casemate_attestation::cose::KeyId;
use casemate_gateway::{Command as Ask, Reply};
use casemate_ledger::cgp::{Message, method};
use casemate_ledger::{Approvals, Budgets, Clause, Grant, text};
use harness::people::approving;
use harness::scene::Scene;
use harness::{House, Port, code, grant};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

fn casemate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_casemate")).args(arguments).output().unwrap()
}

/// What a verb that must succeed printed.
fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A gateway with files as its one tool server; alice, bob and carol may approve.
struct Live {
    scene: Scene,
    socket: String,
}

impl Live {
    async fn in_house(mut house: House) -> Self {
        std::fs::create_dir(house.directory.join("data")).unwrap();
        std::fs::write(house.directory.join("data/note"), "hello").unwrap();
        let tool = |name| format!("[[upstream.tool]]\nname = \"{name}\"\nrisk = \"low\"\n");
        house.upstreams = format!(
            "[[upstream]]\nname = \"fs\"\nfiles = {{ root = \"data\" }}\n{}{}",
            tool("list"),
            tool("read")
        );
        let socket = house.directory.join("admin.sock").display().to_string();
        Self { scene: Scene::in_house(house).await, socket }
    }

    fn path(&self, name: &str) -> String {
        self.scene.house.directory.join(name).display().to_string()
    }

    /// Runs a verb against the gateway, beside its runtime.
    fn run(&self, verb: &[&str], more: &[&str]) -> Output {
        casemate(&[verb, &["--admin", &self.socket], more].concat())
    }

    async fn grant(&self, grant: Grant) {
        self.scene.add(grant).await;
    }
}

/// Starts a call that will wait, and lets its port give up on it.
async fn left_waiting(port: &mut Port, live: &Live, arguments: Value) -> String {
    let id = port.start("fs.read", arguments, &|_| ()).await;
    // One that waited before a restart is listed before it is seen again.
    let end = Instant::now() + PATIENCE;
    let waiting = loop {
        assert!(Instant::now() < end, "nobody is shown the call");
        let waiting = live.scene.waiting(1).await.remove(0);
        if waiting.display.is_some() {
            break waiting;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let params = json!({ "requestId": id });
    port.wire.send(&Message::notification(method::CANCELLED, params)).await;
    assert_eq!(code(&port.answer(id).await.unwrap()), "approval_pending");
    waiting.id
}

/// Reading asks bob or carol; listing does not.
fn reading() -> Grant {
    let read = Clause { approvals: Approvals::One, max_calls: Some(9), ..Clause::of("fs.read") };
    let budgets = Budgets { bytes_out: Some(5000), wall_ms: Some(9_000_000), ..Budgets::of(7) };
    Grant { tools: vec![Clause::of("fs.list"), read], budgets, ..grant(&["fs.read"], 7) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_see_and_answer_calls_that_wait() {
    let (mut house, _) = approving();
    let made = casemate(&["approve", "keygen", "--out", &house.directory.display().to_string()]);
    let public = printed(&made).trim().strip_prefix("key ").unwrap().to_owned();
    house.controls.push_str(&format!(
        "[[approver]]\nname = \"dora\"\nperson = \"Dora D.\"\nkey = \"{public}\"\n"
    ));
    let live = Live::in_house(house).await;
    live.grant(reading()).await;
    let mut port = live.scene.port().await;
    let key = live.path("approver.key");

    let id = left_waiting(&mut port, &live, json!({"path": "note"})).await;
    let listed = printed(&live.run(&["approve", "list"], &[]));
    let line = listed.lines().nth(1).unwrap();
    let columns: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((columns[0], columns[1], columns[2]), (&*id, "0/1", "-"), "{listed}");
    let left: u64 = columns[5].parse().unwrap();
    assert!((880..=900).contains(&left) && line.contains("fs.read"), "{listed}");
    let shown = printed(&live.run(&["approve", "show"], &[&id]));
    assert!(shown.contains("\"path\": \"note\""), "{shown}");
    let nobody = live.run(&["approve", "show"], &["00"]);
    assert_eq!(nobody.status.code(), Some(1), "{nobody:?}");
    let top = printed(&live.run(&["top"], &["--once"]));
    assert!(top.contains("WAITING FOR PEOPLE") && top.contains(&id), "{top}");

    // A yes, after which the list says by whom, and the call runs.
    let word = ["--key", &key, "--name", "dora", "--reason", "looked", &id];
    let stranger = live.run(&["approve", "yes"], &["--key", &key, "--name", "bob", &id]);
    assert_eq!(stranger.status.code(), Some(1), "bob has another key: {stranger:?}");
    printed(&live.run(&["approve", "yes"], &word));
    assert!(printed(&live.run(&["approve", "list"], &[])).contains("1/1  Dora D."));
    let done = port.call("fs.read", json!({"path": "note"})).await.unwrap();
    assert_eq!(done["structuredContent"]["text"], "hello");
    assert!(!printed(&live.run(&["approve", "list"], &[])).contains("fs.read"));

    // A no.
    let id = left_waiting(&mut port, &live, json!({"path": "other"})).await;
    printed(&live.run(&["approve", "no"], &["--key", &key, "--name", "dora", &id]));
    let refused = port.call("fs.read", json!({"path": "other"})).await.unwrap();
    assert_eq!(code(&refused), "approval_denied");
    assert!(!printed(&live.run(&["approve", "list"], &[])).contains("fs.read"), "it waits no more");

    // After a restart a call that waits is known, but not what was shown of it.
    let id = left_waiting(&mut port, &live, json!({"path": "third"})).await;
    let Live { scene, socket } = live;
    let (mut port, scene) = scene.restart(port).await;
    let live = Live { scene, socket };
    let listed = printed(&live.run(&["approve", "list"], &[]));
    assert!(listed.contains(&id) && listed.contains("unseen: it must be made again"), "{listed}");
    let unseen = live.run(&["approve", "yes"], &["--key", &key, "--name", "dora", &id]);
    assert_eq!(unseen.status.code(), Some(1), "{unseen:?}");
    assert_eq!(left_waiting(&mut port, &live, json!({"path": "third"})).await, id);
    printed(&live.run(&["approve", "yes"], &["--key", &key, "--name", "dora", &id]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_stops_denials_and_revocations_are_seen_and_hold() {
    let live = Live::in_house(House::new()).await;
    live.grant(Grant { tools: vec![Clause::of("fs.list")], ..reading() }).await;
    let mut port = live.scene.port().await;
    assert_eq!(code(&port.call("fs.list", json!({"path": "."})).await.unwrap()), "none");
    assert_eq!(
        code(&port.call("fs.read", json!({"path": "x"})).await.unwrap()),
        "tool_not_granted"
    );
    printed(&live.run(&["stop", "now"], &["task:elsewhere", "--reason", "test"]));
    let top = printed(&live.run(&["top"], &["--once"]));
    let sandbox = port.credential.sandbox.clone();
    for part in [
        "1/7      calls",
        "/5000   bytes_out",
        "/9000000 wall_ms",
        "STOPPED\nSCOPE           LEVEL\ntask:elsewhere  freeze\n",
        &format!("1  in all: {sandbox}"),
        "tool_not_granted",
    ] {
        assert!(top.contains(part), "{part}\n{top}");
    }
    let metrics = printed(&live.run(&["top"], &["--metrics"]));
    for line in [
        "casemate_gateway_decide_seconds_count 2\n",
        "casemate_gateway_upstream_seconds_count 1\n",
        "casemate_gateway_waiting_calls 0\n",
        "casemate_gateway_open_breakers 0\n",
        "casemate_gateway_connections 1\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }

    // One target and a reason are asked for.
    for wrong in [&[][..], &["--grant", "00", "--identity", "00"], &["--grant", "00"]] {
        assert!(!live.run(&["revoke"], wrong).status.success(), "{wrong:?}");
    }
    let id = text::hex(&reading().id);
    let gone = live.run(&["revoke"], &["--grant", &"0".repeat(32), "--reason", "test"]);
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
    printed(&live.run(&["revoke"], &["--grant", &id, "--reason", "test"]));
    let over = port.call("fs.list", json!({"path": "."})).await.unwrap();
    assert_eq!(code(&over), "grant_revoked");
    let key = KeyId::of(&port.credential.key.public()).to_string();
    printed(&live.run(&["revoke"], &["--identity", &key, "--reason", "test"]));
    assert!(port.call("fs.list", json!({"path": "."})).await.is_err());
    let other = live.scene.port().await;
    let sandbox = other.credential.sandbox.clone();
    printed(&live.run(&["revoke"], &["--sandbox", &sandbox, "--reason", "test"]));
    let mut other = other;
    assert!(other.call("fs.list", json!({"path": "."})).await.is_err());
}

/// A program that serves until it is dropped.
struct Serving(Child);

impl Serving {
    /// Starts it, and returns the line that says where it listens.
    fn start(arguments: &[&str]) -> (Self, String) {
        let program = Command::new(env!("CARGO_BIN_EXE_casemate"))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn();
        let mut program = program.unwrap();
        let mut line = String::new();
        BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (Self(program), line.trim().to_owned())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The body of what is at `url`, by hand.
fn get(url: &str) -> String {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// A gateway's files after some calls that a witness saw, and its trust file.
struct Left {
    house: House,
    log: String,
    vkey: String,
    trust: String,
    policy: String,
}

async fn left() -> Left {
    let mut house = House::new();
    let public = casemate_gateway::init(&house.config()).unwrap();
    let memory = house.directory.join("witness").display().to_string();
    let who = ["--state", &memory, "--name", "w1"];
    let made = printed(&casemate(&[&["witness", "init"], &who[..]].concat()));
    let serve = ["--listen", "127.0.0.1:0", "--log", &public.log_vkey];
    let (_witness, line) = Serving::start(&[&["witness", "serve"], &who[..], &serve].concat());
    assert!(line.starts_with(made.trim()), "{line}");
    let policy = house.directory.join("policy");
    std::fs::write(&policy, format!("witness w1 {line}\nquorum w1\n")).unwrap();
    house.settings = format!("witness_policy_file = {policy:?}\ncheckpoint_ms = 50");
    let live = Live::in_house(house).await;
    live.grant(Grant { tools: vec![Clause::of("fs.list")], ..reading() }).await;
    let mut port = live.scene.port().await;
    for _ in 0..2 {
        assert_eq!(code(&port.call("fs.list", json!({"path": "."})).await.unwrap()), "none");
    }
    let Reply::Status(status) = live.scene.admin(Ask::Status).await else { unreachable!() };
    // Until a head of all leaves was cosigned: its second line is its size.
    let seen = PathBuf::from(live.path("state/log/checkpoint.witnessed"));
    let size = |note: String| note.lines().nth(1).and_then(|size| size.parse::<u64>().ok());
    let end = Instant::now() + PATIENCE;
    while std::fs::read_to_string(&seen).ok().and_then(size) < Some(status.leaves) {
        assert!(Instant::now() < end, "no witness saw all leaves");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(port);
    let house = live.scene.stop().await;
    let trust = house.directory.join("trust.toml");
    let text = format!(
        "log = \"{}\"\ngateway_key = \"{}\"\nidentity_ca = '''\n{}'''\ntrust_anchors = ''\n\
         witness_policy = '''\n{}'''\n[[issuer]]\nname = \"ops\"\nkey = \"{}\"\n",
        public.log_vkey,
        public.gateway_key,
        house.authority.pem,
        std::fs::read_to_string(&policy).unwrap(),
        text::hex(house.issuer.public()),
    );
    std::fs::write(&trust, text).unwrap();
    let path = |path: &Path| path.display().to_string();
    let log = path(&house.directory.join("state/log"));
    Left { log, vkey: public.log_vkey, trust: path(&trust), policy: path(&policy), house }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_served_proved_checked_and_audited_from_its_files() {
    let left = left().await;
    let at = |name: &str| left.house.directory.join(name).display().to_string();
    let (_serving, url) =
        Serving::start(&["log", "serve", "--log", &left.log, "--listen", "127.0.0.1:0"]);
    let head = std::fs::read_to_string(Path::new(&left.log).join("checkpoint")).unwrap();
    assert_eq!(get(&url), head);

    let key = ["--key", &left.vkey];
    let out = at("first");
    let prove = ["log", "prove", "--log", &left.log, "--leaf", "1", "--out", &out];
    printed(&casemate(&[&prove[..], &key].concat()));
    let (proof, leaf) = (at("first.tlog-proof"), at("first.leaf"));
    let check = |leaf: &str, more: &[&str]| {
        casemate(&[&["log", "check", &proof, "--leaf", leaf], &key[..], more].concat())
    };
    let text = printed(&check(&leaf, &["--witnesses", &left.policy]));
    assert!(text.contains("leaf 1 of") && text.contains("witnessed at"), "{text}");
    let mut bytes = std::fs::read(&leaf).unwrap();
    bytes[20] ^= 1;
    std::fs::write(at("other.leaf"), bytes).unwrap();
    assert_eq!(check(&at("other.leaf"), &[]).status.code(), Some(1));
    let beyond = ["log", "prove", "--log", &left.log, "--leaf", "999", "--out", &out];
    assert!(!casemate(&[&beyond[..], &key].concat()).status.success());

    let (state, keys) = (at("state"), at("state/keys/payloads"));
    let audit = || {
        let whom = ["--trust", &left.trust, "--payload-keys", &keys];
        casemate(&[&["log", "audit", &state], &whom[..]].concat())
    };
    let report = printed(&audit());
    for check in ["decision.replay", "decision.policy", "decision.rules", "gate.rate"] {
        let line = report.lines().find(|line| line.starts_with(check)).unwrap();
        let numbers: Vec<&str> = line.split_whitespace().skip(1).collect();
        let expected = if check.starts_with("gate") { ["0", "2", "0"] } else { ["2", "0", "0"] };
        assert_eq!(numbers, expected, "{report}");
    }
    assert!(report.contains("gate.rate not checkable: 2 allowed calls"), "{report}");
    // A leaf that was changed on disk is found.
    let tiles = Path::new(&left.log).join("tile/entries");
    let tile = std::fs::read_dir(&tiles).unwrap().map(|one| one.unwrap().path()).next().unwrap();
    let file = match tile.is_dir() {
        true => std::fs::read_dir(&tile).unwrap().map(|one| one.unwrap().path()).max().unwrap(),
        false => tile,
    };
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(!audit().status.success());
}
