//! Device evidence end to end: a model of a processor and of its GPUs attest,
//! and the shipped code judges. Each way to be wrong breaks its own rule.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::{Arc, LazyLock};

use casemate_attestation::anchors::TrustAnchors;
use casemate_attestation::appraise::{Appraisal, Hardware, appraise};
use casemate_attestation::gpu::{
    ConfidentialState, DeviceEvidence, DeviceKind, Function, Inventory, Outcome, Pdi, Source,
    Verifier, device_nonce, devices_digest,
};
use casemate_attestation::policy::Policy;
use casemate_attestation::reference::ReferenceValues;
use casemate_attestation::{
    Binding, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Property, Reason,
    UnixTime, verify,
};
use casemate_model::gpu::{DeviceSpec, GpuDevice, GpuModel, OcspStatus};
use casemate_model::{PspConfig, PspModel};

const FROM: UnixTime = UnixTime(1_790_000_000);
const NOW: UnixTime = UnixTime(1_795_000_000);
const DAY: u64 = 86_400;
const HGX: &str = "[gpu]\ngpus = 8\nswitches = 4\n";
const ONE: &str = "[gpu]\ngpus = 1\n";

/// Keys are slow to make; every test shares one set.
struct World {
    psp: PspModel,
    gpu: GpuModel,
    anchors: TrustAnchors,
    hgx: Vec<GpuDevice>,
    single: GpuDevice,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let psp = PspModel::generate(PspConfig::milan(FROM)).unwrap();
    let gpu = GpuModel::new(FROM).unwrap();
    let mut anchors = TrustAnchors::from_toml(&psp.anchor_toml("model cpu")).unwrap();
    anchors.nvidia = vec![gpu.anchor("model gpu").unwrap()];
    let hgx = DeviceSpec::hgx().into_iter().map(|spec| gpu.device(spec).unwrap()).collect();
    let single = gpu.device(DeviceSpec::gpu(99)).unwrap();
    World { psp, gpu, anchors, hgx, single }
});

/// A machine's evidence before it is bound: tests change it and then bind it.
struct Machine<'a> {
    devices: Vec<&'a GpuDevice>,
    inventory: Option<Inventory>,
    manifests: Vec<Vec<u8>>,
    ocsp: Vec<Vec<u8>>,
    nonce: [u8; 32],
}

impl<'a> Machine<'a> {
    fn new(devices: Vec<&'a GpuDevice>) -> Self {
        let function = |(at, device): (usize, &&GpuDevice)| Function {
            address: format!("0000:{at:02x}:00.0"),
            kind: device.spec().kind,
            state: ConfidentialState::On,
        };
        let functions = devices.iter().enumerate().map(function).collect();
        let mut machine = Self {
            inventory: Some(Inventory { functions }),
            manifests: manifests(&devices, NOW, NOW.plus_seconds(DAY)),
            ocsp: vec![],
            nonce: [7; 32],
            devices,
        };
        machine.ocsp = machine.fresh_ocsp(NOW);
        machine
    }

    fn hgx() -> Self {
        Self::new(WORLD.hgx.iter().collect())
    }

    fn single() -> Self {
        Self::new(vec![&WORLD.single])
    }

    fn fresh_ocsp(&self, at: UnixTime) -> Vec<Vec<u8>> {
        let gpu = &WORLD.gpu;
        let mut out = Vec::new();
        for device in &self.devices {
            out.extend(gpu.ocsp_of_device(device, OcspStatus::Good, at).unwrap());
        }
        let verifier = Verifier::new(&WORLD.anchors.nvidia);
        for manifest in &self.manifests {
            let checked = verifier.manifest(manifest);
            out.extend(gpu.ocsp_of_manifest(checked.chain.first().unwrap(), at).unwrap());
        }
        out
    }

    fn binding(&self) -> Binding {
        Binding {
            nonce: self.nonce.to_vec(),
            identity_key: [1; 32],
            sealing_key: [2; 32],
            channel: [3; 32],
            epoch: 4,
            devices: None,
        }
    }

    /// Asks the devices, then the processor with their digest bound in.
    fn attest(&self) -> (Evidence, Binding) {
        let mut binding = self.binding();
        let mut evidence = Evidence::default();
        if let Some(inventory) = &self.inventory {
            evidence.items.push(item(EvidenceKind::DeviceInventory, inventory.encode()));
        }
        for device in &self.devices {
            let nonce = device_nonce(&binding, device.spec().kind);
            evidence.items.push(device.evidence(&nonce).unwrap());
        }
        binding.devices = devices_digest(&evidence);
        self.lead(&mut evidence, &binding);
        (evidence, binding)
    }

    fn lead(&self, evidence: &mut Evidence, binding: &Binding) {
        let psp = &WORLD.psp;
        let report = psp.report(&binding.report_data(), &[9; 48]).unwrap();
        let mut lead = item(EvidenceKind::SnpReport, report.to_vec());
        lead.endorsements.push((EndorsementKind::SnpCertTable, psp.cert_table()));
        evidence.items.insert(0, lead);
    }

    fn endorsements(&self) -> Endorsements {
        let rims = self.manifests.iter().map(|one| (EndorsementKind::Rim, one.clone()));
        let ocsp = self.ocsp.iter().map(|one| (EndorsementKind::Ocsp, one.clone()));
        Endorsements { items: rims.chain(ocsp).collect() }
    }

    fn appraise(&self, policy: &str) -> Appraisal {
        let (evidence, binding) = self.attest();
        self.appraise_evidence(&evidence, &binding, policy)
    }

    fn appraise_evidence(&self, evidence: &Evidence, binding: &Binding, policy: &str) -> Appraisal {
        // Over the wire and back, as it really travels.
        let evidence = Evidence::decode(&evidence.encode()).unwrap();
        let claims = verify(&evidence, &WORLD.anchors, &self.endorsements(), NOW).unwrap();
        let policy = Policy::from_toml(policy).unwrap();
        appraise(&claims, &policy, &ReferenceValues::default(), binding, NOW)
    }
}

fn item(kind: EvidenceKind, evidence: Vec<u8>) -> EvidenceItem {
    EvidenceItem { kind, evidence, endorsements: vec![] }
}

/// One manifest for each part of each kind of device.
fn manifests(devices: &[&GpuDevice], from: UnixTime, until: UnixTime) -> Vec<Vec<u8>> {
    let mut done: Vec<(DeviceKind, Source)> = Vec::new();
    let mut out = Vec::new();
    for device in devices {
        for source in device.spec().sources() {
            let key = (device.spec().kind, *source);
            if !done.contains(&key) {
                done.push(key);
                out.push(WORLD.gpu.manifest(device.spec(), *source, from, until).unwrap());
            }
        }
    }
    out
}

/// The rules about devices that failed, and what they say.
fn failed(appraisal: &Appraisal) -> Vec<(&'static str, String)> {
    let about_devices = appraisal.failures().filter(|check| check.rule.starts_with("gpu."));
    about_devices.map(|check| (check.rule, check.actual.clone())).collect()
}

/// Asserts that exactly `rules` fail and that the first says `word`.
#[track_caller]
fn refused(appraisal: &Appraisal, rules: &[&str], word: &str) {
    let failed = failed(appraisal);
    let names: Vec<_> = failed.iter().map(|(rule, _)| *rule).collect();
    assert_eq!(names, rules, "{failed:#?}");
    assert!(failed.iter().any(|(_, actual)| actual.contains(word)), "{word}: {failed:#?}");
}

#[test]
fn eight_gpus_and_four_switches_pass_and_are_called_a_model() {
    let appraisal = Machine::hgx().appraise(HGX);
    assert_eq!(failed(&appraisal), []);
    let says =
        |rule: &str| appraisal.checks().iter().find(|c| c.rule == rule).unwrap().actual.clone();
    assert_eq!(says("gpu.anchor"), "model, not hardware, under model gpu");
    assert!(says("gpu.location").contains("before TDISP"));
    assert!(!appraisal.properties().contains(Property::GpuConfidential));
    let names: Vec<_> = appraisal.devices().iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names.len(), 12);
    assert_eq!((names[0], names[11]), ("gpu0", "nvswitch3"));
    for device in appraisal.devices() {
        assert!(device.accepted && device.hardware == Hardware::Model, "{device:?}");
        assert_eq!(device.claims["measres"], "success");
    }
    let claims = &appraisal.devices()[0].claims;
    assert_eq!(claims["x-nvidia-gpu-driver-rim-signature-verified"], true);
    assert_eq!(claims["x-nvidia-gpu-attestation-report-nonce-match"], true);
    assert_eq!(claims["x-nvidia-gpu-mode"], "PPCIE");
    assert_eq!(claims["casemate"]["gpu.hardware"], false);
    assert_eq!(claims["casemate"]["gpu.topology"]["complete"], true);
    let chain = &claims["x-nvidia-gpu-attestation-report-cert-chain"];
    assert_eq!(chain["x-nvidia-cert-expiration-date"], "9999-12-31T23:59:59Z");
    assert_eq!(chain["x-nvidia-cert-ocsp-response-valid"], true);
    assert!(appraisal.devices()[0].location.starts_with("one of 0000:00:00.0, "));
    // Twelve of them have room in a token.
    let bytes: usize =
        appraisal.devices().iter().map(|one| serde_json::to_vec(&one.claims).unwrap().len()).sum();
    assert!(bytes < 42_000, "{bytes} bytes");
}

#[test]
fn a_device_s_faults_stand_under_that_device_alone() {
    let mut devices: Vec<_> = WORLD.hgx.iter().collect();
    let spec = DeviceSpec { devtools: true, ..devices[3].spec().clone() };
    let wrong = WORLD.gpu.device(spec).unwrap();
    devices[3] = &wrong;
    let appraisal = Machine::new(devices).appraise(HGX);
    let blamed: Vec<_> = appraisal.devices().iter().filter(|one| !one.reasons.is_empty()).collect();
    assert_eq!(blamed.len(), 1, "{blamed:#?}");
    let one = blamed[0];
    assert_eq!((one.name.as_str(), one.outcome), ("gpu3", Outcome::Fail));
    assert!(one.reasons[0].starts_with("gpu.measurement: MEASUREMENT_MISMATCH"), "{one:#?}");
    assert_eq!(one.claims["casemate"]["gpu.reasons"][0], one.reasons[0]);
    assert_eq!(one.claims["x-nvidia-mismatch-measurement-records"][0]["index"], 22);
}

#[test]
fn a_single_gpu_of_each_generation_passes() {
    assert_eq!(failed(&Machine::single().appraise(ONE)), []);
    let spec = DeviceSpec { chip: "GB100".to_owned(), ..DeviceSpec::gpu(98) };
    let blackwell = WORLD.gpu.device(spec).unwrap();
    assert_eq!(failed(&Machine::new(vec![&blackwell]).appraise(ONE)), []);
}

#[test]
fn by_default_there_is_no_device() {
    refused(&Machine::single().appraise(""), &["gpu.count"], "1 GPUs");
    let machine = Machine { inventory: None, ..Machine::new(vec![]) };
    assert_eq!(failed(&machine.appraise("")), []);
    refused(&machine.appraise(ONE), &["gpu.count"], "0 GPUs");
}

#[test]
fn a_missing_extra_or_repeated_device_is_refused() {
    let mut machine = Machine::hgx();
    machine.devices.remove(0);
    let rules = ["gpu.count", "gpu.inventory", "gpu.topology"];
    refused(&machine.appraise(HGX), &rules, "DEVICE_UNATTESTED");

    let mut machine = Machine::hgx();
    machine.devices.push(&WORLD.single);
    machine.ocsp = machine.fresh_ocsp(NOW);
    refused(&machine.appraise(HGX), &rules, "TOPOLOGY_MISSING_MEMBER");

    let mut machine = Machine::hgx();
    let first = machine.devices[0];
    machine.devices[1] = first;
    refused(&machine.appraise(HGX), &["gpu.topology"], "DEVICE_DUPLICATE");

    let mut machine = Machine::hgx();
    machine.devices[11] = &WORLD.single;
    machine.ocsp = machine.fresh_ocsp(NOW);
    refused(&machine.appraise(HGX), &rules, "TOPOLOGY_UNKNOWN_MEMBER");
}

#[test]
fn evidence_of_other_devices_or_another_challenge_is_refused() {
    // Spliced in after the processor was asked.
    let machine = Machine::single();
    let (mut evidence, binding) = machine.attest();
    let nonce = device_nonce(&binding, DeviceKind::Gpu);
    let other = WORLD.gpu.device(DeviceSpec::gpu(97)).unwrap();
    evidence.items[2] = other.evidence(&nonce).unwrap();
    let machine = Machine { ocsp: Machine::new(vec![&other]).ocsp, ..machine };
    let appraisal = machine.appraise_evidence(&evidence, &binding, ONE);
    assert!(failed(&appraisal).iter().any(|(rule, _)| *rule == "gpu.bound"));

    // Stale: the device answers an older challenge, and the digest is right.
    let machine = Machine::single();
    let mut binding = machine.binding();
    let mut evidence = Evidence::default();
    evidence
        .items
        .push(item(EvidenceKind::DeviceInventory, machine.inventory.as_ref().unwrap().encode()));
    evidence.items.push(WORLD.single.evidence(&[0; 32]).unwrap());
    binding.devices = devices_digest(&evidence);
    machine.lead(&mut evidence, &binding);
    refused(&machine.appraise_evidence(&evidence, &binding, ONE), &["gpu.nonce"], "answers 0000");

    // Taken away: the processor's report names device evidence that is not there.
    let (mut evidence, binding) = machine.attest();
    evidence.items.truncate(1);
    let appraisal = machine.appraise_evidence(&evidence, &binding, "");
    refused(&appraisal, &["gpu.bound", "gpu.inventory"], "INVENTORY_MISSING");
}

#[test]
fn devtools_and_off_are_refused() {
    for (state, word) in
        [(ConfidentialState::DevTools, "DEV_TOOLS"), (ConfidentialState::Off, "CC_OFF")]
    {
        let mut machine = Machine::single();
        machine.inventory.as_mut().unwrap().functions[0].state = state;
        refused(&machine.appraise(ONE), &["gpu.inventory"], word);
    }
    let spec = DeviceSpec { devtools: true, ..DeviceSpec::gpu(96) };
    let device = WORLD.gpu.device(spec).unwrap();
    let appraisal = Machine::new(vec![&device]).appraise(ONE);
    refused(&appraisal, &["gpu.measurement"], "driver index 22");
}

#[test]
fn missing_expired_and_reissued_manifests_are_told_apart() {
    let mut machine = Machine::single();
    machine.manifests.remove(0);
    let rules = ["gpu.reference-missing"];
    refused(&machine.appraise(ONE), &rules, "REFERENCE_MISSING NV_GPU_DRIVER_GH100_999.10.01");

    let mut machine = Machine::single();
    let expired = manifests(&machine.devices, FROM, FROM.plus_seconds(DAY));
    machine.manifests = expired.clone();
    machine.ocsp = machine.fresh_ocsp(NOW);
    refused(&machine.appraise(ONE), &["gpu.reference"], "driver:RIM_CHAIN_EXPIRED");

    // Beside the expired ones, re-issued ones of the same id: those are used.
    let mut machine = Machine::single();
    machine.manifests.extend(expired);
    assert_eq!(failed(&machine.appraise(ONE)), []);

    let mut machine = Machine::single();
    let last = machine.manifests[0].len() / 2;
    machine.manifests[0][last] ^= 1;
    let appraisal = machine.appraise(ONE);
    assert!(!failed(&appraisal).is_empty());
}

#[test]
fn revocation_is_asked_for_and_fresh() {
    let mut machine = Machine::single();
    machine.ocsp.clear();
    refused(&machine.appraise(ONE), &["gpu.revocation"], "OCSP_ABSENT");
    let lenient = format!("{ONE}require_revocation = false\n");
    assert_eq!(failed(&machine.appraise(&lenient)), []);

    machine.ocsp = machine.fresh_ocsp(UnixTime(NOW.0 - 2 * DAY));
    refused(&machine.appraise(ONE), &["gpu.revocation"], "OCSP_STALE");
    machine.ocsp = machine.fresh_ocsp(UnixTime(NOW.0 + 10));
    refused(&machine.appraise(ONE), &["gpu.revocation"], "OCSP_NOT_YET_VALID");
    machine.ocsp = machine.fresh_ocsp(UnixTime(NOW.0 - 600));
    assert_eq!(failed(&machine.appraise(ONE)), []);
    let strict = format!("{ONE}max_ocsp_age_seconds = 300\n");
    refused(&machine.appraise(&strict), &["gpu.revocation"], "OCSP_STALE");

    for (status, rules, word) in [
        (OcspStatus::OnHold, ["gpu.revoked"], "OCSP_REVOKED"),
        (OcspStatus::Unknown, ["gpu.revocation"], "OCSP_UNKNOWN"),
    ] {
        let mut machine = Machine::single();
        let said = WORLD.gpu.ocsp_of_device(&WORLD.single, status, NOW).unwrap();
        machine.ocsp = [said, machine.ocsp.split_off(3)].concat();
        refused(&machine.appraise(ONE), &rules, word);
    }
    // An answer "revoked" counts even beside one that says "good".
    let mut machine = Machine::single();
    let held = WORLD.gpu.ocsp_of_device(&WORLD.single, OcspStatus::OnHold, NOW).unwrap();
    machine.ocsp.extend(held);
    refused(&machine.appraise(&lenient), &["gpu.revoked"], "OCSP_REVOKED");
}

#[test]
fn the_policy_lists_what_may_be() {
    let cases = [
        ("pdis = [\"48b02d0000000100\"]", "gpu.topology", "DEVICE_FOREIGN"),
        ("modes = [\"mpt\"]", "gpu.allowed", "MODE_NOT_ALLOWED spt"),
        ("driver_versions = [\"1.2.3\"]", "gpu.allowed", "DRIVER_NOT_ALLOWED 999.10.01"),
        ("firmware_versions = [\"x\"]", "gpu.allowed", "DRIVER_NOT_ALLOWED 96.00.99.00.01"),
    ];
    for (line, rule, word) in cases {
        refused(&Machine::single().appraise(&format!("{ONE}{line}\n")), &[rule], word);
    }
    let manifests = format!("{ONE}manifests = [\"{}\"]\n", "00".repeat(32));
    refused(&Machine::single().appraise(&manifests), &["gpu.allowed"], "REFERENCE_NOT_ALLOWED");
    let listed = format!("{ONE}pdis = [\"48b02d0000000163\"]\nrequire_coverage = true\n");
    assert_eq!(failed(&Machine::single().appraise(&listed)), []);
    assert!(Policy::from_toml("[gpu]\ngpu = 1").is_err());
}

#[test]
fn an_unlocked_switch_is_refused() {
    let mut devices: Vec<_> = WORLD.hgx.iter().collect();
    let spec = DeviceSpec { locked: false, ..devices[8].spec().clone() };
    let unlocked = WORLD.gpu.device(spec).unwrap();
    devices[8] = &unlocked;
    refused(&Machine::new(devices).appraise(HGX), &["gpu.topology"], "SWITCH_UNLOCKED");
}

#[test]
fn a_stranger_s_chain_does_not_verify() {
    let (evidence, _) = Machine::single().attest();
    let mut anchors = TrustAnchors::vendor();
    anchors.amd = WORLD.anchors.amd.clone();
    let error = verify(&evidence, &anchors, &Endorsements::default(), NOW).unwrap_err();
    assert_eq!(error.reason, Reason::Chain, "{error}");
    assert!(error.to_string().contains("CHAIN_ROOT"), "{error}");
}

/// Each anchor vouches for its own devices: a manifest that another anchor's
/// signer made, good in itself, affirms nothing.
#[test]
fn a_manifest_under_another_anchor_than_the_device_s_is_refused() {
    let other = GpuModel::new(FROM).unwrap();
    let mut anchors = WORLD.anchors.clone();
    anchors.nvidia.push(other.anchor("other").unwrap());
    let until = NOW.plus_seconds(DAY);
    let foreign = |source| other.manifest(WORLD.single.spec(), source, NOW, until).unwrap();
    let mut machine = Machine::single();
    machine.manifests = WORLD.single.spec().sources().iter().map(|one| foreign(*one)).collect();
    let verifier = Verifier::new(&anchors.nvidia);
    for manifest in &machine.manifests {
        let checked = verifier.manifest(manifest);
        assert!(checked.findings_at(NOW).is_empty());
        machine.ocsp.extend(other.ocsp_of_manifest(checked.chain.first().unwrap(), NOW).unwrap());
    }
    // From a pool it is not taken.
    let (evidence, binding) = machine.attest();
    let claims = verify(&evidence, &anchors, &machine.endorsements(), NOW).unwrap();
    let policy = Policy::from_toml(ONE).unwrap();
    let appraisal = appraise(&claims, &policy, &ReferenceValues::default(), &binding, NOW);
    refused(&appraisal, &["gpu.reference-missing"], "REFERENCE_MISSING");
    assert_eq!(appraisal.devices()[0].outcome, Outcome::Partial);
    assert!(!appraisal.properties().contains(Property::GpuConfidential));
    // Named for a part of the device, it is a finding.
    let report = WORLD.single.report(&[5; 32]).unwrap();
    let sources = WORLD.single.spec().sources().iter().copied();
    let named: Vec<_> = sources.zip(machine.manifests.iter().map(Vec::as_slice)).collect();
    let chain = WORLD.single.chain_pem();
    let evidence = DeviceEvidence {
        report: &report,
        chain: chain.as_bytes(),
        manifests: &named,
        ..DeviceEvidence::default()
    };
    let result = verifier.device(&evidence, Some(&[5; 32]), NOW);
    assert_eq!((result.outcome(), result.codes().len()), (Outcome::Fail, 2), "{result:?}");
    assert!(result.codes().iter().all(|code| code.contains("RIM_CHAIN_ROOT")));
}

#[test]
fn every_flipped_byte_of_a_report_is_seen() {
    let report = WORLD.single.report(&[5; 32]).unwrap();
    let chain = WORLD.single.chain_pem();
    let verifier = Verifier::new(&WORLD.anchors.nvidia);
    let judge = |report: &[u8]| {
        let evidence =
            DeviceEvidence { report, chain: chain.as_bytes(), ..DeviceEvidence::default() };
        verifier.device(&evidence, Some(&[5; 32]), NOW).outcome()
    };
    assert_eq!(judge(&report), Outcome::Partial);
    for at in 0..report.len() {
        let mut flipped = report.clone();
        flipped[at] ^= 1;
        assert_eq!(judge(&flipped), Outcome::Fail, "byte {at}");
    }
}

#[test]
fn a_shared_verifier_forgets_nothing_that_has_a_date() {
    let verifier = Arc::new(Verifier::new(&WORLD.anchors.nvidia));
    let manifest = WORLD
        .gpu
        .manifest(WORLD.single.spec(), Source::Driver, NOW, NOW.plus_seconds(DAY))
        .unwrap();
    let checked = verifier.manifest(&manifest);
    assert!(checked.findings_at(NOW).is_empty());
    let again = verifier.manifest(&manifest);
    assert!(Arc::ptr_eq(&checked, &again));
    let later = again.findings_at(NOW.plus_seconds(DAY + 1));
    assert_eq!(later[0].code.name(), "RIM_CHAIN_EXPIRED");
    // Another verifier, with the same memory but other roots, asks again.
    let stranger = Verifier::new(&TrustAnchors::vendor().nvidia);
    assert_eq!(stranger.manifest(&manifest).findings[0].code.name(), "RIM_CHAIN_ROOT");
    assert_eq!(WORLD.single.spec().pdi, Pdi([0x48, 0xb0, 0x2d, 0, 0, 0, 1, 99]));
}
