//! The SPDM measurement report: request and response, as the device signed them.
//!
//! Layout: DMTF DSP0274 (SPDM) 1.1, sections 10.11.1 (GET_MEASUREMENTS) and
//! 10.11.2 (MEASUREMENTS); all numbers are little-endian. The report is the
//! request followed by the response, and the signature covers everything
//! before itself (SPDM 1.1 has no signing prefix).

use crate::wire::{ParseError, Reader};

use super::code::{Code, Finding};
use super::opaque::Opaque;

/// The largest report that is read; those seen have 2168 to 4274 bytes.
pub const MAX_REPORT_BYTES: usize = 16 * 1024;
/// The bytes of one SHA-384 measurement.
const MEASUREMENT_BYTES: usize = 48;

const REQUEST_BYTES: usize = 37;
const SIGNATURE_BYTES: usize = 96;
const SPDM_1_1: u8 = 0x11;
const GET_MEASUREMENTS: u8 = 0xe0;
const MEASUREMENTS: u8 = 0x60;
const DMTF: u8 = 1;
/// DSP0274 table "DMTF measurement specification format": set for a raw bit stream.
const RAW_BIT_STREAM: u8 = 0x80;

/// One measurement: its reference index and its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement {
    /// The index that manifests use: the SPDM index less one.
    pub index: u8,
    /// The SHA-384 digest.
    pub value: [u8; MEASUREMENT_BYTES],
}

/// A report's fields. Nothing here is believed before its signature is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report<'a> {
    /// The nonce that the relying party asked with.
    pub nonce: [u8; 32],
    /// The measurements, by rising index.
    pub measurements: Vec<Measurement>,
    /// The device's own nonce.
    pub responder_nonce: [u8; 32],
    /// The vendor's fields.
    pub opaque: Opaque<'a>,
    /// The bytes that the signature covers.
    pub signed: &'a [u8],
    /// ECDSA P-384, r then s, big-endian.
    pub signature: [u8; SIGNATURE_BYTES],
    /// How many zero bytes follow the signature (some drivers add them).
    pub trailing_zeros: usize,
}

impl<'a> Report<'a> {
    /// Reads a report. The first field that is wrong is the error.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Finding> {
        if bytes.len() > MAX_REPORT_BYTES {
            return Err(finding(
                Code::TrailingData,
                "report",
                "at most 16384 bytes",
                bytes.len().to_string(),
            ));
        }
        let mut reader = Reader::new(bytes);
        let nonce = request(&mut reader)?;
        let measurements = response(&mut reader)?;
        let responder_nonce = reader.array("responder nonce").map_err(truncated)?;
        let length = reader.u16_le("opaque data length").map_err(truncated)?;
        let opaque = reader.slice("opaque data", usize::from(length)).map_err(truncated)?;
        let signed = bytes.get(..reader.position()).unwrap_or_default();
        let signature = reader.array("signature").map_err(truncated)?;
        // Before what follows the signature: a wrong length of the opaque data
        // shows in both, and is named by its cause.
        let opaque = Opaque::parse(opaque)?;
        let trailing_zeros = reader.remaining();
        reader
            .zeros("after the signature", trailing_zeros)
            .map_err(|error| because(Code::TrailingData, error))?;
        Ok(Self { nonce, measurements, responder_nonce, opaque, signed, signature, trailing_zeros })
    }

    /// The digest at a manifest's `index`, if the device measured it.
    pub fn measurement(&self, index: u8) -> Option<&[u8; MEASUREMENT_BYTES]> {
        let at = self.measurements.binary_search_by_key(&index, |one| one.index).ok()?;
        self.measurements.get(at).map(|one| &one.value)
    }
}

/// Reads the request and gives its nonce. This is the one place that knows the
/// SPDM version: a report of SPDM 1.2 begins with another transcript and is
/// signed in another way, and would branch off here.
fn request(reader: &mut Reader<'_>) -> Result<[u8; 32], Finding> {
    let mut request = reader.sub("request", REQUEST_BYTES).map_err(truncated)?;
    let [version, code, attributes, operation] =
        request.array("request header").map_err(truncated)?;
    expect(Code::SpdmVersion, "request version", SPDM_1_1, version)?;
    expect(Code::SpdmRequestCode, "request code", GET_MEASUREMENTS, code)?;
    expect(Code::SpdmRequestCode, "request attributes (signature asked for)", 1, attributes)?;
    expect(Code::SpdmRequestCode, "request operation (all blocks)", 0xff, operation)?;
    let nonce = request.array("request nonce").map_err(truncated)?;
    expect(Code::SpdmRequestCode, "request slot", 0, request.u8("slot").map_err(truncated)?)?;
    Ok(nonce)
}

/// Reads the response up to its measurement record.
fn response(reader: &mut Reader<'_>) -> Result<Vec<Measurement>, Finding> {
    let [version, code, _, _, blocks] = reader.array("response header").map_err(truncated)?;
    expect(Code::SpdmVersion, "response version", SPDM_1_1, version)?;
    expect(Code::SpdmResponseCode, "response code", MEASUREMENTS, code)?;
    if blocks == 0 {
        return Err(finding(Code::NoMeasurements, "number of blocks", "1 to 255", "0".into()));
    }
    let [a, b, c] = reader.array("measurement record length").map_err(truncated)?;
    let length = usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(usize::MAX);
    let mut record = reader.sub("measurement record", length).map_err(truncated)?;
    let mut found = Vec::with_capacity(usize::from(blocks));
    for _ in 0..blocks {
        found.push(block(&mut record)?);
    }
    record.end("measurement record").map_err(|error| because(Code::MeasurementRecord, error))?;
    found.sort_by_key(|one: &Measurement| one.index);
    let twice = found.windows(2).find(|pair| match pair {
        [a, b] => a.index == b.index,
        _ => false,
    });
    match twice.and_then(|pair| pair.first()) {
        None => Ok(found),
        Some(one) => Err(finding(
            Code::DuplicateMeasurement,
            "measurement index",
            "each index once",
            format!("SPDM index {} twice", u16::from(one.index).saturating_add(1)),
        )),
    }
}

/// Reads one measurement block (DSP0274 1.1, table "Measurement block format").
fn block(record: &mut Reader<'_>) -> Result<Measurement, Finding> {
    let malformed = |error| because(Code::MeasurementRecord, error);
    let index = record.u8("measurement index").map_err(malformed)?;
    let spec = record.u8("measurement specification").map_err(malformed)?;
    let size = record.u16_le("measurement size").map_err(malformed)?;
    expect(Code::MeasurementSpec, "measurement specification", DMTF, spec)?;
    let index = match index {
        0 | 0xff => {
            let actual = index.to_string();
            return Err(finding(Code::MeasurementIndex, "measurement index", "1 to 254", actual));
        }
        index => index.saturating_sub(1),
    };
    let mut value = record.sub("measurement", usize::from(size)).map_err(malformed)?;
    let kind = value.u8("measurement value type").map_err(malformed)?;
    let length = value.u16_le("measurement value size").map_err(malformed)?;
    if kind & RAW_BIT_STREAM != 0 || usize::from(length) != MEASUREMENT_BYTES {
        return Err(finding(
            Code::MeasurementRecord,
            "measurement value",
            "a digest of 48 bytes",
            format!("type {kind:#04x}, {length} bytes"),
        ));
    }
    let digest = value.array("measurement value").map_err(malformed)?;
    value.end("measurement").map_err(malformed)?;
    Ok(Measurement { index, value: digest })
}

fn expect(code: Code, field: &'static str, expected: u8, actual: u8) -> Result<(), Finding> {
    if expected == actual {
        return Ok(());
    }
    Err(finding(code, field, format!("{expected:#04x}"), format!("{actual:#04x}")))
}

fn finding(code: Code, field: &str, expected: impl Into<String>, actual: String) -> Finding {
    Finding::new(code, field, expected, actual)
}

fn truncated(error: ParseError) -> Finding {
    because(Code::ReportTruncated, error)
}

fn because(code: Code, error: ParseError) -> Finding {
    Finding::new(code, error.field, error.expected, error.actual)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(index: [u8; 2]) -> Vec<u8> {
        let mut out = vec![0x11, 0xe0, 1, 0xff];
        out.extend([7; 32]);
        out.push(0);
        out.extend([0x11, 0x60, 0, 0, 2, 110, 0, 0]);
        for index in index {
            out.extend([index, 1, 51, 0, 1, 48, 0]);
            out.extend([index; 48]);
        }
        out.extend([8; 32]);
        out.extend([0, 0]);
        out.extend([9; 96]);
        out
    }

    fn code(bytes: &[u8]) -> Code {
        Report::parse(bytes).unwrap_err().code
    }

    #[test]
    fn fields_are_read() {
        let bytes = [report([2, 1]), vec![0; 3]].concat();
        let report = Report::parse(&bytes).unwrap();
        assert_eq!((report.nonce, report.responder_nonce), ([7; 32], [8; 32]));
        assert_eq!(report.measurement(1), Some(&[2; 48]));
        assert_eq!(report.measurement(2), None);
        assert_eq!((report.trailing_zeros, report.signed.len()), (3, bytes.len() - 99));
    }

    #[test]
    fn every_wrong_field_has_its_code() {
        let table = [
            (0, 0x12, Code::SpdmVersion),
            (1, 0xe1, Code::SpdmRequestCode),
            (2, 0, Code::SpdmRequestCode),
            (3, 0, Code::SpdmRequestCode),
            (36, 1, Code::SpdmRequestCode),
            (37, 0x10, Code::SpdmVersion),
            (38, 0x7f, Code::SpdmResponseCode),
            (41, 0, Code::NoMeasurements),
            (41, 1, Code::MeasurementRecord),
            (41, 3, Code::MeasurementRecord),
            (42, 109, Code::MeasurementRecord),
            (44, 1, Code::ReportTruncated),
            (45, 0, Code::MeasurementIndex),
            (45, 0xff, Code::MeasurementIndex),
            (45, 2, Code::DuplicateMeasurement),
            (46, 2, Code::MeasurementSpec),
            (47, 50, Code::MeasurementRecord),
            (49, 0x81, Code::MeasurementRecord),
            (50, 47, Code::MeasurementRecord),
            (187, 1, Code::ReportTruncated),
        ];
        for (at, byte, expected) in table {
            let mut bytes = report([1, 2]);
            bytes[at] = byte;
            assert_eq!(code(&bytes), expected, "byte {at} = {byte:#x}");
        }
        assert_eq!(code(&[report([1, 2]), vec![0, 1]].concat()), Code::TrailingData);
        // A wrong length of the opaque data is named, not what it leaves behind.
        let mut bytes = [report([1, 2]), vec![9, 9]].concat();
        bytes[187] = 1;
        assert_eq!(code(&bytes), Code::OpaqueData);
    }

    #[test]
    fn no_prefix_is_a_report() {
        let bytes = report([1, 2]);
        for end in 0..bytes.len() {
            assert_eq!(code(&bytes[..end]), Code::ReportTruncated, "{end}");
        }
    }
}
