//! Azure's wrapping of CPU evidence: a vTPM whose key the CPU's report names.
//!
//! Format: docs/formats/azure.md. Source: Azure "Host Compatibility Layer"
//! attestation report (Microsoft, azure-guest-attestation documentation and
//! azure-cvm-tooling); TPM 2.0 Part 2, sections 10.12 (TPMS_ATTEST) and 11.2.4.
//!
//! The chain: a CPU report carries the digest of the runtime JSON; the JSON
//! holds the vTPM's attestation key; that key signs a TPM quote over a nonce.
//! Only the last is fresh: the CPU report is made once a boot, or when the
//! guest gives the paravisor other user data.

mod item;
pub mod json;

pub use item::AzureClaims;
pub(crate) use item::{check, read_quote, verify_item};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::crypto::{PublicKey, Scheme, sha256, sha384, sha512};
use crate::error::{Reason, VerifyError};
use crate::snp::{PreparedVek, REPORT_BYTES, SnpClaims};
use crate::tdx::{Prepared, TdxClaims};
use crate::time::UnixTime;
use crate::verify::Verified;
use crate::wire::{ParseError, Reader, hex, unhex_array};

/// An HCL report, parsed: nothing in it is believed yet.
#[derive(Debug, Clone)]
pub struct HclReport<'a> {
    /// Which CPU made the report inside.
    pub kind: HclKind,
    /// The SNP report, or the TDREPORT with zeros behind it: 1184 bytes.
    pub report: &'a [u8],
    /// How the digest of the runtime JSON was made.
    hash: HclHash,
    /// The runtime JSON.
    pub runtime: &'a [u8],
}

/// Which CPU an HCL report is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HclKind {
    /// SEV-SNP.
    Snp,
    /// TDX. The quote travels beside the HCL report.
    Tdx,
}

#[derive(Debug, Clone, Copy)]
enum HclHash {
    Sha256,
    Sha384,
    Sha512,
}

/// A quote by the vTPM, with the registers it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmQuote {
    /// The TPMS_ATTEST that was signed.
    pub message: Vec<u8>,
    /// The signature of the attestation key, RSASSA-PKCS1-v1_5 over SHA-256.
    pub signature: Vec<u8>,
    /// The SHA-256 bank, PCR 0 to 23.
    pub pcrs: Vec<[u8; 32]>,
}

/// What the vTPM of a machine with verified CPU evidence says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VtpmClaims {
    /// The SHA-256 bank, PCR 0 to 23.
    pub pcrs: Vec<[u8; 32]>,
    /// The 64 bytes the guest chose when the HCL report was made, if any.
    pub user_data: Option<[u8; 64]>,
    /// The machine's configuration, as the paravisor states it.
    pub configuration: serde_json::Value,
}

/// The largest HCL report that is read.
pub const MAX_HCL_BYTES: usize = 16 * 1024;
/// How many PCRs a TPM has.
pub const PCRS: usize = 24;

/// Verifies an HCL report of an SNP machine: its report under `vek`, the
/// runtime JSON, and the vTPM's quote over `nonce`.
pub fn verify_snp(
    hcl: &HclReport<'_>,
    tpm: &TpmQuote,
    nonce: &[u8],
    vek: &PreparedVek,
    now: UnixTime,
) -> Result<(Verified<SnpClaims>, Verified<VtpmClaims>), VerifyError> {
    hcl.expect_kind(HclKind::Snp)?;
    let claims = vek.verify(hcl.report, now)?;
    let vtpm = hcl.vtpm(&claims.report.report_data, tpm, nonce)?;
    Ok((claims, vtpm))
}

/// Verifies an HCL report of a TDX machine: `quote` against `collateral`, the
/// runtime JSON that both it and the TDREPORT inside name, and the vTPM's
/// quote over `nonce`.
pub fn verify_tdx(
    hcl: &HclReport<'_>,
    quote: &[u8],
    tpm: &TpmQuote,
    nonce: &[u8],
    collateral: &Prepared,
    now: UnixTime,
) -> Result<(Verified<TdxClaims>, Verified<VtpmClaims>), VerifyError> {
    hcl.expect_kind(HclKind::Tdx)?;
    let claims = collateral.verify(quote, now)?;
    let vtpm = hcl.vtpm(&claims.report.report_data, tpm, nonce)?;
    Ok((claims, vtpm))
}

impl<'a> HclReport<'a> {
    /// Reads an HCL report; zeros may follow it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, VerifyError> {
        if bytes.len() > MAX_HCL_BYTES {
            let expected = format!("at most {MAX_HCL_BYTES} bytes");
            return Err(VerifyError::new(Reason::Limit, "HCL report", expected, bytes.len()));
        }
        Self::read(bytes).map_err(|error| error.because(Reason::Malformed))
    }

    fn read(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes);
        expect(reader.array("HCL signature")?, *b"HCLA", "HCL signature")?;
        let version = reader.u32_le("HCL version")?;
        if !matches!(version, 1 | 2) {
            return Err(ParseError::new("HCL version", "1 or 2", version));
        }
        let total = reader.length_le("HCL report size")?;
        let request = reader.u32_le("HCL request type")?;
        if request != 2 {
            return Err(ParseError::new("HCL request type", "2 (attestation)", request));
        }
        reader.slice("HCL status and reserved", 16)?;
        let report = reader.slice("HCL hardware report", REPORT_BYTES)?;
        let start = reader.position();
        let data_size = reader.length_le("HCL runtime data size")?;
        reader.u32_le("HCL runtime data version")?;
        let kind = match reader.u32_le("HCL report type")? {
            2 => HclKind::Snp,
            4 => HclKind::Tdx,
            other => return Err(ParseError::new("HCL report type", "2 (SNP) or 4 (TDX)", other)),
        };
        let hash = match reader.u32_le("HCL hash type")? {
            1 => HclHash::Sha256,
            2 => HclHash::Sha384,
            3 => HclHash::Sha512,
            other => return Err(ParseError::new("HCL hash type", "1, 2 or 3", other)),
        };
        let size = reader.length_le("HCL variable data size")?;
        let runtime = reader.slice("HCL variable data", size)?;
        // Two sizes that say the same again: one that lies is not a report.
        if reader.position().checked_sub(start) != Some(data_size) {
            return Err(ParseError::new("HCL runtime data size", "that of its parts", data_size));
        }
        if total != reader.position() {
            return Err(ParseError::new("HCL report size", "that of its parts", total));
        }
        reader.zeros("after the HCL report", reader.remaining())?;
        Ok(Self { kind, report, hash, runtime })
    }

    /// The report data of the CPU report inside. Not yet proved.
    pub fn claimed_report_data(&self) -> Result<[u8; 64], VerifyError> {
        // Offsets of REPORT_DATA in an SNP report, and in REPORTMACSTRUCT.
        let offset = match self.kind {
            HclKind::Snp => 0x50,
            HclKind::Tdx => 128,
        };
        let mut reader = Reader::new(self.report);
        reader
            .slice("hardware report", offset)
            .and_then(|_| reader.array("report data"))
            .map_err(|error| error.because(Reason::Length))
    }

    /// Checks that `report_data` is the digest of the runtime JSON, and zeros.
    pub fn check_binding(&self, report_data: &[u8; 64]) -> Result<(), VerifyError> {
        let mut expected = match self.hash {
            HclHash::Sha256 => sha256(self.runtime).to_vec(),
            HclHash::Sha384 => sha384(self.runtime).to_vec(),
            HclHash::Sha512 => sha512(self.runtime).to_vec(),
        };
        expected.resize(report_data.len(), 0);
        if expected == report_data {
            return Ok(());
        }
        let (expected, actual) = (hex(&expected), hex(report_data));
        Err(VerifyError::new(Reason::HclBinding, "report data", expected, actual))
    }

    /// The attestation key and the user data that the runtime JSON names. Not
    /// yet proved.
    pub fn runtime_claims(&self) -> Result<(PublicKey, Option<[u8; 64]>), VerifyError> {
        let runtime = Runtime::parse(self.runtime)?;
        Ok((runtime.attestation_key()?, runtime.user_data()?))
    }

    /// The machine's configuration. Not yet proved.
    pub(crate) fn configuration(&self) -> Result<serde_json::Value, VerifyError> {
        Ok(Runtime::parse(self.runtime)?.configuration)
    }

    /// Binds the runtime JSON to a CPU's `report_data`, and the vTPM's quote to
    /// the key in it.
    fn vtpm(
        &self,
        report_data: &[u8; 64],
        tpm: &TpmQuote,
        nonce: &[u8],
    ) -> Result<Verified<VtpmClaims>, VerifyError> {
        self.check_binding(report_data)?;
        self.check_binding(&self.claimed_report_data()?)?;
        let runtime = Runtime::parse(self.runtime)?;
        tpm.verify(&runtime.attestation_key()?, nonce)?;
        Ok(Verified::new(VtpmClaims {
            pcrs: tpm.pcrs.clone(),
            user_data: runtime.user_data()?,
            configuration: runtime.configuration,
        }))
    }

    fn expect_kind(&self, kind: HclKind) -> Result<(), VerifyError> {
        if self.kind == kind {
            return Ok(());
        }
        let (expected, actual) = (format!("{kind:?}"), format!("{:?}", self.kind));
        Err(VerifyError::new(Reason::Unsupported, "HCL report type", expected, actual))
    }
}

impl TpmQuote {
    /// The nonce that the quote says it answers. Not yet proved.
    pub fn claimed_nonce(&self) -> Result<&[u8], VerifyError> {
        let (nonce, _) =
            attested(&self.message).map_err(|error| error.because(Reason::HclQuote))?;
        Ok(nonce)
    }

    /// Checks that `key` signed the quote, over `nonce` and these registers.
    pub fn verify(&self, key: &PublicKey, nonce: &[u8]) -> Result<(), VerifyError> {
        let refuse = |field, expected: String, actual: String| {
            Err(VerifyError::new(Reason::HclQuote, field, expected, actual))
        };
        if !key.verify(Scheme::RsaPkcs1Sha256, &self.message, &self.signature) {
            let expected = "one by the attested key HCLAkPub".to_owned();
            return refuse("TPM quote signature", expected, "one that does not verify".to_owned());
        }
        let (extra_data, digest) =
            attested(&self.message).map_err(|error| error.because(Reason::HclQuote))?;
        if extra_data != nonce {
            return refuse("TPM quote nonce", hex(nonce), hex(extra_data));
        }
        if self.pcrs.len() != PCRS {
            return refuse("PCRs", PCRS.to_string(), self.pcrs.len().to_string());
        }
        let expected = sha256(&self.pcrs.concat());
        if digest != expected {
            return refuse("TPM quote PCR digest", hex(&expected), hex(digest));
        }
        Ok(())
    }
}

/// TPMS_ATTEST of a quote over all of the SHA-256 bank: extraData, pcrDigest.
fn attested(message: &[u8]) -> Result<(&[u8], &[u8]), ParseError> {
    let mut reader = Reader::new(message);
    expect(reader.array("TPMS_ATTEST magic")?, *b"\xffTCG", "TPMS_ATTEST magic")?;
    expect(reader.array("TPMS_ATTEST type")?, [0x80, 0x18], "TPMS_ATTEST type")?;
    let signer = reader.u16_be("TPMS_ATTEST qualifiedSigner size")?;
    reader.slice("TPMS_ATTEST qualifiedSigner", usize::from(signer))?;
    let size = reader.u16_be("TPMS_ATTEST extraData size")?;
    let extra_data = reader.slice("TPMS_ATTEST extraData", usize::from(size))?;
    reader.slice("TPMS_ATTEST clockInfo and firmwareVersion", 25)?;
    // One selection: algorithm 0x0b (SHA-256), three bytes, every bit.
    let all = [0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0xff, 0xff];
    expect(reader.array("TPMS_ATTEST pcrSelect")?, all, "TPMS_ATTEST pcrSelect")?;
    let size = reader.u16_be("TPMS_ATTEST pcrDigest size")?;
    let digest = reader.slice("TPMS_ATTEST pcrDigest", usize::from(size))?;
    reader.end("TPMS_ATTEST")?;
    Ok((extra_data, digest))
}

fn expect<const N: usize>(
    actual: [u8; N],
    expected: [u8; N],
    field: &'static str,
) -> Result<(), ParseError> {
    if actual == expected {
        return Ok(());
    }
    Err(ParseError::new(field, hex(&expected), hex(&actual)))
}

/// The runtime JSON: what of it is used.
#[derive(Deserialize)]
struct Runtime {
    keys: Vec<Jwk>,
    #[serde(default, rename = "vm-configuration")]
    configuration: serde_json::Value,
    #[serde(default, rename = "user-data")]
    user_data: String,
}

/// RFC 7517. `key_ops` is not looked at: older reports say "encrypt" of the
/// attestation key.
#[derive(Deserialize)]
struct Jwk {
    kid: String,
    kty: String,
    n: String,
    e: String,
}

impl Runtime {
    fn parse(json: &[u8]) -> Result<Self, VerifyError> {
        serde_json::from_slice(json).map_err(|error| {
            let expected = "JSON with keys and vm-configuration";
            VerifyError::new(Reason::Malformed, "HCL runtime data", expected, error)
        })
    }

    fn attestation_key(&self) -> Result<PublicKey, VerifyError> {
        let refuse = |actual: String| {
            let expected = "one RSA key HCLAkPub";
            VerifyError::new(Reason::HclQuote, "HCL runtime data, keys", expected, actual)
        };
        let mut keys = self.keys.iter().filter(|key| key.kid == "HCLAkPub");
        let (Some(key), None) = (keys.next(), keys.next()) else {
            return Err(refuse("none or several".to_owned()));
        };
        let decode =
            |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|error| refuse(error.to_string()));
        if key.kty != "RSA" {
            return Err(refuse(format!("a key of type {}", key.kty)));
        }
        let der = rsa_public_key(&decode(&key.n)?, &decode(&key.e)?);
        PublicKey::rsa(&der).map_err(|error| refuse(error.to_string()))
    }

    /// Zeros stand for no user data.
    fn user_data(&self) -> Result<Option<[u8; 64]>, VerifyError> {
        if self.user_data.is_empty() {
            return Ok(None);
        }
        let data: [u8; 64] = unhex_array(&self.user_data).ok_or_else(|| {
            let (field, expected) = ("HCL runtime data, user-data", "128 hex digits");
            VerifyError::new(Reason::Malformed, field, expected, &self.user_data)
        })?;
        Ok((data != [0; 64]).then_some(data))
    }
}

/// RSAPublicKey (RFC 8017 A.1.1) in DER.
fn rsa_public_key(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let body = [integer(modulus), integer(exponent)].concat();
    element(0x30, &body)
}

/// A positive INTEGER in the shortest form.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let leading = bytes.iter().take_while(|byte| **byte == 0).count();
    let plain = bytes.get(leading..).unwrap_or_default();
    let sign = plain.first().is_none_or(|byte| byte & 0x80 != 0);
    element(2, &[if sign { &[0][..] } else { &[] }, plain].concat())
}

/// What is longer than 64 KiB has a wrong length here, and is then no key.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(0).to_be_bytes();
    let header = match length {
        [0, short @ 0..=0x7f] => vec![tag, short],
        [0, long] => vec![tag, 0x81, long],
        [high, low] => vec![tag, 0x82, high, low],
    };
    [&header, content].concat()
}
