//! `casemate stop` against a gateway that runs: one person stops all, two lift it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

struct House {
    directory: tempfile::TempDir,
    gateway: Option<Child>,
}

impl Drop for House {
    fn drop(&mut self) {
        if let Some(mut gateway) = self.gateway.take() {
            let _ = gateway.kill();
            let _ = gateway.wait();
        }
    }
}

fn casemate() -> Command {
    Command::new(env!("CARGO_BIN_EXE_casemate"))
}

/// What a verb that must succeed printed.
fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

impl House {
    /// A gateway that serves its operator; bob and carol may approve.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut house = Self { directory, gateway: None };
        let mut config = String::from(
            "listen = \"unix:gateway.sock\"\nserver_name = \"gateway.test\"\ntenant = \"demo\"\n\
             log_origin = \"casemate.internal/demo/stop\"\nstate_dir = \"state\"\n\
             admin_socket = \"admin.sock\"\nidentity_ca_file = \"state/keys/ca.pem\"\n\
             boundary = \"same-host\"\n",
        );
        for name in ["bob", "carol"] {
            let out = house.path(name);
            let made = casemate().args(["approve", "keygen", "--out"]).arg(out).output().unwrap();
            let printed = printed(&made);
            let key = printed.strip_prefix("key ").unwrap();
            config.push_str(&format!(
                "[[approver]]\nname = \"{name}\"\nperson = \"{name}\"\nkey = \"{key}\"\n"
            ));
            if name == "bob" {
                config.push_str(&format!("[[issuer]]\nname = \"ops\"\nkey = \"{key}\"\n"));
            }
        }
        let file = house.path("gateway.toml");
        std::fs::write(&file, config).unwrap();
        // No sandbox calls here: the gateway's own CA stands in for the verifier's.
        let made = casemate().args(["gateway", "init", "--config"]).arg(&file).output().unwrap();
        printed(&made);
        let serve = casemate().args(["gateway", "serve", "--config"]).arg(&file).spawn();
        house.gateway = Some(serve.unwrap());
        let end = Instant::now() + Duration::from_secs(30);
        while !house.path("admin.sock").exists() {
            assert!(Instant::now() < end, "the gateway does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn stop(&self, verb: &str, more: &[&str]) -> Output {
        let socket = self.path("admin.sock");
        casemate().args(["stop", verb, "--admin"]).arg(socket).args(more).output().unwrap()
    }

    fn sign(&self, name: &str) -> String {
        let key = self.path(name).join("approver.key");
        let key: &Path = &key;
        printed(&self.stop("sign", &["--key", key.to_str().unwrap(), "--name", name, "all"]))
    }
}

#[test]
fn one_stops_all_and_two_lift_it() {
    let house = House::new();
    printed(&house.stop("now", &["all", "--reason", "looking"]));
    assert!(printed(&house.stop("list", &[])).contains("all    freeze"));
    let (bob, carol) = (house.sign("bob"), house.sign("carol"));
    let lift = ["all", "--reason", "over", "--approval"];
    let alone = house.stop("lift", &[&lift[..], &[&bob]].concat());
    assert_eq!(alone.status.code(), Some(1), "{alone:?}");
    let nobody = house.stop("sign", &["--key", "none", "--name", "bob", "task:report"]);
    assert_eq!(nobody.status.code(), Some(1), "{nobody:?}");
    let wrong = house.stop("now", &["everybody", "--reason", "looking"]);
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    printed(&house.stop("lift", &[&lift[..], &[&bob, "--approval", &carol]].concat()));
    assert!(!printed(&house.stop("list", &[])).contains("all"));
}
