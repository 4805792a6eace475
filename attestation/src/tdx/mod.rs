//! Intel TDX: from a quote and collateral to what a trust domain is.
//!
//! [`Prepared`] is Intel's collateral for one platform family, its signatures
//! checked once. [`Prepared::verify`] then checks a quote against it at a time
//! the caller names: two P-256 verifications for a platform seen before, three
//! for a new one. What comes out is data; whether a status will do is policy.

mod certificates;
mod collateral;
mod issuers;
mod item;
mod json;
mod level;
mod pck;
mod prepared;
mod qe_identity;
mod quote;
mod report;
mod status;
mod tcb_info;

pub use collateral::{Collateral, MAX_COLLATERAL_BYTES};
pub use issuers::{PckCaKind, claimed_platform};
pub use item::Memory;
pub(crate) use item::verify_item;
pub use level::{LevelMatch, Tcb};
pub use pck::{Configuration, PckTcb, SGX_EXTENSION, SgxExtension, SgxType};
pub use prepared::{CollateralFacts, Prepared, TdxClaims};
pub use quote::{MAX_QUOTE_BYTES, QeReport, Quote};
pub(crate) use report::MAX_VMID;
pub use report::{BodyKind, TdAttributes, TdReport, TdReport15, TdReport15Ex};
pub use status::TcbStatus;

use crate::error::{Reason, VerifyError};

/// Reads `bytes` as the signed bodies of collateral, as if they were signed.
/// Only there when fuzzing.
#[cfg(fuzzing)]
pub fn fuzz_collateral_bodies(bytes: &[u8]) {
    let _ = json::read_response::<json::SignedTcbInfo<'_>>("TCB info", bytes);
    let _ = json::read::<qe_identity::QeIdentity>("QE identity", bytes);
    if let Ok(mut tcb_info) = json::read::<tcb_info::TcbInfo>("TCB info", bytes) {
        tcb_info.sort();
        let qe = level::svn_level(&[], 1);
        let pck = PckTcb { components: [5; 16], pcesvn: 13 };
        if let Ok(report) = TdReport::parse(BodyKind::Td15, &[1; 648]) {
            let _ = level::assess(&tcb_info, &report, &pck, qe);
        }
    }
}

/// Refuses `bytes` that are longer than `limit`.
fn check_size(field: &'static str, bytes: &[u8], limit: usize) -> Result<(), VerifyError> {
    if bytes.len() <= limit {
        return Ok(());
    }
    Err(VerifyError::new(Reason::Limit, field, format!("at most {limit} bytes"), bytes.len()))
}
