//! What is wrong with evidence, arguments and standard output is said by name.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use casemate_attestation::UnixTime;
use casemate_attestation::tdx::BodyKind;
use casemate_model::tdx::{QuoteSpec, TdxConfig, TdxModel};
use serde_json::{Value, json};

use crate::machine::{Machine, START, USER_DATA, psp, snp_machine, tdx_machine};

#[test]
fn damaged_evidence_is_refused_by_name() {
    let machine = Machine::affirmed();
    let report = psp().report(&USER_DATA, &[9; 48]).unwrap();
    let spec = QuoteSpec::new(BodyKind::Td10, USER_DATA);
    let quote = TdxModel::generate(TdxConfig::new(START)).unwrap().quote(&spec).unwrap();
    let with = |bytes: &[u8], at: usize, byte: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = byte;
        bytes
    };
    let collateral = tdx_machine();
    for (bytes, code) in [
        (report[..1183].to_vec(), "length"),
        ([&report[..], b"\n"].concat(), "length"),
        (with(&report, 0, 20), "version"),
        (with(&report, 0x34, 2), "signature-algorithm"),
        (with(&quote, 0, 6), "version"),
        (with(&quote, 4, 0), "tee-type"),
    ] {
        machine.put("report.bin", &bytes);
        let mut paths = vec![machine.path("report.bin"), machine.path("vek.der")];
        if code == "tee-type" || bytes.first() == Some(&6) {
            let parts = ["tcb_info.json", "qe_identity.json", "chain.pem", "root.crl", "pck.crl"];
            paths.extend(parts.map(|name| collateral.path(name)));
            std::fs::copy(collateral.beside("trust.toml"), machine.beside("trust.toml")).unwrap();
        }
        let paths: Vec<&Path> = paths.iter().map(|path| path.as_path()).collect();
        let (exit, said) = machine.json(&paths, &[]);
        assert_eq!((exit, &said["code"]), (1, &json!(code)), "{said}");
    }
    machine.put("report.bin", b"what");
    let (code, said) = machine.json(&[&machine.path("report.bin")], &[]);
    assert_eq!((code, &said["code"]), (2, &json!("input")), "{said}");
    assert!(
        said["reason"].as_str().unwrap().ends_with("got 4 bytes that begin 77686174"),
        "{said}"
    );
    // An object of ours of a later version says that itself.
    machine.put("report.bin", &[0xa2, 1, 9, 2, 0x80]);
    let (_, said) = machine.json(&[&machine.path("report.bin")], &[]);
    assert!(said["reason"].as_str().unwrap().contains("version"), "{said}");
}

#[test]
fn evidence_without_its_report_is_no_no() {
    let machine = tdx_machine();
    // A log of nothing: the header entry alone (TCG PFP 1.06, 10.4.5.1).
    let mut log = vec![0; 32];
    log[4] = 3;
    let body =
        [&b"Spec ID Event03\0"[..], &[0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 48, 0, 0]]
            .concat();
    log[28] = u8::try_from(body.len()).unwrap();
    log.extend(body);
    machine.put("log.bin", &log);
    for name in ["hcl.bin", "vtpm.cbor", "log.bin"] {
        let (code, said) = machine.json(&[&machine.path(name)], &[]);
        assert_eq!((code, &said["answer"]), (2, &json!("could not tell")), "{name}: {said}");
        assert!(["event-log", "hcl-binding"].contains(&said["code"].as_str().unwrap()), "{said}");
    }
    // A log that does not replay to the quote beside it is refused.
    let (code, said) = machine.json(&[&machine.path("")], &[]);
    assert_eq!((code, &said["code"]), (1, &json!("event-log")), "{said}");
}

#[test]
fn a_stdout_that_does_not_take_it_is_no_panic() {
    let machine = Machine::affirmed();
    let (folder, other) = (machine.path(""), "00".repeat(64));
    for flags in [&["--at", "1781000000"][..], &["--at", "1781000000", "--json"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = machine.command(&[&folder], flags).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("cannot write to standard output"), "{said}");
        // Whoever stops to read gets the answer's exit code all the same.
        let flags = [flags, &["--report-data", &other]].concat();
        let mut child = machine.command(&[&folder], &flags).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said.as_str()), (Some(1), ""));
    }
    // Nor is a standard error.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let status = machine.command(&[Path::new("/nowhere")], &[]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn arguments_that_do_not_read_are_one_object_too() {
    let machine = Machine::affirmed();
    let folder = machine.path("");
    // The lock beside it needs a place.
    let state = machine.beside("state.json");
    std::os::unix::fs::symlink("/dev/zero", &state).unwrap();
    for (flags, part) in [
        (&["--at", "tomorrow"][..], "2025-01-31T00:00:00Z"),
        (&["--at"], "--at"),
        (&["--colour"], "--colour"),
        (&["--nonce", ""], "--nonce: expected at least one byte"),
        (&["--nonce", "0g"], "--nonce"),
        (&["--nonce", "00"], "--nonce: expected the HCL report"),
        (&["--report-data", "0x00"], "--report-data: expected 64 bytes, got 1"),
        (&["--policy", "/dev/zero"], "/dev/zero: expected at most 262144 bytes"),
        (&["--reference", "/dev/zero"], "/dev/zero: expected at most 262144 bytes"),
        (&["--trust", "/dev/zero"], "/dev/zero: expected at most"),
        (&["--state", &state], "--state: "),
    ] {
        let trust = machine.beside("trust.toml");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_casemate"));
        command.arg("verify").arg(&folder).args(["--json"]).args(flags).stdin(Stdio::null());
        if flags[0] != "--trust" {
            command.args(["--trust", &trust]);
        }
        if flags[0] != "--at" {
            command.args(["--at", "2026-06-09"]);
        }
        let output = command.output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((output.status.code(), &said["code"]), (Some(2), &json!("input")), "{said}");
        assert!(said["reason"].as_str().unwrap().contains(part), "{part}: {said}");
        assert!(!output.stderr.is_empty());
    }
    let many = snp_machine();
    (0..70).for_each(|at| many.put(&format!("{at}.txt"), b"a note"));
    let (code, said) = many.json(&[&many.path("")], &[]);
    assert_eq!(code, 2);
    assert!(said["reason"].as_str().unwrap().contains("at most 64 files, got 73"), "{said}");
}

#[test]
fn risks_line_up() {
    let machine = Machine::affirmed();
    let flags = machine.yes_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let output = machine.run(&[&machine.path("")], &flags, b"");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\nlow        ") && text.contains("\nhigh       "), "{text}");
    assert_eq!(UnixTime(1_781_000_000).rfc3339(), "2026-06-09T10:13:20Z");
}
