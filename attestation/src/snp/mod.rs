//! AMD SEV-SNP: reports, their certificates, and the rules that tie them.
//!
//! [`PreparedVek::new`] checks a chain once; [`PreparedVek::verify`] then
//! costs one P-384 signature a report. Nothing here judges a policy: that is
//! the appraisal.

mod chain;
mod flags;
mod id_block;
mod memory;
mod report;
pub mod table;
mod tcb;
mod vek;
mod verifier;

pub(crate) use chain::verify_item;
pub use chain::{CrlState, PreparedVek, SnpClaims};
pub use flags::{GuestPolicy, KeyInfo, PlatformInfo, SigningKey};
pub use id_block::{ID_AUTH_BYTES, ID_BLOCK_BYTES, IdBlock};
pub(crate) use memory::Memory;
pub use report::{FirmwareVersion, REPORT_BYTES, Report, SIGNED_BYTES};
pub use tcb::{Product, Tcb, TcbVersion};
pub use vek::{Vek, VekOwner};
pub use verifier::Verifier;
