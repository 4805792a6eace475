//! Modelled machines in directories, and runs of `casemate verify` over them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use casemate_attestation::UnixTime;
use casemate_attestation::azure::PCRS;
use casemate_attestation::tdx::BodyKind;
use casemate_model::azure::Paravisor;
use casemate_model::tdx::{CollateralSpec, QuoteSpec, TdxConfig, TdxModel};
use casemate_model::{PspConfig, PspModel};
use serde_json::Value;

pub(crate) const START: UnixTime = UnixTime(1_780_000_000);
pub(crate) const AT: &str = "1781000000";
pub(crate) const USER_DATA: [u8; 64] = [0xab; 64];
pub(crate) const NONCE: &[u8] = b"challenge";
const MEASUREMENT: [u8; 48] = [9; 48];

/// A directory with the evidence of one machine.
pub(crate) struct Machine {
    pub(crate) folder: tempfile::TempDir,
}

/// One processor for all tests: its RSA keys take seconds.
pub(crate) fn psp() -> &'static PspModel {
    static PSP: LazyLock<PspModel> =
        LazyLock::new(|| PspModel::generate(PspConfig::milan(START)).unwrap());
    &PSP
}

impl Machine {
    pub(crate) fn new(files: &[(&str, &[u8])], anchor: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("evidence")).unwrap();
        std::fs::write(folder.path().join("trust.toml"), anchor).unwrap();
        let machine = Self { folder };
        files.iter().for_each(|(name, bytes)| machine.put(name, bytes));
        machine
    }

    /// A machine whose one report is a yes with [`Self::yes_flags`].
    pub(crate) fn affirmed() -> Self {
        let report = psp().report(&USER_DATA, &MEASUREMENT).unwrap();
        let files = [("report.bin", &report[..]), ("vek.der", psp().vek_der())];
        let machine = Self::new(&files, &format!("vendor = []\n{}", psp().anchor_toml("model")));
        let digest = hex::encode(MEASUREMENT);
        let text = format!("[[image]]\nlabel = \"i\"\nsnp_measurements = [\"{digest}\"]\n");
        std::fs::write(machine.folder.path().join("reference.toml"), text).unwrap();
        machine
    }

    pub(crate) fn yes_flags(&self) -> Vec<String> {
        let references = self.beside("reference.toml");
        ["--reference", &references, "--report-data", &hex::encode(USER_DATA)]
            .map(str::to_owned)
            .to_vec()
    }

    /// The list of the root on which the machine's own key is.
    pub(crate) fn revoking() -> Vec<u8> {
        let vek = casemate_attestation::x509::Certificate::parse(psp().vek_der()).unwrap();
        psp().crl(&[vek.serial()], START, START.plus_seconds(365 * 86_400)).unwrap()
    }

    /// A file in the evidence's folder, in a folder of its own if its name has one.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("evidence").join(name)
    }

    /// The path of a file that lies beside the evidence's folder.
    pub(crate) fn beside(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path("")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The exit code and the object of a run with `--json`.
    pub(crate) fn json(&self, paths: &[&Path], flags: &[&str]) -> (i32, Value) {
        let output = self.run(paths, &[flags, &["--json"]].concat(), b"");
        assert!(!output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
    }

    /// [`Self::json`] over the whole folder, with the flags of a yes.
    pub(crate) fn judged(&self) -> (i32, Value) {
        let flags = self.yes_flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        self.json(&[&self.path("")], &flags)
    }

    pub(crate) fn run(&self, paths: &[&Path], flags: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(paths, &[&["--at", AT], flags].concat());
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A program that never asks for its input closes it.
        let _closed = std::io::Write::write_all(&mut stdin, input);
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    pub(crate) fn command(&self, paths: &[&Path], flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        command.arg("verify").args(paths).arg("--trust").arg(self.beside("trust.toml"));
        command.args(flags).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

pub(crate) fn pem(der: &[u8]) -> Vec<u8> {
    block("CERTIFICATE", der)
}

pub(crate) fn block(label: &str, der: &[u8]) -> Vec<u8> {
    let base64 = STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n").into_bytes()
}

pub(crate) fn outcome<'a>(said: &'a Value, rule: &str) -> &'a str {
    let checks = said["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["rule"] == rule);
    check.map_or("(not listed)", |check| check["outcome"].as_str().unwrap())
}

pub(crate) fn snp_machine() -> Machine {
    let paravisor = Paravisor::generate().unwrap();
    let runtime = paravisor.runtime(&USER_DATA);
    let report = psp().report(&Paravisor::report_data(&runtime), &MEASUREMENT).unwrap();
    let quote = paravisor.quote(NONCE, [[7; 32]; PCRS]).unwrap();
    let files = [
        ("hcl.bin", &Paravisor::snp_report(&report, &runtime)[..]),
        ("quote.cbor", &quote.encode()),
        ("vek.der", psp().vek_der()),
    ];
    Machine::new(&files, &format!("vendor = []\n{}", psp().anchor_toml("model")))
}

pub(crate) fn tdx_machine() -> Machine {
    tdx_machine_of_model().1
}

pub(crate) fn tdx_machine_of_model() -> (TdxModel, Machine) {
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
    let machine = Machine::new(&files, &format!("vendor = []\n{}", tdx.anchor_toml("model")));
    (tdx, machine)
}
