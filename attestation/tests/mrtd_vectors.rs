//! MRTDs of real firmware images, where the directory of evidence vectors is
//! there (CASEMATE_VECTORS).

use std::fs;
use std::path::PathBuf;

use casemate_attestation::measure::tdx::{PageOrder, Tdvf};
use casemate_attestation::wire::hex;
use serde_json::Value;

#[test]
fn mrtds_of_real_firmware() {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors");
    let dir = std::env::var_os("CASEMATE_VECTORS").map_or_else(|| default.into(), PathBuf::from);
    let dir = dir.join("measure/firmware");
    let Ok(cases) = fs::read(dir.join("cases.json")) else {
        eprintln!("skipped: no evidence vectors at {}", dir.display());
        return;
    };
    let cases: Value = serde_json::from_slice(&cases).unwrap();
    for case in cases["mrtd"].as_array().unwrap() {
        let image = fs::read(dir.join(case["firmware"].as_str().unwrap())).unwrap();
        let tdvf = Tdvf::parse(&image).unwrap();
        let order = PageOrder::ALL.into_iter().find(|order| case["order"] == order.name()).unwrap();
        let mrtd = hex(&tdvf.mrtd(order));
        if tdvf.absent_bytes() == 0 {
            assert_eq!(mrtd, case["expected"], "{}", case["id"]);
            continue;
        }
        // An image of the code alone. What the vectors expect of it hashes records
        // without a chunk, which no TDX module does (docs/formats/measurement.md).
        assert_eq!(tdvf.absent_bytes(), 0x8_4000, "{}", case["id"]);
        let known = [(PageOrder::PerPage, CODE_PER_PAGE), (PageOrder::TwoPass, CODE_TWO_PASS)];
        assert!(known.contains(&(order, mrtd.as_str())), "{}: {mrtd}", case["id"]);
    }
}

/// The MRTDs of `svsm_ovmf.fd` placed where its metadata says, by a second
/// implementation too.
const CODE_PER_PAGE: &str = "e33f9524ac332b8fc9e51169a45cf470c89efe090cd810699f0b6c248e9995a412891be7e5b47c3de6982be22fc58a23";
const CODE_TWO_PASS: &str = "849ad4d151fe593f40086cb5b6a476c18536bc8b5c525c37fa644f85ea40b1350399a80cca4ce7a62254d2a099ebabe2";
