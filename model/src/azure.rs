//! A model of Azure's paravisor: HCL reports around a modelled CPU's report,
//! and a vTPM that signs quotes.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use casemate_attestation::azure::{HclKind, PCRS, TpmQuote};
use casemate_attestation::crypto::sha256;
use casemate_attestation::snp::REPORT_BYTES;

use crate::ModelError;

/// A paravisor with the key of its vTPM.
pub struct Paravisor {
    key: RsaKeyPair,
}

/// Where REPORTDATA is in a TDREPORT's REPORTMACSTRUCT (Intel TDX module ABI).
const TDREPORT_DATA: usize = 128;

impl Paravisor {
    /// A paravisor with a new key.
    pub fn generate() -> Result<Self, ModelError> {
        let key = RsaKeyPair::generate(KeySize::Rsa2048)
            .map_err(|_| ModelError::Crypto { what: "generating an RSA key" })?;
        Ok(Self { key })
    }

    /// The runtime data: the key's public half, and what the guest chose.
    pub fn runtime(&self, user_data: &[u8; 64]) -> Vec<u8> {
        let public = self.key.public_key();
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let modulus = public.modulus().big_endian_without_leading_zero();
        let exponent = public.exponent().big_endian_without_leading_zero();
        let user_data: String = user_data.iter().map(|byte| format!("{byte:02X}")).collect();
        format!(
            "{{\"keys\":[{{\"kid\":\"HCLAkPub\",\"key_ops\":[\"sign\"],\"kty\":\"RSA\",\
             \"e\":\"{}\",\"n\":\"{}\"}}],\"vm-configuration\":{{\"tpm-enabled\":true}},\
             \"user-data\":\"{user_data}\"}}",
            encode(exponent),
            encode(modulus),
        )
        .into_bytes()
    }

    /// The report data that a CPU's report must carry for `runtime`.
    pub fn report_data(runtime: &[u8]) -> [u8; 64] {
        let mut data = [0; 64];
        data.iter_mut().zip(sha256(runtime)).for_each(|(place, byte)| *place = byte);
        data
    }

    /// An HCL report around an SNP report.
    pub fn snp_report(report: &[u8; REPORT_BYTES], runtime: &[u8]) -> Vec<u8> {
        hcl(HclKind::Snp, report, runtime)
    }

    /// An HCL report around a TDREPORT that carries the digest of `runtime`.
    pub fn tdx_report(runtime: &[u8]) -> Vec<u8> {
        let mut report = [0; REPORT_BYTES];
        let data = Self::report_data(runtime);
        report.iter_mut().skip(TDREPORT_DATA).zip(data).for_each(|(place, byte)| *place = byte);
        hcl(HclKind::Tdx, &report, runtime)
    }

    /// The vTPM's quote over `nonce` and `pcrs`.
    pub fn quote(&self, nonce: &[u8], pcrs: [[u8; 32]; PCRS]) -> Result<TpmQuote, ModelError> {
        let digest = sha256(&pcrs.concat());
        let size = u16::try_from(nonce.len()).unwrap_or(u16::MAX).to_be_bytes();
        let message = [
            b"\xffTCG\x80\x18".as_slice(),
            &[0, 0], // no qualifiedSigner
            &size,
            nonce,
            &[0; 25], // clockInfo, firmwareVersion
            &[0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0xff, 0xff],
            &[0, 32],
            &digest,
        ]
        .concat();
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &message, &mut signature)
            .map_err(|_| ModelError::Crypto { what: "signing a vTPM quote" })?;
        Ok(TpmQuote { message, signature, pcrs: pcrs.to_vec() })
    }
}

/// Header, hardware report, runtime data with its own header.
fn hcl(kind: HclKind, report: &[u8; REPORT_BYTES], runtime: &[u8]) -> Vec<u8> {
    let word = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    let kind = match kind {
        HclKind::Snp => 2,
        HclKind::Tdx => 4,
    };
    let size = runtime.len();
    let total = 32 + REPORT_BYTES + 20 + size;
    [
        b"HCLA".as_slice(),
        &word(2),
        &word(total),
        &word(2),
        &[0; 16],
        report,
        &word(20 + size),
        &word(1),
        &word(kind),
        &word(1), // SHA-256
        &word(size),
        runtime,
    ]
    .concat()
}
