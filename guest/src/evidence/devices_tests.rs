//! The guest's device evidence, judged as a verifier judges it.

use std::sync::LazyLock;

use casemate_attestation::anchors::TrustAnchors;
use casemate_attestation::appraise::{Appraisal, appraise};
use casemate_attestation::gpu::devices_digest;
use casemate_attestation::{
    EndorsementKind, Endorsements, Policy, Property, ReferenceValues, UnixTime, verify,
};
use casemate_model::gpu::{DeviceSpec, GpuMachine, GpuModel};
use casemate_model::{PspConfig, PspModel};
use tokio::io::AsyncReadExt;

use super::*;

const FROM: UnixTime = UnixTime(1_790_000_000);
const NOW: UnixTime = UnixTime(1_795_000_000);

struct World {
    psp: PspModel,
    single: GpuMachine,
    anchors: TrustAnchors,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let psp = PspModel::generate(PspConfig::milan(FROM)).unwrap();
    let single = GpuMachine::new(GpuModel::new(FROM).unwrap(), vec![DeviceSpec::gpu(0)]).unwrap();
    let anchors = [psp.anchor_toml("model cpu"), single.model().anchor_toml("model gpu")].concat();
    let anchors = TrustAnchors::from_toml(&anchors).unwrap();
    World { psp, single, anchors }
});

fn binding() -> Binding {
    Binding {
        nonce: vec![7; 32],
        identity_key: [1; 32],
        sealing_key: [2; 32],
        channel: [3; 32],
        epoch: 4,
        devices: None,
    }
}

/// What the guest collects when the host answers on the mux with what `answer`
/// makes of the two nonces.
async fn collect(
    bus: &Path,
    answer: impl Fn([u8; 32], [u8; 32]) -> Evidence + Send + 'static,
) -> Result<Vec<EvidenceItem>, crate::evidence::EvidenceError> {
    let (guest_end, host_end) = tokio::io::duplex(64 * 1024);
    let mux = Guest::start(guest_end);
    let mut host = casemate_mux::Host::start(host_end, [SERVICE]);
    let serving = tokio::spawn(async move {
        let mut stream = host.accept().await.unwrap().accept().await.unwrap();
        let (mut gpu, mut switch) = ([0; 32], [0; 32]);
        stream.read_exact(&mut gpu).await.unwrap();
        stream.read_exact(&mut switch).await.unwrap();
        let bytes = answer(gpu, switch).encode();
        let length = u32::try_from(bytes.len()).unwrap();
        stream.write_all(&length.to_le_bytes()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        host
    });
    let devices = Devices::new(bus, Some(mux));
    let items = devices.collect(&binding()).await;
    drop(serving.await.unwrap());
    items
}

fn by_the_model(gpu: [u8; 32], switch: [u8; 32]) -> Evidence {
    let nonce = |kind| if kind == DeviceKind::Gpu { gpu } else { switch };
    WORLD.single.evidence(nonce, NOW).unwrap()
}

/// The model of the PSP puts its word to the devices' digest, and the shipped
/// code judges all of it under a policy that asks for one GPU.
fn judge(devices: Vec<EvidenceItem>) -> Appraisal {
    let mut binding = binding();
    binding.devices = devices_digest(&Evidence { items: devices.clone() });
    judge_as_bound(devices, &binding)
}

fn judge_as_bound(devices: Vec<EvidenceItem>, binding: &Binding) -> Appraisal {
    let report = WORLD.psp.report(&binding.report_data(), &[9; 48]).unwrap();
    let lead = EvidenceItem {
        kind: EvidenceKind::SnpReport,
        evidence: report.to_vec(),
        endorsements: vec![(EndorsementKind::SnpCertTable, WORLD.psp.cert_table())],
    };
    let items = [lead].into_iter().chain(devices).collect();
    let evidence = Evidence::decode(&Evidence { items }.encode()).unwrap();
    // As a verifier does: the digest is of what came.
    let binding = Binding { devices: devices_digest(&evidence), ..binding.clone() };
    let claims = verify(&evidence, &WORLD.anchors, &Endorsements::default(), NOW).unwrap();
    let policy = Policy::from_toml("[gpu]\ngpus = 1\n").unwrap();
    appraise(&claims, &policy, &ReferenceValues::default(), &binding, NOW)
}

/// The rules about devices that fail.
fn failed(appraisal: &Appraisal) -> Vec<&'static str> {
    let rules = appraisal.failures().map(|check| check.rule);
    rules.filter(|rule| rule.starts_with("gpu.")).collect()
}

fn no_bus() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn function(bus: &Path, address: &str, vendor: &str, class: &str) {
    let folder = bus.join(address);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("vendor"), format!("{vendor}\n")).unwrap();
    fs::write(folder.join("class"), format!("{class}\n")).unwrap();
}

#[tokio::test]
async fn a_model_gpu_passes_by_name_and_proves_no_hardware() {
    let items = collect(no_bus().path(), by_the_model).await.unwrap();
    let appraisal = judge(items);
    assert_eq!(failed(&appraisal), [""; 0]);
    let device = &appraisal.devices()[0];
    assert!(device.accepted && device.location.starts_with("0000:01:00.0"), "{device:?}");
    assert_eq!(device.anchor.as_deref(), Some("model gpu"));
    let anchor = appraisal.checks().iter().find(|check| check.rule == "gpu.anchor").unwrap();
    assert_eq!(anchor.actual, "model, not hardware, under model gpu");
    assert!(!appraisal.properties().contains(Property::GpuConfidential));
}

#[tokio::test]
async fn a_missing_extra_foreign_or_stale_device_is_refused() {
    let bus = no_bus();
    // Missing: the host leaves the report out.
    let missing = |gpu, switch| {
        let mut evidence = by_the_model(gpu, switch);
        evidence.items.truncate(1);
        evidence
    };
    let items = collect(bus.path(), missing).await.unwrap();
    assert_eq!(failed(&judge(items)), ["gpu.count", "gpu.inventory"]);
    // Extra: the same device twice, and one more than the policy asks for.
    let extra = |gpu, switch| {
        let mut evidence = by_the_model(gpu, switch);
        evidence.items.push(evidence.items[1].clone());
        evidence
    };
    let items = collect(bus.path(), extra).await.unwrap();
    assert_eq!(failed(&judge(items)), ["gpu.count", "gpu.inventory", "gpu.topology"]);
    // Stale: an answer to another challenge.
    let stale = |_, switch| by_the_model([0; 32], switch);
    let items = collect(bus.path(), stale).await.unwrap();
    assert_eq!(failed(&judge(items)), ["gpu.nonce"]);
    // Foreign: put in on the way, after the CPU has spoken for another.
    let items = collect(bus.path(), by_the_model).await.unwrap();
    let mut bound = binding();
    bound.devices = devices_digest(&Evidence { items: items.clone() });
    let other = WORLD.single.model().device(DeviceSpec::gpu(5)).unwrap();
    let mut swapped = items;
    let report = other.evidence(&device_nonce(&binding(), DeviceKind::Gpu)).unwrap();
    swapped[1].evidence = report.evidence;
    swapped[1].endorsements[0] = report.endorsements[0].clone();
    let failures = failed(&judge_as_bound(swapped.clone(), &bound));
    assert!(failures.contains(&"gpu.bound"), "{failures:?}");
    // Taken away on the way.
    let failures = failed(&judge_as_bound(Vec::new(), &bound));
    assert!(failures.contains(&"gpu.count"), "{failures:?}");
}

#[tokio::test]
async fn a_device_that_nobody_can_ask_does_not_hide() {
    let bus = no_bus();
    function(bus.path(), "0000:00:01.0", "0x8086", "0x030000");
    function(bus.path(), "0000:41:00.0", "0x10de", "0x030200");
    function(bus.path(), "0000:42:00.0", "0x10de", "0x068000");
    // The sound of a GPU is part of it; sound alone, or any other class, is not.
    function(bus.path(), "0000:41:00.1", "0x10de", "0x040300");
    function(bus.path(), "0000:43:00.0", "0x10de", "0x040300");
    function(bus.path(), "0000:44:00.0", "0x10de", "0x020000");
    function(bus.path(), "0000:45:00.0", "0x10de", "");
    let found = scan(bus.path()).unwrap();
    let seen: Vec<_> = found.iter().map(|one| (one.address.as_str(), one.kind)).collect();
    let expected = [
        ("0000:41:00.0", DeviceKind::Gpu),
        ("0000:42:00.0", DeviceKind::Switch),
        ("0000:43:00.0", DeviceKind::Gpu),
        ("0000:44:00.0", DeviceKind::Gpu),
        ("0000:45:00.0", DeviceKind::Gpu),
    ];
    assert_eq!(seen, expected);
    assert!(found.iter().all(|one| one.state == ConfidentialState::Off));
    // Beside a good model device: the set is refused.
    let items = collect(bus.path(), by_the_model).await.unwrap();
    assert_eq!(failed(&judge(items)), ["gpu.inventory"]);
    // Alone, it is still in the evidence.
    let alone = Devices::new(bus.path(), None);
    assert_eq!(alone.collect(&binding()).await.unwrap().len(), 1);
    let none = Devices::new(&bus.path().join("absent"), None);
    assert_eq!(none.collect(&binding()).await.unwrap(), []);
}

#[tokio::test]
async fn a_host_that_answers_something_else_is_refused() {
    let lead = |_, _| Evidence {
        items: vec![EvidenceItem {
            kind: EvidenceKind::HostClaim,
            evidence: vec![1],
            endorsements: vec![],
        }],
    };
    let error = collect(no_bus().path(), lead).await.unwrap_err().to_string();
    assert!(error.contains("HostClaim"), "{error}");
}
