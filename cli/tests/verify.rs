//! `casemate verify` as a person types it: evidence of modelled machines in
//! files, in directories and on standard input; what it prints, and its exit code.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "verify/bundles.rs"]
mod bundles;
#[path = "verify/input.rs"]
mod input;
#[path = "verify/left_out.rs"]
mod left_out;
#[path = "verify/machine.rs"]
mod machine;

use std::path::{Path, PathBuf};
use std::process::Command;

use casemate_attestation::azure::PCRS;
use casemate_attestation::tdx::BodyKind;
use casemate_model::azure::Paravisor;
use casemate_model::tdx::{CollateralSpec, QuoteSpec, TdxConfig, TdxModel};
use serde_json::{Value, json};

use machine::{Machine, NONCE, START, USER_DATA, outcome, pem, psp, snp_machine, tdx_machine};

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
        ("90.vek.pem".to_owned(), pem(psp().vek_der())),
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
