//! TCB info: which SVNs of a platform family Intel holds to be what.
//!
//! Source: Intel SGX and TDX PCS API v4, "Get TDX TCB Info", TCB info V3.

use serde::Deserialize;

use super::json::{Hex, Rfc3339};
use super::status::TcbStatus;

/// A TCB info, its signature not looked at here.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TcbInfo {
    pub(super) issue_date: Rfc3339,
    pub(super) next_update: Rfc3339,
    pub(super) fmspc: Hex<6>,
    pub(super) pce_id: Hex<2>,
    tcb_type: u32,
    pub(super) tcb_evaluation_data_number: u32,
    pub(super) tdx_module: Module,
    #[serde(default)]
    tdx_module_identities: Vec<ModuleIdentity>,
    pub(super) tcb_levels: Vec<Level<PlatformTcb>>,
}

/// What every kind of collateral says of itself, read before the rest.
#[derive(Debug, Deserialize)]
pub(super) struct Kind {
    pub(super) id: String,
    pub(super) version: u32,
}

/// Who signs a TDX module of version 0, and with what attributes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Module {
    pub(super) mrsigner: Hex<48>,
    pub(super) attributes: Hex<8>,
    /// Must be there; no mask excuses an attribute.
    #[serde(rename = "attributesMask")]
    _attributes_mask: Hex<8>,
}

/// One later major version of the TDX module.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ModuleIdentity {
    id: String,
    pub(super) mrsigner: Hex<48>,
    pub(super) attributes: Hex<8>,
    /// Must be there; no mask excuses an attribute.
    #[serde(rename = "attributesMask")]
    _attributes_mask: Hex<8>,
    pub(super) tcb_levels: Vec<Level<IsvSvn>>,
}

/// What Intel says of evidence that reaches `tcb`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "T: Judged + Deserialize<'de>"))]
pub(super) struct Level<T> {
    pub(super) tcb: T,
    pub(super) tcb_date: Rfc3339,
    #[serde(deserialize_with = "TcbStatus::deserialize_collateral::<T, _>")]
    pub(super) tcb_status: TcbStatus,
    #[serde(rename = "advisoryIDs", default)]
    pub(super) advisories: Vec<String>,
}

/// What a level is of: it decides which statuses the level may have.
pub(super) trait Judged {
    /// Whether Intel gives a level of this kind `status`.
    fn may_have(status: TcbStatus) -> bool;
}

/// The SVN of a TDX module or a QE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct IsvSvn {
    pub(super) isvsvn: u16,
}

/// The SVNs of a platform, ordered as levels are matched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct PlatformTcb {
    #[serde(rename = "sgxtcbcomponents")]
    pub(super) sgx: [Component; 16],
    pub(super) pcesvn: u16,
    #[serde(rename = "tdxtcbcomponents")]
    pub(super) tdx: [Component; 16],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Component {
    pub(super) svn: u8,
}

impl Judged for PlatformTcb {
    fn may_have(status: TcbStatus) -> bool {
        !status.is_computed()
    }
}

/// Nothing configures a module or a QE: Intel's schema has these three alone.
impl Judged for IsvSvn {
    fn may_have(status: TcbStatus) -> bool {
        matches!(status, TcbStatus::UpToDate | TcbStatus::OutOfDate | TcbStatus::Revoked)
    }
}

impl TcbInfo {
    /// Puts every list of levels into the order in which it is matched, highest
    /// first, whatever order it came in.
    pub(super) fn sort(&mut self) {
        sort_levels(&mut self.tcb_levels);
        for module in &mut self.tdx_module_identities {
            sort_levels(&mut module.tcb_levels);
        }
    }

    /// Whether SVNs are compared component by component (the only kind there is).
    pub(super) fn compares_components(&self) -> bool {
        self.tcb_type == 0
    }

    /// The identity of major version `version` of the TDX module.
    pub(super) fn module(&self, version: u8) -> Option<&ModuleIdentity> {
        let id = module_id(version);
        self.tdx_module_identities.iter().find(|module| module.id.eq_ignore_ascii_case(&id))
    }
}

/// How collateral names major version `version` of the TDX module.
pub(super) fn module_id(version: u8) -> String {
    format!("TDX_{version:02X}")
}

/// Sorts highest first; equal ones keep the order in which they came.
pub(super) fn sort_levels<T: Ord>(levels: &mut [Level<T>]) {
    levels.sort_by(|a, b| b.tcb.cmp(&a.tcb));
}
