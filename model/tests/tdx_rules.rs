//! Each rule on TDX evidence, in a policy that asks and with evidence that does
//! not satisfy it.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::LazyLock;

use casemate_attestation::anchors::{IntelAnchor, TrustAnchors};
use casemate_attestation::tdx::{BodyKind, TdAttributes, TdReport15Ex};
use casemate_attestation::x509::Certificate;
use casemate_attestation::{
    Claims, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Expected, Outcome,
    Policy, ReferenceValues, UnixTime, Verified, appraise, verify,
};
use casemate_model::tdx::{CollateralSpec, QuoteSpec, TdxConfig, TdxModel};

static MODEL: LazyLock<TdxModel> =
    LazyLock::new(|| TdxModel::generate(TdxConfig::new(at("2024-01-01T00:00:00Z"))).unwrap());

#[test]
fn policy_judges_what_verified() {
    let failing = |policy: &str, change: fn(&mut QuoteSpec)| {
        let mut spec = spec(BodyKind::Td15);
        change(&mut spec);
        let quote = MODEL.quote(&spec).unwrap();
        failures(policy, &quote)
    };
    let none: Vec<&str> = vec![];
    assert_eq!(failing("", |_| ()), none);
    assert_eq!(failing("", |spec| spec.report.tdattributes.0 |= 1), ["tdx.debug"]);
    assert_eq!(failing("", |spec| spec.report.tdattributes.0 |= 1 << 5), ["tdx.profiling"]);
    assert_eq!(failing("", |spec| spec.report.tdattributes.0 |= 1 << 29), ["tdx.migratable"]);
    assert_eq!(failing("", |spec| spec.report.tdattributes.0 |= 2), ["tdx.reserved"]);
    assert_eq!(failing("", |spec| spec.report.tdattributes.0 |= 1 << 17), ["tdx.service-td"]);
    let service = |spec: &mut QuoteSpec| spec.report.td15.as_mut().unwrap().mrservicetd = [1; 48];
    assert_eq!(failing("", service), ["tdx.service-td"]);
    let named = |change: fn(&mut TdReport15Ex)| {
        let mut spec = spec(BodyKind::Td15Ex);
        change(spec.report.td15_ex.as_mut().unwrap());
        failures("", &MODEL.quote(&spec).unwrap())
    };
    assert_eq!(named(|_| ()), none);
    assert_eq!(named(|ex| ex.init_service_td_hash[0] = 1), ["tdx.service-td"]);
    assert_eq!(named(|ex| ex.cur_service_td_hash[47] = 1), ["tdx.service-td"]);
    let known = format!("service_tds = [\"{}\"]", "01".repeat(48));
    assert_eq!(failing(&known, service), none);
    let clear = |spec: &mut QuoteSpec| spec.report.tdattributes = TdAttributes(0);
    assert_eq!(failing("", clear), none);
    assert_eq!(failing("require_sept_ve_disable = true", clear), ["tdx.sept-ve"]);
    assert_eq!(failing("allowed_xfam = 7", |_| ()), ["tdx.xfam"]);
    assert_eq!(failing("allow_smt = false", |_| ()), ["tdx.smt"]);
    assert_eq!(failing("min_tcb_evaluation_data_number = 21", |_| ()), ["tdx.tcb-eval"]);
    assert_eq!(failing("max_collateral_age_days = 10", |_| ()), ["tdx.collateral-age"]);
    assert_eq!(failing("fmspcs = [\"000000000000\"]", |_| ()), ["tdx.fmspc"]);
}

/// A rule, what the policy asks, and what to change so that it does not hold.
type Broken = (&'static str, String, fn(&mut QuoteSpec));

/// Each rule on TDX evidence fails in a case of its own, and only it.
#[test]
fn every_rule_has_a_case() {
    let other = |key: &str, bytes: usize| format!("{key} = [\"{}\"]", "fe".repeat(bytes));
    let floor = |svn: &str| format!("min_tee_tcb_svn = \"{svn}{}\"", "00".repeat(13));
    let none = String::new;
    let cases: Vec<Broken> = vec![
        ("tdx.tcb-status", none(), |spec| spec.qe.isvsvn = 5),
        ("tdx.tee-tcb-svn", floor("060105"), |_| ()),
        ("tdx.tee-tcb-svn", floor("000200"), |_| ()),
        ("tdx.sgx-components", format!("min_sgx_components = \"{}\"", "06".repeat(16)), |_| ()),
        ("tdx.pcesvn", "min_pcesvn = 14".to_owned(), |_| ()),
        ("tdx.qe-isvsvn", "min_qe_isvsvn = 7".to_owned(), |_| ()),
        ("tdx.debug", none(), |spec| spec.report.tdattributes.0 |= 1),
        ("tdx.profiling", none(), |spec| spec.report.tdattributes.0 |= 1 << 4),
        ("tdx.migratable", none(), |spec| spec.report.tdattributes.0 |= 1 << 29),
        ("tdx.reserved", none(), |spec| spec.report.tdattributes.0 |= 2),
        ("tdx.sept-ve", "require_sept_ve_disable = true".to_owned(), |spec| {
            spec.report.tdattributes = TdAttributes(0);
        }),
        ("tdx.vmid", none(), |spec| spec.report.td15_ex.as_mut().unwrap().vmid = 1),
        ("tdx.service-td", none(), |spec| spec.report.tdattributes.0 |= 1 << 17),
        ("tdx.xfam", "allowed_xfam = 7".to_owned(), |_| ()),
        ("tdx.attributes", "allowed_attributes = 0x40000000".to_owned(), |_| ()),
        ("tdx.dynamic-platform", "allow_dynamic_platform = false".to_owned(), |_| ()),
        ("tdx.cached-keys", "allow_cached_keys = false".to_owned(), |_| ()),
        ("tdx.smt", "allow_smt = false".to_owned(), |_| ()),
        ("tdx.tcb-eval", "min_tcb_evaluation_data_number = 21".to_owned(), |_| ()),
        ("tdx.collateral-age", "max_collateral_age_days = 10".to_owned(), |_| ()),
        ("tdx.fmspc", other("fmspcs", 6), |_| ()),
        ("tdx.platform", other("ppids", 16), |_| ()),
        ("tdx.mrseam", other("mrseams", 48), |_| ()),
        ("tdx.mrconfigid", other("mrconfigids", 48), |_| ()),
        ("tdx.mrowner", other("mrowners", 48), |_| ()),
        ("tdx.mrownerconfig", other("mrownerconfigs", 48), |_| ()),
        ("tdx.measurement", none(), |spec| spec.report.mrtd[0] ^= 1),
        (
            "tdx.advisories",
            "statuses = [\"UpToDate\", \"OutOfDate\"]\nallow_advisories = false".to_owned(),
            |spec| spec.report.tee_tcb_svn[2] = 3,
        ),
        (
            "tdx.advisories",
            "statuses = [\"UpToDate\", \"OutOfDate\"]\n\
             advisories = [{ id = \"none\", until = \"2099-01-01T00:00:00Z\" }]"
                .to_owned(),
            |spec| spec.report.tee_tcb_svn[2] = 3,
        ),
    ];
    // Tested with a challenge and with a signed list, attestation/tests/appraisal.rs,
    // and with a log, tdx.rs.
    let mut seen = vec!["tdx.report-data", "tdx.generation", "tdx.event-log"];
    for (rule, policy, change) in cases {
        let mut spec = spec(BodyKind::Td15Ex);
        change(&mut spec);
        assert_eq!(failures(&policy, &MODEL.quote(&spec).unwrap()), [rule], "{policy}");
        seen.push(rule);
    }
    let claims = check(&MODEL.quote(&spec(BodyKind::Td15)).unwrap());
    let (policy, references) = (Policy::default(), references());
    let appraisal = appraise(&claims, &policy, &references, Expected::Nothing, now());
    let rules = appraisal.checks().iter().map(|check| check.rule);
    for rule in rules.filter(|rule| rule.starts_with("tdx.")) {
        assert!(seen.contains(&rule), "{rule} has no case");
    }
}

/// A partition of a TD is not the TD; a form that does not say is none.
#[test]
fn one_partition_reports() {
    let of = |vmid: u8, policy: &str| {
        let mut spec = spec(BodyKind::Td15Ex);
        spec.report.td15_ex.as_mut().unwrap().vmid = vmid;
        failures(policy, &MODEL.quote(&spec).unwrap())
    };
    let none: Vec<&str> = vec![];
    assert_eq!(of(0, ""), none);
    assert_eq!(of(3, "vmid = 3"), none);
    assert_eq!(of(0, "vmid = 3"), ["tdx.vmid"]);
    let silent = MODEL.quote(&spec(BodyKind::Td15)).unwrap();
    assert_eq!(failures("vmid = 3", &silent), ["tdx.vmid"]);
    assert_eq!(failures("", &silent), none);
}

#[test]
fn floors_are_reached_part_by_part() {
    let quote = MODEL.quote(&spec(BodyKind::Td15)).unwrap();
    let none: Vec<&str> = vec![];
    let svn = |svn: &str| format!("min_tee_tcb_svn = \"{svn}{}\"", "00".repeat(13));
    assert_eq!(failures(&svn("040104"), &quote), none);
    // A minor version counts within its major one.
    assert_eq!(failures(&svn("ff0004"), &quote), none);
    assert_eq!(failures("min_pcesvn = 13\nmin_qe_isvsvn = 6", &quote), none);
}

#[test]
fn a_status_may_have_a_grace_of_its_own() {
    let mut spec = spec(BodyKind::Td10);
    spec.report.tee_tcb_svn[2] = 3;
    let quote = MODEL.quote(&spec).unwrap();
    let until = |status: &str, until: &str| {
        failures(&format!("grace = [{{ status = \"{status}\", until = \"{until}\" }}]"), &quote)
    };
    let none: Vec<&str> = vec![];
    assert_eq!(until("OutOfDate", "2026-06-15T00:00:01Z"), none);
    assert_eq!(until("OutOfDate", "2026-06-15T00:00:00Z"), ["tdx.tcb-status"]);
    assert_eq!(until("SWHardeningNeeded", "2099-01-01T00:00:00Z"), ["tdx.tcb-status"]);
}

#[test]
fn grace_is_dated() {
    let mut spec = spec(BodyKind::Td10);
    spec.report.tee_tcb_svn[2] = 3;
    let quote = MODEL.quote(&spec).unwrap();
    let none: Vec<&str> = vec![];
    // The next better level is of 2025-08-13, and now is 2026-06-15: 306 days.
    assert_eq!(failures("", &quote), ["tdx.tcb-status"]);
    assert_eq!(failures("out_of_date_grace_days = 306", &quote), ["tdx.tcb-status"]);
    assert_eq!(failures("out_of_date_grace_days = 307", &quote), none);
    assert_eq!(failures("statuses = [\"OutOfDate\"]", &quote), none);
    let until = |date: &str| {
        let advisory = format!("advisories = [{{ id = \"INTEL-SA-09002\", until = \"{date}\" }}]");
        failures(&format!("statuses = [\"OutOfDate\"]\n{advisory}"), &quote)
    };
    assert_eq!(until("2026-06-15T00:00:01Z"), none);
    assert_eq!(until("2026-06-15T00:00:00Z"), ["tdx.advisories"]);
}

/// The TDX rules that `quote` fails under the section `[tdx]` with `policy`.
fn failures(policy: &str, quote: &[u8]) -> Vec<&'static str> {
    let claims = check(quote);
    let policy = Policy::from_toml(&format!("[tdx]\n{policy}\n")).unwrap();
    let appraisal = appraise(&claims, &policy, &references(), Expected::ReportData([9; 64]), now());
    let failed = appraisal.checks().iter().filter(|check| check.outcome == Outcome::Fail);
    failed.map(|check| check.rule).collect()
}

fn check(quote: &[u8]) -> Verified<Claims> {
    let root = Certificate::parse(MODEL.root()).unwrap();
    let intel = vec![IntelAnchor::new("tdx-model", root).unwrap()];
    let anchors = TrustAnchors { intel, ..TrustAnchors::default() };
    let spec = CollateralSpec::new(&MODEL, at("2026-06-01T00:00:00Z"));
    let collateral = MODEL.collateral(&spec).unwrap().encode();
    let item = EvidenceItem {
        kind: EvidenceKind::TdxQuote,
        evidence: quote.to_vec(),
        endorsements: vec![(EndorsementKind::TdxCollateral, collateral)],
    };
    verify(&Evidence { items: vec![item] }, &anchors, &Endorsements::default(), now()).unwrap()
}

fn spec(body: BodyKind) -> QuoteSpec {
    QuoteSpec::new(body, [9; 64])
}

fn references() -> ReferenceValues {
    ReferenceValues::from_toml(&format!(
        "[[image]]\nlabel = \"image\"\n[[image.tdx]]\nmrtd = \"{}\"\nrtmr1 = \"{}\"\nrtmr2 = \"{}\"\n",
        "4d".repeat(48),
        "a1".repeat(48),
        "a2".repeat(48),
    ))
    .unwrap()
}

fn now() -> UnixTime {
    at("2026-06-15T00:00:00Z")
}

fn at(time: &str) -> UnixTime {
    UnixTime::from_rfc3339(time).unwrap()
}
