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
        let tdvf = match Tdvf::parse(&image) {
            Ok(tdvf) => tdvf,
            // An image of the code alone, whose metadata counts from the start
            // of the flash before it: no TD can be built from it.
            Err(error) if error.field == "TDX metadata, data" => {
                eprintln!("not measurable: {}: {error}", case["id"]);
                continue;
            }
            Err(error) => panic!("{}: {error}", case["id"]),
        };
        let order = PageOrder::ALL.into_iter().find(|order| case["order"] == order.name()).unwrap();
        let mrtd = tdvf.mrtd(order);
        assert_eq!(hex(&mrtd), case["expected"], "{}", case["id"]);
    }
}
