//! Rules on GPUs and switches, and on what ties them to the CPU's evidence.

use std::collections::BTreeSet;

use super::{DeviceVerdict, Expected, Findings, Hardware};
use crate::anchors::AnchorKind;
use crate::binding::Binding;
use crate::gpu::{
    Code, ConfidentialState, DeviceKind, DeviceResult, Facts, Finding, GpuPolicy, Inventory,
    LIMITS, Source, check_topology, device_claims, device_nonce,
};
use crate::time::UnixTime;
use crate::verify::Claims;
use crate::wire::hex;

/// Everything an envelope says about devices.
pub(super) struct Devices<'a> {
    results: Vec<&'a DeviceResult>,
    inventory: Option<&'a Inventory>,
    /// What [`Binding::devices`] must be.
    digest: Option<[u8; 32]>,
}

impl<'a> Devices<'a> {
    pub(super) fn of(claims: &'a Claims) -> Self {
        let results: Vec<_> = claims.devices().collect();
        let inventory = claims.inventory();
        let digests: Vec<_> = results.iter().map(|result| result.digests).collect();
        // An inventory has one encoding: these are the bytes that came.
        let bytes = inventory.map(Inventory::encode);
        Self { results, inventory, digest: crate::gpu::digest(bytes.as_deref(), &digests) }
    }
}

pub(super) fn appraise(
    devices: &Devices<'_>,
    policy: &GpuPolicy,
    expected: Expected<'_>,
    now: UnixTime,
    findings: &mut Findings,
) {
    let binding = match expected {
        Expected::Binding(binding) => Some(binding),
        _ => None,
    };
    let failed_before = findings.checks.failed();
    count(devices, policy, findings);
    let none = devices.results.is_empty() && devices.inventory.is_none();
    // Evidence that was taken away must not look like a machine without devices.
    if none && binding.is_none_or(|binding| binding.devices.is_none()) {
        return;
    }
    bound(devices, binding, findings);
    inventory(devices, findings);
    judged(devices, findings);
    complete(devices, policy, now, findings);
    allowed(devices, policy, findings);
    together(devices, policy, findings);
    let all_hold = findings.checks.failed() == failed_before;
    anchored(devices, all_hold && !devices.results.is_empty(), findings);
    findings.devices = verdicts(devices, binding, all_hold);
}

/// The devices one by one, for tokens and for people.
fn verdicts(
    devices: &Devices<'_>,
    binding: Option<&Binding>,
    accepted: bool,
) -> Vec<DeviceVerdict> {
    let mut counts = [0_usize; 2];
    let verdict = |result: &&DeviceResult| {
        let facts = result.facts.as_ref()?;
        let [gpus, switches] = &mut counts;
        let count = if facts.kind == DeviceKind::Gpu { gpus } else { switches };
        let name = format!("{}{count}", facts.kind.name());
        *count = count.saturating_add(1);
        let answers = binding.map(|binding| device_nonce(binding, facts.kind) == facts.nonce);
        let hardware = match result.anchor.as_ref().map(|anchor| anchor.kind) {
            Some(AnchorKind::Hardware) => Hardware::Genuine,
            Some(_) => Hardware::Model,
            None => Hardware::None,
        };
        Some(DeviceVerdict { name, accepted, hardware, claims: device_claims(result, answers) })
    };
    devices.results.iter().filter_map(verdict).collect()
}

fn count(devices: &Devices<'_>, policy: &GpuPolicy, findings: &mut Findings) {
    let of = |kind| facts(devices).filter(|facts| facts.kind == kind).count();
    let (gpus, switches) = (of(DeviceKind::Gpu), of(DeviceKind::Switch));
    findings.checks.compare(
        "gpu.count",
        gpus == policy.gpus && switches == policy.switches,
        format!("{} GPUs and {} switches", policy.gpus, policy.switches),
        format!("{gpus} GPUs and {switches} switches"),
        "attest every device, and let the policy's gpu section name how many there are",
    );
}

/// Digest and nonces: the evidence is this guest's, made for this challenge.
fn bound(devices: &Devices<'_>, binding: Option<&Binding>, findings: &mut Findings) {
    let show = |digest: Option<[u8; 32]>| digest.map_or("none".to_owned(), |digest| hex(&digest));
    let expected = binding.and_then(|binding| binding.devices);
    findings.checks.compare(
        "gpu.bound",
        binding.is_some() && expected == devices.digest && findings.fresh,
        format!("device evidence {} in fresh CPU evidence or host claim", show(expected)),
        show(devices.digest),
        "hash the device evidence into the binding before the CPU report is asked for",
    );
    let mut wrong = Vec::new();
    for facts in facts(devices) {
        let nonce = binding.map(|binding| device_nonce(binding, facts.kind));
        if nonce != Some(facts.nonce) {
            wrong.push(format!("{} answers {}", name(facts), hex(&facts.nonce)));
        }
    }
    findings.checks.compare(
        "gpu.nonce",
        wrong.is_empty(),
        "the nonce derived from this challenge, from every device",
        shown(&wrong, "derived"),
        "ask each device again with the nonce of this challenge",
    );
}

/// The guest's own list: a device that is there must have evidence.
fn inventory(devices: &Devices<'_>, findings: &mut Findings) {
    let mut wrong = Vec::new();
    match devices.inventory {
        None => wrong.push(Code::InventoryMissing.to_string()),
        Some(inventory) => {
            for kind in [DeviceKind::Gpu, DeviceKind::Switch] {
                let attested = facts(devices).filter(|facts| facts.kind == kind).count();
                if inventory.count(kind) != attested {
                    let (code, there) = (Code::DeviceUnattested, inventory.count(kind));
                    let kind = kind.name();
                    wrong.push(format!("{code}: {attested} of {there} {kind} attested"));
                }
            }
            for function in &inventory.functions {
                match function.state {
                    ConfidentialState::On => (),
                    ConfidentialState::Off => {
                        wrong.push(format!("{}: {}", Code::CcOff, function.address));
                    }
                    ConfidentialState::DevTools => {
                        wrong.push(format!("{}: {}", Code::DevTools, function.address));
                    }
                }
            }
        }
    }
    findings.checks.compare(
        "gpu.inventory",
        wrong.is_empty(),
        "every device of the guest attested, in confidential mode, without developer tools",
        shown(&wrong, "so"),
        "set confidential mode on (not devtools) on every device before the guest starts",
    );
}

/// The vendor's word: what verification found wrong, by rule.
fn judged(devices: &Devices<'_>, findings: &mut Findings) {
    for rule in &RULES {
        let found = devices.results.iter().flat_map(|result| {
            let about = |finding: &&Finding| (rule.is_about)(finding.code);
            result.findings.iter().filter(about).map(|finding| of_device(result, finding))
        });
        let wrong: Vec<_> = found.collect();
        let actual = shown(&wrong, "so");
        findings.checks.compare(rule.id, wrong.is_empty(), rule.expected, actual, rule.hint);
    }
}

/// What must be there and may be missing.
fn complete(devices: &Devices<'_>, policy: &GpuPolicy, now: UnixTime, findings: &mut Findings) {
    let mut missing = Vec::new();
    let mut unproved = Vec::new();
    for result in &devices.results {
        let Some(facts) = &result.facts else { continue };
        for source in facts.kind.sources() {
            if !result.manifests.iter().any(|used| used.source == *source) {
                missing.push(reference_missing(facts, *source));
            }
        }
        for one in &result.revocation {
            let found = one.not_good(now, policy.max_ocsp_age_seconds);
            unproved.extend(found.map(|finding| of_device(result, &finding)));
        }
    }
    findings.checks.compare(
        "gpu.reference-missing",
        missing.is_empty(),
        "a reference manifest for driver and firmware of every device",
        shown(&missing, "there"),
        "supply the manifests with the ids named here as endorsements",
    );
    let proved = shown(&unproved, "good and fresh");
    if policy.require_revocation {
        findings.checks.compare(
            "gpu.revocation",
            unproved.is_empty(),
            format!("OCSP answers \"good\", at most {} s old", policy.max_ocsp_age_seconds),
            proved,
            "staple fresh OCSP responses for the certificates named here",
        );
    } else {
        findings.checks.not_asked("gpu.revocation", proved);
    }
}

/// What the relying party lists.
fn allowed(devices: &Devices<'_>, policy: &GpuPolicy, findings: &mut Findings) {
    let mut wrong = Vec::new();
    let mut uncovered = Vec::new();
    let listed = |list: &[String], value: &str| {
        list.is_empty() || list.iter().any(|one| one.eq_ignore_ascii_case(value))
    };
    for result in &devices.results {
        let Some(facts) = &result.facts else { continue };
        let name = name(facts);
        if let Some(mode) = facts.mode.filter(|mode| !policy.modes.contains(&mode.name())) {
            wrong.push(format!("{name}: {} {}", Code::ModeNotAllowed, mode.name()));
        }
        let versions = [
            (&policy.driver_versions, &facts.driver_version),
            (&policy.firmware_versions, &facts.firmware_version),
        ];
        for (list, version) in versions {
            if let Some(version) = version.as_ref().filter(|version| !listed(list, version)) {
                wrong.push(format!("{name}: {} {version}", Code::DriverNotAllowed));
            }
        }
        if facts.kind == DeviceKind::Gpu && policy.require_fwid && !facts.names_fwid {
            wrong.push(format!("{name}: {}", Code::FwidAbsent));
        }
        for used in &result.manifests {
            let known = policy.manifests.iter().any(|digest| digest.0 == used.sha256);
            if !known && !policy.manifests.is_empty() {
                let digest = hex(&used.sha256);
                wrong.push(format!("{name}: {} {digest}", Code::ReferenceNotAllowed));
            }
        }
        let indexes = result.comparison.as_ref().map_or(&[][..], |one| one.uncovered.as_slice());
        if !indexes.is_empty() {
            uncovered.push(format!("{name}: {} {indexes:?}", Code::Uncovered));
        }
    }
    findings.checks.compare(
        "gpu.allowed",
        wrong.is_empty(),
        "modes, versions, firmware digests and manifests as the policy lists them",
        shown(&wrong, "so"),
        "change the device's set-up, or the lists of the policy's gpu section",
    );
    if policy.require_coverage {
        findings.checks.compare(
            "gpu.coverage",
            uncovered.is_empty(),
            "a reference value for every measurement other than zero",
            shown(&uncovered, "so"),
            "use manifests that name these indexes, or a driver that does not measure them",
        );
    } else {
        findings.checks.not_asked("gpu.coverage", shown(&uncovered, "all covered"));
    }
}

/// The devices as one machine.
fn together(devices: &Devices<'_>, policy: &GpuPolicy, findings: &mut Findings) {
    let all: Vec<_> = facts(devices).collect();
    let topology = check_topology(&all);
    let mut wrong: Vec<_> = topology.iter().map(ToString::to_string).collect();
    let listed: BTreeSet<_> = policy.pdis.iter().map(|pdi| pdi.0).collect();
    for facts in &all {
        let known = facts.pdi.is_some_and(|pdi| listed.contains(&pdi.0));
        if !known && !listed.is_empty() {
            wrong.push(format!("{}: {}", Code::DeviceForeign, name(facts)));
        }
    }
    findings.checks.compare(
        "gpu.topology",
        wrong.is_empty(),
        "each device once, in one mode, connected to verified members alone, and listed",
        shown(&wrong, "so"),
        "attest all GPUs and switches of the machine, and no device of another one",
    );
}

/// Whose word it is, and what it cannot say.
fn anchored(devices: &Devices<'_>, all_hold: bool, findings: &mut Findings) {
    let anchors = || devices.results.iter().filter_map(|result| result.anchor.as_ref());
    let describe = |anchor: &crate::anchors::Anchor| match anchor.kind {
        AnchorKind::Hardware => format!("hardware under {}", anchor.label),
        _ => format!("model, not hardware, under {}", anchor.label),
    };
    let labels: BTreeSet<_> = anchors().map(describe).collect();
    let hardware = anchors().all(|anchor| anchor.kind == AnchorKind::Hardware);
    findings.checks.not_asked("gpu.anchor", labels.into_iter().collect::<Vec<_>>().join("; "));
    findings.checks.not_asked("gpu.location", LIMITS);
    if all_hold && hardware && findings.tee && findings.fresh {
        findings.proved.insert(crate::boundary::Property::GpuConfidential);
    }
}

fn reference_missing(facts: &Facts, source: Source) -> String {
    let id = facts.manifest_id(source).unwrap_or_else(|| "(no id)".to_owned());
    format!("{}: {} {id}", name(facts), Code::ReferenceMissing)
}

fn facts<'a>(devices: &'a Devices<'_>) -> impl Iterator<Item = &'a Facts> {
    devices.results.iter().filter_map(|result| result.facts.as_ref())
}

fn of_device(result: &DeviceResult, finding: &Finding) -> String {
    let device = result.facts.as_ref().map_or_else(|| "device".to_owned(), name);
    format!("{device}: {finding}")
}

fn name(facts: &Facts) -> String {
    let pdi = facts.pdi.map_or_else(|| "(no PDI)".to_owned(), |pdi| pdi.to_string());
    format!("{} {pdi}", facts.kind.name())
}

/// What is wrong, or that nothing is. A long list is cut: the first say enough.
fn shown(wrong: &[String], right: &str) -> String {
    const MOST: usize = 8;
    if wrong.is_empty() {
        return right.to_owned();
    }
    let first: Vec<_> = wrong.iter().take(MOST).map(String::as_str).collect();
    let more = wrong.len().saturating_sub(MOST);
    let end = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{}{end}", first.join("; "))
}

/// A rule that findings of verification break.
struct Rule {
    id: &'static str,
    is_about: fn(Code) -> bool,
    expected: &'static str,
    hint: &'static str,
}

const RULES: [Rule; 4] = [
    Rule {
        id: "gpu.firmware",
        is_about: |code| matches!(code, Code::FwidMismatch | Code::ChipMismatch),
        expected: "chip, identity and firmware as certified",
        hint: "the device runs firmware that its certificate is not for; reset or replace it",
    },
    Rule {
        id: "gpu.reference",
        is_about: |code| (Code::RimXml..=Code::RimIndexConflict).contains(&code),
        expected: "reference manifests that are signed, current and for this device",
        hint: "fetch the manifests again by id from the vendor's service; they expire and are re-issued",
    },
    Rule {
        id: "gpu.measurement",
        is_about: |code| code == Code::MeasurementMismatch,
        expected: "every measurement among its reference values",
        hint: "driver indexes: install the driver build that the manifest is for, without developer \
               tools; vbios or bios indexes: update the firmware, or the manifest if it is older",
    },
    Rule {
        id: "gpu.revoked",
        is_about: |code| code == Code::OcspRevoked,
        expected: "no certificate revoked or on hold",
        hint: "replace the device, or ask the vendor why its certificate was revoked",
    },
];
