//! A TDX quote's structure: header, TD report and signature section.
//!
//! Layout: Intel TDX DCAP Quoting Library API, appendix A.3 (versions 4 and 5).
//! Nothing here is believed yet: [`super::Prepared::verify`] does that.

use super::report::{BodyKind, TdReport};
use crate::error::{Reason, VerifyError};
use crate::wire::{ParseError, Reader, hex};

/// A parsed quote, borrowing what its signatures cover from the received bytes.
#[derive(Debug, Clone)]
pub struct Quote<'a> {
    /// The quote's version, 4 or 5.
    pub version: u16,
    /// What the QE's owner put into the header.
    pub user_data: [u8; 20],
    /// Which form the report has.
    pub body_kind: BodyKind,
    /// The TD report.
    pub report: TdReport,
    /// The bytes that the attestation key signed.
    pub signed: &'a [u8],
    /// The attestation key's signature, r then s.
    pub signature: [u8; 64],
    /// The attestation key, x then y.
    pub attestation_key: [u8; 64],
    /// The quoting enclave's report about the attestation key.
    pub qe_report: QeReport<'a>,
    /// The PCK's signature over the QE report, r then s.
    pub qe_report_signature: [u8; 64],
    /// What the QE bound into its report beside the key.
    pub qe_auth_data: &'a [u8],
    /// The PCK certificate chain, PEM, leaf first.
    pub pck_chain: &'a [u8],
}

/// The body of an SGX report: here, that of the quoting enclave.
#[derive(Debug, Clone)]
pub struct QeReport<'a> {
    /// The 384 bytes that the PCK signed.
    pub signed: &'a [u8],
    /// MISCSELECT.
    pub miscselect: u32,
    /// ATTRIBUTES.
    pub attributes: [u8; 16],
    /// Measurement of the enclave.
    pub mrenclave: [u8; 32],
    /// Signer of the enclave.
    pub mrsigner: [u8; 32],
    /// Product id of the enclave.
    pub isvprodid: u16,
    /// Security version of the enclave.
    pub isvsvn: u16,
    /// The 64 bytes the enclave chose.
    pub report_data: [u8; 64],
}

/// The largest quote that is read; devices return buffers of 8000 bytes.
pub const MAX_QUOTE_BYTES: usize = 64 * 1024;

impl<'a> Quote<'a> {
    /// Reads a quote; zeros may follow it, anything else may not.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, VerifyError> {
        super::check_size("quote", bytes, MAX_QUOTE_BYTES)?;
        let mut reader = Reader::new(bytes);
        let header = Header::parse(&mut reader)?;
        let body_kind = body_kind(header.version, &mut reader)?;
        let body = reader.slice("TD report", body_kind.size()).map_err(length)?;
        let report = TdReport::parse(body_kind, body)?;
        let signed = bytes.get(..reader.position()).unwrap_or_default();
        let size = reader.length_le("signature data length").map_err(length)?;
        let section = reader.slice("signature data", size).map_err(length)?;
        // First: where the length is wrong, what follows is the section's own.
        let section = SignatureSection::parse(section)?;
        refuse_trailing(&reader)?;
        Ok(Self {
            version: header.version,
            user_data: header.user_data,
            body_kind,
            report,
            signed,
            signature: section.signature,
            attestation_key: section.attestation_key,
            qe_report: section.qe_report,
            qe_report_signature: section.qe_report_signature,
            qe_auth_data: section.qe_auth_data,
            pck_chain: section.pck_chain,
        })
    }
}

struct Header {
    version: u16,
    user_data: [u8; 20],
}

impl Header {
    /// Appendix A.3.1, 48 bytes.
    fn parse(reader: &mut Reader<'_>) -> Result<Self, VerifyError> {
        let refuse = |reason, field, expected, actual: String| {
            Err(VerifyError::new(reason, field, expected, actual))
        };
        let version = reader.u16_le("version").map_err(length)?;
        if !matches!(version, 4 | 5) {
            return refuse(Reason::Version, "version", "4 or 5", version.to_string());
        }
        let key_type = reader.u16_le("attestation key type").map_err(length)?;
        if key_type != ECDSA_P256 {
            let (field, expected) = ("attestation key type", "2 (ECDSA P-256)");
            return refuse(Reason::SignatureAlgorithm, field, expected, key_type.to_string());
        }
        let tee_type = reader.u32_le("TEE type").map_err(length)?;
        if tee_type != TEE_TDX {
            return refuse(Reason::TeeType, "TEE type", "0x81 (TDX)", format!("{tee_type:#x}"));
        }
        // Once QE and PCE SVN; reserved since version 4, and set by real QEs.
        reader.slice("reserved", 4).map_err(length)?;
        let vendor: [u8; 16] = reader.array("QE vendor id").map_err(length)?;
        if vendor != INTEL_QE {
            return Err(VerifyError::new(
                Reason::QeVendor,
                "QE vendor id",
                hex(&INTEL_QE),
                hex(&vendor),
            ));
        }
        Ok(Self { version, user_data: reader.array("user data").map_err(length)? })
    }
}

/// Version 4 has one form of body; version 5 says which (appendix A.3.5).
fn body_kind(version: u16, reader: &mut Reader<'_>) -> Result<BodyKind, VerifyError> {
    if version == 4 {
        return Ok(BodyKind::Td10);
    }
    let code = reader.u16_le("body type").map_err(length)?;
    let size = reader.length_le("body size").map_err(length)?;
    let kind = match code {
        2 => Some(BodyKind::Td10),
        3 => Some(BodyKind::Td15),
        4 => Some(BodyKind::Td15Ex),
        _ => None,
    };
    kind.filter(|kind| kind.size() == size).ok_or_else(|| {
        VerifyError::new(
            Reason::BodyType,
            "body type",
            "type 2 of 584 bytes, type 3 of 648 or type 4 of 885",
            format!("type {code} of {size} bytes"),
        )
    })
}

/// The signature section of a version 4 or 5 quote (appendix A.3.8 to A.3.11).
struct SignatureSection<'a> {
    signature: [u8; 64],
    attestation_key: [u8; 64],
    qe_report: QeReport<'a>,
    qe_report_signature: [u8; 64],
    qe_auth_data: &'a [u8],
    pck_chain: &'a [u8],
}

impl<'a> SignatureSection<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, VerifyError> {
        let mut outer = Reader::new(bytes);
        let signature = outer.array("quote signature").map_err(length)?;
        let attestation_key = outer.array("attestation key").map_err(length)?;
        let nested = certification_data(&mut outer, "certification data", QE_REPORT_DATA)?;
        outer.end("signature data").map_err(length)?;
        let mut inner = Reader::new(nested);
        let qe_report = inner.slice("QE report", 384).and_then(QeReport::parse).map_err(length)?;
        let qe_report_signature = inner.array("QE report signature").map_err(length)?;
        let auth_length = inner.u16_le("QE authentication data length").map_err(length)?;
        let qe_auth_data =
            inner.slice("QE authentication data", usize::from(auth_length)).map_err(length)?;
        let pck_chain = certification_data(&mut inner, "PCK certification data", PCK_CHAIN)?;
        inner.end("certification data").map_err(length)?;
        Ok(Self {
            signature,
            attestation_key,
            qe_report,
            qe_report_signature,
            qe_auth_data,
            pck_chain,
        })
    }
}

/// Reads a certification data structure, which must be of type `code`.
fn certification_data<'a>(
    reader: &mut Reader<'a>,
    field: &'static str,
    (code, expected): (u16, &'static str),
) -> Result<&'a [u8], VerifyError> {
    let actual = reader.u16_le(field).map_err(length)?;
    let size = reader.length_le(field).map_err(length)?;
    if actual != code {
        let actual = format!("type {actual}");
        return Err(VerifyError::new(Reason::CertData, field, expected, actual));
    }
    if size == 0 {
        return Err(VerifyError::new(Reason::CertData, field, expected, "no bytes"));
    }
    reader.slice(field, size).map_err(length)
}

impl<'a> QeReport<'a> {
    /// Intel SDM volume 3D, table "REPORT" (the 384 bytes before KEYID).
    fn parse(signed: &'a [u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(signed);
        reader.slice("cpusvn", 16)?;
        let miscselect = reader.u32_le("miscselect")?;
        reader.slice("reserved", 28)?;
        let attributes = reader.array("attributes")?;
        let mrenclave = reader.array("mrenclave")?;
        reader.slice("reserved", 32)?;
        let mrsigner = reader.array("mrsigner")?;
        reader.slice("reserved", 96)?;
        let isvprodid = reader.u16_le("isvprodid")?;
        let isvsvn = reader.u16_le("isvsvn")?;
        reader.slice("reserved", 60)?;
        let report_data = reader.array("reportdata")?;
        reader.end("QE report")?;
        Ok(Self {
            signed,
            miscselect,
            attributes,
            mrenclave,
            mrsigner,
            isvprodid,
            isvsvn,
            report_data,
        })
    }
}

/// Devices hand out fixed buffers: zeros after the quote are theirs.
fn refuse_trailing(reader: &Reader<'_>) -> Result<(), VerifyError> {
    match reader.peek().iter().position(|&byte| byte != 0) {
        Some(at) => Err(VerifyError::new(
            Reason::TrailingBytes,
            "after the signature data",
            "nothing, or zero bytes",
            format_args!("a non-zero byte at offset {}", reader.position().saturating_add(at)),
        )),
        None => Ok(()),
    }
}

fn length(error: ParseError) -> VerifyError {
    error.because(Reason::Length)
}

/// Appendix A.3.1: ECDSA-256-with-P-256 curve.
const ECDSA_P256: u16 = 2;
/// Appendix A.3.1: TDX.
const TEE_TDX: u32 = 0x81;
/// Appendix A.3.1: the vendor id of Intel's quoting enclave.
const INTEL_QE: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];
/// Appendix A.3.9.
const QE_REPORT_DATA: (u16, &str) = (6, "type 6 (QE report certification data)");
/// Appendix A.3.9. The other types name a PCK without its certificate.
const PCK_CHAIN: (u16, &str) = (5, "type 5 (PCK certificate chain)");
