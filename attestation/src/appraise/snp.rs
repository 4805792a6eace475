//! Rules on the fields of an SEV-SNP report (AMD 56860, SEV-SNP firmware ABI,
//! ATTESTATION_REPORT).

use super::{Challenge, CpuFindings, Findings};
use crate::policy::{HexBytes, SnpPolicy, TcbFloor};
use crate::reference::ReferenceValues;
use crate::snp::{CrlState, Product, SnpClaims, Tcb, TcbVersion, VekOwner};
use crate::time::UnixTime;
use crate::wire::hex;
use crate::x509::CrlNumber;

pub(super) fn appraise(
    claims: &SnpClaims,
    policy: &SnpPolicy,
    references: &ReferenceValues,
    challenge: Challenge,
    now: UnixTime,
    findings: &mut Findings,
) {
    form(claims, policy, now, findings);
    guest(claims, policy, findings);
    launch_demands(claims, policy, findings);
    platform(claims, policy, findings);
    tcb(claims, policy, now, findings);
    mitigations(claims, policy, findings);
    identity(claims, policy, findings);
    owner(claims, policy, findings);
    let fresh = challenge.check("snp.report-data", &claims.report.report_data, findings);
    measured(claims, references, fresh, findings);
}

fn form(claims: &SnpClaims, policy: &SnpPolicy, now: UnixTime, findings: &mut Findings) {
    let report = &claims.report;
    findings.checks.compare(
        "snp.version",
        report.version >= policy.min_report_version,
        format!("at least {}", policy.min_report_version),
        report.version,
        "update the SNP firmware; version 2 does not say which processor it is",
    );
    findings.checks.compare(
        "snp.vmpl",
        report.vmpl == policy.vmpl,
        layer(policy.vmpl),
        layer(report.vmpl),
        "ask for the report from the layer that the policy names",
    );
    revocation(claims, policy, findings);
    crl_age(claims, policy, now, findings);
}

/// A report speaks for the layer that asked for it, and for no other.
fn layer(vmpl: u32) -> String {
    match vmpl {
        0 => {
            "VMPL 0 (the most privileged layer: firmware, SVSM, paravisor or a plain guest)".into()
        }
        u32::MAX => "the host (SNP_HV_REPORT_REQ)".into(),
        vmpl => format!("VMPL {vmpl} (a layer under an SVSM or paravisor)"),
    }
}

fn revocation(claims: &SnpClaims, policy: &SnpPolicy, findings: &mut Findings) {
    let actual = match claims.crl {
        None => "none consulted".to_owned(),
        Some(CrlState { number: Some(number), this_update, .. }) => {
            format!("number {number}, made {this_update}")
        }
        Some(CrlState { number: None, this_update, .. }) => {
            format!("no number, made {this_update}")
        }
    };
    let floor = policy.min_crl_number;
    if !policy.require_crl && floor == CrlNumber::default() {
        return findings.checks.not_asked("snp.crl", actual);
    }
    let number = claims.crl.map(|crl| crl.number.unwrap_or_default());
    findings.checks.compare(
        "snp.crl",
        number.is_some_and(|number| number >= floor),
        format!("a current revocation list of the root, number {floor} or later"),
        actual,
        "supply AMD's newest CRL for the product as an endorsement",
    );
}

fn crl_age(claims: &SnpClaims, policy: &SnpPolicy, now: UnixTime, findings: &mut Findings) {
    let made = claims.crl.map(|crl| crl.this_update);
    let actual = made.map_or_else(|| "none consulted".to_owned(), |made| format!("made {made}"));
    let Some(days) = policy.max_crl_age_days else {
        return findings.checks.not_asked("snp.crl-age", actual);
    };
    let age = u64::from(days).saturating_mul(DAY);
    findings.checks.compare(
        "snp.crl-age",
        made.is_some_and(|made| now < made.plus_seconds(age)),
        format!("a revocation list made less than {days} days before {now}"),
        actual,
        "supply AMD's newest CRL for the product as an endorsement",
    );
}

fn guest(claims: &SnpClaims, policy: &SnpPolicy, findings: &mut Findings) {
    let guest = claims.report.guest_policy;
    let checks = &mut findings.checks;
    checks.compare(
        "snp.reserved",
        guest.reserved_one() && guest.reserved_zero() == 0,
        "POLICY bit 17 one and bits 63:26 zero",
        format!("{:#x}", guest.0),
        "launch with a guest policy of this ABI",
    );
    checks.compare(
        "snp.debug",
        policy.allow_debug || !guest.debug_allowed(),
        allowed(policy.allow_debug, "debugging"),
        if guest.debug_allowed() { "the host may debug" } else { "debugging is off" },
        "launch with guest policy bit 19 (DEBUG) clear",
    );
    checks.compare(
        "snp.migration-agent",
        policy.allow_migration_agent
            || !(guest.migrate_ma_allowed() || claims.report.has_migration_agent()),
        allowed(policy.allow_migration_agent, "a migration agent"),
        match (guest.migrate_ma_allowed(), claims.report.has_migration_agent()) {
            (_, true) => "an agent is bound",
            (true, false) => "an agent may be bound",
            (false, false) => "no agent",
        },
        "launch with guest policy bit 18 (MIGRATE_MA) clear",
    );
    checks.compare(
        "snp.smt",
        policy.allow_smt || !guest.smt_allowed(),
        allowed(policy.allow_smt, "SMT"),
        if guest.smt_allowed() { "SMT may be on" } else { "SMT is off" },
        "launch with guest policy bit 16 (SMT) clear on a host without SMT",
    );
}

/// What else the owner asked the firmware for (POLICY), where ours asks too.
fn launch_demands(claims: &SnpClaims, policy: &SnpPolicy, findings: &mut Findings) {
    let (guest, info) = (claims.report.guest_policy, claims.report.platform_info);
    let rules = [
        (
            "snp.cxl",
            !policy.allow_cxl,
            !guest.cxl_allowed(),
            "no memory behind CXL (POLICY bit 21 clear)",
        ),
        (
            "snp.single-socket",
            policy.require_single_socket,
            guest.single_socket(),
            "one socket only (POLICY bit 20)",
        ),
        (
            "snp.aes-256-xts",
            policy.require_aes_256_xts,
            guest.aes_256_xts_required(),
            "AES-256 XTS for memory (POLICY bit 22)",
        ),
        (
            "snp.rapl",
            policy.require_rapl_off,
            guest.rapl_off_required() && info.rapl_off(),
            "RAPL off (POLICY bit 23 and PLATFORM_INFO bit 3)",
        ),
        (
            "snp.page-swap",
            policy.require_page_swap_off,
            guest.page_swap_disabled(),
            "no swapping of pages (POLICY bit 25)",
        ),
    ];
    let actual = format!("POLICY {:#x}, PLATFORM_INFO {:#x}", guest.0, info.0);
    for (rule, asked, holds, expected) in rules {
        if asked {
            let hint = "launch with a guest policy that asks for it, on a host that has it";
            findings.checks.compare(rule, holds, expected, &actual, hint);
        } else {
            findings.checks.not_asked(rule, &actual);
        }
    }
    let abi = [guest.abi_major(), guest.abi_minor()];
    let [major, minor] = abi;
    match policy.min_abi {
        None => findings.checks.not_asked("snp.abi", format!("{major}.{minor}")),
        Some([floor_major, floor_minor]) => findings.checks.compare(
            "snp.abi",
            abi >= [floor_major, floor_minor],
            format!("at least {floor_major}.{floor_minor}"),
            format!("{major}.{minor}"),
            "launch with a guest policy that names a later firmware ABI",
        ),
    }
}

fn platform(claims: &SnpClaims, policy: &SnpPolicy, findings: &mut Findings) {
    let info = claims.report.platform_info;
    let rules = [
        (
            "snp.alias-check",
            policy.require_alias_check,
            info.alias_check_complete(),
            "ALIAS_CHECK_COMPLETE 1",
            "update the firmware and the microcode (CVE-2024-21944, BadRAM)",
        ),
        ("snp.tsme", policy.require_tsme, info.tsme(), "TSME_EN 1", "turn TSME on in the BIOS"),
        ("snp.ecc", policy.require_ecc, info.ecc(), "ECC_EN 1", "run on a host with ECC memory"),
        ("snp.tio", !policy.allow_tio, !info.tio(), "TIO_EN 0", "turn SEV-TIO off on the host"),
        (
            "snp.platform-smt",
            !policy.allow_platform_smt,
            !info.smt(),
            "SMT_EN 0",
            "turn SMT off in the BIOS",
        ),
        (
            "snp.ciphertext-hiding",
            policy.require_ciphertext_hiding,
            info.ciphertext_hiding(),
            "CIPHERTEXT_HIDING_DRAM_EN 1",
            "turn ciphertext hiding on (Turin and later)",
        ),
    ];
    let actual = format!("PLATFORM_INFO {:#x}", info.0);
    for (rule, required, holds, expected, hint) in rules {
        if required {
            findings.checks.compare(rule, holds, expected, &actual, hint);
        } else {
            findings.checks.not_asked(rule, &actual);
        }
    }
}

fn tcb(claims: &SnpClaims, policy: &SnpPolicy, now: UnixTime, findings: &mut Findings) {
    let report = &claims.report;
    let read = |version: TcbVersion| version.components(claims.product);
    let (committed, launch) = (read(report.committed_tcb), read(report.launch_tcb));
    let current = read(report.current_tcb);
    let ordered = match (committed, launch, current) {
        (Some(committed), Some(launch), Some(current)) => {
            committed.at_least(&claims.reported_tcb)
                && current.at_least(&committed)
                && current.at_least(&launch)
        }
        _ => false,
    };
    findings.checks.compare(
        "snp.tcb-order",
        ordered,
        "REPORTED <= COMMITTED <= CURRENT and LAUNCH <= CURRENT",
        format!(
            "reported {}, committed {}, current {}, launch {}",
            report.reported_tcb, report.committed_tcb, report.current_tcb, report.launch_tcb
        ),
        "no sound platform reports this; do not use it",
    );
    let settled = report.committed_tcb == report.current_tcb
        && report.committed_version == report.current_version;
    findings.checks.compare(
        "snp.provisional-firmware",
        policy.allow_provisional_firmware || settled,
        allowed(policy.allow_provisional_firmware, "firmware that is not committed"),
        if settled { "committed" } else { "newer firmware runs than is committed" },
        "commit the firmware on the host (SNP_COMMIT)",
    );
    let none: &[TcbFloor] = &[];
    let tcbs = [
        ("snp.reported-tcb", Some(claims.reported_tcb), none),
        ("snp.committed-tcb", committed, &policy.committed_tcb),
        ("snp.launch-tcb", launch, &policy.launch_tcb),
    ];
    for (rule, tcb, own) in tcbs {
        let floors: Vec<_> = policy.tcb.iter().chain(own).collect();
        floor(rule, claims.product, tcb, &floors, now, findings);
    }
    firmware(claims, policy, findings);
}

/// The rule that `tcb` is at or above those of `floors` that hold at `now`.
fn floor(
    rule: &'static str,
    product: Product,
    tcb: Option<Tcb>,
    floors: &[&TcbFloor],
    now: UnixTime,
    findings: &mut Findings,
) {
    let actual = tcb.map_or_else(|| "not well-formed".to_owned(), |tcb| tcb.to_string());
    let own: Vec<_> = floors.iter().filter(|floor| floor.product == product).collect();
    if floors.is_empty() {
        return findings.checks.not_asked(rule, actual);
    }
    // A policy with floors, but none for this product, does not know it.
    if own.is_empty() {
        let expected = format!("a floor for {product} in the policy");
        let hint = "add a floor for the product to snp.tcb in the policy";
        return findings.checks.compare(rule, false, expected, actual, hint);
    }
    let describe = |floor: &&&TcbFloor| match floor.since {
        UnixTime(0) => format!("at least {}", floor.tcb()),
        since => format!("at least {} since {since}", floor.tcb()),
    };
    let expected = own.iter().map(describe).collect::<Vec<_>>().join(", and ");
    let mut in_force = own.iter().filter(|floor| floor.since <= now).peekable();
    if in_force.peek().is_none() {
        return findings.checks.not_applicable(rule, expected, actual);
    }
    findings.checks.compare(
        rule,
        in_force.all(|floor| tcb.is_some_and(|tcb| tcb.at_least(&floor.tcb()))),
        expected,
        actual,
        "update firmware and microcode, commit them, and launch the guest again",
    );
}

fn firmware(claims: &SnpClaims, policy: &SnpPolicy, findings: &mut Findings) {
    let (current, committed) = (claims.report.current_version, claims.report.committed_version);
    let actual = format!("current {current}, committed {committed}");
    let Some([major, minor, build]) = policy.min_firmware else {
        return findings.checks.not_asked("snp.firmware-version", actual);
    };
    let floor = crate::snp::FirmwareVersion { major, minor, build };
    findings.checks.compare(
        "snp.firmware-version",
        current >= floor && committed >= floor,
        format!("at least {floor}"),
        actual,
        "update the SNP firmware and commit it",
    );
}

fn mitigations(claims: &SnpClaims, policy: &SnpPolicy, findings: &mut Findings) {
    let required = policy.required_mitigations;
    let vectors = [
        ("snp.launch-mitigations", claims.report.launch_mitigations),
        ("snp.current-mitigations", claims.report.current_mitigations),
    ];
    for (rule, vector) in vectors {
        if required == 0 {
            findings.checks.not_asked(rule, format!("{vector:#x}"));
            continue;
        }
        findings.checks.compare(
            rule,
            vector & required == required,
            format!("the bits {required:#x}"),
            format!("{vector:#x}"),
            "update the firmware (reports of version 5 list mitigations), then launch again",
        );
    }
}

fn identity(claims: &SnpClaims, policy: &SnpPolicy, findings: &mut Findings) {
    let report = &claims.report;
    one_of(findings, "snp.host-data", &policy.host_data, &report.host_data);
    one_of(findings, "snp.id-key", &policy.id_key_digests, &report.id_key_digest);
    let author = if report.key_info.author_key { report.author_key_digest } else { [0; 48] };
    one_of(findings, "snp.author-key", &policy.author_key_digests, &author);
    one_of(findings, "snp.family-id", &policy.family_ids, &report.family_id);
    one_of(findings, "snp.image-id", &policy.image_ids, &report.image_id);
    if policy.min_guest_svn == 0 {
        return findings.checks.not_asked("snp.guest-svn", report.guest_svn);
    }
    findings.checks.compare(
        "snp.guest-svn",
        report.guest_svn >= policy.min_guest_svn,
        format!("at least {}", policy.min_guest_svn),
        report.guest_svn,
        "launch a newer image with its ID block",
    );
}

/// Where the machine is: this chip, or that provider. Once the policy lists
/// either, a machine of the other kind needs a list of its own.
fn owner(claims: &SnpClaims, policy: &SnpPolicy, findings: &mut Findings) {
    let chip = claims.report.chip_id;
    let (any_chip, any_csp) = (policy.chip_ids.is_empty(), policy.csp_ids.is_empty());
    let kind = claims.report.key_info.signing_key;
    let (chip_actual, csp_actual) = match &claims.owner {
        VekOwner::Chip(_) => (hex(&chip), "none: a VCEK signed".to_owned()),
        VekOwner::Provider(csp) => (format!("{} by the word of a {kind}", hex(&chip)), csp.clone()),
    };
    let is_listed = match &claims.owner {
        VekOwner::Chip(_) => policy
            .chip_ids
            .iter()
            .any(|id| id.0.len() == claims.product.chip_id_bytes() && chip.starts_with(&id.0)),
        VekOwner::Provider(csp) => policy.csp_ids.contains(csp),
    };
    let is_chip = matches!(claims.owner, VekOwner::Chip(_));
    if policy.allow_vlek {
        findings.checks.not_asked("snp.vlek", kind);
    } else {
        let hint = "run where the host gives the guest a VCEK's report";
        findings.checks.compare("snp.vlek", is_chip, "signed by a VCEK", kind, hint);
    }
    let mut ask = |rule, asked: bool, expected: String, actual: String| {
        if asked {
            let hint = "run on a known machine or at an accepted provider, or add it to snp.chip_ids \
                        or snp.csp_ids in the policy";
            findings.checks.compare(rule, is_listed, expected, actual, hint);
        } else {
            findings.checks.not_asked(rule, actual);
        }
    };
    // Where both lists are given, the one of the machine's own kind decides.
    let asks_chip = !any_chip && (is_chip || any_csp);
    let asks_csp = !any_csp && (!is_chip || any_chip);
    let chips = "a chip of snp.chip_ids, shown by its own VCEK".to_owned();
    ask("snp.chip", asks_chip, chips, chip_actual);
    ask("snp.csp", asks_csp, format!("one of {}", policy.csp_ids.join(", ")), csp_actual);
}

fn measured(
    claims: &SnpClaims,
    references: &ReferenceValues,
    fresh: bool,
    findings: &mut Findings,
) {
    let measurement = claims.report.measurement;
    let known: Vec<_> = references.by_snp_measurement(&measurement).collect();
    findings.checks.compare(
        "snp.measurement",
        !known.is_empty(),
        "the launch digest of a known image",
        hex(&measurement),
        "compare with `casemate measure`, which also explains a digest that differs",
    );
    let image_properties = findings.image(&known);
    findings.cpu(
        &claims.anchor,
        CpuFindings {
            measurement: measurement.to_vec(),
            fresh,
            debug: claims.report.guest_policy.debug_allowed(),
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
    let list: Vec<String> = accepted.iter().map(|known| hex(&known.0)).collect();
    findings.checks.compare(
        rule,
        accepted.iter().any(|known| known.0 == *actual),
        format!("one of {}", list.join(", ")),
        hex(actual),
        "launch with an accepted value, or add this one to the policy",
    );
}

fn allowed(allowed: bool, what: &str) -> String {
    if allowed { format!("{what} or not") } else { format!("no {what}") }
}

const DAY: u64 = 86_400;
