//! Writes the seeds of the fuzz targets: `fuzz_seeds fuzz/corpus`. All of it is signed by models
//! made on the spot, so that no evidence of real machines is in the repository.

use std::path::Path;

use casemate_attestation::UnixTime;
use casemate_attestation::azure::PCRS;
use casemate_attestation::break_list::{BREAK_LIST_TYPE, BreakList, BrokenGeneration};
use casemate_attestation::cose::Unverified;
use casemate_attestation::gpu::Report;
use casemate_attestation::tdx::BodyKind;
use casemate_model::azure::Paravisor;
use casemate_model::gpu::{DeviceSpec, GpuModel, OcspStatus};
use casemate_model::tdx::{CollateralSpec, QuoteSpec, TdxConfig, TdxModel};
use casemate_model::{PspConfig, PspModel};

const START: UnixTime = UnixTime(1_780_000_000);
const DAY: u64 = 86_400;
const NONCE: [u8; 32] = [0x5a; 32];
/// Parts of an input of several, as `fuzz/targets/gpu_device.rs` reads them.
const REPORT: u8 = 0;
const CHAIN: u8 = 1;
const OCSP: u8 = 5;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let folder = std::env::args().nth(1).ok_or("usage: fuzz_seeds FOLDER")?;
    let folder = Path::new(&folder);
    let write = |target: &str, name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(folder.join(target))?;
        std::fs::write(folder.join(target).join(name), bytes)
    };
    gpu(&write)?;
    cpu(&write)?;
    operator(&write)
}

type Write<'a> = &'a dyn Fn(&str, &str, &[u8]) -> std::io::Result<()>;

fn gpu(write: Write<'_>) -> Result<(), Failure> {
    let model = GpuModel::new(START)?;
    for (name, spec) in [("gpu", DeviceSpec::gpu(0)), ("switch", DeviceSpec::switch(0))] {
        let device = model.device(spec)?;
        let (report, chain) = (device.report(&NONCE)?, device.chain_pem());
        write("gpu_report", name, &report)?;
        write("gpu_chain", name, chain.as_bytes())?;
        let opaque: Vec<u8> = Report::parse(&report)
            .map_err(|code| format!("{code:?}"))?
            .opaque
            .fields()
            .flat_map(|(kind, value)| {
                let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
                [&kind.to_le_bytes()[..], &length.to_le_bytes(), value].concat()
            })
            .collect();
        write("gpu_opaque", name, &opaque)?;
        let source = device.spec().sources().first().ok_or("a device without firmware")?;
        let manifest = model.manifest(device.spec(), *source, START, START.plus_seconds(DAY))?;
        write("gpu_rim", name, &manifest)?;
        let mut stapled = part(CHAIN, chain.as_bytes())?;
        for response in model.ocsp_of_device(&device, OcspStatus::Good, START)? {
            stapled.extend(part(OCSP, &response)?);
        }
        write("gpu_ocsp", name, &stapled)?;
        write("gpu_device", name, &[part(REPORT, &report)?, stapled].concat())?;
    }
    Ok(())
}

fn cpu(write: Write<'_>) -> Result<(), Failure> {
    let psp = PspModel::generate(PspConfig::milan(START))?;
    let report = psp.report(&[1; 64], &[2; 48])?;
    write("snp", "report", &report)?;
    write("certificates", "vek", psp.vek_der())?;
    let tdx = TdxModel::generate(TdxConfig::new(START))?;
    write("certificates", "pck-chain", &tdx.pck_chain())?;
    for (name, version, body) in
        [("v4", 4, BodyKind::Td10), ("v5", 5, BodyKind::Td15), ("v5-extended", 5, BodyKind::Td15Ex)]
    {
        let spec = QuoteSpec { version, ..QuoteSpec::new(body, [9; 64]) };
        write("tdx_quote", name, &tdx.quote(&spec)?)?;
    }
    let collateral = tdx.collateral(&CollateralSpec::new(&tdx, START))?;
    write("tdx_collateral", "whole", &collateral.encode())?;
    write("tdx_collateral", "tcb-info", &collateral.tcb_info)?;
    write("tdx_collateral", "qe-identity", &collateral.qe_identity)?;
    write("certificates", "crl", &collateral.root_crl)?;
    let paravisor = Paravisor::generate()?;
    let runtime = paravisor.runtime(&[3; 64]);
    write("azure", "hcl", &Paravisor::snp_report(&report, &runtime))?;
    write("azure", "quote", &paravisor.quote(&NONCE, [[4; 32]; PCRS])?.encode())?;
    Ok(())
}

/// What operators and issuers write. The first byte of `signed` says which.
fn operator(write: Write<'_>) -> Result<(), Failure> {
    write("texts", "policy", include_bytes!("../../demo/policy.toml"))?;
    let psp = PspModel::generate(PspConfig::milan(START))?;
    let anchors = psp.anchor_toml("m");
    write("texts", "anchors", anchors.as_bytes())?;
    let entry = BrokenGeneration {
        id: "CVE-0".to_owned(),
        generation: "Milan".to_owned(),
        fixed_in: None,
        text: "for the seeds".to_owned(),
    };
    let list = BreakList { sequence: 1, issued_at: START, entries: vec![entry] };
    let list = list.sign(&[7; 32], |_| [0; 64]);
    let list = Unverified::parse(BREAK_LIST_TYPE, &list, list.len())?;
    write("signed", "break-list", &[&[0], list.unverified_payload()].concat())?;
    let claims = br#"{"iss":"i","aud":"a","nbf":1789000000,"exp":1791000000}"#;
    write("signed", "claims", &[&[1], &claims[..]].concat())?;
    Ok(())
}

/// One part: its kind, its length, its bytes (`fuzz/src/lib.rs`).
fn part(kind: u8, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    let length = u16::try_from(bytes.len())?.to_le_bytes();
    Ok([&[kind][..], &length, bytes].concat())
}
