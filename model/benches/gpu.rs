//! What judging GPUs costs: `cargo bench -p casemate-model --bench gpu`.
//!
//! Cold: nothing is remembered. Warm: authorities and manifests were verified
//! before; the report, the leaf and the boot ROM certificate never were. The
//! floor is the P-384 verifications alone that a case cannot avoid. Times are
//! processor time of the thread, so that a loaded machine measures the same.

#![expect(clippy::unwrap_used, reason = "a bench stops at the first surprise")]

use std::time::Duration;

use casemate_attestation::anchors::{NvidiaAnchor, TrustAnchors};
use casemate_attestation::crypto::Scheme;
use casemate_attestation::gpu::{DeviceEvidence, Outcome, Report, Source, Verifier};
use casemate_attestation::x509::{PemLimits, certificates_from_pem};
use casemate_attestation::{EndorsementKind, Endorsements, Evidence, UnixTime, verify};
use casemate_model::gpu::{DeviceSpec, GpuDevice, GpuModel, OcspStatus};

const FROM: UnixTime = UnixTime(1_790_000_000);
const NOW: UnixTime = UnixTime(1_795_000_000);
const ROUNDS: usize = 60;

fn main() {
    let model = GpuModel::new(FROM).unwrap();
    let floor = one_signature(&model);
    println!("P-384 verification                       {:8.3} ms", ms(floor));
    one_gpu(&model, floor);
    machine(&model, floor);
}

fn one_signature(model: &GpuModel) -> Duration {
    let device = model.device(DeviceSpec::gpu(1)).unwrap();
    let bytes = device.report(&[1; 32]).unwrap();
    let report = Report::parse(&bytes).unwrap();
    let limits = PemLimits { bytes: 16 * 1024, blocks: 8 };
    let chain = certificates_from_pem(device.chain_pem().as_bytes(), limits).unwrap();
    let key = chain.first().unwrap().key();
    let scheme = Scheme::EcdsaP384Sha384Raw;
    median(|| (), |()| assert!(key.verify(scheme, report.signed, &report.signature)))
}

/// Report, chain and two manifests, as NVIDIA's verifiers judge them.
fn one_gpu(model: &GpuModel, floor: Duration) {
    let device = model.device(DeviceSpec::gpu(1)).unwrap();
    let (report, chain) = (device.report(&[1; 32]).unwrap(), device.chain_pem());
    let manifest =
        |source| model.manifest(device.spec(), source, NOW, NOW.plus_seconds(3600)).unwrap();
    let (driver, vbios) = (manifest(Source::Driver), manifest(Source::Vbios));
    let manifests = [(Source::Driver, driver.as_slice()), (Source::Vbios, vbios.as_slice())];
    let evidence = DeviceEvidence {
        report: &report,
        chain: chain.as_bytes(),
        manifests: &manifests,
        ocsp: &[],
    };
    let judge = |verifier: &Verifier| {
        assert_eq!(verifier.device(&evidence, Some(&[1; 32]), NOW).outcome(), Outcome::Pass);
    };
    let cold = median(|| Verifier::new(&[anchor(model)]), |verifier| judge(&verifier));
    let warm = Verifier::new(&[anchor(model)]);
    judge(&warm);
    show("one GPU, cold (13 signatures)", cold, floor, 13);
    show("one GPU, warm (3 signatures)", median(|| (), |()| judge(&warm)), floor, 3);
}

/// Eight GPUs and four switches in one envelope, with OCSP for every certificate.
fn machine(model: &GpuModel, floor: Duration) {
    let devices: Vec<_> =
        DeviceSpec::hgx().into_iter().map(|spec| model.device(spec).unwrap()).collect();
    let items = devices.iter().map(|device| device.evidence(&[1; 32]).unwrap()).collect();
    let evidence = Evidence { items };
    let endorsements = endorsements(model, &devices);
    let run = |anchors: &TrustAnchors| verify(&evidence, anchors, &endorsements, NOW).unwrap();
    let anchors = || TrustAnchors { nvidia: vec![anchor(model)], ..TrustAnchors::default() };
    let cold = median(anchors, |anchors| drop(run(&anchors)));
    let warm = anchors();
    drop(run(&warm));
    // Each device: report, leaf, boot ROM. Once: two authorities, five manifests'
    // signers and their two authorities. OCSP: 12 boot ROMs, two authorities of
    // devices, three signers, two authorities of manifests.
    let once = 36 + 2 + (3 + 3) + 2 + (12 + 2 + 3 + 2);
    show(&format!("8 GPUs + 4 switches, cold ({once} signatures)"), cold, floor, once);
    let warm = median(|| (), |()| drop(run(&warm)));
    show("8 GPUs + 4 switches, warm (36 signatures)", warm, floor, 36);
}

fn endorsements(model: &GpuModel, devices: &[GpuDevice]) -> Endorsements {
    let verifier = Verifier::new(&[anchor(model)]);
    let mut items = Vec::new();
    for device in [devices.first().unwrap(), devices.last().unwrap()] {
        for source in device.spec().sources() {
            let rim = model.manifest(device.spec(), *source, NOW, NOW.plus_seconds(3600)).unwrap();
            let signer = verifier.manifest(&rim).chain.first().unwrap().clone();
            items.push((EndorsementKind::Rim, rim));
            let ocsp = model.ocsp_of_manifest(&signer, NOW).unwrap();
            items.extend(ocsp.into_iter().map(|der| (EndorsementKind::Ocsp, der)));
        }
    }
    for device in devices {
        let ocsp = model.ocsp_of_device(device, OcspStatus::Good, NOW).unwrap();
        items.extend(ocsp.into_iter().map(|der| (EndorsementKind::Ocsp, der)));
    }
    Endorsements { items }
}

fn anchor(model: &GpuModel) -> NvidiaAnchor {
    model.anchor("bench").unwrap()
}

/// The median time of `run`, `prepare` not counted.
fn median<T>(prepare: impl Fn() -> T, run: impl Fn(T)) -> Duration {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let value = prepare();
            let start = processor_time();
            run(value);
            processor_time().saturating_sub(start)
        })
        .collect();
    times.sort();
    times.get(ROUNDS / 2).copied().unwrap_or_default()
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

fn show(what: &str, time: Duration, floor: Duration, signatures: u32) {
    let share = floor.as_secs_f64() * f64::from(signatures) / time.as_secs_f64() * 100.0;
    println!("{what:<40} {:8.3} ms, {share:3.0} % of it P-384", ms(time));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
