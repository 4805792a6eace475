//! A supervisor with stand-ins for QEMU and our monitor, and a gateway that is killed.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

use casemate_attestation::boundary::{Boundary, Properties};
use casemate_attestation::host_claim::LaunchDigests;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::sync::{RwLock, watch};

use super::*;
use crate::key::HostKey;
use crate::lease::{Terms, Who};
use crate::machine::Status;
use crate::qmp::Qmp;
use crate::vmm::Monitor;

const LENGTH: Duration = Duration::from_secs(3);
const GRACE: Duration = Duration::from_secs(4);
/// What a busy machine may be late.
const SLACK: Duration = Duration::from_secs(5);

const HANGS: &str = "nothing, but hangs";

/// Answers QMP as QEMU does, and notes what it was told. Refuses `refused`,
/// and does not answer a stop if that is `HANGS`.
async fn qemu(stream: UnixStream, told: Arc<Mutex<Vec<String>>>, refused: &'static str) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    writer.write_all(b"{\"QMP\":{}}\n").await.unwrap();
    while let Ok(Some(line)) = lines.next_line().await {
        let line: Value = serde_json::from_str(&line).unwrap();
        let command = line["execute"].as_str().unwrap().to_owned();
        let event = json!({"event": command.to_uppercase()});
        let answer = if command == refused { json!({"error": {}}) } else { json!({"return": {}}) };
        let hangs = refused == HANGS && command == "stop";
        told.lock().unwrap().push(command);
        if hangs {
            std::future::pending::<()>().await;
        }
        let _ = writer.write_all(format!("{event}\n{answer}\n").as_bytes()).await;
    }
}

/// Answers as our monitor does, and notes what it was told.
async fn monitor(stream: UnixStream, told: Arc<Mutex<Vec<String>>>) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut state = "running";
    while let Ok(Some(line)) = lines.next_line().await {
        let line: Value = serde_json::from_str(&line).unwrap();
        let command = line["op"].as_str().unwrap();
        state = match command {
            "pause" => "paused",
            "run" => "running",
            _ => state,
        };
        told.lock().unwrap().push(command.to_owned());
        let answer = json!({"ok": true, "state": state, "uptime_ms": 1, "cpu_ms": 1});
        let _ = writer.write_all(format!("{answer}\n").as_bytes()).await;
    }
}

/// A gateway that says for each question what `stop` holds.
fn gateway(folder: &Path, stop: watch::Receiver<Value>) -> tokio::task::JoinHandle<()> {
    let path = folder.join("hosts.sock");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (reader, mut writer) = stream.into_split();
            let mut lines = BufReader::new(reader).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let line: Value = serde_json::from_str(&line).unwrap();
                assert_eq!((&line["host"], &line["task"]), (&json!("h"), &json!("t")));
                let stop = stop.borrow().clone();
                let answer = json!({"beat": line["beat"], "stop": stop, "sandboxes": []});
                let _ = writer.write_all(format!("{answer}\n").as_bytes()).await;
            }
        }
    })
}

struct Case {
    shared: Arc<Shared>,
    told: Arc<Mutex<Vec<String>>>,
    pid: u32,
    _wire: UnixStream,
}

fn status() -> Status {
    Status {
        id: "00".repeat(16),
        state: State::Launched,
        paused: None,
        exit: None,
        task: "t".into(),
        epoch: 1,
        boundary: Boundary::MicroVm,
        properties: Properties::default(),
        backend: String::new(),
        pid: 0,
        booted_ms: None,
        events: Vec::new(),
        events_total: 0,
        console: "console.log".into(),
    }
}

/// A machine of QEMU's that would go on for a minute, under supervision.
async fn supervised(folder: &Path, boot: Duration, refused: &'static str) -> Case {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let told = Arc::<Mutex<Vec<String>>>::default();
    tokio::spawn(qemu(theirs, Arc::clone(&told), refused));
    watched(folder, boot, Link::Qemu(Qmp::start(ours).await.unwrap()), told)
}

fn watched(folder: &Path, boot: Duration, link: Link, told: Arc<Mutex<Vec<String>>>) -> Case {
    let shared = Arc::new(Shared {
        id: [0; 16],
        folder: folder.to_owned(),
        digests: LaunchDigests { kernel: [0; 32], initrd: [0; 32], cmdline: [0; 32] },
        started: std::time::Instant::now(),
        workload: Mutex::new(None),
        status: watch::Sender::new(status()),
        kill: Notify::new(),
        over: watch::Sender::new(false),
        answering: RwLock::new(()),
    });
    let context = Context {
        host: "h".into(),
        key: Arc::new(HostKey::open(folder).unwrap()),
        services: crate::config::Services::default(),
        psp: None,
        gpu: None,
        shared: Arc::clone(&shared),
    };
    let (wire, guest) = UnixStream::pair().unwrap();
    let child = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
    let pid = child.id().unwrap();
    let who = Who { host: "h".into(), machine: "00".repeat(16), task: "t".into() };
    let terms = Terms { length: LENGTH, grace: GRACE };
    let supervisor = Supervisor {
        child,
        link,
        wire,
        console: Console::default(),
        stderr: Console::default(),
        cgroup: None,
        boot,
        wall: Duration::from_secs(60),
        lease: Some(Lease::start(folder.join("hosts.sock"), terms, who)),
        context: Arc::new(context),
    };
    tokio::spawn(supervisor.run());
    Case { shared, told, pid, _wire: guest }
}

impl Case {
    /// Waits until the machine is paused so; returns how long that took.
    async fn until(&self, paused: Option<Paused>) -> Duration {
        let start = Instant::now();
        let mut status = self.shared.status.subscribe();
        let waiting = status.wait_for(|status| status.paused == paused);
        assert!(timeout(Duration::from_secs(20), waiting).await.unwrap().is_ok());
        start.elapsed()
    }

    async fn exit(&self) -> Exit {
        let exit = timeout(Duration::from_secs(20), self.shared.wait()).await.unwrap();
        assert!(!Path::new("/proc").join(self.pid.to_string()).exists());
        exit
    }

    fn told(&self) -> BTreeSet<String> {
        self.told.lock().unwrap().iter().cloned().collect()
    }
}

#[tokio::test]
async fn a_machine_whose_gateway_is_killed_is_paused_and_then_destroyed() {
    let folder = tempfile::tempdir().unwrap();
    let (_stop, stops) = watch::channel(Value::Null);
    let serving = gateway(folder.path(), stops);
    let case = supervised(folder.path(), Duration::from_secs(60), "").await;
    tokio::time::sleep(LENGTH * 2).await;
    assert!(!case.told().contains("stop"), "it runs while the gateway answers");
    serving.abort();
    let paused = case.until(Some(Paused::Lease)).await;
    assert!(case.told().contains("stop"));
    let start = Instant::now();
    assert!(matches!(case.exit().await, Exit::LeaseOver { .. }));
    println!("paused {paused:?} after the gateway's end, destroyed {:?} later", start.elapsed());
    assert!(paused < LENGTH + SLACK, "{paused:?}");
    assert!(start.elapsed() > GRACE / 2, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_pause_is_lifted_and_a_destroy_is_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (stop, stops) = watch::channel(Value::Null);
    let _serving = gateway(folder.path(), stops);
    // A guest that stands is not late: it would have to speak before the lift.
    let case = supervised(folder.path(), LENGTH * 2, "").await;
    stop.send_replace("pause".into());
    case.until(Some(Paused::Stop)).await;
    tokio::time::sleep(LENGTH * 5 / 2).await;
    assert!(!case.told().contains("cont"));
    stop.send_replace(Value::Null);
    case.until(None).await;
    assert!(case.told().contains("cont"));
    stop.send_replace("destroy".into());
    assert_eq!(case.exit().await, Exit::Destroyed);
}

#[tokio::test]
async fn a_machine_that_cannot_be_paused_is_destroyed() {
    let folder = tempfile::tempdir().unwrap();
    let case = supervised(folder.path(), Duration::from_secs(60), "stop").await;
    let exit = case.exit().await;
    let Exit::BackendFailed { said, .. } = &exit else { panic!("{exit}") };
    assert!(said.contains("QMP, stop"), "{said}");
}

#[tokio::test]
async fn our_monitors_own_lease_is_renewed_only_while_the_gateway_answers() {
    let folder = tempfile::tempdir().unwrap();
    let (stop, stops) = watch::channel(Value::Null);
    let serving = gateway(folder.path(), stops);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let told = Arc::<Mutex<Vec<String>>>::default();
    tokio::spawn(monitor(theirs, Arc::clone(&told)));
    let link = Link::Vmm(Monitor::new(ours));
    let case = watched(folder.path(), Duration::from_secs(60), link, told);
    stop.send_replace("pause".into());
    case.until(Some(Paused::Stop)).await;
    // It stands, and its own lease must not end it.
    case.told.lock().unwrap().clear();
    tokio::time::sleep(LENGTH * 2).await;
    assert_eq!(case.told(), ["renew".to_owned()].into());
    stop.send_replace(Value::Null);
    case.until(None).await;
    let said = case.told.lock().unwrap().clone();
    let run = said.iter().position(|word| word == "run").unwrap();
    assert!(run > 0 && said[run - 1] == "renew", "{said:?}");
    serving.abort();
    case.until(Some(Paused::Lease)).await;
    case.told.lock().unwrap().clear();
    assert!(matches!(case.exit().await, Exit::LeaseOver { .. }));
    assert!(case.told().is_empty(), "{:?}", case.told());
}

#[tokio::test]
async fn a_backend_that_hangs_does_not_hold_up_its_machines_end() {
    let folder = tempfile::tempdir().unwrap();
    let case = supervised(folder.path(), Duration::from_secs(60), HANGS).await;
    let start = Instant::now();
    let exit = case.exit().await;
    let Exit::BackendFailed { said, .. } = &exit else { panic!("{exit}") };
    assert!(said.contains("not done within 4s"), "{said}");
    assert!(case.told().contains("stop"));
    println!("destroyed {:?} after its launch", start.elapsed());
}
