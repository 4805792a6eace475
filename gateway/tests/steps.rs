//! kill -9 at every named step of a call, and what the log says afterwards:
//! no lost decision, no second execution, no second head.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail the test"
)]

mod harness;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use casemate_gateway::{Command as Ask, Error, Gateway, Public, Reply, SigningKey};
use casemate_ledger::checkpoint::{Checkpoint, VerifierKey};
use casemate_ledger::{Decision, Leaf, LeafKind, Outcome, Record, Status, Verdict, merkle, text};
use casemate_ledger_store::{Log, Options, Published, StoreError, failpoint};
use harness::scene::Scene;
use harness::{Credential, House, Port, code, grant};
use serde_json::{Value, json};

/// Every step that is named in `gateway/src` and `ledger/store/src`, which time
/// it is reached after it was armed, and what of the killed call must be found:
/// decisions at least, executions at least and at most.
const STEPS: [(&str, u32, u64, u64, u64); 18] = [
    ("call.received", 1, 0, 0, 0),
    ("call.decided", 1, 0, 0, 0),
    // The first write after arming is the decision's, the second the outcome's.
    ("wal.before-write", 1, 0, 0, 0),
    ("wal.half-written", 1, 0, 0, 0),
    ("wal.written", 1, 0, 0, 0),
    ("wal.synced", 1, 1, 0, 0),
    ("call.decision-durable", 1, 1, 0, 0),
    ("call.dispatching", 1, 1, 0, 0),
    ("call.answered", 1, 1, 1, 1),
    ("call.outcome-written", 1, 1, 1, 1),
    ("wal.before-write", 2, 1, 1, 1),
    ("wal.half-written", 3, 1, 1, 1),
    ("wal.synced", 2, 1, 1, 1),
    ("call.outcome-durable", 1, 1, 1, 1),
    ("file.before-rename", 1, 0, 0, 1),
    ("head.tiles-durable", 1, 0, 0, 1),
    ("head.signed", 1, 0, 0, 1),
    ("head.renamed", 1, 0, 0, 1),
];

async fn mark(port: &mut harness::Port, directory: &Path) -> bool {
    port.call("fx.mark", marking(directory)).await.is_ok()
}

fn marking(directory: &Path) -> Value {
    json!({ "path": directory.join("marks") })
}

/// A house whose `mark` must not run twice.
fn house(directory: &Path) -> House {
    let mut house = House::at(directory);
    let name = "name = \"mark\"\nrisk = \"low\"\n";
    let repeats = format!("{name}idempotent = true\n");
    assert!(house.upstreams.contains(&repeats));
    house.upstreams = house.upstreams.replace(&repeats, name);
    house
}

/// Not a test of its own: the process that ends at a step of its second call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_ends_at_a_step() {
    let Some(directory) = std::env::var_os("CASEMATE_TEST_HOUSE") else { return };
    let wanted = std::env::var("CASEMATE_TEST_STEP").unwrap();
    let at: usize = wanted.parse().unwrap();
    let (step, nth, ..) = STEPS[at];
    let directory = Path::new(&directory);
    let (scene, mut port) = Scene::with_in(house(directory), grant(&["fx.mark"], 9)).await;
    port.credential.save(&scene.house);
    assert!(mark(&mut port, directory).await);
    // A head over the first call, so that a second head would show.
    let ask = Ask::ReceiptOf { sandbox: port.credential.sandbox.clone(), epoch: 1, sequence: 1 };
    let Reply::Receipt(receipt) = scene.admin(ask).await else { panic!() };
    let receipt =
        casemate_ledger::receipt::Receipt::decode(&text::from_base64url(&receipt).unwrap());
    std::fs::write(directory.join("head"), receipt.unwrap().checkpoint).unwrap();
    // A port outlives its gateway, and knows what it signed.
    let signed = port.sign("fx.mark", marking(directory), &|_| ());
    std::fs::write(directory.join("signed"), signed.1).unwrap();
    failpoint::arm(step, nth);
    let id = port.send(signed).await;
    if port.answer(id).await.is_ok() {
        println!("answered");
    }
    // A head's steps come with the publisher's next tick.
    tokio::time::sleep(Duration::from_secs(60)).await;
}

/// What a log says of its calls.
#[derive(Debug, Default)]
struct Tally {
    allowed: u64,
    executed: u64,
    unknown: u64,
}

/// Reads the log of a gateway that was stopped: every allow has exactly one
/// outcome, and the head of before is continued.
fn tally(directory: &Path, public: &Public, leaves: &[Vec<u8>]) -> Tally {
    let mut tally = Tally::default();
    let mut open = BTreeMap::new();
    let key: [u8; 32] = text::from_hex(&public.gateway_key).unwrap().try_into().unwrap();
    for leaf in leaves {
        let leaf = Leaf::decode(leaf).unwrap();
        match leaf.kind {
            LeafKind::Decision => {
                let decision = Decision::verify(&leaf.record, &key).unwrap();
                if decision.verdict == Verdict::Allow {
                    tally.allowed += 1;
                    assert!(open.insert(decision.digest(), ()).is_none());
                }
            }
            LeafKind::Outcome => {
                let outcome = Outcome::verify(&leaf.record, &key).unwrap();
                assert!(open.remove(&outcome.decision).is_some(), "an outcome twice or of nothing");
                match outcome.status {
                    Status::Executed => tally.executed += 1,
                    Status::Unknown => tally.unknown += 1,
                    other => panic!("{other:?}"),
                }
            }
            _ => {}
        }
    }
    assert!(open.is_empty(), "{} allowed calls without an outcome", open.len());
    let vkey = VerifierKey::parse(&public.log_vkey).unwrap();
    let note = std::fs::read_to_string(directory.join("head")).unwrap();
    let head = Checkpoint::verify(&note, &vkey).unwrap();
    let mut frontier = merkle::Frontier::default();
    let first = usize::try_from(head.size).unwrap();
    leaves[..first].iter().for_each(|leaf| frontier.push(merkle::leaf_hash(leaf)));
    assert_eq!(frontier.root(), head.root, "the leaves under the old head changed");
    tally
}

/// Opens the gateway again, closes it, and reads what it published.
async fn reopen(directory: &Path) -> Tally {
    let house = house(directory);
    let gateway = house.gateway().await;
    let public = gateway.public().clone();
    drop(gateway);
    let key = VerifierKey::parse(&public.log_vkey).unwrap();
    let log = Published::open(&directory.join("state/log"), &key).unwrap();
    let mut leaves = Vec::new();
    for bundle in 0..log.head().size.div_ceil(256) {
        leaves.extend(log.bundle(bundle).unwrap());
    }
    tally(directory, &public, &leaves)
}

/// What becomes of the killed call when its sandbox comes back.
#[derive(Debug, PartialEq, Eq)]
enum Again {
    /// It was decided and nobody knows whether it ran: it is suppressed.
    Suppressed,
    /// It was never decided: the port sends it again, and it runs.
    Sent,
    /// Its outcome is in the log.
    Known,
}

/// The same sandbox connects to the gateway that came back, and makes the same
/// call again wherever it may believe that it has to.
async fn come_back(directory: &Path, unknown: u64) -> Again {
    let house = house(directory);
    let credential = Credential::load(&house);
    let signed: [u8; 32] = std::fs::read(directory.join("signed")).unwrap().try_into().unwrap();
    let scene = Scene::in_house(house).await;
    let wire = scene.house.connect(&scene.gateway, &credential).await;
    let mut port = Port::hello(wire, credential, 2, signed).await.unwrap();
    let decided = port.reply.accepted_sequence == 2;
    let again = match (decided, unknown) {
        (true, 0) => Again::Known,
        (true, _) => Again::Suppressed,
        (false, _) => Again::Sent,
    };
    if again != Again::Known {
        let result = port.call("fx.mark", marking(directory)).await.unwrap();
        let expected = if decided { "duplicate_suppressed" } else { "none" };
        assert_eq!(code(&result), expected, "{result}");
    }
    drop(port);
    scene.stop().await;
    again
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_minus_9_at_every_step_loses_no_decision_and_runs_nothing_twice() {
    let (mut unknown, mut suppressed, mut sent) = (0, 0, 0);
    println!("{:<24} {:>7} {:>8} {:>7} {:>5}", "step", "allowed", "executed", "unknown", "marks");
    for (at, (step, nth, decisions, least, most)) in STEPS.into_iter().enumerate() {
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_ends_at_a_step", "--nocapture"])
            .env("CASEMATE_TEST_HOUSE", directory.path())
            .env("CASEMATE_TEST_STEP", at.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(9), "{step} was never reached: {said}");
        let answered = String::from_utf8_lossy(&output.stdout).contains("answered");
        let found = reopen(directory.path()).await;
        let marks = std::fs::read_to_string(directory.path().join("marks")).unwrap();
        let marks = u64::try_from(marks.lines().count()).unwrap();
        println!(
            "{:<24} {:>7} {:>8} {:>7} {marks:>5}",
            format!("{step} #{nth}"),
            found.allowed,
            found.executed,
            found.unknown
        );
        // Nothing ran without its decision, and nothing ran twice.
        assert!(marks <= found.allowed && marks <= 2, "{step}: {found:?}, {marks} marks");
        assert!(marks > least && marks <= 1 + most, "{step}: {marks} marks");
        assert!(found.allowed > decisions, "{step}: a durable decision was lost");
        assert_eq!(found.allowed, found.executed + found.unknown, "{step}");
        assert!(found.executed <= marks, "{step}: a result that never was");
        if answered {
            assert_eq!(found.executed, 2, "{step}: an answered call has its outcome");
        }
        // Within the half minute in which it may be the same call, it runs once
        // at most, whatever the sandbox that comes back does.
        let back = come_back(directory.path(), found.unknown).await;
        let now = std::fs::read_to_string(directory.path().join("marks")).unwrap();
        let now = u64::try_from(now.lines().count()).unwrap();
        assert!(now <= 2, "{step}: {back:?}, {now} marks: the call ran twice");
        let more = u64::from(back == Again::Sent);
        assert_eq!(now, marks + more, "{step}: {back:?}");
        // Another start changes nothing of what was.
        let again = reopen(directory.path()).await;
        let expected = (found.allowed + more, found.unknown);
        assert_eq!((again.allowed, again.unknown), expected, "{step}");
        unknown += found.unknown;
        suppressed += u32::from(back == Again::Suppressed);
        sent += more;
    }
    println!(
        "{} kills, {unknown} honest unknowns, 0 decisions lost; of the same call by the same \
         sandbox {suppressed} suppressed, {sent} run that had not, 0 run twice",
        STEPS.len()
    );
    assert!(suppressed >= 5 && sent >= 2, "{suppressed} {sent}");
    assert!(unknown >= 5, "the kills between decision and outcome leave an unknown");
}

/// The table above names every step that there is.
#[test]
fn every_named_step_is_in_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut directories = vec![root.join("src"), root.join("../ledger/store/src")];
    let (mut names, mut sources) = (0, Vec::new());
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                sources.push(path);
            }
        }
    }
    for source in sources {
        let code = std::fs::read_to_string(&source).unwrap();
        let source = source.display();
        for part in code.split("step!(\"").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(STEPS.iter().any(|(step, ..)| *step == name), "{name} in {source}");
            names += 1;
        }
    }
    assert!(names >= 17, "{names}");
}

/// A gateway that runs, with two calls behind it.
async fn busy_scene() -> Scene {
    let (scene, mut port) = Scene::with(grant(&["fx.mark"], 9)).await;
    let directory = &scene.house.directory;
    assert!(mark(&mut port, directory).await && mark(&mut port, directory).await);
    scene
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_and_damaged_logs_do_not_start() {
    let scene = busy_scene().await;
    let house = &scene.house;
    let twice = Gateway::open(house.config()).await;
    assert!(matches!(twice, Err(Error::Log(StoreError::Locked { .. }))), "a second process");
    // The first one lives on: a copy stands for its log after a stop.
    let key = VerifierKey::parse(&public_of(house).log_vkey).unwrap();
    wait_for_head(&scene, &key).await;
    let log = house.directory.join("state/log");
    let copy = tempfile::tempdir().unwrap();
    let wal = "wal/00000000000000000000.wal";
    copy_directory(&log, copy.path());
    let whole = std::fs::read(copy.path().join(wal)).unwrap();
    let (mut refused, mut places) = (0, 0);
    for at in (0..whole.len()).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(copy.path().join(wal), bytes).unwrap();
        places += 1;
        refused += u32::from(open_log(copy.path(), house).is_err());
    }
    assert_eq!(refused, places, "a flipped bit below the head is never taken for a torn end");
    let mut torn = 0;
    for length in (0..whole.len()).step_by(97) {
        std::fs::write(copy.path().join(wal), &whole[..length]).unwrap();
        torn += u32::from(open_log(copy.path(), house).is_err());
    }
    assert_eq!(torn, places, "what the head covers cannot be cut off");
    std::fs::write(copy.path().join(wal), &whole).unwrap();
    let tiles = damage_tiles(copy.path(), &key);
    assert!(open_log(copy.path(), house).is_ok());
    println!(
        "1 duplicate process refused; of {places} flipped bits in the WAL {refused} refused; of \
         {places} cuts {torn} refused; {tiles} flipped bits in tiles seen by readers"
    );
}

fn public_of(house: &House) -> Public {
    casemate_gateway::init(&house.config()).unwrap()
}

fn open_log(directory: &Path, house: &House) -> Result<(), StoreError> {
    let key = Arc::new(SigningKey::open(&house.directory.join("state/keys/log.key")).unwrap());
    let signer = Arc::clone(&key);
    let options = Options {
        directory: directory.to_owned(),
        key: VerifierKey::parse(&public_of(house).log_vkey).unwrap(),
        sign: Box::new(move |message| signer.sign(message)),
        checkpoint_interval: Duration::from_secs(3600),
        segment_bytes: 64 << 20,
    };
    Log::open(options, |_, _| Ok(())).map(drop)
}

/// Waits until the head covers every leaf.
async fn wait_for_head(scene: &Scene, key: &VerifierKey) {
    loop {
        let Reply::Status(status) = scene.admin(Ask::Status).await else { panic!() };
        let head = Published::open(&scene.house.directory.join("state/log"), key);
        if head.is_ok_and(|log| log.head().size == status.leaves) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Flips one bit in each place of every tile: no proof may then verify.
fn damage_tiles(directory: &Path, key: &VerifierKey) -> u32 {
    let size = Published::open(directory, key).unwrap().head().size;
    let mut seen = 0;
    for tile in [format!("tile/0/000.p/{size}"), format!("tile/entries/000.p/{size}")] {
        let path = directory.join(tile);
        let whole = std::fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(61) {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            std::fs::write(&path, bytes).unwrap();
            let log = Published::open(directory, key).unwrap();
            let failed = (0..size).any(|index| log.prove(index).is_err());
            assert!(failed, "{} byte {at}", path.display());
            seen += 1;
        }
        std::fs::write(&path, whole).unwrap();
    }
    seen
}

fn copy_directory(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir_all(&copy).unwrap();
            copy_directory(&path, &copy);
        } else {
            std::fs::copy(&path, &copy).unwrap();
        }
    }
}
