//! A disk that is full or fails at every kind of write of the gateway: nothing
//! runs without a durable decision, nothing is lost, and the reason is named.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod harness;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use casemate_gateway::{Command, Public, Reply};
use casemate_ledger::cgp::error_code;
use casemate_ledger::checkpoint::{Checkpoint, VerifierKey};
use casemate_ledger::merkle::{Frontier, leaf_hash};
use casemate_ledger::{Decision, Leaf, LeafKind, Outcome, Record, Status, Verdict, text};
use casemate_ledger_store::Published;
use casemate_ledger_store::failpoint::{Fault, set_fault};
use harness::scene::Scene;
use harness::{House, Port, claims, code, grant};
use serde_json::json;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// What a failing write does to the call that meets it, and to those behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The decision is not durable: it does not run, and the log has stopped.
    NotRun,
    /// It ran, and its outcome is not durable: the answer says that nobody knows,
    /// and the log has stopped.
    Unknown,
    /// It does not run; others go on when there is room.
    Refused,
    /// It is answered; its result's payload alone is missing.
    Answered,
    /// The next head cannot be published: the log stops when that is noticed.
    Head,
}

/// Every kind of write: operation, place, how many work before, error.
const WRITES: [(&str, &str, u32, i32, Then); 18] = [
    ("write", "/log/wal/", 0, ENOSPC, Then::NotRun),
    ("write the rest of", "/log/wal/", 0, ENOSPC, Then::NotRun),
    ("sync", "/log/wal/", 0, EIO, Then::NotRun),
    ("write", "/log/wal/", 1, ENOSPC, Then::Unknown),
    // Each write has two parts, and the check comes after each of them.
    ("write the rest of", "/log/wal/", 2, ENOSPC, Then::Unknown),
    ("sync", "/log/wal/", 1, EIO, Then::Unknown),
    ("write", "/state/payloads/", 0, ENOSPC, Then::Refused),
    ("write", "/state/payloads/", 1, ENOSPC, Then::Answered),
    ("create", "/log/tile/entries/", 0, ENOSPC, Then::Head),
    ("write", "/log/tile/entries/", 0, ENOSPC, Then::Head),
    ("write", "/log/tile/0/", 0, ENOSPC, Then::Head),
    ("sync", "/log/tile/", 0, EIO, Then::Head),
    ("rename", "/log/tile/", 0, ENOSPC, Then::Head),
    ("create", "/log/checkpoint", 0, ENOSPC, Then::Head),
    ("write", "/log/checkpoint", 0, ENOSPC, Then::Head),
    ("sync", "/log/checkpoint", 0, EIO, Then::Head),
    ("rename", "/log/checkpoint", 0, ENOSPC, Then::Head),
    ("sync", "/log$", 0, EIO, Then::Head),
];

/// The disk of this process fails for one test at a time.
static DISK: Mutex<()> = Mutex::new(());

async fn mark(scene: &Scene, port: &mut Port) -> Result<String, i64> {
    let path = scene.house.directory.join("marks");
    let result = port.call("fx.mark", json!({ "path": path })).await;
    result.map(|result| code(&result).to_owned()).map_err(|error| error.code)
}

fn marks(house: &House) -> usize {
    std::fs::read_to_string(house.directory.join("marks")).unwrap().lines().count()
}

async fn log_state(scene: &Scene) -> String {
    let Reply::Status(status) = scene.admin(Command::Status).await else { panic!() };
    status.log_state
}

/// Whether the log says that a chain broke.
async fn is_frozen(scene: &Scene) -> bool {
    let Reply::Log(entries) = scene.admin(Command::Log { from: 0, count: 256 }).await else {
        panic!()
    };
    entries.iter().any(|entry| entry.text.starts_with("frozen"))
}

/// What the log of a gateway that was stopped says of its calls.
#[derive(Debug, Default)]
struct Said {
    allowed: usize,
    executed: usize,
    refused: usize,
    unknown: usize,
}

/// Reads the whole log: each allowed call has one outcome, and each of `heads`
/// is of this one tree.
fn read(house: &House, public: &Public, heads: &[String]) -> Said {
    let key = VerifierKey::parse(&public.log_vkey).unwrap();
    let gateway: [u8; 32] = text::from_hex(&public.gateway_key).unwrap().try_into().unwrap();
    let log = Published::open(&house.directory.join("state/log"), &key).unwrap();
    let heads: Vec<_> = heads.iter().map(|note| Checkpoint::verify(note, &key).unwrap()).collect();
    let (mut said, mut open, mut tree) = (Said::default(), BTreeSet::new(), Frontier::default());
    for bundle in 0..log.head().size.div_ceil(256) {
        for leaf in log.bundle(bundle).unwrap() {
            for head in heads.iter().filter(|head| head.size == tree.size()) {
                assert_eq!(tree.root(), head.root, "a second head of {} leaves", head.size);
            }
            tree.push(leaf_hash(&leaf));
            let leaf = Leaf::decode(&leaf).unwrap();
            if leaf.kind == LeafKind::Decision {
                let decision = Decision::verify(&leaf.record, &gateway).unwrap();
                if decision.verdict == Verdict::Allow {
                    said.allowed += 1;
                    assert!(open.insert(decision.digest()));
                }
            } else if leaf.kind == LeafKind::Outcome {
                let outcome = Outcome::verify(&leaf.record, &gateway).unwrap();
                assert!(open.remove(&outcome.decision), "an outcome twice or of nothing");
                match outcome.status {
                    Status::Executed => said.executed += 1,
                    Status::NotDispatched => said.refused += 1,
                    Status::Unknown => said.unknown += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    assert!(open.is_empty(), "{} allowed calls without an outcome", open.len());
    assert_eq!(tree.root(), log.head().root);
    assert!(heads.iter().all(|head| head.size <= log.head().size));
    said
}

fn head(house: &House) -> Option<String> {
    std::fs::read_to_string(house.directory.join("state/log/checkpoint")).ok()
}

/// Waits until nobody has the log any more, and its head covers all of it.
async fn closed(house: &House) -> Public {
    let gateway = house.gateway().await;
    let public = gateway.public().clone();
    drop(gateway);
    public
}

/// A gateway that publishes often, with one call behind it.
async fn scene() -> (Scene, Port) {
    let mut house = House::new();
    house.settings = "checkpoint_ms = 20".to_owned();
    let scene = Scene::in_house(house).await;
    scene.add(grant(&["fx.mark"], 50)).await;
    let mut port = scene.port().await;
    assert_eq!(mark(&scene, &mut port).await, Ok("none".to_owned()));
    (scene, port)
}

/// Waits until the publisher met the fault.
async fn until_stopped(scene: &Scene) -> String {
    for _ in 0..1000 {
        let state = log_state(scene).await;
        if state != "ok" {
            return state;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the log never stopped")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::await_holding_lock, reason = "one test at a time")]
async fn every_failing_write_is_named_runs_nothing_undecided_and_heals() {
    let _alone = DISK.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut calls, mut refused, mut unknown, mut frozen) = (0, 0, 0, 0);
    for (operation, place, after, errno, then) in WRITES {
        let name = format!("{operation} {place} after {after}");
        let (scene, mut port) = scene().await;
        let mut heads: Vec<_> = head(&scene.house).into_iter().collect();
        set_fault(Some(Fault { operation, place, after, errno }));
        let met = mark(&scene, &mut port).await;
        let reason = std::io::Error::from_raw_os_error(errno).to_string();
        let ran = marks(&scene.house) - 1;
        match then {
            Then::NotRun => assert_eq!((met, ran), (Err(error_code::LOG), 0), "{name}"),
            Then::Unknown => {
                assert_eq!((met, ran), (Ok("outcome_unknown".to_owned()), 1), "{name}");
            }
            Then::Refused => {
                assert_eq!((met, ran), (Ok("payload_not_kept".to_owned()), 0), "{name}");
            }
            Then::Answered => assert_eq!((met, ran), (Ok("none".to_owned()), 1), "{name}"),
            // The head may be published before or after the call's own writes.
            Then::Head => assert!(ran <= 1, "{name}"),
        }
        let stops = !matches!(then, Then::Refused | Then::Answered);
        if stops {
            let state = until_stopped(&scene).await;
            assert!(state.contains(&reason) && state.contains("/state/log"), "{name}: {state}");
            // Nothing more is decided, and nothing more runs.
            let before = marks(&scene.house);
            for _ in 0..3 {
                assert_eq!(mark(&scene, &mut port).await, Err(error_code::LOG), "{name}");
            }
            assert_eq!(marks(&scene.house), before, "{name}: a call ran unlogged");
            calls += 3;
        }
        heads.extend(head(&scene.house));
        set_fault(None);
        // Room again: the same sandbox goes on, after a start where the log has
        // stopped. A decision that is on disk is one that its port knows of.
        let (mut port, scene) = match stops {
            true => scene.restart(port).await,
            false => (port, scene),
        };
        assert_eq!(mark(&scene, &mut port).await, Ok("none".to_owned()), "{name}: afterwards");
        frozen += usize::from(is_frozen(&scene).await);
        drop(port);
        let house = scene.stop().await;
        let public = closed(&house).await;
        heads.extend(head(&house));
        let said = read(&house, &public, &heads);
        let ran = marks(&house);
        assert!(ran <= said.allowed, "{name}: {ran} ran, {said:?}");
        assert!(said.executed <= ran && ran <= said.executed + said.unknown, "{name}: {said:?}");
        let answered = 2 + usize::from(then == Then::Answered);
        assert!(said.executed >= answered, "{name}: an answered call is not in the log");
        calls += 3;
        refused += said.refused;
        unknown += said.unknown;
    }
    assert_eq!(frozen, 0, "an honest sandbox was frozen");
    println!(
        "{} failing writes, {calls} calls: 0 ran without a durable decision, 0 decisions lost, 0 \
         second heads, 0 sandboxes frozen; {unknown} honest unknowns, {refused} not dispatched; each named and healed",
        WRITES.len()
    );
}

/// A file system of its own for one directory, with no room left on it.
struct Full(PathBuf);

impl Full {
    fn mount(directory: &Path) -> Option<Self> {
        std::fs::create_dir_all(directory).unwrap();
        let mut mount = Program::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs"]).arg(directory);
        let status = mount.stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success()).then(|| Self(directory.to_owned()))
    }

    /// Takes the last byte.
    fn fill(&self) {
        let filler = std::fs::File::create(self.0.join("filler.wal.tmp")).unwrap();
        while std::io::Write::write(&mut &filler, &[0; 4096]).is_ok_and(|count| count > 0) {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler.wal.tmp")).unwrap();
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = Program::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::await_holding_lock, reason = "one test at a time")]
async fn a_really_full_disk_under_each_directory_is_named_and_heals() {
    let _alone = DISK.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut places, mut refused) = (0, 0);
    for place in ["log/wal", "log/tile", "payloads", "certificates"] {
        let mut house = House::new();
        house.settings = "checkpoint_ms = 20".to_owned();
        let state = house.directory.join("state");
        let Some(disk) = Full::mount(&state.join(place)) else {
            eprintln!("not run: mounting a tmpfs needs root");
            return;
        };
        std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        let scene = Scene::in_house(house).await;
        scene.add(grant(&["fx.mark"], 50)).await;
        let mut port = scene.port().await;
        assert_eq!(mark(&scene, &mut port).await, Ok("none".to_owned()), "{place}");
        disk.fill();
        // The room in the last page is used up first.
        let mut met = Ok("none".to_owned());
        for _ in 0..40 {
            met = mark(&scene, &mut port).await;
            if met != Ok("none".to_owned()) {
                break;
            }
        }
        match place {
            "certificates" => {
                // A sandbox that is known goes on; a new one cannot be recorded.
                assert_eq!(met, Ok("none".to_owned()));
                let credential = scene.house.authority.identity(claims());
                let wire = scene.house.connect(&scene.gateway, &credential).await;
                let error = Port::hello(wire, credential, 0, [0; 32]).await.err().unwrap();
                assert!(error.code == error_code::LOG, "{error}");
                assert!(error.to_string().contains("No space left"), "{error}");
            }
            "payloads" => assert!(met.is_ok_and(|code| code != "none"), "{place}"),
            _ => {
                let state = until_stopped(&scene).await;
                assert!(state.contains("No space left"), "{place}: {state}");
                assert_eq!(mark(&scene, &mut port).await, Err(error_code::LOG), "{place}");
            }
        }
        refused += 1;
        let before = head(&scene.house);
        disk.make_room();
        let ran = marks(&scene.house);
        drop(port);
        let scene = Scene::in_house(scene.stop().await).await;
        scene.add(grant(&["fx.mark"], 51)).await;
        let mut port = scene.port().await;
        assert_eq!(mark(&scene, &mut port).await, Ok("none".to_owned()), "{place}: afterwards");
        drop(port);
        let house = scene.stop().await;
        assert_eq!(marks(&house), ran + 1, "{place}");
        let public = closed(&house).await;
        let said = read(&house, &public, &before.into_iter().collect::<Vec<_>>());
        assert!(said.executed + said.unknown >= ran, "{place}: {said:?}, {ran} ran");
        // The mount goes before its house.
        drop(disk);
        places += 1;
    }
    println!("{places} directories on full disks: {refused} refusals with the reason, all healed");
}
