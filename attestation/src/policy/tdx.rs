//! The section `[tdx]` of an appraisal policy.

use serde::Deserialize;

use super::HexBytes;
use crate::tdx::{MAX_VMID, TcbStatus};
use crate::time::UnixTime;

/// What is asked of a TDX quote.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TdxPolicy {
    /// The TCB statuses to accept, in Intel's spelling. `Revoked` and
    /// `TcbNotSupported` are refused even here. Default `["UpToDate"]`.
    #[serde(deserialize_with = "acceptable")]
    pub statuses: Vec<TcbStatus>,
    /// How long `OutOfDate` is accepted after the next better TCB level was
    /// published. Default 0: not at all.
    pub out_of_date_grace_days: u32,
    /// Statuses to accept until a date, whatever their levels' dates.
    pub grace: Vec<StatusGrace>,
    /// The lowest TEE_TCB_SVN, byte by byte: the TDX module's minor and major
    /// version, the SEAM loader, 13 more. Of a later major version any minor one
    /// will do.
    pub min_tee_tcb_svn: Option<HexBytes<16>>,
    /// The lowest SGX components of the platform, byte by byte.
    pub min_sgx_components: Option<HexBytes<16>>,
    /// The lowest PCESVN of the platform. Default 0.
    pub min_pcesvn: u16,
    /// The lowest ISVSVN of the quoting enclave. Default 0.
    pub min_qe_isvsvn: u16,
    /// Accept whatever advisories an accepted status brings with it, as long as
    /// `advisories` names none. Default true.
    pub allow_advisories: bool,
    /// The advisories that may apply, each until a date, and no others; empty: as
    /// `allow_advisories` says.
    pub advisories: Vec<AdvisoryGrace>,
    /// The one partition of a TD whose report is accepted: 0 is the TD itself, or
    /// its L1, which sees into the others, 1 to 3. Default 0, and then a report
    /// that does not say is not asked.
    #[serde(deserialize_with = "vmid")]
    pub vmid: u8,
    /// Accept a TD that the host may debug. Such a TD never earns the boundary
    /// class tee. Default false.
    pub allow_debug: bool,
    /// Accept a TD that the host may profile, which is as good as debugging.
    /// Default false.
    pub allow_profiling: bool,
    /// Accept a TD that may be moved to another platform. Default false.
    pub allow_migratable: bool,
    /// Ask for SEPT_VE_DISABLE. Clear on Azure, where a paravisor handles the
    /// exception; elsewhere a guest that does not is open to attack. Default false.
    pub require_sept_ve_disable: bool,
    /// MRSERVICETD values to accept beside zero. Default none.
    pub service_tds: Vec<HexBytes<48>>,
    /// TDATTRIBUTES bits that a TD may have, whatever else is asked of them; none: any.
    pub allowed_attributes: Option<u64>,
    /// XFAM bits that a TD may have; none: any.
    pub allowed_xfam: Option<u64>,
    /// Accept a platform to which packages may be added. Default true.
    pub allow_dynamic_platform: bool,
    /// Accept a platform whose root keys are cached at Intel. Default true.
    pub allow_cached_keys: bool,
    /// Accept a platform with hyper-threading. Default true.
    pub allow_smt: bool,
    /// Ask for an event log that replays to the RTMRs. Default false.
    pub require_event_log: bool,
    /// The lowest tcbEvaluationDataNumber of the collateral. Default 0.
    pub min_tcb_evaluation_data_number: u32,
    /// How old TCB info, QE identity and PCK CRL may be; none: until they expire.
    pub max_collateral_age_days: Option<u32>,
    /// FMSPC values to accept; empty: any.
    pub fmspcs: Vec<HexBytes<6>>,
    /// Platform provisioning ids to accept; empty: any.
    pub ppids: Vec<HexBytes<16>>,
    /// MRSEAM values to accept; empty: any that Intel's collateral knows.
    pub mrseams: Vec<HexBytes<48>>,
    /// MRCONFIGID values to accept; empty: any.
    pub mrconfigids: Vec<HexBytes<48>>,
    /// MROWNER values to accept; empty: any.
    pub mrowners: Vec<HexBytes<48>>,
    /// MROWNERCONFIG values to accept; empty: any.
    pub mrownerconfigs: Vec<HexBytes<48>>,
}

/// An advisory that may apply for a while.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdvisoryGrace {
    /// The advisory, such as `INTEL-SA-00960`.
    pub id: String,
    /// The end of the grace, such as `2027-01-31T00:00:00Z`.
    #[serde(deserialize_with = "super::time")]
    pub until: UnixTime,
}

/// A status that is accepted for a while.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusGrace {
    /// The status, in Intel's spelling; `Revoked` and `TcbNotSupported` are refused.
    #[serde(deserialize_with = "acceptable_one")]
    pub status: TcbStatus,
    /// The end of the grace, such as `2027-01-31T00:00:00Z`.
    #[serde(deserialize_with = "super::time")]
    pub until: UnixTime,
}

impl Default for TdxPolicy {
    fn default() -> Self {
        Self {
            statuses: vec![TcbStatus::UpToDate],
            out_of_date_grace_days: 0,
            grace: vec![],
            min_tee_tcb_svn: None,
            min_sgx_components: None,
            min_pcesvn: 0,
            min_qe_isvsvn: 0,
            allow_advisories: true,
            advisories: vec![],
            vmid: 0,
            allow_debug: false,
            allow_profiling: false,
            allow_migratable: false,
            require_sept_ve_disable: false,
            service_tds: vec![],
            allowed_attributes: None,
            allowed_xfam: None,
            allow_dynamic_platform: true,
            allow_cached_keys: true,
            allow_smt: true,
            require_event_log: false,
            min_tcb_evaluation_data_number: 0,
            max_collateral_age_days: None,
            fmspcs: vec![],
            ppids: vec![],
            mrseams: vec![],
            mrconfigids: vec![],
            mrowners: vec![],
            mrownerconfigs: vec![],
        }
    }
}

fn acceptable<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<TcbStatus>, D::Error> {
    let statuses = Vec::<TcbStatus>::deserialize(deserializer)?;
    match statuses.iter().find(|status| status.is_never_acceptable()) {
        None => Ok(statuses),
        Some(status) => Err(serde::de::Error::custom(format!(
            "expected a status that may be accepted, got {status}"
        ))),
    }
}

fn acceptable_one<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<TcbStatus, D::Error> {
    let status = TcbStatus::deserialize(deserializer)?;
    if status.is_never_acceptable() {
        let message = format!("expected a status that may be accepted, got {status}");
        return Err(serde::de::Error::custom(message));
    }
    Ok(status)
}

fn vmid<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let vmid = u8::deserialize(deserializer)?;
    if vmid <= MAX_VMID {
        return Ok(vmid);
    }
    Err(serde::de::Error::custom(format!("expected a VMID, 0 to {MAX_VMID}, got {vmid}")))
}

#[cfg(test)]
mod tests {
    use crate::policy::Policy;
    use crate::tdx::TcbStatus;

    #[test]
    fn the_section_is_read_and_bounds_what_may_be_accepted() {
        let policy = Policy::from_toml(
            "[tdx]\nstatuses = [\"UpToDate\", \"SWHardeningNeeded\"]\n\
             [[tdx.advisories]]\nid = \"INTEL-SA-00960\"\nuntil = \"2027-01-31T00:00:00Z\"\n",
        )
        .unwrap();
        assert_eq!(policy.tdx().statuses[1], TcbStatus::SwHardeningNeeded);
        for bad in [
            "[tdx]\nstatuses = [\"Revoked\"]",
            "[tdx]\nstatuses = [\"TcbNotSupported\"]",
            "[tdx]\nstatuses = [\"uptodate\"]",
            "[tdx]\nallow_anything = true",
            "[tdx]\nvmid = 4",
            "[[tdx.grace]]\nstatus = \"Revoked\"\nuntil = \"2027-01-31T00:00:00Z\"",
            "[[tdx.grace]]\nstatus = \"OutOfDate\"",
            "[tdx]\nmin_tee_tcb_svn = \"00\"",
            "[[tdx.advisories]]\nid = \"x\"\nuntil = \"soon\"",
        ] {
            assert!(Policy::from_toml(bad).is_err(), "{bad}");
        }
    }
}
