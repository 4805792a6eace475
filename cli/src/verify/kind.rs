//! What bytes are, told by their outer shape and never by a name.
//!
//! A kind is all that is found out here. What has the shape of a kind and does not
//! hold is the library's to refuse, by name: to pass it over could turn a no into a
//! yes, as with a revocation list.

use casemate_attestation::azure::TpmQuote;
use casemate_attestation::gpu::ocsp;
use casemate_attestation::tdx::Collateral;
use casemate_attestation::x509::{
    Certificate, Crl, PemLimits, crls_der_or_pem, crls_from_pem, der_or_pem,
};
use casemate_attestation::{Bundle, EndorsementKind, Evidence, EvidenceKind, VerifyError, snp};

use super::devices;

/// Versions of a report that may come; the library says which it knows.
const SNP_VERSIONS: u32 = 255;
/// The vendor id of Intel's quoting enclaves (Intel TDX DCAP Quoting Library API,
/// appendix A.3.1).
const INTEL_QE: [u8; 16] = 0x939a_7233_f79c_4ca9_940a_0db3_957f_0607_u128.to_be_bytes();
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
/// UTCTime and GeneralizedTime.
const TIMES: [u8; 2] = [0x17, 0x18];
/// `[0]`, which holds a certificate's version.
const VERSION: u8 = 0xa0;

/// What kind of evidence `bytes` are.
pub(super) fn evidence(bytes: &[u8]) -> Option<EvidenceKind> {
    let word = |at: usize| {
        let four = bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(four.try_into().ok()?))
    };
    // VERSION, and at 0x34 SIGNATURE_ALGO: any one of size and these may be what is wrong.
    let whole = bytes.len() == snp::REPORT_BYTES;
    let cut = word(0x34) == Some(1) && word(0) != Some(0);
    if (whole || cut) && word(0).is_some_and(|version| version <= SNP_VERSIONS) {
        return Some(EvidenceKind::SnpReport);
    }
    if devices::is_report(bytes) {
        return Some(EvidenceKind::GpuReport);
    }
    // Quote header: version 4 or 5 and TEE type 0x81, or else Intel's quoting enclave.
    let version = word(0).map(|word| word & 0xffff);
    let is_tdx = matches!(version, Some(4 | 5)) && word(4) == Some(0x81);
    if is_tdx || bytes.get(12..28) == Some(&INTEL_QE[..]) {
        return Some(EvidenceKind::TdxQuote);
    }
    if bytes.starts_with(b"HCLA") {
        return Some(EvidenceKind::AzureHcl);
    }
    if TpmQuote::decode(bytes).is_ok() {
        return Some(EvidenceKind::AzureQuote);
    }
    // The first entry of a TCG log: register 0, EV_NO_ACTION, "Spec ID Event03".
    let log = word(4) == Some(3) && bytes.get(32..47) == Some(b"Spec ID Event03");
    log.then_some(EvidenceKind::EventLog)
}

/// What kind of endorsement `bytes` are.
pub(super) fn endorsement(bytes: &[u8]) -> Option<EndorsementKind> {
    if let Some(label) = pem_label(bytes) {
        return match label.as_str() {
            label if label.ends_with("CRL") => Some(EndorsementKind::Crl),
            label if label.ends_with("CERTIFICATE") => Some(EndorsementKind::CertificateChain),
            _ => None,
        };
    }
    if Crl::parse(bytes).is_ok() {
        return Some(EndorsementKind::Crl);
    }
    if Certificate::parse(bytes).is_ok() {
        return Some(EndorsementKind::CertificateChain);
    }
    if snp::table::entries(bytes).is_ok_and(|entries| !entries.is_empty()) {
        return Some(EndorsementKind::SnpCertTable);
    }
    if ocsp::Response::parse(bytes).is_ok() {
        return Some(EndorsementKind::Ocsp);
    }
    if Collateral::decode(bytes).is_ok() {
        return Some(EndorsementKind::TdxCollateral);
    }
    if bytes.windows(16).take(4096).any(|window| window == b"SoftwareIdentity") {
        return Some(EndorsementKind::Rim);
    }
    if is_text(bytes) { None } else { certificate_or_list(bytes) }
}

/// Why an endorsement of `kind` does not read, if so. Only some evidence has the library
/// look at all of them.
pub(super) fn unread(kind: EndorsementKind, bytes: &[u8]) -> Option<VerifyError> {
    match kind {
        EndorsementKind::Crl if pem_label(bytes).is_some() => {
            crls_from_pem(bytes, PemLimits::CRLS).err()
        }
        EndorsementKind::Crl => crls_der_or_pem(bytes).err(),
        EndorsementKind::CertificateChain => {
            // The chain of a GPU is longer than a CPU's.
            der_or_pem(bytes, PemLimits { blocks: 8, ..PemLimits::CHAIN }).err()
        }
        EndorsementKind::SnpCertTable => snp::table::CertTable::parse(bytes).err(),
        EndorsementKind::TdxCollateral | EndorsementKind::Rim | EndorsementKind::Ocsp => None,
    }
}

/// PEM without what editors put before it. Other bytes as they are.
pub(super) fn trimmed(bytes: &[u8]) -> &[u8] {
    let text = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes).trim_ascii_start();
    if text.starts_with(b"-----BEGIN ") { text } else { bytes }
}

/// Why `bytes` that were named as evidence or an endorsement are neither, as far as that
/// can be told: an object of ours says it by its count of members.
pub(super) fn why_unknown(bytes: &[u8]) -> String {
    let error = match bytes.first() {
        Some(0xa2) => Evidence::decode(bytes).err().map(|error| error.to_string()),
        Some(0xa4) => TpmQuote::decode(bytes).err().map(|error| error.to_string()),
        Some(0xa6) => Collateral::decode(bytes).err().map(|error| error.to_string()),
        Some(0xa7 | 0xa8) => Bundle::decode(bytes).err().map(|error| error.to_string()),
        _ => None,
    };
    error.map_or_else(|| begins(bytes), |error| format!("{}; {error}", begins(bytes)))
}

pub(super) fn begins(bytes: &[u8]) -> String {
    let first = bytes.get(..8).unwrap_or(bytes);
    match bytes.len() {
        0 => "0 bytes".to_owned(),
        length => format!("{length} bytes that begin {}", hex::encode(first)),
    }
}

pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The label of the first PEM block (RFC 7468) that begins at the start of a line. Quotes
/// and certificate tables have PEM inside of them, and zeros, which text has not.
fn pem_label(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().rposition(|byte| *byte != 0)?;
    let text = bytes.get(..=end)?;
    if text.contains(&0) {
        return None;
    }
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let lines = text.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii_start);
    let rest = lines.filter_map(|line| line.strip_prefix(b"-----BEGIN ")).next()?;
    let label: Vec<u8> = rest.iter().copied().take_while(|byte| *byte != b'-').collect();
    Some(String::from_utf8_lossy(&label).trim().to_owned())
}

/// Certificate or list, by the first elements of what is signed (RFC 5280 4.1 and 5.1).
/// Lengths are not believed: they may be what is damaged.
fn certificate_or_list(bytes: &[u8]) -> Option<EndorsementKind> {
    let (outer, _) = element(bytes)?;
    if outer.tag != SEQUENCE {
        return None;
    }
    let (signed, _) = element(outer.content)?;
    if signed.tag != SEQUENCE {
        return None;
    }
    let mut rest = signed.content;
    let mut elements = Vec::new();
    while let (Some((one, after)), true) = (element(rest), elements.len() < 4) {
        elements.push(one);
        rest = after;
    }
    let tags: Vec<u8> = elements.iter().map(|one| one.tag).collect();
    match *tags.as_slice() {
        [VERSION, ..] | [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE] => {
            Some(EndorsementKind::CertificateChain)
        }
        [INTEGER, SEQUENCE, SEQUENCE, time] if TIMES.contains(&time) => Some(EndorsementKind::Crl),
        [SEQUENCE, SEQUENCE, time, ..] if TIMES.contains(&time) => Some(EndorsementKind::Crl),
        // Cut short: version 2 is a list's, a serial number so small nobody's.
        [INTEGER, SEQUENCE] | [INTEGER, SEQUENCE, SEQUENCE] => {
            let is_list = elements.first().is_some_and(|one| one.content == [1]);
            Some(if is_list { EndorsementKind::Crl } else { EndorsementKind::CertificateChain })
        }
        _ => None,
    }
}

struct Element<'a> {
    tag: u8,
    content: &'a [u8],
}

/// The first element of `bytes` and what follows it. One that is cut short has what there is.
fn element(bytes: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at(length.min(rest.len()));
    Some((Element { tag, content }, rest))
}

/// Whether `bytes` begin as DER of more than 127 bytes does.
pub(super) fn is_der(bytes: &[u8]) -> bool {
    matches!(bytes, [SEQUENCE, 0x81..=0x84, ..])
}

pub(super) fn is_known(bytes: &[u8]) -> bool {
    let ours = Bundle::decode(bytes).is_ok() || Evidence::decode(bytes).is_ok();
    ours || evidence(bytes).is_some() || endorsement(bytes).is_some()
}

/// Whether a person wrote `bytes`, in whatever character set. DER and reports have control
/// characters from their first bytes on.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| !byte.is_ascii_control() || byte.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_content() {
        let mut quote = vec![0; 700];
        quote[0] = 4;
        quote[4] = 0x81;
        assert_eq!(evidence(&quote), Some(EvidenceKind::TdxQuote));
        assert_eq!(evidence(b"HCLA and more"), Some(EvidenceKind::AzureHcl));
        assert_eq!(evidence(b"hello"), None);
        assert_eq!(endorsement(b"hello"), None);
        for text in ["-----BEGIN CERTIFICATE-----", "\u{feff}-----BEGIN CERTIFICATE-----"] {
            assert_eq!(endorsement(text.as_bytes()), Some(EndorsementKind::CertificateChain));
        }
        let text = b"# Intel's\r\n-----BEGIN X509 CRL-----\nAA";
        assert_eq!(endorsement(text), Some(EndorsementKind::Crl));
        assert_eq!(endorsement(b"-----BEGIN PRIVATE KEY-----"), None);
    }

    #[test]
    fn evidence_with_a_wrong_size_version_or_type_is_still_evidence() {
        let mut report = vec![0; snp::REPORT_BYTES];
        report[0] = 20;
        assert_eq!(evidence(&report), Some(EvidenceKind::SnpReport));
        report[0x34] = 1;
        report.truncate(100);
        assert_eq!(evidence(&report), Some(EvidenceKind::SnpReport));
        report[0x34] = 0;
        assert_eq!(evidence(&report), None);
        let mut quote = vec![0; 48];
        quote[0] = 6;
        assert_eq!(evidence(&quote), None);
        quote[12..28].copy_from_slice(&INTEL_QE);
        assert_eq!(evidence(&quote), Some(EvidenceKind::TdxQuote));
    }

    #[test]
    fn shapes_tell_lists_from_certificates() {
        let list =
            [0x30, 0x82, 9, 9, 0x30, 0x82, 9, 9, 2, 1, 1, 0x30, 1, 0, 0x30, 1, 0, 0x17, 1, 0];
        assert_eq!(certificate_or_list(&list), Some(EndorsementKind::Crl));
        assert_eq!(certificate_or_list(&list[..14]), Some(EndorsementKind::Crl));
        let mut certificate = list;
        certificate[17] = SEQUENCE;
        assert_eq!(certificate_or_list(&certificate), Some(EndorsementKind::CertificateChain));
        let versioned = [0x30, 0x82, 9, 9, 0x30, 0x82, 9, 9, 0xa0, 3, 2, 1, 2];
        assert_eq!(certificate_or_list(&versioned), Some(EndorsementKind::CertificateChain));
        let old_list = [0x30, 20, 0x30, 9, 0x30, 1, 0, 0x30, 1, 0, 0x18, 1, 0];
        assert_eq!(certificate_or_list(&old_list), Some(EndorsementKind::Crl));
        // A public key, a private key, and lengths that no file has.
        for other in [&[0x30, 9, 0x30, 2, 6, 0, 3, 0][..], &[0x30, 3, 2, 1, 0], &[0x30, 0x85], &[]]
        {
            assert_eq!(certificate_or_list(other), None);
        }
    }
}
