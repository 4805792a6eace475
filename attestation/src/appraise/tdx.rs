//! Rules on the fields of a TDX quote (Intel TDX DCAP Quoting Library API, TD
//! report body) and on its TCB status (Intel DCAP Quote Verification Library).

use super::{Challenge, CpuFindings, Findings};
use crate::eventlog::EventLogClaims;
use crate::policy::{HexBytes, TdxPolicy};
use crate::reference::ReferenceValues;
use crate::tdx::{TcbStatus, TdAttributes, TdReport, TdxClaims};
use crate::time::UnixTime;
use crate::wire::hex;

pub(super) fn appraise(
    claims: &TdxClaims,
    policy: &TdxPolicy,
    references: &ReferenceValues,
    challenge: Challenge,
    now: UnixTime,
    findings: &mut Findings,
) {
    status(claims, policy, now, findings);
    floors(claims, policy, findings);
    advisories(claims, policy, now, findings);
    collateral(claims, policy, now, findings);
    attributes(&claims.report, policy, findings);
    partition(&claims.report, policy, findings);
    service_td(&claims.report, policy, findings);
    platform(claims, policy, findings);
    identity(claims, policy, findings);
    let fresh = challenge.check("tdx.report-data", &claims.report.report_data, findings);
    measured(claims, references, fresh, findings);
}

fn status(claims: &TdxClaims, policy: &TdxPolicy, now: UnixTime, findings: &mut Findings) {
    let status = claims.tcb.status;
    let accepted: Vec<_> = policy.statuses.iter().map(|status| status.name()).collect();
    let grace = u64::from(policy.out_of_date_grace_days);
    let until = claims
        .tcb
        .out_of_date_since()
        .filter(|_| status == TcbStatus::OutOfDate && grace > 0)
        .map(|since| since.plus_seconds(grace.saturating_mul(DAY)));
    // The processor's own level counts too: a lower one may hide that its keys are revoked.
    let never = status.is_never_acceptable() || claims.tcb.sgx.status == TcbStatus::Revoked;
    let listed = policy.statuses.contains(&status);
    let mut expected = accepted.join(" or ");
    if let Some(until) = until {
        expected.push_str(&format!(", or {status} until {until}"));
    }
    for grace in &policy.grace {
        expected.push_str(&format!(", or {} until {}", grace.status, grace.until));
    }
    let dated = policy.grace.iter().any(|grace| grace.status == status && now < grace.until);
    findings.checks.compare(
        "tdx.tcb-status",
        !never && (listed || dated || until.is_some_and(|until| now < until)),
        expected,
        describe(claims),
        "update BIOS, microcode and TDX module as the advisories say, then launch the TD again",
    );
}

/// What Intel's levels ask for, asked by the policy itself, part by part.
fn floors(claims: &TdxClaims, policy: &TdxPolicy, findings: &mut Findings) {
    let hint = "update BIOS, microcode and TDX module, then launch the TD again";
    let (svn, sgx) = (&claims.report.tee_tcb_svn, &claims.platform.tcb.components);
    let vectors = [
        ("tdx.tee-tcb-svn", &policy.min_tee_tcb_svn, svn, true),
        ("tdx.sgx-components", &policy.min_sgx_components, sgx, false),
    ];
    for (rule, floor, actual, is_module) in vectors {
        let Some(floor) = floor else {
            findings.checks.not_asked(rule, hex(actual));
            continue;
        };
        let holds = at_least(actual, &if is_module { of_major(actual, floor.0) } else { floor.0 });
        let expected = format!("at least {}, byte by byte", hex(&floor.0));
        findings.checks.compare(rule, holds, expected, hex(actual), hint);
    }
    let numbers = [
        ("tdx.pcesvn", policy.min_pcesvn, claims.platform.tcb.pcesvn),
        ("tdx.qe-isvsvn", policy.min_qe_isvsvn, claims.qe_isvsvn),
    ];
    for (rule, floor, actual) in numbers {
        if floor == 0 {
            findings.checks.not_asked(rule, actual);
        } else {
            let expected = format!("at least {floor}");
            findings.checks.compare(rule, actual >= floor, expected, actual, hint);
        }
    }
}

fn at_least(actual: &[u8; 16], floor: &[u8; 16]) -> bool {
    actual.iter().zip(floor).all(|(actual, floor)| actual >= floor)
}

/// The floor for a TDX module like `actual`: byte 0, the minor version, counts
/// within one major version, byte 1.
fn of_major(actual: &[u8; 16], mut floor: [u8; 16]) -> [u8; 16] {
    let ([_, major, ..], [minor, floor_major, ..]) = (actual, &mut floor);
    if major > floor_major {
        *minor = 0;
    }
    floor
}

/// The status, what it is made of, and since when something better is there.
fn describe(claims: &TdxClaims) -> String {
    let tcb = &claims.tcb;
    let module = tcb.module.as_ref().map_or("(none)", |level| level.status.name());
    let (platform, qe) = (tcb.platform.status, tcb.qe.status);
    let parts = format!("{}: platform {platform}, module {module}, QE {qe}", tcb.status);
    match tcb.out_of_date_since() {
        Some(since) => format!("{parts}; out of date since {since}"),
        None => parts,
    }
}

fn advisories(claims: &TdxClaims, policy: &TdxPolicy, now: UnixTime, findings: &mut Findings) {
    let actual = list(&claims.tcb.advisories);
    if policy.allow_advisories && policy.advisories.is_empty() {
        return findings.checks.not_asked("tdx.advisories", actual);
    }
    let excused = |id: &String| policy.advisories.iter().any(|a| a.id == *id && now < a.until);
    let graces: Vec<_> =
        policy.advisories.iter().map(|a| format!("{} until {}", a.id, a.until)).collect();
    let but = if graces.is_empty() { String::new() } else { format!(" but {}", graces.join(", ")) };
    findings.checks.compare(
        "tdx.advisories",
        claims.tcb.advisories.iter().all(excused),
        format!("none{but}"),
        actual,
        "install the updates of the other advisories",
    );
}

fn collateral(claims: &TdxClaims, policy: &TdxPolicy, now: UnixTime, findings: &mut Findings) {
    let facts = &claims.collateral;
    let (floor, number) = (policy.min_tcb_evaluation_data_number, facts.tcb_evaluation_data_number);
    if floor == 0 {
        findings.checks.not_asked("tdx.tcb-eval", number);
    } else {
        findings.checks.compare(
            "tdx.tcb-eval",
            number >= floor,
            format!("at least {floor}"),
            number,
            "fetch newer collateral",
        );
    }
    let actual = format!("issued {}, valid until {}", facts.issued, facts.next_update);
    let Some(days) = policy.max_collateral_age_days else {
        return findings.checks.not_asked("tdx.collateral-age", actual);
    };
    findings.checks.compare(
        "tdx.collateral-age",
        now < facts.issued.plus_seconds(u64::from(days).saturating_mul(DAY)),
        format!("issued less than {days} days before {now}"),
        actual,
        "fetch newer collateral",
    );
}

fn attributes(report: &TdReport, policy: &TdxPolicy, findings: &mut Findings) {
    let attributes = report.tdattributes;
    let rules = [
        ("tdx.debug", TdAttributes::DEBUG, policy.allow_debug, "launch the TD without DEBUG"),
        (
            "tdx.profiling",
            TdAttributes::PROFILING,
            policy.allow_profiling,
            "launch the TD without the profiling attributes",
        ),
        (
            "tdx.migratable",
            TdAttributes::MIGRATABLE,
            policy.allow_migratable,
            "launch the TD without MIGRATABLE",
        ),
        ("tdx.reserved", TdAttributes::RESERVED, false, "no known TDX module sets these bits"),
    ];
    for (rule, bits, allowed, hint) in rules {
        let expected = if allowed { "any".to_owned() } else { format!("none of {bits}") };
        let passed = allowed || !attributes.any(bits);
        findings.checks.compare(rule, passed, expected, attributes, hint);
    }
    if policy.require_sept_ve_disable {
        findings.checks.compare(
            "tdx.sept-ve",
            attributes.any(TdAttributes::SEPT_VE_DISABLE),
            "SEPT_VE_DISABLE",
            attributes,
            "launch the TD with SEPT_VE_DISABLE",
        );
    } else {
        findings.checks.not_asked("tdx.sept-ve", attributes);
    }
    let masks = [
        ("tdx.attributes", policy.allowed_attributes, attributes.0, "attributes"),
        ("tdx.xfam", policy.allowed_xfam, report.xfam, "extended features"),
    ];
    for (rule, mask, bits, what) in masks {
        let actual = format!("{bits:#x}");
        let Some(mask) = mask else {
            findings.checks.not_asked(rule, actual);
            continue;
        };
        let expected = format!("no bit outside of {mask:#x}");
        let hint = format!("launch the TD with fewer {what}");
        findings.checks.compare(rule, bits & !mask == 0, expected, actual, &hint);
    }
}

/// The L1 of a partitioned TD sees into its partitions, and each reports alike.
/// What asks for a partition needs a form that says which it is.
fn partition(report: &TdReport, policy: &TdxPolicy, findings: &mut Findings) {
    let vmid = report.td15_ex.as_ref().map(|ex| ex.vmid);
    let expected = format!("VMID {}, in a TD report 1.5 extended", policy.vmid);
    let actual =
        vmid.map_or_else(|| "the report does not say".to_owned(), |vmid| format!("VMID {vmid}"));
    if vmid.is_none() && policy.vmid == 0 {
        return findings.checks.not_applicable("tdx.vmid", expected, actual);
    }
    findings.checks.compare(
        "tdx.vmid",
        vmid == Some(policy.vmid),
        expected,
        actual,
        "ask for the report in the right partition, or set tdx.vmid in the policy",
    );
}

/// A service TD can act on the TD (migrate it), and so is part of what is trusted.
fn service_td(report: &TdReport, policy: &TdxPolicy, findings: &mut Findings) {
    // Firmware fills the hashes only under the attribute; believe either.
    let named = report
        .td15_ex
        .as_ref()
        .is_some_and(|ex| ex.init_service_td_hash != [0; 48] || ex.cur_service_td_hash != [0; 48]);
    let extended = named || report.tdattributes.any(TdAttributes::SERVTD_EXT);
    let bound = report.td15.as_ref().map(|td15| td15.mrservicetd).filter(|mr| *mr != [0; 48]);
    let passed = match bound {
        None => !extended,
        Some(mr) => policy.service_tds.iter().any(|known| known.0 == mr),
    };
    let known: Vec<_> = policy.service_tds.iter().map(|known| hex(&known.0)).collect();
    findings.checks.compare(
        "tdx.service-td",
        passed,
        format!(
            "no service TD{}{}",
            if known.is_empty() { "" } else { ", or one of " },
            list(&known)
        ),
        match (bound, extended) {
            (Some(mr), _) => hex(&mr),
            (None, true) => "none bound, but SERVTD_EXT or a hash of service TDs is set".to_owned(),
            (None, false) => "none".to_owned(),
        },
        "launch without a service TD, or add it to tdx.service_tds in the policy",
    );
}

fn platform(claims: &TdxClaims, policy: &TdxPolicy, findings: &mut Findings) {
    let configuration = &claims.platform.configuration;
    let rules = [
        ("tdx.dynamic-platform", policy.allow_dynamic_platform, configuration.dynamic_platform),
        ("tdx.cached-keys", policy.allow_cached_keys, configuration.cached_keys),
        ("tdx.smt", policy.allow_smt, configuration.smt_enabled),
    ];
    for (rule, allowed, flag) in rules {
        let actual = match flag {
            Some(true) => "yes",
            Some(false) => "no",
            None => "the PCK certificate does not say",
        };
        if allowed {
            findings.checks.not_asked(rule, actual);
        } else {
            let hint = "run on a platform that is registered otherwise";
            findings.checks.compare(rule, flag == Some(false), "no", actual, hint);
        }
    }
    one_of(findings, "tdx.fmspc", &policy.fmspcs, &claims.platform.fmspc);
    one_of(findings, "tdx.platform", &policy.ppids, &claims.platform.ppid);
}

fn identity(claims: &TdxClaims, policy: &TdxPolicy, findings: &mut Findings) {
    let report = &claims.report;
    one_of(findings, "tdx.mrseam", &policy.mrseams, &report.mrseam);
    one_of(findings, "tdx.mrconfigid", &policy.mrconfigids, &report.mrconfigid);
    one_of(findings, "tdx.mrowner", &policy.mrowners, &report.mrowner);
    one_of(findings, "tdx.mrownerconfig", &policy.mrownerconfigs, &report.mrownerconfig);
}

/// What was loaded after MRTD, event by event. A log that does not replay to the
/// quote's registers never comes this far.
pub(super) fn event_log(log: Option<&EventLogClaims>, policy: &TdxPolicy, findings: &mut Findings) {
    let Some(log) = log else {
        if !policy.require_event_log {
            return findings.checks.not_asked("tdx.event-log", "none");
        }
        let hint = "send the CCEL event log with the quote";
        let expected = "a log that replays to the RTMRs";
        return findings.checks.compare("tdx.event-log", false, expected, "none", hint);
    };
    let into = |rtmr| log.events.iter().filter(|event| event.rtmr == Some(rtmr)).count();
    let counts: Vec<_> = (0..4).map(|rtmr| format!("{} in RTMR{rtmr}", into(rtmr))).collect();
    let actual = format!("events that replay: {}", counts.join(", "));
    findings.checks.compare("tdx.event-log", true, "a log that replays to the RTMRs", actual, "");
}

fn measured(
    claims: &TdxClaims,
    references: &ReferenceValues,
    fresh: bool,
    findings: &mut Findings,
) {
    let report = &claims.report;
    let known: Vec<_> = references.by_tdx(&report.mrtd, &report.rtmrs).collect();
    let rtmrs: Vec<_> = report.rtmrs.iter().map(|rtmr| hex(rtmr)).collect();
    findings.checks.compare(
        "tdx.measurement",
        !known.is_empty(),
        "MRTD and RTMRs of a known image",
        format!("MRTD {}, RTMRs {}", hex(&report.mrtd), rtmrs.join(", ")),
        "compare with `casemate measure`, and replay the event log to see what was loaded",
    );
    let image_properties = findings.image(&known);
    let open = TdAttributes(TdAttributes::DEBUG.0 | TdAttributes::PROFILING.0);
    findings.cpu(
        &claims.anchor,
        CpuFindings {
            measurement: report.mrtd.to_vec(),
            fresh,
            debug: report.tdattributes.any(open),
            image_properties,
        },
    );
}

fn one_of<const N: usize>(
    findings: &mut Findings,
    rule: &'static str,
    accepted: &[HexBytes<N>],
    actual: &[u8; N],
) {
    if accepted.is_empty() {
        return findings.checks.not_asked(rule, hex(actual));
    }
    let known: Vec<_> = accepted.iter().map(|known| hex(&known.0)).collect();
    findings.checks.compare(
        rule,
        accepted.iter().any(|known| known.0 == *actual),
        format!("one of {}", known.join(", ")),
        hex(actual),
        "launch with an accepted value, or add this one to the policy",
    );
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

const DAY: u64 = 86_400;
