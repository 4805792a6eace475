//! A bundle, which is judged by what is inside it and by nothing else.

use std::path::Path;
use std::process::Command;

use casemate_attestation::bundle::{Asked, Verdict};
use casemate_attestation::crypto::sha256;
use casemate_attestation::{Bundle, Endorsements};
use serde_json::{Value, json};

use crate::machine::{AT, Machine, NONCE, START, USER_DATA, outcome, snp_machine, tdx_machine};

#[test]
fn a_bundle_is_not_judged_by_what_it_would_ignore() {
    let machine = snp_machine();
    let bundle = Bundle {
        evidence: Vec::new(),
        asked: Asked::Nothing,
        endorsements: Endorsements::default(),
        policy: String::new(),
        references: String::new(),
        time: START,
        verdict: Verdict {
            boundary: "tee".to_owned(),
            properties: Vec::new(),
            hardware: "genuine".to_owned(),
            anchor: String::new(),
            measurement: Vec::new(),
            outcomes: Vec::new(),
        },
    };
    let path = machine.folder.path().join("bundle");
    std::fs::write(&path, bundle.encode()).unwrap();
    // Every run of these tests names a time.
    let output = machine.run(&[&path], &[], b"");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--at: a bundle is judged by"), "{said}");
    let again = machine.run(&[&path, &path], &[], b"");
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("expected one bundle"), "{said}");
}

#[test]
fn a_bundle_that_was_written_verifies_by_itself() {
    let machine = tdx_machine();
    let out = machine.folder.path().join("bundle.cbor");
    let nonce = hex::encode(NONCE);
    let flags = ["--nonce", &nonce, "--bundle", out.to_str().unwrap()];
    let (code, judged) = machine.json(&[&machine.path("")], &flags);
    assert_eq!(code, 2, "{judged}");
    let trust = machine.folder.path().join("trust.toml");
    let again = |trust: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        let output = command.arg("verify").arg(&out).arg("--json").args(trust).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), said)
    };
    // The bundle knows that no reference values were given.
    let (code, said) = again(&["--trust", trust.to_str().unwrap()]);
    assert_eq!((code, &said["checks"]), (2, &judged["checks"]), "{said}");
    assert_eq!(said["not_given"], judged["not_given"]);
    assert_eq!(outcome(&said, "azure.nonce"), "pass");
    let (code, said) = again(&[]);
    assert_eq!((code, &said["code"]), (1, &json!("bundle")), "{said}");
}

/// A machine that is a yes, the bundle about it, and a run over that.
fn bundled() -> (Machine, String) {
    let machine = Machine::affirmed();
    let bundle = machine.beside("bundle.cbor");
    let flags = [machine.yes_flags(), vec!["--bundle".to_owned(), bundle.clone()]].concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (code, said) = machine.json(&[&machine.path("")], &flags);
    assert_eq!(code, 0, "{said}");
    (machine, bundle)
}

fn again(machine: &Machine, paths: &[&str], flags: &[&str]) -> (i32, Value) {
    let paths: Vec<&Path> = paths.iter().map(Path::new).collect();
    let output = machine.command(&paths, &[flags, &["--json"]].concat()).output().unwrap();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn nothing_is_ignored_beside_a_bundle() {
    let (machine, bundle) = bundled();
    assert_eq!(again(&machine, &[&bundle], &[]).0, 0);
    let tdx = tdx_machine();
    machine.put("crl.der", &Machine::revoking());
    machine.put("tcb_info.json", &std::fs::read(tdx.path("tcb_info.json")).unwrap());
    for name in ["crl.der", "vek.der", "report.bin", "tcb_info.json"] {
        let file = machine.path(name);
        let (code, said) = again(&machine, &[&bundle, file.to_str().unwrap()], &[]);
        let reason = said["reason"].as_str().unwrap();
        assert_eq!((code, &said["code"]), (2, &json!("input")), "{said}");
        assert!(reason.contains(name) && reason.contains("beside a bundle"), "{reason}");
    }
}

#[test]
fn a_bundle_says_what_it_was_judged_by() {
    let (machine, bundle) = bundled();
    let references = std::fs::read(machine.beside("reference.toml")).unwrap();
    let digest = hex::encode(sha256(&references));
    let (code, said) = again(&machine, &[&bundle], &[]);
    let expected = json!({
        "sha256": hex::encode(sha256(&std::fs::read(&bundle).unwrap())),
        "policy_sha256": hex::encode(sha256(b"")),
        "reference_sha256": digest,
        "asked": "report-data",
        "challenge": hex::encode(USER_DATA),
        "time": 1_781_000_000,
    });
    assert_eq!((code, &said["bundle"]), (0, &expected));
    let output = machine.command(&[Path::new(&bundle)], &[]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let judged = "by the policy, reference values and challenge inside the bundle, at \
                  2026-06-09T10:13:20Z";
    for part in [judged, &digest, &hex::encode(USER_DATA)] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Evidence itself is judged by what was given.
    assert_eq!(machine.judged().1["bundle"], Value::Null);
}

#[test]
fn flags_beside_a_bundle_say_what_must_be_inside() {
    let (machine, bundle) = bundled();
    let (references, policy) = (machine.beside("reference.toml"), machine.beside("policy.toml"));
    std::fs::write(&policy, "").unwrap();
    let data = format!("0x{}", hex::encode(USER_DATA));
    let same = ["--policy", &policy, "--reference", &references, "--report-data", &data];
    let (code, said) = again(&machine, &[&bundle], &same);
    assert_eq!((code, &said["answer"]), (0, &json!("yes")), "{said}");
    std::fs::write(&policy, "name = \"production\"\n").unwrap();
    let other = "00".repeat(64);
    for flags in [
        ["--policy", &policy],
        ["--reference", &policy],
        ["--report-data", &other],
        ["--nonce", "00"],
    ] {
        let (code, said) = again(&machine, &[&bundle], &flags);
        assert_eq!((code, &said["code"]), (1, &json!("bundle")), "{said}");
        assert!(said["reason"].as_str().unwrap().starts_with(flags[0]), "{said}");
    }
    for flags in [["--at", AT], ["--state", &policy], ["--bundle", &policy]] {
        let (code, said) = again(&machine, &[&bundle], &flags);
        assert_eq!((code, &said["code"]), (2, &json!("input")), "{said}");
        assert!(said["reason"].as_str().unwrap().starts_with(flags[0]), "{said}");
    }
}
