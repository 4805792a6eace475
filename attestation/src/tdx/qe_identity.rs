//! QE identity: which quoting enclaves Intel holds to be what.
//!
//! Source: Intel SGX and TDX PCS API v4, "Get TDX QE Identity", version 2.

use serde::Deserialize;

use super::json::{Hex, Rfc3339};
use super::quote::QeReport;
use super::tcb_info::{IsvSvn, Level};
use crate::error::{Reason, VerifyError};
use crate::wire::hex;

/// A QE identity, its signature not looked at here.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct QeIdentity {
    pub(super) issue_date: Rfc3339,
    pub(super) next_update: Rfc3339,
    pub(super) tcb_evaluation_data_number: u32,
    miscselect: Hex<4>,
    miscselect_mask: Hex<4>,
    attributes: Hex<16>,
    attributes_mask: Hex<16>,
    mrsigner: Hex<32>,
    isvprodid: u16,
    pub(super) tcb_levels: Vec<Level<IsvSvn>>,
}

impl QeIdentity {
    /// Whether `report` is of this enclave, whatever its SVN. The mask is for what
    /// is reported: a golden value outside of it is met by no enclave, as in
    /// Intel's `EnclaveReportVerifier`.
    pub(super) fn check(&self, report: &QeReport<'_>) -> Result<(), VerifyError> {
        // MISCSELECT is a number in the report and big-endian hex in the JSON.
        let [mask, wanted] =
            [self.miscselect_mask, self.miscselect].map(|word| u32::from_be_bytes(word.0));
        if report.miscselect & mask != wanted {
            let expected = format!("{wanted:#x} under mask {mask:#x}");
            return refuse("QE miscselect", expected, format!("{:#x}", report.miscselect));
        }
        let (attributes, mask) = (&self.attributes.0, &self.attributes_mask.0);
        let [reported, under, wanted] =
            [&report.attributes, mask, attributes].map(|bytes| u128::from_le_bytes(*bytes));
        if reported & under != wanted {
            let expected = format!("{} under mask {}", hex(attributes), hex(mask));
            return refuse("QE attributes", expected, hex(&report.attributes));
        }
        if report.mrsigner != self.mrsigner.0 {
            return refuse("QE mrsigner", hex(&self.mrsigner.0), hex(&report.mrsigner));
        }
        if report.isvprodid != self.isvprodid {
            let expected = self.isvprodid.to_string();
            return refuse("QE isvprodid", expected, report.isvprodid.to_string());
        }
        Ok(())
    }
}

fn refuse(field: &str, expected: String, actual: String) -> Result<(), VerifyError> {
    Err(VerifyError::new(Reason::QeIdentity, field, expected, actual))
}
