//! X.509 certificates and revocation lists, DER and PEM, and Intel's PCK extension.
#![no_main]

use casemate_attestation::snp::Vek;
use casemate_attestation::tdx::SgxExtension;
use casemate_attestation::x509::{self, Certificate, Crl, PemLimits};
use libfuzzer_sys::fuzz_target;

const LIMITS: PemLimits = PemLimits { bytes: 64 * 1024, blocks: 4 };

fuzz_target!(|bytes: &[u8]| {
    let certificate = Certificate::parse(bytes);
    let list = Crl::parse(bytes);
    if let Ok(certificate) = &certificate {
        assert_eq!(certificate.der(), bytes);
        let _ = certificate.check_signature(certificate.key());
        let _ = certificate.check_ca();
    }
    if let (Ok(certificate), Ok(list)) = (&certificate, &list) {
        let _ = list.check_not_revoked(certificate);
    }
    let _ = x509::certificates_from_pem(bytes, LIMITS);
    let _ = x509::crls_from_pem(bytes, LIMITS);
    let _ = SgxExtension::parse(bytes);
    if let Ok(certificate) = certificate {
        let _ = Vek::parse(certificate);
    }
});
