//! `casemate measure` as a person types it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

use std::path::Path;
use std::process::Command;

use casemate_attestation::eventlog::extend;
use serde_json::{Value, json};

fn run(arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
    let output = command.arg("measure").args(arguments).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

fn as_json(arguments: &[&str]) -> (i32, Value) {
    let (code, text) = run(&[arguments, &["--json"]].concat());
    (code, serde_json::from_str(&text).unwrap())
}

/// A firmware of two pages that lists itself as the one measured section, at the
/// end of a flash that has `before` bytes more.
fn firmware(path: &Path, before: u32) {
    let mut image = vec![0xa5; 8192];
    let gpa = 0_u32.wrapping_sub(8192);
    let metadata = [0x4656_4454, 48, 1, 1, before, 8192, gpa, 0, 8192, 0, 0, 1];
    let metadata: Vec<u8> = metadata.iter().flat_map(|word| word.to_le_bytes()).collect();
    image[64..64 + metadata.len()].copy_from_slice(&metadata);
    image[8160..8164].copy_from_slice(&64_u32.to_le_bytes());
    std::fs::write(path, image).unwrap();
}

#[test]
fn an_mrtd_is_measured_and_recognized() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    firmware(Path::new(&file("whole.fd")), 0);
    let whole = file("whole.fd");
    let arguments = ["tdx", "--firmware", whole.as_str()];
    let (code, said) = as_json(&arguments);
    assert_eq!((code, &said["version"], &said["kind"]), (0, &json!(1), &json!("mrtd")));
    assert_eq!((&said["absent_bytes"], &said["observed"]), (&json!(0), &Value::Null));
    let two_pass = said["digests"]["two-pass"].as_str().unwrap();
    let (code, said) = as_json(&[&arguments[..], &["--observed", two_pass]].concat());
    assert_eq!((code, &said["observed"]["order"]), (0, &json!("two-pass")));
    let (code, said) = as_json(&[&arguments[..], &["--observed", &"00".repeat(48)]].concat());
    assert_eq!(
        (code, &said["answer"], &said["observed"]["same"]),
        (1, &json!("no"), &json!(false))
    );
    // The end of a larger flash: said, and of the same measure.
    firmware(Path::new(&file("code.fd")), 4096);
    let code_alone = file("code.fd");
    let (code, said) = run(&["tdx", "--firmware", &code_alone]);
    assert_eq!(code, 0);
    assert!(said.contains("0x1000 bytes before it are not measured"), "{said}");
}

#[test]
fn a_register_is_replayed_from_digests() {
    let (first, second) = ([1; 48], [2; 48]);
    let list = format!("{},{}", hex::encode(first), hex::encode(second));
    let (code, said) = as_json(&["rtmr", "--digests", &list]);
    let wanted = extend(&extend(&[0; 48], &first), &second);
    assert_eq!((code, &said["rtmrs"]), (0, &json!([hex::encode(wanted)])), "{said}");
    let (code, said) = as_json(&["rtmr", "--log", "/nowhere"]);
    assert_eq!((code, &said["code"]), (2, &json!("input")), "{said}");
    assert_eq!(run(&["rtmr"]).0, 2);
    assert_eq!(run(&["rtmr", "--digests", "00"]).0, 2);
}
