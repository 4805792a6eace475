//! Rules on GPUs and switches, and on what ties them to the CPU's evidence.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{DeviceVerdict, Expected, Findings, Hardware};
use crate::anchors::{Anchor, AnchorKind};
use crate::binding::Binding;
use crate::gpu::{
    Code, ConfidentialState, DeviceKind, DeviceResult, Facts, GpuPolicy, Inventory, LIMITS,
    check_topology, device_claims, device_nonce,
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
    /// For each device, the rules that it breaks and how.
    reasons: Vec<Vec<String>>,
    /// Whether the devices are one machine's, and all of them.
    complete: bool,
}

/// What breaks one rule, each with the number of the device that it is about,
/// if it is about one.
#[derive(Default)]
struct Wrong(Vec<(Option<usize>, String)>);

impl<'a> Devices<'a> {
    pub(super) fn of(claims: &'a Claims) -> Self {
        let results: Vec<_> = claims.devices().collect();
        let inventory = claims.inventory();
        let digests: Vec<_> = results.iter().map(|result| result.digests).collect();
        // An inventory has one encoding: these are the bytes that came.
        let bytes = inventory.map(Inventory::encode);
        let digest = crate::gpu::digest(bytes.as_deref(), &digests);
        let reasons = vec![Vec::new(); results.len()];
        Self { results, inventory, digest, reasons, complete: false }
    }

    /// Notes what breaks `rule`, under each device that it is about.
    fn note(&mut self, rule: &str, wrong: &Wrong) {
        for (at, text) in &wrong.0 {
            if let Some(reasons) = at.and_then(|at| self.reasons.get_mut(at)) {
                reasons.push(format!("{rule}: {text}"));
            }
        }
    }

    /// The facts of every device, by its number.
    fn facts(&self) -> Vec<(usize, &'a Facts)> {
        let numbered = self.results.iter().enumerate();
        numbered.filter_map(|(at, result)| Some((at, result.facts.as_ref()?))).collect()
    }

    fn name(&self, at: usize) -> String {
        let facts = self.results.get(at).and_then(|result| result.facts.as_ref());
        let Some(facts) = facts else { return "device".to_owned() };
        let pdi = facts.pdi.map_or_else(|| "(no PDI)".to_owned(), |pdi| pdi.to_string());
        format!("{} {pdi}", facts.kind.name())
    }
}

impl Wrong {
    fn about(&mut self, device: usize, text: impl Into<String>) {
        self.0.push((Some(device), text.into()));
    }

    /// What is wrong, or `right`. A long list is cut: the first say enough.
    fn shown(&self, devices: &Devices<'_>, right: &str) -> String {
        const MOST: usize = 8;
        if self.0.is_empty() {
            return right.to_owned();
        }
        let named = |(at, text): &(Option<usize>, String)| match at {
            Some(at) => format!("{}: {text}", devices.name(*at)),
            None => text.clone(),
        };
        let first: Vec<_> = self.0.iter().take(MOST).map(named).collect();
        let more = self.0.len().saturating_sub(MOST);
        let end = if more > 0 { format!("; and {more} more") } else { String::new() };
        format!("{}{end}", first.join("; "))
    }
}

pub(super) fn appraise(
    devices: &mut Devices<'_>,
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
    let topology = json!({ "members": devices.results.len(), "complete": devices.complete });
    let verdict = |(at, result): (usize, &&DeviceResult)| {
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
        let reasons = devices.reasons.get(at).cloned().unwrap_or_default();
        let location = location(devices.inventory, facts.kind);
        let mut claims = device_claims(result, answers);
        if let Some(Value::Object(ours)) = claims.get_mut("casemate") {
            ours.insert("gpu.topology".into(), topology.clone());
            ours.insert("gpu.reasons".into(), json!(reasons));
        }
        let anchor = result.anchor.as_ref().map(|anchor| anchor.label.clone());
        let outcome = result.outcome();
        Some(DeviceVerdict { name, accepted, outcome, hardware, anchor, location, reasons, claims })
    };
    devices.results.iter().enumerate().filter_map(verdict).collect()
}

/// Where the device is, as far as it is known: its report does not say it.
fn location(inventory: Option<&Inventory>, kind: DeviceKind) -> String {
    let functions = inventory.into_iter().flat_map(|inventory| &inventory.functions);
    let addresses: Vec<_> =
        functions.filter(|one| one.kind == kind).map(|one| one.address.as_str()).collect();
    match addresses.as_slice() {
        [] => "not known".to_owned(),
        [one] => format!("{one}, by the guest's word"),
        several => format!("one of {}, by the guest's word", several.join(", ")),
    }
}

fn count(devices: &Devices<'_>, policy: &GpuPolicy, findings: &mut Findings) {
    let facts = devices.facts();
    let of = |kind| facts.iter().filter(|(_, facts)| facts.kind == kind).count();
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
fn bound(devices: &mut Devices<'_>, binding: Option<&Binding>, findings: &mut Findings) {
    let show = |digest: Option<[u8; 32]>| digest.map_or("none".to_owned(), |digest| hex(&digest));
    let expected = binding.and_then(|binding| binding.devices);
    findings.checks.compare(
        "gpu.bound",
        binding.is_some() && expected == devices.digest && findings.fresh,
        format!("device evidence {} in fresh CPU evidence or host claim", show(expected)),
        show(devices.digest),
        "hash the device evidence into the binding before the CPU report is asked for",
    );
    let mut wrong = Wrong::default();
    for (at, facts) in devices.facts() {
        let nonce = binding.map(|binding| device_nonce(binding, facts.kind));
        if nonce != Some(facts.nonce) {
            wrong.about(at, format!("answers {}", hex(&facts.nonce)));
        }
    }
    NONCE.compare(devices, &wrong, "derived", findings);
}

/// The guest's own list: a device that is there must have evidence.
fn inventory(devices: &mut Devices<'_>, findings: &mut Findings) {
    let mut wrong = Vec::new();
    let facts = devices.facts();
    match devices.inventory {
        None => wrong.push(Code::InventoryMissing.to_string()),
        Some(inventory) => {
            for kind in [DeviceKind::Gpu, DeviceKind::Switch] {
                let attested = facts.iter().filter(|(_, facts)| facts.kind == kind).count();
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
    let wrong = Wrong(wrong.into_iter().map(|text| (None, text)).collect());
    INVENTORY.compare(devices, &wrong, "so", findings);
}

/// The vendor's word: what verification found wrong, by rule.
fn judged(devices: &mut Devices<'_>, findings: &mut Findings) {
    for (rule, is_about) in &VENDOR_RULES {
        let mut wrong = Wrong::default();
        for (at, result) in devices.results.iter().enumerate() {
            for finding in result.findings.iter().filter(|finding| is_about(finding.code)) {
                wrong.about(at, finding.to_string());
            }
        }
        rule.compare(devices, &wrong, "so", findings);
    }
}

/// What must be there and may be missing.
fn complete(devices: &mut Devices<'_>, policy: &GpuPolicy, now: UnixTime, findings: &mut Findings) {
    let mut missing = Wrong::default();
    let mut unproved = Wrong::default();
    for (at, facts) in devices.facts() {
        let Some(result) = devices.results.get(at) else { continue };
        for source in facts.kind.sources() {
            if !result.manifests.iter().any(|used| used.source == *source) {
                let id = facts.manifest_id(*source).unwrap_or_else(|| "(no id)".to_owned());
                missing.about(at, format!("{} {id}", Code::ReferenceMissing));
            }
        }
        for one in &result.revocation {
            let found = one.not_good(now, policy.max_ocsp_age_seconds);
            found.into_iter().for_each(|finding| unproved.about(at, finding.to_string()));
        }
    }
    REFERENCE_MISSING.compare(devices, &missing, "there", findings);
    if policy.require_revocation {
        REVOCATION.compare(devices, &unproved, "good and fresh", findings);
    } else {
        findings.checks.not_asked(REVOCATION.id, unproved.shown(devices, "good and fresh"));
    }
}

/// What the relying party lists.
fn allowed(devices: &mut Devices<'_>, policy: &GpuPolicy, findings: &mut Findings) {
    let mut wrong = Wrong::default();
    let mut uncovered = Wrong::default();
    for (at, facts) in devices.facts() {
        let Some(result) = devices.results.get(at) else { continue };
        not_listed(facts, result, policy).into_iter().for_each(|text| wrong.about(at, text));
        let indexes = result.comparison.as_ref().map_or(&[][..], |one| one.uncovered.as_slice());
        if !indexes.is_empty() {
            uncovered.about(at, format!("{} {indexes:?}", Code::Uncovered));
        }
    }
    ALLOWED.compare(devices, &wrong, "so", findings);
    if policy.require_coverage {
        COVERAGE.compare(devices, &uncovered, "all covered", findings);
    } else {
        findings.checks.not_asked(COVERAGE.id, uncovered.shown(devices, "all covered"));
    }
}

/// What of a device is not on the policy's lists.
fn not_listed(facts: &Facts, result: &DeviceResult, policy: &GpuPolicy) -> Vec<String> {
    let mut wrong = Vec::new();
    let listed = |list: &[String], value: &str| {
        list.is_empty() || list.iter().any(|one| one.eq_ignore_ascii_case(value))
    };
    if let Some(mode) = facts.mode.filter(|mode| !policy.modes.contains(&mode.name())) {
        wrong.push(format!("{} {}", Code::ModeNotAllowed, mode.name()));
    }
    let versions = [
        (&policy.driver_versions, &facts.driver_version),
        (&policy.firmware_versions, &facts.firmware_version),
    ];
    for (list, version) in versions {
        if let Some(version) = version.as_ref().filter(|version| !listed(list, version)) {
            wrong.push(format!("{} {version}", Code::DriverNotAllowed));
        }
    }
    if facts.kind == DeviceKind::Gpu && policy.require_fwid && !facts.names_fwid {
        wrong.push(Code::FwidAbsent.to_string());
    }
    for used in &result.manifests {
        let known = policy.manifests.iter().any(|digest| digest.0 == used.sha256);
        if !known && !policy.manifests.is_empty() {
            wrong.push(format!("{} {}", Code::ReferenceNotAllowed, hex(&used.sha256)));
        }
    }
    wrong
}

/// The devices as one machine.
fn together(devices: &mut Devices<'_>, policy: &GpuPolicy, findings: &mut Findings) {
    let facts = devices.facts();
    let all: Vec<_> = facts.iter().map(|(_, facts)| *facts).collect();
    let mut wrong = Wrong::default();
    for finding in check_topology(&all) {
        // Its field ends with the PDI of the device that it is about.
        let about = facts.iter().find(|(_, facts)| {
            facts.pdi.is_some_and(|pdi| finding.field.ends_with(&pdi.to_string()))
        });
        wrong.0.push((about.map(|(at, _)| *at), finding.to_string()));
    }
    let listed: BTreeSet<_> = policy.pdis.iter().map(|pdi| pdi.0).collect();
    for (at, facts) in facts {
        let known = facts.pdi.is_some_and(|pdi| listed.contains(&pdi.0));
        if !known && !listed.is_empty() {
            wrong.about(at, Code::DeviceForeign.to_string());
        }
    }
    devices.complete = wrong.0.is_empty();
    TOPOLOGY.compare(devices, &wrong, "so", findings);
}

/// Whose word it is, and what it cannot say.
fn anchored(devices: &Devices<'_>, all_hold: bool, findings: &mut Findings) {
    let anchors = || devices.results.iter().flat_map(|result| anchors_of(result)).flatten();
    let describe = |anchor: &Anchor| match anchor.kind {
        AnchorKind::Hardware => format!("hardware under {}", anchor.label),
        _ => format!("model, not hardware, under {}", anchor.label),
    };
    let labels: BTreeSet<_> = anchors().map(describe).collect();
    let hardware = devices.results.iter().all(|result| is_hardware(result));
    findings.checks.not_asked("gpu.anchor", labels.into_iter().collect::<Vec<_>>().join("; "));
    findings.checks.not_asked("gpu.location", LIMITS);
    if all_hold && hardware && findings.tee && findings.fresh {
        findings.proved.insert(crate::boundary::Property::GpuConfidential);
    }
}

/// Whose word stands behind a device: its own chain's and its manifests'. An
/// OCSP response's signer is authorised by the issuer that it speaks for.
fn anchors_of(result: &DeviceResult) -> impl Iterator<Item = Option<&Anchor>> {
    let manifests = result.manifests.iter().map(|used| used.anchor.as_ref());
    core::iter::once(result.anchor.as_ref()).chain(manifests)
}

/// Whether all of a device leads to one anchor, and that one is the vendor's.
fn is_hardware(result: &DeviceResult) -> bool {
    let vendor = |anchor: &Anchor| anchor.kind == AnchorKind::Hardware;
    result.anchor.as_ref().is_some_and(vendor)
        && anchors_of(result).all(|anchor| anchor == result.anchor.as_ref())
}

/// A rule that devices may break.
struct Rule {
    id: &'static str,
    expected: &'static str,
    hint: &'static str,
}

impl Rule {
    /// The rule holds if nothing is wrong.
    fn compare(
        &self,
        devices: &mut Devices<'_>,
        wrong: &Wrong,
        right: &str,
        findings: &mut Findings,
    ) {
        devices.note(self.id, wrong);
        let actual = wrong.shown(devices, right);
        findings.checks.compare(self.id, wrong.0.is_empty(), self.expected, actual, self.hint);
    }
}

const NONCE: Rule = Rule {
    id: "gpu.nonce",
    expected: "the nonce derived from this challenge, from every device",
    hint: "ask each device again with the nonce of this challenge",
};
const INVENTORY: Rule = Rule {
    id: "gpu.inventory",
    expected: "every device of the guest attested, in confidential mode, without developer tools",
    hint: "set confidential mode on (not devtools) on every device before the guest starts",
};
const REFERENCE_MISSING: Rule = Rule {
    id: "gpu.reference-missing",
    expected: "a reference manifest for driver and firmware of every device",
    hint: "supply the manifests with the ids named here as endorsements",
};
const REVOCATION: Rule = Rule {
    id: "gpu.revocation",
    expected: "OCSP answers \"good\", no older than the policy allows",
    hint: "staple fresh OCSP responses for the certificates named here",
};
const ALLOWED: Rule = Rule {
    id: "gpu.allowed",
    expected: "modes, versions, firmware digests and manifests as the policy lists them",
    hint: "change the device's set-up, or the lists of the policy's gpu section",
};
const COVERAGE: Rule = Rule {
    id: "gpu.coverage",
    expected: "a reference value for every measurement other than zero",
    hint: "use manifests that name these indexes, or a driver that does not measure them",
};
const TOPOLOGY: Rule = Rule {
    id: "gpu.topology",
    expected: "each device once, in one mode, connected to verified members alone, and listed",
    hint: "attest all GPUs and switches of the machine, and no device of another one",
};

type IsAbout = fn(Code) -> bool;

/// The rules that findings of verification break.
const VENDOR_RULES: [(Rule, IsAbout); 4] = [
    (
        Rule {
            id: "gpu.firmware",
            expected: "chip, identity and firmware as certified",
            hint: "the device runs firmware that its certificate is not for; reset or replace it",
        },
        |code| matches!(code, Code::FwidMismatch | Code::ChipMismatch),
    ),
    (
        Rule {
            id: "gpu.reference",
            expected: "reference manifests that are signed, current and for this device",
            hint: "fetch the manifests again by id from the vendor's service; they expire and are re-issued",
        },
        |code| (Code::RimXml..=Code::RimIndexConflict).contains(&code),
    ),
    (
        Rule {
            id: "gpu.measurement",
            expected: "every measurement among its reference values",
            hint: "driver indexes: install the driver build that the manifest is for, without developer \
                   tools; vbios or bios indexes: update the firmware, or the manifest if it is older",
        },
        |code| code == Code::MeasurementMismatch,
    ),
    (
        Rule {
            id: "gpu.revoked",
            expected: "no certificate revoked or on hold",
            hint: "replace the device, or ask the vendor why its certificate was revoked",
        },
        |code| code == Code::OcspRevoked,
    ),
];
