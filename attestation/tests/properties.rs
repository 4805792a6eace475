//! Parsing is total: any bytes give a value or an error, never a panic; and
//! what was written reads back.

use casemate_attestation::bundle::Bundle;
use casemate_attestation::eventlog::{self, EventLog};
use casemate_attestation::measure::ovmf::Ovmf;
use casemate_attestation::snp::table::{self, CertTable, TableEntry};
use casemate_attestation::snp::{IdBlock, Product, REPORT_BYTES, Report, Tcb};
use casemate_attestation::x509::{Certificate, Crl, PemLimits, certificates_from_pem};
use casemate_attestation::{Binding, Evidence, Policy, ReferenceValues, TrustAnchors};
use proptest::prelude::*;

/// A report that reads, with arbitrary content where anything is allowed.
fn report_bytes() -> impl Strategy<Value = Vec<u8>> {
    (proptest::collection::vec(any::<u8>(), REPORT_BYTES), 2_u8..=5).prop_map(
        |(mut bytes, version)| {
            let zero = [0x048..0x050, 0x188..0x1a0, 0x1eb..0x1ec, 0x1ef..0x1f0, 0x1f8..0x2a0];
            let unused = [0x2d0..0x2e8, 0x318..REPORT_BYTES, 0x001..0x004, 0x034..0x038];
            for range in zero.into_iter().chain(unused) {
                if let Some(part) = bytes.get_mut(range) {
                    part.fill(0);
                }
            }
            for (at, value) in [(0, version), (0x34, 1)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes
        },
    )
}

/// A log of SHA-384 alone, as firmware writes it: register, digest, data.
fn event_log(events: &[(u8, [u8; 48], [u8; 3])]) -> Vec<u8> {
    let spec_id =
        [b"Spec ID Event03\0".as_slice(), &[0; 8], &[1, 0, 0, 0, 12, 0, 48, 0, 0]].concat();
    let mut log = [&[1, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20], &[33, 0, 0, 0], &spec_id].concat();
    for (register, digest, data) in events {
        log.extend([*register, 0, 0, 0, 13, 0, 0, 0, 1, 0, 0, 0, 12, 0]);
        log.extend(digest);
        log.extend([3, 0, 0, 0]);
        log.extend(data);
    }
    log.extend([0xff; 64]);
    log
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _any = Report::parse(&bytes);
        let _any = CertTable::parse(&bytes);
        let _any = Certificate::parse(&bytes);
        let _any = Crl::parse(&bytes);
        let _any = certificates_from_pem(&bytes, PemLimits::CHAIN);
        let _any = Evidence::decode(&bytes);
        let _any = Bundle::decode(&bytes);
        let _any = EventLog::parse(&bytes);
        let _any = Binding::from_preimage(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _any = Policy::from_toml(&text);
        let _any = ReferenceValues::from_toml(&text);
        let _any = TrustAnchors::from_toml(&text);
    }

    #[test]
    fn a_log_replays_event_by_event(
        events in proptest::collection::vec((1_u8..=4, any::<[u8; 48]>(), any::<[u8; 3]>()), 0..12)
    ) {
        let bytes = event_log(&events);
        let log = EventLog::parse(&bytes).unwrap();
        prop_assert_eq!(log.events.len(), events.len());
        let mut registers = [[0; 48]; 4];
        for (register, digest, data) in &events {
            let register = &mut registers[usize::from(*register) - 1];
            *register = eventlog::extend(register, digest);
            prop_assert!(log.events.iter().any(|event| event.data == data));
        }
        prop_assert_eq!(log.replay().0, registers);
    }

    #[test]
    fn reports_give_their_fields_back(bytes in report_bytes()) {
        let report = Report::parse(&bytes).unwrap();
        prop_assert_eq!(&report.report_data[..], &bytes[0x50..0x90]);
        prop_assert_eq!(&report.measurement[..], &bytes[0x90..0xc0]);
        prop_assert_eq!(&report.chip_id[..], &bytes[0x1a0..0x1e0]);
        let mut r = bytes[0x2a0..0x2d0].to_vec();
        r.reverse();
        prop_assert_eq!(&report.signature[..48], &r[..]);
        let _any = IdBlock::verify(&bytes[..96], &[0; 4096], &report);
    }

    #[test]
    fn firmware_images_are_read_or_refused(
        mut tail in proptest::collection::vec(any::<u8>(), 0..512),
        size in 0_u16..600,
    ) {
        // A footer with a right GUID and arbitrary entries before it.
        let guid = [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5,
            0x5a, 0x08, 0x2d];
        tail.extend(size.to_le_bytes());
        tail.extend(guid);
        tail.extend([0; 32]);
        let mut image = vec![0; 4096 - tail.len()];
        image.extend(tail);
        if let Ok(ovmf) = Ovmf::parse(&image) {
            let _any = (ovmf.sections(), ovmf.reset_eip(), ovmf.hash_table());
            let _any = (ovmf.tdx_metadata_offset(), ovmf.svsm_entry_offset());
        }
    }

    #[test]
    fn tables_read_back(vek in proptest::collection::vec(any::<u8>(), 1..64), ark: u8) {
        let built = table::build(&[(TableEntry::Vcek, &vek), (TableEntry::Ark, &[ark])]);
        let read = table::entries(&built).unwrap();
        prop_assert_eq!(read, [(TableEntry::Vcek, &vek[..]), (TableEntry::Ark, &[ark][..])]);
    }

    #[test]
    fn tcbs_are_ordered_by_component(a: [u8; 5], b: [u8; 5]) {
        let tcb = |[fmc, bootloader, tee, snp, microcode]: [u8; 5]| {
            Tcb { fmc, bootloader, tee, snp, microcode }
        };
        let (a, b) = (tcb(a), tcb(b));
        prop_assert!(a.at_least(&a));
        prop_assert_eq!(a.at_least(&b) && b.at_least(&a), a == b);
        prop_assert_eq!(a.to_version(Product::Turin).components(Product::Turin), Some(a));
    }
}
