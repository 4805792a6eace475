//! kill -9 between decision and outcome: the log says `unknown`, once.

mod harness;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use casemate_gateway::{Command as Ask, Reply};
use harness::scene::Scene;
use harness::{House, grant};
use serde_json::json;

/// Not a test of its own: the process that is killed. It has one call that
/// ended and one that its tool server is still working on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_with_a_running_call() {
    let Some(directory) = std::env::var_os("CASEMATE_TEST_HOUSE") else { return };
    let directory = Path::new(&directory);
    let granted = grant(&["fx.mark", "fx.slow"], 9);
    let (scene, mut port) = Scene::with_in(House::at(directory), granted).await;
    let marks = directory.join("marks");
    port.call("fx.mark", json!({ "path": marks })).await.unwrap();
    port.start("fx.slow", json!({"ms": 60_000}), &|_| ()).await;
    loop {
        // A call counts as running before its decision is durable; one that the log shows is.
        let Reply::Status(status) = scene.admin(Ask::Status).await else { panic!() };
        let Reply::Log(entries) = scene.admin(Ask::Log { from: 0, count: 100 }).await else {
            panic!()
        };
        let allowed = entries.iter().filter(|entry| entry.text.starts_with("allow")).count();
        if status.running == 1 && allowed == 2 {
            println!("running");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_minus_9_leaves_an_honest_unknown() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_with_a_running_call", "--nocapture"])
        .env("CASEMATE_TEST_HOUSE", directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.ends_with("running")));
    child.kill().unwrap();
    child.wait().unwrap();
    let scene = Scene::in_house(House::at(directory.path())).await;
    let ask = Ask::Log { from: 0, count: 100 };
    let Reply::Log(entries) = scene.admin(ask).await else { panic!() };
    let count = |start: &str| entries.iter().filter(|e| e.text.starts_with(start)).count();
    assert_eq!(
        (count("allow"), count("executed"), count("unknown (gateway_restart)")),
        (2, 1, 1),
        "{entries:?}"
    );
    // What nobody knows counts as spent, and nothing runs twice.
    let Reply::Grants(grants) = scene.admin(Ask::GrantList).await else { panic!() };
    assert_eq!(grants.first().map(|grant| grant.calls), Some(2));
    let marks = std::fs::read_to_string(directory.path().join("marks")).unwrap();
    assert_eq!(marks.lines().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_deciding_and_nothing_runs_unlogged() {
    let house = House::new();
    let state = house.directory.join("state");
    std::fs::create_dir(&state).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs"])
        .arg(&state)
        .stderr(Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("not run: mounting a tmpfs needs root");
        return;
    }
    let mounted = Unmount(state.clone());
    let marks = house.directory.join("marks");
    let (scene, mut port) = Scene::with_in(house, grant(&["fx.mark"], 9)).await;
    let _mounted = mounted; // goes before the house does
    port.call("fx.mark", json!({ "path": marks })).await.unwrap();
    // Fill the disk to the last byte.
    let filler = std::fs::File::create(state.join("filler")).unwrap();
    while std::io::Write::write(&mut &filler, &[0; 4096]).is_ok_and(|count| count > 0) {}
    let mut refused = 0;
    for _ in 0..20 {
        match port.call("fx.mark", json!({ "path": marks })).await {
            Ok(_) => assert_eq!(refused, 0, "nothing is allowed after the first refusal"),
            Err(error) => {
                assert_eq!(error.code, casemate_ledger::cgp::error_code::LOG, "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    let Reply::Status(status) = scene.admin(Ask::Status).await else { panic!() };
    assert!(status.log_state.contains("No space left"), "{}", status.log_state);
    // Every execution has its decision in the log: count both.
    let ran = std::fs::read_to_string(&marks).unwrap().lines().count();
    let ask = Ask::Log { from: 0, count: 200 };
    let Reply::Log(entries) = scene.admin(ask).await else { panic!() };
    let allowed = entries.iter().filter(|entry| entry.text.starts_with("allow")).count();
    assert!(ran <= allowed, "{ran} executions, {allowed} decisions");
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
