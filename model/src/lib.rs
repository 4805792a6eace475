//! Software models of TEE issuers: the real formats, signed under a locally
//! made root.
//!
//! A model stands in for hardware where there is none, so that the code that
//! verifies is the shipped code. Nothing in `casemate-attestation` knows that
//! it exists: its root is an explicit trust anchor of kind `model`, and a
//! result under it says "model, not hardware".

#![forbid(unsafe_code)]

pub mod azure;
pub mod der;
mod files;
pub mod gpu;
mod psp;
pub mod tdx;

pub use psp::{
    CertSpec, CrlFault, CrlSpec, Issuer, PspConfig, PspModel, ReportFields, SubjectKey, VekKind,
};

/// Why a model cannot be made or cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The cryptographic library refused; a stored key may be damaged.
    #[error("{what}: the cryptographic library refused")]
    Crypto {
        /// What was being done.
        what: &'static str,
    },
    /// Stored state is not a model's.
    #[error("stored model, {field}: expected {expected}")]
    Stored {
        /// The part at fault.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// The directory cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The path at fault.
        path: std::path::PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
}
