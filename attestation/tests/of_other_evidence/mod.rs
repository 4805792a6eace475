//! Reasons of TDX, Azure, devices and event logs. The tests of SNP cause every
//! other one; `model/tests/reasons.rs` causes these. Two tests that walk one
//! list: no reason is without a case.

use casemate_attestation::Reason;

/// What neither an SNP report nor a host's claim is refused for.
pub(crate) const REASONS: &[Reason] = &[
    Reason::CollateralRollback,
    Reason::Unsupported,
    Reason::TrailingBytes,
    Reason::HclBinding,
    Reason::HclQuote,
    Reason::TeeType,
    Reason::BodyType,
    Reason::QeVendor,
    Reason::CertData,
    Reason::QeBinding,
    Reason::QeReportSignature,
    Reason::QeIdentity,
    Reason::PckCertificate,
    Reason::CollateralMissing,
    Reason::CollateralMalformed,
    Reason::CollateralKind,
    Reason::CollateralSignature,
    Reason::CollateralStale,
    Reason::Fmspc,
    Reason::PceId,
    Reason::TdxModule,
    Reason::EventLog,
    Reason::GpuReport,
];
