//! Writes the seeds of the fuzz targets: `fuzz_seeds fuzz/corpus`. All of it is signed by models
//! made on the spot, so that no evidence of real machines is in the repository.

use std::path::Path;

use casemate_attestation::azure::PCRS;
use casemate_attestation::break_list::{BREAK_LIST_TYPE, BreakList, BrokenGeneration};
use casemate_attestation::cose::Unverified;
use casemate_attestation::gpu::Report;
use casemate_attestation::tdx::{BodyKind, Collateral};
use casemate_attestation::{EndorsementKind, Evidence, EvidenceItem, EvidenceKind, UnixTime};
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
    machines(write, &psp, &report, &tdx, &collateral)?;
    let paravisor = Paravisor::generate()?;
    let runtime = paravisor.runtime(&[3; 64]);
    write("azure", "hcl", &Paravisor::snp_report(&report, &runtime))?;
    write("azure", "quote", &paravisor.quote(&NONCE, [[4; 32]; PCRS])?.encode())?;
    Ok(())
}

/// Whole machines, and what firmware brings.
fn machines(
    write: Write<'_>,
    psp: &PspModel,
    report: &[u8],
    tdx: &TdxModel,
    collateral: &Collateral,
) -> Result<(), Failure> {
    let item = |kind, evidence: &[u8], endorsements| EvidenceItem {
        kind,
        evidence: evidence.to_vec(),
        endorsements,
    };
    let sent = vec![(EndorsementKind::SnpCertTable, psp.cert_table())];
    let snp = Evidence { items: vec![item(EvidenceKind::SnpReport, report, sent)] };
    let quote = tdx.quote(&QuoteSpec::new(BodyKind::Td15, [9; 64]))?;
    let sent = vec![(EndorsementKind::TdxCollateral, collateral.encode())];
    let log = item(EvidenceKind::EventLog, &event_log(), vec![]);
    let tdx = Evidence { items: vec![item(EvidenceKind::TdxQuote, &quote, sent), log] };
    for (name, evidence) in [("snp", snp), ("tdx", tdx)] {
        write("verify", name, &evidence.encode())?;
        write("formats", name, &evidence.encode())?;
    }
    write("formats", "bundle", include_bytes!("../tests/data/bundle-v1.cbor"))?;
    write("event_log", "log", &event_log())?;
    write("firmware", "ovmf", &firmware())?;
    // Object and change, as `fuzz/targets/genuine.rs` reads them: two bytes for an offset.
    let changes = [
        part(0x10, &[0x50, 0, 1])?,
        part(0x04, &[9, 0, 7])?,
        part(0x25, &[0, 2, b'-', b'-'])?,
        part(0x36, &[40, 0, 0, 0, 0, 0])?,
        part(0x1b, &[60, 0, 0xff])?,
    ];
    for (number, change) in changes.iter().enumerate() {
        write("genuine", &format!("change-{number}"), change)?;
    }
    write("genuine", "all", &changes.concat())?;
    Ok(())
}

/// A log of one event, as firmware writes it.
fn event_log() -> Vec<u8> {
    let spec_id =
        [b"Spec ID Event03\0".as_slice(), &[0; 8], &[1, 0, 0, 0, 12, 0, 48, 0, 0]].concat();
    let mut log = [&[1, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20], &[33, 0, 0, 0], &spec_id].concat();
    log.extend([2, 0, 0, 0, 13, 0, 0, 0, 1, 0, 0, 0, 12, 0]);
    log.extend([7; 48]);
    log.extend([4, 0, 0, 0, 1, 2, 3, 4]);
    log.extend([0xff; 16]);
    log
}

/// An image of one page with OVMF's table: reset block, hash table, SEV and TDX metadata.
fn firmware() -> Vec<u8> {
    const PAGE: usize = 4096;
    let numbers =
        |all: &[u32]| -> Vec<u8> { all.iter().flat_map(|one| one.to_le_bytes()).collect() };
    let sev = [b"ASEV".as_slice(), &numbers(&[28, 1, 1, 0x80_0000, 0x1000, 1])].concat();
    let tdx = [b"TDVF".as_slice(), &numbers(&[48, 1, 1, 0, 4096, 0xffff_f000, 0, 4096, 0, 0, 1])];
    let tdx = tdx.concat();
    let guid = |first: u32, second: u16, third: u16, rest: u64| {
        [&first.to_le_bytes()[..], &second.to_le_bytes(), &third.to_le_bytes(), &rest.to_be_bytes()]
            .concat()
    };
    let mut table = Vec::new();
    let mut entry = |data: &[u8], guid: &[u8]| {
        table.extend(data);
        table.extend(u16::try_from(data.len() + 18).unwrap_or_default().to_le_bytes());
        table.extend(guid);
    };
    entry(&numbers(&[0x80_b004]), &guid(0x00f7_71de, 0x1a7e, 0x4fcb, 0x890e_68c7_7e2f_b44e));
    entry(&numbers(&[0x81_0c00, 0x400]), &guid(0x7255_371f, 0x3a3b, 0x4b04, 0x927b_1da6_efa8_d454));
    // Offsets from the end of the image; TDX's to its first section, behind a GUID.
    entry(&numbers(&[2048]), &guid(0xdc88_6566, 0x984a, 0x4798, 0xa75e_5585_a7bf_67cc));
    entry(&numbers(&[1024]), &guid(0xe47a_6535, 0x984a, 0x4798, 0x865e_4685_a7bf_8ec2));
    let length = u16::try_from(table.len() + 18).unwrap_or_default().to_le_bytes();
    let footer = guid(0x96b5_82de, 0x1fb2, 0x45f7, 0xbaea_a366_c55a_082d);
    table.extend(length);
    table.extend(footer);
    let mut image = vec![0; PAGE];
    for (from_end, bytes) in [(2048, &sev), (1024, &tdx), (32 + table.len(), &table)] {
        image.splice(PAGE - from_end..PAGE - from_end + bytes.len(), bytes.iter().copied());
    }
    image
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
