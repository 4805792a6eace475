//! Which TCB levels a quote reaches, and what they come to together.
//!
//! Source: Intel SGX and TDX PCS API v4 and the order of Intel's Quote
//! Verification Library (`TcbLevelCheck`, `TdxModuleCheck`, `TDRelaunchCheck`).

use super::pck::PckTcb;
use super::report::TdReport;
use super::status::TcbStatus;
use super::tcb_info::{Component, IsvSvn, Level, ModuleIdentity, PlatformTcb, TcbInfo, module_id};
use crate::UnixTime;
use crate::error::{Reason, VerifyError};
use crate::wire::hex;

/// What Intel's collateral says of a quote's platform, module and QE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcb {
    /// All of it together, as Intel's library computes it.
    pub status: TcbStatus,
    /// The highest level that the processor and its PCE reach.
    pub sgx: LevelMatch,
    /// The highest level that processor and TDX components reach.
    pub platform: LevelMatch,
    /// The level of the TDX module; none for a module of major version 0.
    pub module: Option<LevelMatch>,
    /// The level of the quoting enclave.
    pub qe: LevelMatch,
    /// The advisories of platform, module and QE, sorted, each once.
    pub advisories: Vec<String>,
}

/// A level that was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LevelMatch {
    /// What the level's status is.
    pub status: TcbStatus,
    /// The date of the level; none if no level was reached.
    pub tcb_date: Option<UnixTime>,
    /// The date of the next better level; none if this is the newest, or none was reached.
    pub superseded: Option<UnixTime>,
    /// The advisories that apply at this level.
    pub advisories: Vec<String>,
}

impl Tcb {
    /// The earliest date at which something better was to be had than a level
    /// that is out of date, or none if nothing is out of date.
    pub fn out_of_date_since(&self) -> Option<UnixTime> {
        [Some(&self.platform), self.module.as_ref(), Some(&self.qe)]
            .into_iter()
            .flatten()
            .filter(|level| level.status.is_out_of_date())
            .map(|level| level.superseded.or(level.tcb_date).unwrap_or(UnixTime(0)))
            .min()
    }
}

/// Matches `report` and `pck` against `tcb_info` and converges with `qe`.
pub(super) fn assess(
    tcb_info: &TcbInfo,
    report: &TdReport,
    pck: &PckTcb,
    qe: LevelMatch,
) -> Result<Tcb, VerifyError> {
    let sgx_reached = |level: &Level<PlatformTcb>| reaches_sgx(pck, &level.tcb);
    let sgx = LevelMatch::first(&tcb_info.tcb_levels, sgx_reached);
    let platform = LevelMatch::first(&tcb_info.tcb_levels, |level| {
        sgx_reached(level) && reaches_tdx(&report.tee_tcb_svn, &level.tcb.tdx)
    });
    let module = module_level(tcb_info, report)?;
    let module_status = module.as_ref().map_or(TcbStatus::UpToDate, |level| level.status);
    // Intel's library stops at a module below every level: no status of the
    // platform, not even Revoked, takes its place.
    let launched = match module_status {
        TcbStatus::NotSupported => module_status,
        _ => platform.status.converge(module_status),
    };
    let relaunch = Relaunch { tcb_info, report, sgx: sgx.status, module: module_status };
    let status = relaunch.advise(launched, qe.status)?.converge(qe.status);
    let mut advisories: Vec<String> = [Some(&platform), module.as_ref(), Some(&qe)]
        .into_iter()
        .flatten()
        .flat_map(|level| level.advisories.iter().cloned())
        .collect();
    advisories.sort_unstable();
    advisories.dedup();
    Ok(Tcb { status, sgx, platform, module, qe, advisories })
}

/// The level of a component with one SVN.
pub(super) fn svn_level(levels: &[Level<IsvSvn>], isvsvn: u16) -> LevelMatch {
    LevelMatch::first(levels, |level| level.tcb.isvsvn <= isvsvn)
}

impl LevelMatch {
    /// The first of `levels` (highest first) for which `reached` holds.
    fn first<T>(levels: &[Level<T>], reached: impl Fn(&Level<T>) -> bool) -> Self {
        let Some((better, level)) = levels
            .iter()
            .position(reached)
            .and_then(|at| Some((levels.get(..at)?, levels.get(at)?)))
        else {
            let (status, advisories) = (TcbStatus::NotSupported, Vec::new());
            return Self { status, tcb_date: None, superseded: None, advisories };
        };
        let date = level.tcb_date.0;
        // The nearest better level that is newer: some differ in no date.
        let superseded = better.iter().rev().map(|level| level.tcb_date.0).find(|d| *d > date);
        Self {
            status: level.tcb_status,
            tcb_date: Some(date),
            superseded,
            advisories: level.advisories.clone(),
        }
    }
}

fn reaches_sgx(pck: &PckTcb, level: &PlatformTcb) -> bool {
    reaches(&pck.components, &level.sgx) && pck.pcesvn >= level.pcesvn
}

/// From module version 1 on, components 0 and 1 are the module's own matter.
fn reaches_tdx(tee_tcb_svn: &[u8; 16], level: &[Component; 16]) -> bool {
    let [_, version, ..] = *tee_tcb_svn;
    let skip = if version > 0 { 2 } else { 0 };
    let (svns, level) = (tee_tcb_svn.iter().skip(skip), level.iter().skip(skip));
    svns.zip(level).all(|(svn, level)| *svn >= level.svn)
}

fn reaches(svns: &[u8; 16], level: &[Component; 16]) -> bool {
    svns.iter().zip(level).all(|(svn, level)| *svn >= level.svn)
}

/// Checks who made the TDX module and finds the level of its SVN.
fn module_level(tcb_info: &TcbInfo, report: &TdReport) -> Result<Option<LevelMatch>, VerifyError> {
    let version = report.module_version();
    if version == 0 {
        let module = &tcb_info.tdx_module;
        check_module(report, &module.mrsigner.0, &module.attributes.0)?;
        return Ok(None);
    }
    let module = known_module(tcb_info, version)?;
    check_module(report, &module.mrsigner.0, &module.attributes.0)?;
    Ok(Some(svn_level(&module.tcb_levels, u16::from(report.module_isvsvn()))))
}

/// There is no falling back to `tdxModule` for a version that is not listed.
fn known_module(tcb_info: &TcbInfo, version: u8) -> Result<&ModuleIdentity, VerifyError> {
    tcb_info.module(version).ok_or_else(|| {
        let expected = "a module version that the TCB info lists";
        VerifyError::new(Reason::TdxModule, "tee_tcb_svn[1]", expected, module_id(version))
    })
}

/// A module for production has no attributes, and no other one is accepted,
/// whatever golden value a mask leaves it.
fn check_module(
    report: &TdReport,
    mrsigner: &[u8; 48],
    attributes: &[u8; 8],
) -> Result<(), VerifyError> {
    if report.mrsignerseam != *mrsigner {
        let (expected, actual) = (hex(mrsigner), hex(&report.mrsignerseam));
        return Err(VerifyError::new(Reason::TdxModule, "mrsignerseam", expected, actual));
    }
    let [actual, wanted] =
        [&report.seamattributes, attributes].map(|bytes| u64::from_le_bytes(*bytes));
    if actual != 0 || wanted != 0 {
        let expected = format!("0, and the golden value {wanted:#x}");
        let actual = format!("{actual:#x}");
        return Err(VerifyError::new(Reason::TdxModule, "seamattributes", expected, actual));
    }
    Ok(())
}

/// Whether a relaunch alone would bring a TD up to date: its platform was
/// updated while it ran (TD-preserving update).
struct Relaunch<'a> {
    tcb_info: &'a TcbInfo,
    report: &'a TdReport,
    sgx: TcbStatus,
    module: TcbStatus,
}

impl Relaunch<'_> {
    fn advise(&self, launched: TcbStatus, qe: TcbStatus) -> Result<TcbStatus, VerifyError> {
        let Some(td15) = &self.report.td15 else { return Ok(launched) };
        let qe_is_fine =
            !matches!(qe, TcbStatus::OutOfDate | TcbStatus::Revoked | TcbStatus::NotSupported);
        let sgx_is_fine = matches!(
            self.sgx,
            TcbStatus::UpToDate
                | TcbStatus::SwHardeningNeeded
                | TcbStatus::ConfigurationNeeded
                | TcbStatus::ConfigurationAndSwHardeningNeeded
        );
        let only_the_module = launched.is_out_of_date() && self.module == TcbStatus::OutOfDate;
        if !(qe_is_fine && sgx_is_fine && only_the_module && self.is_now(&td15.tee_tcb_svn_2)?) {
            return Ok(launched);
        }
        Ok(if self.sgx.needs_configuration() || launched.needs_configuration() {
            TcbStatus::TdRelaunchAdvisedConfigurationNeeded
        } else {
            TcbStatus::TdRelaunchAdvised
        })
    }

    /// Whether `svn`, the SVNs as they are now, are those of the newest levels.
    fn is_now(&self, svn: &[u8; 16]) -> Result<bool, VerifyError> {
        let [isvsvn, version, loader, ..] = *svn;
        let Some(newest) = self.tcb_info.tcb_levels.first() else { return Ok(false) };
        let [component, _, newest_loader, ..] = newest.tcb.tdx;
        let module = match version {
            0 => isvsvn >= component.svn,
            _ => known_module(self.tcb_info, version)?
                .tcb_levels
                .first()
                .is_some_and(|level| u16::from(isvsvn) >= level.tcb.isvsvn),
        };
        Ok(module && loader >= newest_loader.svn)
    }
}
