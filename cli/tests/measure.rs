//! `casemate measure` as a person types it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

use std::path::Path;
use std::process::{Command, Stdio};

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

#[test]
fn observed_registers_are_compared() {
    let digest = hex::encode([1; 48]);
    let wanted = hex::encode(extend(&[0; 48], &[1; 48]));
    let arguments = ["rtmr", "--digests", digest.as_str(), "--observed"];
    let prefixed = format!("0x{wanted}");
    let (code, said) = as_json(&[&arguments[..], &[&prefixed]].concat());
    assert_eq!((code, &said["observed"]["same"]), (0, &json!(true)), "{said}");
    let (code, said) = as_json(&[&arguments[..], &[&digest]].concat());
    assert_eq!((code, &said["answer"]), (1, &json!("no")), "{said}");
    assert_eq!(
        said["observed"]["differences"],
        json!([format!("register: expected {wanted}, observed {digest}")])
    );
    let (code, said) = run(&[&arguments[..], &[&digest]].concat());
    assert_eq!((code, said.contains("the observed registers are others")), (1, true), "{said}");
    let two = format!("{digest},{digest}");
    let (code, said) = as_json(&[&arguments[..], &[&two]].concat());
    let expected = json!("--observed: expected 1 digests, one for each register, got 2");
    assert_eq!((code, &said["reason"]), (2, &expected));
}

#[test]
fn an_image_is_measured_and_an_observed_digest_explained() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("kernel", "k"), ("initrd", "i"), ("cmdline", "quiet")] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let path = folder.path().to_str().unwrap();
    let digest = |vcpus: &str| {
        let (code, said) = as_json(&["image", path, "--vcpus", vcpus]);
        assert_eq!(code, 0, "{said}");
        said["digest"].as_str().unwrap().to_owned()
    };
    let (one, three) = (digest("1"), digest("3"));
    assert_eq!(as_json(&["image", path, "--observed", &one]).0, 0);
    let (code, said) = as_json(&["image", path, "--observed", &three]);
    assert_eq!((code, &said["answer"]), (1, &json!("no")), "{said}");
    let difference = json!(["virtual CPUs: expected 1, launched with 3"]);
    assert_eq!(said["observed"]["differences"], difference);
    let (code, said) = as_json(&["image", "/nowhere"]);
    let reason = said["reason"].as_str().unwrap();
    assert_eq!((code, reason.matches("No such file").count()), (2, 1), "{reason}");
}

#[test]
fn no_argument_is_ignored_or_bent() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("code.fd");
    firmware(&file, 0);
    let file = file.to_str().unwrap();
    for (flags, part) in [
        (&["--cmdline", "quiet"][..], "--kernel"),
        (&["--initrd", file], "--kernel"),
        (&["--svsm", file, "--kernel", file], "cannot be used with"),
        (&["--svsm", file, "--initrd", file], "cannot be used with"),
        (&["--svsm", file, "--cmdline", "quiet"], "cannot be used with"),
        (&["--svsm", file, "--vmm", "gce"], "cannot be used with"),
        (&["--svsm", file, "--features", "21"], "cannot be used with"),
        (&["--vars-bytes", "1"], "--svsm"),
        (&["--cpu", "25,1,200"], "--cpu: expected a stepping of 0 to 15, got 200"),
        (&["--cpu", "25,1"], "--cpu: expected QEMU's name"),
        (&["--features", "0"], "--features: expected bit 0 (SNPActive)"),
        (&["--features", "0x20"], "--features: expected bit 0 (SNPActive)"),
        (&["--features", "0x0x1"], "--features: expected up to 16 hex digits"),
        (&["--observed", "00"], "--observed: expected 48 bytes, got 1"),
        (&["--observed", "zz"], "--observed: expected hex digits"),
    ] {
        let (code, said) = as_json(&[&["snp", "--firmware", file], flags].concat());
        assert_eq!((code, &said["code"]), (2, &json!("input")), "{said}");
        assert!(said["reason"].as_str().unwrap().contains(part), "{part}: {said}");
    }
    for (arguments, part) in [
        (&["snp"][..], "--firmware <FILE>"),
        (&["rtmr"], "<--log <FILE>|--digests <HEX>>"),
        (&["rtmr", "--log", file, "--digests", "00"], "cannot be used with"),
        (&["rtmr", "--digests", "00"], "--digests: expected 48 bytes, got 1"),
        (&["tdx", "--firmware", file, "--observed", "00"], "--observed: expected 48 bytes"),
        (&["tdx", "--firmware", "/dev/zero"], "/dev/zero: expected at most 67108864 bytes"),
        (&["snp", "--firmware", "/dev/zero"], "/dev/zero: expected at most 67108864 bytes"),
        (&["rtmr", "--log", "/dev/zero"], "/dev/zero: expected at most"),
    ] {
        let (code, said) = as_json(arguments);
        assert_eq!((code, &said["code"]), (2, &json!("input")), "{said}");
        assert!(said["reason"].as_str().unwrap().contains(part), "{part}: {said}");
    }
}

#[test]
fn a_stdout_that_does_not_take_it_is_no_panic() {
    let digest = hex::encode([1; 48]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
    command.args(["measure", "rtmr", "--digests", &digest, "--observed", &digest]);
    for flags in [&[][..], &["--json"]] {
        command.args(flags);
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command.stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("cannot write to standard output"), "{said}");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(1), &b""[..]));
    }
}
