//! kill -9 between decision and outcome: the log says `unknown`, once.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod harness;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use casemate_gateway::{Client, Command as Ask, Reply};
use casemate_ledger::text;
use harness::{House, claims, grant};
use serde_json::json;

/// Serves the operator until the test ends.
async fn operate(gateway: &Arc<casemate_gateway::Gateway>, socket: &Path) {
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let gateway = Arc::clone(gateway);
    tokio::spawn(async move {
        let _stop = stop;
        gateway.serve(stopped).await.unwrap();
    });
    while Client::call(socket, &Ask::Status).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Not a test of its own: the process that is killed. It has one call that
/// ended and one that its tool server is still working on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_with_a_running_call() {
    let Some(directory) = std::env::var_os("CASEMATE_TEST_HOUSE") else { return };
    let directory = Path::new(&directory);
    let house = House::at(directory);
    let gateway = house.gateway().await;
    let socket = directory.join("admin.sock");
    operate(&gateway, &socket).await;
    let signed = text::base64url(&house.sign(grant(&["fx.mark", "fx.slow"], 9)));
    Client::call(&socket, &Ask::GrantAdd { grant: signed }).await.unwrap();
    let mut port = house.port(&gateway, house.authority.identity(claims())).await;
    let marks = directory.join("marks");
    port.call("fx.mark", json!({ "path": marks })).await.unwrap();
    port.start("fx.slow", json!({"ms": 4000}), &|_| ()).await;
    loop {
        let Reply::Status(status) = Client::call(&socket, &Ask::Status).await.unwrap() else {
            panic!()
        };
        if status.running == 1 {
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
    let house = House::at(directory.path());
    let gateway = house.gateway().await;
    let socket = directory.path().join("admin.sock");
    operate(&gateway, &socket).await;
    let ask = Ask::Log { from: 0, count: 100 };
    let Reply::Log(entries) = Client::call(&socket, &ask).await.unwrap() else { panic!() };
    let count = |start: &str| entries.iter().filter(|e| e.text.starts_with(start)).count();
    assert_eq!((count("allow"), count("executed"), count("unknown")), (2, 1, 1), "{entries:?}");
    // What nobody knows counts as spent, and nothing runs twice.
    let grants = Client::call(&socket, &Ask::GrantList).await.unwrap();
    let Reply::Grants(grants) = grants else { panic!() };
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
    let _mounted = Unmount(state.clone());
    let gateway = house.gateway().await;
    let socket = house.directory.join("admin.sock");
    operate(&gateway, &socket).await;
    let signed = text::base64url(&house.sign(grant(&["fx.mark"], 9)));
    Client::call(&socket, &Ask::GrantAdd { grant: signed }).await.unwrap();
    let mut port = house.port(&gateway, house.authority.identity(claims())).await;
    let marks = house.directory.join("marks");
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
    let Reply::Status(status) = Client::call(&socket, &Ask::Status).await.unwrap() else {
        panic!()
    };
    assert!(status.log_state.contains("No space left"), "{}", status.log_state);
    // Every execution has its decision in the log: count both.
    let ran = std::fs::read_to_string(&marks).unwrap().lines().count();
    let ask = Ask::Log { from: 0, count: 200 };
    let Reply::Log(entries) = Client::call(&socket, &ask).await.unwrap() else { panic!() };
    let allowed = entries.iter().filter(|entry| entry.text.starts_with("allow")).count();
    assert!(ran <= allowed, "{ran} executions, {allowed} decisions");
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
