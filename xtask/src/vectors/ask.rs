//! A policy for each rule that a policy may ask for: `reject:CLASS-if-…` means
//! that the rule of that name fails once somebody asks, and not that some rule does.

use std::collections::BTreeSet;

use anyhow::{bail, ensure};
use casemate_attestation::Policy;
use casemate_attestation::snp::{SnpClaims, Tcb};
use casemate_attestation::tdx::TdxClaims;
use casemate_attestation::wire::hex;

use super::names::names_rule;

/// One rule, and what a policy says to ask for it.
pub(super) struct Ask {
    /// The rule, without its evidence.
    rule: &'static str,
    /// What this evidence must not satisfy.
    against: Against,
    /// The strictest policy of the kind that this evidence satisfies, where the
    /// rule is about more than a bit: shows that `against` is no policy that
    /// nothing satisfies.
    satisfied: Option<String>,
}

/// What a relying party asks for.
enum Against {
    Policy(String),
    /// Another image than the one that was measured.
    OtherImage,
    /// Another challenge than the one that was answered.
    OtherReportData,
}

/// What a relying party brings to an appraisal. By default what suits any
/// evidence: those vectors are not about it.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) policy: Policy,
    /// Turns the reference values' measurement into another one.
    pub(super) other_image: bool,
    /// Turns the expected report data into another one.
    pub(super) other_report_data: bool,
}

impl Against {
    fn asked(&self) -> anyhow::Result<Asked> {
        Ok(match self {
            Self::Policy(text) => Asked { policy: Policy::from_toml(text)?, ..Asked::default() },
            Self::OtherImage => Asked { other_image: true, ..Asked::default() },
            Self::OtherReportData => Asked { other_report_data: true, ..Asked::default() },
        })
    }
}

impl Asked {
    /// `own`, or what it is not.
    pub(super) fn measurement(&self, own: &[u8; 48]) -> [u8; 48] {
        own.map(|byte| if self.other_image { !byte } else { byte })
    }

    /// `own`, or what it is not.
    pub(super) fn report_data(&self, own: &[u8; 64]) -> [u8; 64] {
        own.map(|byte| if self.other_report_data { !byte } else { byte })
    }
}

/// Checks that the rule called `class` fails where it is asked for. `failed`
/// says which rules fail under a policy.
pub(super) fn check(
    class: &str,
    asks: &[Ask],
    failed: impl Fn(&Asked) -> anyhow::Result<BTreeSet<String>>,
) -> anyhow::Result<String> {
    // A rule of that very name, or else those that the name stands for.
    let exact = asks.iter().any(|ask| ask.rule == class);
    let is_meant = |ask: &&Ask| ask.rule == class || !exact && names_rule(class, ask.rule);
    let mut known = false;
    for ask in asks.iter().filter(is_meant) {
        known = true;
        if !failed(&ask.against.asked()?)?.contains(ask.rule) {
            continue;
        }
        if let Some(satisfied) = &ask.satisfied {
            let own = Asked { policy: Policy::from_toml(satisfied)?, ..Asked::default() };
            let fails = failed(&own)?.contains(ask.rule);
            ensure!(!fails, "{}: fails for its own value too", ask.rule);
        }
        return Ok(format!("refused by a policy that asks: {}", ask.rule));
    }
    let by_default = failed(&Asked::default())?;
    if !exact && by_default.iter().any(|rule| names_rule(class, rule)) {
        return Ok(format!("refused by the default policy, which asks: {class}"));
    }
    match known {
        true => bail!("expected {class} by a policy that asks, got none"),
        false => bail!("no rule of a policy is called {class}"),
    }
}

fn bit(section: &str, rule: &'static str, line: &str) -> Ask {
    let against = Against::Policy(format!("[{section}]\n{line}\n"));
    Ask { rule, against, satisfied: None }
}

fn value(section: &str, rule: &'static str, key: &str, other: &str, own: &str) -> Ask {
    let line = |value: &str| format!("[{section}]\n{key} = {value}\n");
    Ask { rule, against: Against::Policy(line(other)), satisfied: Some(line(own)) }
}

/// An allow-list of byte strings: another one, and the evidence's own.
fn listed(section: &str, rule: &'static str, key: &str, own: &[u8]) -> Ask {
    let other: Vec<u8> = own.iter().map(|byte| !byte).collect();
    let list = |bytes: &[u8]| format!("[\"{}\"]", hex(bytes));
    value(section, rule, key, &list(&other), &list(own))
}

/// The image and the challenge, which no policy names.
fn others() -> [Ask; 2] {
    [("measurement", Against::OtherImage), ("report-data", Against::OtherReportData)]
        .map(|(rule, against)| Ask { rule, against, satisfied: None })
}

/// What a policy may ask of this SNP report.
pub(super) fn snp(claims: &SnpClaims) -> Vec<Ask> {
    let report = &claims.report;
    let mut out: Vec<Ask> = [
        ("smt", "allow_smt = false"),
        ("platform-smt", "allow_platform_smt = false"),
        ("provisional-firmware", "allow_provisional_firmware = false"),
        ("tsme", "require_tsme = true"),
        ("ecc", "require_ecc = true"),
        ("tio", "allow_tio = false"),
        ("vlek", "allow_vlek = false"),
        ("ciphertext-hiding", "require_ciphertext_hiding = true"),
        ("cxl", "allow_cxl = false"),
        ("single-socket", "require_single_socket = true"),
        ("aes-256-xts", "require_aes_256_xts = true"),
        ("rapl", "require_rapl_off = true"),
        ("page-swap", "require_page_swap_off = true"),
        ("crl", "require_crl = true"),
    ]
    .into_iter()
    .map(|(rule, line)| bit("snp", rule, line))
    .collect();
    out.extend([
        listed("snp", "host-data", "host_data", &report.host_data),
        listed("snp", "id-key", "id_key_digests", &report.id_key_digest),
        listed("snp", "author-key", "author_key_digests", &author(claims)),
        listed("snp", "family-id", "family_ids", &report.family_id),
        listed("snp", "image-id", "image_ids", &report.image_id),
    ]);
    out.extend(others());
    out.extend(owner(claims));
    let age = "max_crl_age_days";
    out.push(match claims.crl {
        Some(_) => value("snp", "crl-age", age, "0", "36500"),
        None => bit("snp", "crl-age", "max_crl_age_days = 36500"),
    });
    let other = u32::from(report.vmpl == 0);
    out.push(value("snp", "vmpl", "vmpl", &other.to_string(), &report.vmpl.to_string()));
    out.extend(snp_numbers(claims));
    out.extend(tcbs(claims));
    out
}

fn author(claims: &SnpClaims) -> [u8; 48] {
    let report = &claims.report;
    if report.key_info.author_key { report.author_key_digest } else { [0; 48] }
}

/// The chip's list for a VCEK, the providers' for a VLEK, which is no chip's.
fn owner(claims: &SnpClaims) -> Vec<Ask> {
    use casemate_attestation::snp::VekOwner;
    match &claims.owner {
        VekOwner::Chip(hwid) => vec![listed("snp", "chip", "chip_ids", hwid)],
        VekOwner::Provider(csp) => vec![
            value("snp", "csp", "csp_ids", "[\"another\"]", &format!("[{csp:?}]")),
            bit("snp", "chip", &format!("chip_ids = [\"{}\"]", hex(&claims.report.chip_id))),
        ],
    }
}

fn snp_numbers(claims: &SnpClaims) -> Vec<Ask> {
    let report = &claims.report;
    let number = |rule, key, own: u64| {
        value("snp", rule, key, &own.saturating_add(1).to_string(), &own.to_string())
    };
    let version = report.current_version.min(report.committed_version);
    let triple = |build: u32| format!("[{}, {}, {build}]", version.major, version.minor);
    let build = u32::from(version.build);
    let firmware = match version.build.checked_add(1) {
        Some(next) => triple(u32::from(next)),
        None => format!("[{}, {}, 0]", version.major, version.minor.saturating_add(1)),
    };
    let abi = [report.guest_policy.abi_major(), report.guest_policy.abi_minor()];
    let abi_above = [abi[0].saturating_add(1), 0];
    let mut out = vec![
        number("version", "min_report_version", u64::from(report.version)),
        number("guest-svn", "min_guest_svn", u64::from(report.guest_svn)),
        value("snp", "firmware-version", "min_firmware", &firmware, &triple(build)),
        value("snp", "abi", "min_abi", &format!("{abi_above:?}"), &format!("{abi:?}")),
    ];
    for (rule, own) in [
        ("launch-mitigations", report.launch_mitigations),
        ("current-mitigations", report.current_mitigations),
    ] {
        // The lowest bit that is not set; TOML has no more than 63.
        let missing = !own & own.wrapping_add(1) & 0x7fff_ffff_ffff_ffff;
        let own = own & report.launch_mitigations & report.current_mitigations;
        let mask = own & 0x7fff_ffff_ffff_ffff;
        let key = "required_mitigations";
        out.push(value("snp", rule, key, &missing.to_string(), &mask.to_string()));
    }
    // The number of the list that came along; without one any number fails.
    let list = claims.crl.and_then(|crl| crl.number);
    let text = list.map(|number| number.to_string());
    let above = text.as_deref().and_then(|text| text.parse::<u64>().ok()).map(|own| own + 1);
    let above = above.map_or_else(|| format!("\"0x{}\"", "ff".repeat(20)), |n| n.to_string());
    match text {
        Some(own) => {
            out.push(value("snp", "crl", "min_crl_number", &above, &format!("\"{own}\"")));
        }
        None => out.push(bit("snp", "crl", "min_crl_number = 1")),
    }
    out
}

/// A floor for each of the three TCBs: at what the others say, which an honest
/// machine reaches; where this one reaches it too, one above all.
fn tcbs(claims: &SnpClaims) -> Vec<Ask> {
    let read = |tcb: casemate_attestation::snp::TcbVersion| tcb.components(claims.product);
    let report = &claims.report;
    let (committed, launch) = (read(report.committed_tcb), read(report.launch_tcb));
    let all = [Some(claims.reported_tcb), committed, launch, read(report.current_tcb)];
    let most = all.into_iter().flatten().fold(Tcb::default(), highest);
    let floor = |list: &str, tcb: Tcb| {
        let Tcb { fmc, bootloader, tee, snp, microcode } = tcb;
        format!(
            "[[snp.{list}]]\nproduct = \"{}\"\nfmc = {fmc}\nbootloader = {bootloader}\ntee = {tee}\n\
             snp = {snp}\nmicrocode = {microcode}\n",
            claims.product
        )
    };
    let above = Tcb { snp: most.snp.saturating_add(1), ..most };
    let tcbs = [
        ("reported-tcb", "tcb", Some(claims.reported_tcb)),
        ("committed-tcb", "committed_tcb", committed),
        ("launch-tcb", "launch_tcb", launch),
    ];
    let mut out = Vec::new();
    for (rule, list, own) in tcbs {
        // One alone: a floor that ought to fail and does not is a finding.
        let asked = if own == Some(most) { above } else { most };
        let satisfied = own.map(|own| floor(list, own));
        let against = Against::Policy(floor(list, asked));
        out.push(Ask { rule, against, satisfied });
    }
    out
}

fn highest(a: Tcb, b: Tcb) -> Tcb {
    Tcb {
        fmc: a.fmc.max(b.fmc),
        bootloader: a.bootloader.max(b.bootloader),
        tee: a.tee.max(b.tee),
        snp: a.snp.max(b.snp),
        microcode: a.microcode.max(b.microcode),
    }
}

/// What a policy may ask of this TDX quote. `newest` is the highest evaluation
/// number that a verifier has seen.
pub(super) fn tdx(claims: &TdxClaims, newest: u64) -> Vec<Ask> {
    let report = &claims.report;
    let mut out: Vec<Ask> = [
        ("sept-ve", "require_sept_ve_disable = true"),
        ("dynamic-platform", "allow_dynamic_platform = false"),
        ("cached-keys", "allow_cached_keys = false"),
        ("smt", "allow_smt = false"),
    ]
    .into_iter()
    .map(|(rule, line)| bit("tdx", rule, line))
    .collect();
    out.extend([
        listed("tdx", "fmspc", "fmspcs", &claims.platform.fmspc),
        listed("tdx", "platform", "ppids", &claims.platform.ppid),
        listed("tdx", "mrseam", "mrseams", &report.mrseam),
        listed("tdx", "mrconfigid", "mrconfigids", &report.mrconfigid),
        listed("tdx", "mrowner", "mrowners", &report.mrowner),
        listed("tdx", "mrownerconfig", "mrownerconfigs", &report.mrownerconfig),
    ]);
    out.extend(others());
    out.extend(tdx_numbers(claims, newest));
    let until = "until = \"2999-01-01T00:00:00Z\"";
    let graces = |ids: &[String]| {
        let list: Vec<_> = ids.iter().map(|id| format!("{{ id = {id:?}, {until} }}")).collect();
        format!("[{}]", list.join(", "))
    };
    let mut own = claims.tcb.advisories.clone();
    own.push("none".to_owned());
    let none = graces(&["none".to_owned()]);
    out.push(value("tdx", "advisories", "advisories", &none, &graces(&own)));
    out
}

fn tdx_numbers(claims: &TdxClaims, newest: u64) -> Vec<Ask> {
    let own = u64::from(claims.collateral.tcb_evaluation_data_number);
    // A set of one case names no newer number: then one above its own.
    let above = if newest > own { newest } else { own.saturating_add(1) };
    let (xfam, key) = (claims.report.xfam, "allowed_xfam");
    let without_one = |bits: u64| bits & bits.wrapping_sub(1);
    let less = without_one(xfam);
    let bits = claims.report.tdattributes.0;
    let next = |own: u16| own.saturating_add(1).to_string();
    let (pcesvn, qe) = (claims.platform.tcb.pcesvn, claims.qe_isvsvn);
    let age = "max_collateral_age_days";
    let vmid = claims.report.td15_ex.as_ref().map_or(0, |ex| ex.vmid);
    let other = u8::from(vmid == 0);
    vec![
        value(
            "tdx",
            "tcb-eval",
            "min_tcb_evaluation_data_number",
            &above.to_string(),
            &own.to_string(),
        ),
        value("tdx", "vmid", "vmid", &other.to_string(), &vmid.to_string()),
        value(
            "tdx",
            "attributes",
            "allowed_attributes",
            &without_one(bits).to_string(),
            &bits.to_string(),
        ),
        value("tdx", "xfam", key, &less.to_string(), &xfam.to_string()),
        value("tdx", "collateral-age", age, "0", "36500"),
        value("tdx", "pcesvn", "min_pcesvn", &next(pcesvn), &pcesvn.to_string()),
        value("tdx", "qe-isvsvn", "min_qe_isvsvn", &next(qe), &qe.to_string()),
        svns("tee-tcb-svn", "min_tee_tcb_svn", &claims.report.tee_tcb_svn),
        svns("sgx-components", "min_sgx_components", &claims.platform.tcb.components),
    ]
}

/// A floor one above the first component that can be raised.
fn svns(rule: &'static str, key: &str, own: &[u8; 16]) -> Ask {
    let mut above = *own;
    if let Some(svn) = above.iter_mut().find(|svn| **svn < u8::MAX) {
        *svn += 1;
    }
    let text = |svns: &[u8; 16]| format!("\"{}\"", hex(svns));
    value("tdx", rule, key, &text(&above), &text(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which rules fail under a policy that asks for VMPL 1, and under any other.
    fn failing(
        when_asked: &[&str],
        else_fails: &[&str],
    ) -> impl Fn(&Asked) -> anyhow::Result<BTreeSet<String>> {
        let own = |rules: &[&str]| rules.iter().map(|rule| (*rule).to_owned()).collect();
        let (asked, others): (BTreeSet<String>, BTreeSet<String>) =
            (own(when_asked), own(else_fails));
        move |it| Ok(if it.policy.snp().vmpl == 1 { asked.clone() } else { others.clone() })
    }

    fn asks() -> Vec<Ask> {
        let text = |vmpl: u32| format!("[snp]\nvmpl = {vmpl}\n");
        let against = Against::Policy(text(1));
        vec![Ask { rule: "chip", against, satisfied: Some(text(2)) }]
    }

    #[test]
    fn only_the_rule_that_is_named_counts() {
        assert!(check("chip-id", &asks(), failing(&["chip"], &[])).is_ok());
        // Another rule fails, or none.
        assert!(check("chip-id", &asks(), failing(&["csp"], &[])).is_err());
        assert!(check("chip-id", &asks(), failing(&[], &[])).is_err());
        // No policy can ask for it.
        let unknown = check("colour", &asks(), failing(&["chip"], &[])).unwrap_err();
        assert!(unknown.to_string().contains("no rule"), "{unknown}");
    }

    #[test]
    fn a_policy_that_nothing_satisfies_shows_nothing() {
        let always = |it: &Asked| {
            let asked = it.policy.snp().vmpl > 0;
            Ok(if asked { BTreeSet::from(["chip".to_owned()]) } else { BTreeSet::new() })
        };
        let error = check("chip-id", &asks(), always).unwrap_err();
        assert!(error.to_string().contains("own value"), "{error}");
        // What is refused without being asked needs no policy that asks, unless
        // there is one.
        assert!(check("chip-id", &[], failing(&[], &["chip"])).is_ok());
        assert!(check("chip", &asks(), failing(&[], &["chip"])).is_err());
    }
}
