//! `casemate verify` as a person types it: evidence of modelled machines in
//! files, in directories and on standard input; what it prints, and its exit code.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use casemate_attestation::azure::PCRS;
use casemate_attestation::bundle::{Asked, Verdict};
use casemate_attestation::tdx::BodyKind;
use casemate_attestation::{Bundle, Endorsements, UnixTime};
use casemate_model::azure::Paravisor;
use casemate_model::tdx::{CollateralSpec, QuoteSpec, TdxConfig, TdxModel};
use casemate_model::{PspConfig, PspModel};
use serde_json::{Value, json};

const START: UnixTime = UnixTime(1_780_000_000);
const AT: &str = "1781000000";
const USER_DATA: [u8; 64] = [0xab; 64];
const NONCE: &[u8] = b"challenge";

/// A directory with the evidence of one Azure machine.
struct Machine {
    folder: tempfile::TempDir,
}

#[test]
fn azure_evidence_of_both_kinds_is_told_by_content() {
    for machine in [snp_machine(), tdx_machine()] {
        let folder = machine.path("");
        // The whole directory, and each of its files.
        let files: Vec<PathBuf> = machine.files();
        let names: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        for paths in [&[folder.as_path()][..], &names] {
            let nonce = hex::encode(NONCE);
            let (code, json) = machine.json(paths, &["--nonce", &nonce]);
            assert_eq!((code, &json["answer"]), (2, &json!("could not tell")), "{json}");
            assert_eq!(outcome(&json, "azure.nonce"), "pass", "{json}");
            assert_eq!(outcome(&json, "evidence.bound"), "pass", "{json}");
            assert_eq!(json["hardware"], "model");
            let (code, json) = machine.json(paths, &["--nonce", "00"]);
            assert_eq!((code, outcome(&json, "azure.nonce")), (1, "fail"), "{json}");
            let why = json["machine"][0]["reasons"].to_string();
            assert!(why.contains("azure.nonce"), "{why}");
        }
        let (code, json) = machine.json(&[&folder], &["--report-data", &hex::encode(USER_DATA)]);
        assert_eq!((code, outcome(&json, "azure.user-data")), (2, "pass"), "{json}");
    }
}

#[test]
fn a_pipe_in_a_folder_is_left_out() {
    let machine = snp_machine();
    let pipe = Command::new("mkfifo").arg(machine.path("pipe")).status().unwrap();
    assert!(pipe.success());
    let (code, json) = machine.json(&[&machine.path("")], &["--nonce", &hex::encode(NONCE)]);
    assert_eq!((code, outcome(&json, "evidence.bound")), (2, "pass"), "{json}");
}

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
fn what_is_missing_or_wrong_is_named() {
    let machine = snp_machine();
    let hcl = machine.path("hcl.bin");
    let (code, json) = machine.json(&[&hcl], &[]);
    assert_eq!((code, &json["code"]), (2, &json!("cert-missing")), "{json}");
    let mut bytes = std::fs::read(&hcl).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&hcl, bytes).unwrap();
    let (code, json) = machine.json(&[&machine.path("")], &[]);
    assert_eq!((code, &json["code"]), (1, &json!("hcl-binding")), "{json}");
}

#[test]
fn the_json_of_trustee_is_read_from_standard_input() {
    let machine = snp_machine();
    let read = |name: &str| std::fs::read(machine.path(name)).unwrap();
    let paravisor = Paravisor::generate().unwrap();
    let quote = paravisor.quote(NONCE, [[7; 32]; PCRS]).unwrap();
    let pcrs: Vec<String> = quote.pcrs.iter().map(hex::encode).collect();
    let text = json!({
        "version": 2,
        "hcl_report": hex::encode(read("hcl.bin")),
        "vcek": hex::encode(read("vek.der")),
        "tpm_quote": {
            "message": hex::encode(&quote.message),
            "signature": quote.signature,
            "pcrs": pcrs,
        },
    });
    // The certificate's chain is the anchor's; the quote is another vTPM's.
    let output = machine.run(&[Path::new("-")], &["--json"], text.to_string().as_bytes());
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &said["code"]), (Some(1), &json!("hcl-quote")), "{said}");
}

#[test]
fn a_folder_may_hold_the_collateral_of_every_family() {
    let tdx = TdxModel::generate(TdxConfig::new(START)).unwrap();
    let quote = tdx.quote(&QuoteSpec::new(BodyKind::Td15, USER_DATA)).unwrap();
    let psp = PspModel::generate(PspConfig::milan(START)).unwrap();
    let own = CollateralSpec::new(&tdx, START);
    let collateral = tdx.collateral(&own).unwrap();
    let pck_crl = collateral.pck_crls.first().unwrap();
    // The machine's family is neither the first nor the last in the folder, and
    // the last PEM file is no signing chain.
    let mut files = vec![
        ("00.quote".to_owned(), quote),
        ("10.qe.json".to_owned(), collateral.qe_identity.clone()),
        ("20.chain.pem".to_owned(), collateral.tcb_signing_chain.clone()),
        ("30.root.crl".to_owned(), collateral.root_crl.clone()),
        ("40.pck.crl".to_owned(), pck_crl.clone()),
        ("90.vek.pem".to_owned(), pem(psp.vek_der())),
        ("91.pck.pem".to_owned(), tdx.pck_chain()),
    ];
    for (at, family) in [0, own.fmspc[1], 2, 3].into_iter().enumerate() {
        let mut spec = own.clone();
        spec.fmspc[1] = family;
        let info = tdx.collateral(&spec).unwrap().tcb_info;
        files.push((format!("5{at}.tcb_info.json"), info));
    }
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    let machine = Machine::new(&files, &format!("vendor = []\n{}", tdx.anchor_toml("model")));
    let flags = ["--report-data", &hex::encode(USER_DATA)];
    let (code, json) = machine.json(&[&machine.path("")], &flags);
    assert_eq!((code, outcome(&json, "tdx.tcb-status")), (2, "pass"), "{json}");
    assert_eq!(outcome(&json, "tdx.report-data"), "pass", "{json}");
    // Without its own family's, what is there is of others.
    std::fs::remove_file(machine.path("51.tcb_info.json")).unwrap();
    let (code, json) = machine.json(&[&machine.path("")], &flags);
    assert_eq!((code, &json["code"]), (1, &json!("fmspc")), "{json}");
}

impl Machine {
    fn new(files: &[(&str, &[u8])], anchor: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let evidence = folder.path().join("evidence");
        std::fs::create_dir(&evidence).unwrap();
        for (name, bytes) in files {
            std::fs::write(evidence.join(name), bytes).unwrap();
        }
        std::fs::write(folder.path().join("trust.toml"), anchor).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("evidence").join(name)
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path("")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    fn json(&self, paths: &[&Path], flags: &[&str]) -> (i32, Value) {
        let output = self.run(paths, &[flags, &["--json"]].concat(), b"");
        assert!(!output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
    }

    fn run(&self, paths: &[&Path], flags: &[&str], input: &[u8]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_casemate"))
            .arg("verify")
            .args(paths)
            .args(["--at", AT, "--trust"])
            .arg(self.folder.path().join("trust.toml"))
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A program that never asks for its input closes it.
        let _closed = std::io::Write::write_all(&mut stdin, input);
        drop(stdin);
        child.wait_with_output().unwrap()
    }
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

#[test]
fn endorsements_older_than_the_state_are_refused() {
    let tdx = TdxModel::generate(TdxConfig::new(START)).unwrap();
    let quote = tdx.quote(&QuoteSpec::new(BodyKind::Td15, USER_DATA)).unwrap();
    let set = |number: u32| {
        let mut spec = CollateralSpec::new(&tdx, START);
        spec.evaluation_number = number;
        tdx.collateral(&spec).unwrap()
    };
    let reference = format!(
        "[[image]]\nlabel = \"i\"\n[[image.tdx]]\nmrtd = \"{}\"\nrtmr1 = \"{}\"\nrtmr2 = \"{}\"\n",
        "4d".repeat(48),
        "a1".repeat(48),
        "a2".repeat(48)
    );
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("reference.toml"), reference).unwrap();
    let (state, references, data) =
        (at("state.json"), at("reference.toml"), hex::encode(USER_DATA));
    let bundle = at("bundle");
    let flags = ["--state", &state, "--reference", &references, "--report-data", &data];
    for (number, grace, answer, code) in [
        (20, "0", "yes", None),
        (21, "0", "yes", None),
        (20, "7", "yes", None),
        (20, "0", "no", Some("collateral-rollback")),
    ] {
        drop(std::fs::remove_file(&bundle));
        let more = ["--state-grace-days", grace, "--bundle", &bundle];
        let collateral = set(number);
        let files = [
            ("quote.bin", &quote[..]),
            ("tcb_info.json", &collateral.tcb_info),
            ("qe_identity.json", &collateral.qe_identity),
            ("chain.pem", &collateral.tcb_signing_chain),
            ("root.crl", &collateral.root_crl),
            ("pck.crl", collateral.pck_crls.first().unwrap()),
        ];
        let machine = Machine::new(&files, &format!("vendor = []\n{}", tdx.anchor_toml("model")));
        let run = || machine.json(&[&machine.path("")], &[&flags[..], &more].concat());
        // Another run that has the state is waited for.
        let other = std::fs::File::open(format!("{state}.lock")).ok();
        let (_, said) = std::thread::scope(|scope| {
            other.iter().for_each(|file| file.lock().unwrap());
            let run = scope.spawn(run);
            if let Some(other) = other {
                std::thread::sleep(std::time::Duration::from_millis(400));
                assert!(!run.is_finished());
                drop(other);
            }
            run.join().unwrap()
        });
        assert_eq!((&said["answer"], said["code"].as_str()), (&json!(answer), code), "{said}");
        // What is refused before it is judged leaves no bundle.
        assert_eq!(std::fs::exists(&bundle).unwrap(), code.is_none());
    }
    // A state that does not read is no reason to forget it.
    std::fs::write(at("state.json"), "{}").unwrap();
    let machine = snp_machine();
    let (code, said) = machine.json(&[&machine.path("")], &flags[..2]);
    assert_eq!((code, &said["code"]), (2, &json!("input")), "{said}");
}

fn pem(der: &[u8]) -> Vec<u8> {
    let base64 = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n").into_bytes()
}

fn outcome<'a>(said: &'a Value, rule: &str) -> &'a str {
    let checks = said["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["rule"] == rule);
    check.map_or("(not listed)", |check| check["outcome"].as_str().unwrap())
}

fn snp_machine() -> Machine {
    let psp = PspModel::generate(PspConfig::milan(START)).unwrap();
    let paravisor = Paravisor::generate().unwrap();
    let runtime = paravisor.runtime(&USER_DATA);
    let report = psp.report(&Paravisor::report_data(&runtime), &[9; 48]).unwrap();
    let quote = paravisor.quote(NONCE, [[7; 32]; PCRS]).unwrap();
    let files = [
        ("hcl.bin", &Paravisor::snp_report(&report, &runtime)[..]),
        ("quote.cbor", &quote.encode()),
        ("vek.der", psp.vek_der()),
    ];
    Machine::new(&files, &format!("vendor = []\n{}", psp.anchor_toml("model")))
}

fn tdx_machine() -> Machine {
    let tdx = TdxModel::generate(TdxConfig::new(START)).unwrap();
    let paravisor = Paravisor::generate().unwrap();
    let runtime = paravisor.runtime(&USER_DATA);
    let spec = QuoteSpec::new(BodyKind::Td10, Paravisor::report_data(&runtime));
    let collateral = tdx.collateral(&CollateralSpec::new(&tdx, START)).unwrap();
    let quote = paravisor.quote(NONCE, [[7; 32]; PCRS]).unwrap();
    let files = [
        ("hcl.bin", &Paravisor::tdx_report(&runtime)[..]),
        ("vtpm.cbor", &quote.encode()),
        ("quote.bin", &tdx.quote(&spec).unwrap()),
        ("tcb_info.json", &collateral.tcb_info),
        ("qe_identity.json", &collateral.qe_identity),
        ("chain.pem", &collateral.tcb_signing_chain),
        ("root.crl", &collateral.root_crl),
        ("pck.crl", collateral.pck_crls.first().unwrap()),
    ];
    Machine::new(&files, &format!("vendor = []\n{}", tdx.anchor_toml("model")))
}
