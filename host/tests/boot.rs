//! Real machines: QEMU boots the pinned kernel with a PID 1 that exercises the
//! wire (mux/examples/wire-init.rs). The first run downloads the kernel.
//! Run with `cargo test -p casemate-host --test boot -- --ignored --nocapture`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use casemate_attestation::{
    Boundary, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, Property,
    TrustAnchors, UnixTime, verify,
};
use casemate_host::{
    Accelerator, Backend, Exit, Host, HostConfig, LaunchError, Machine, MachineSpec, State, control,
};
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;

/// An image folder whose PID 1 does `what`; each test has its own command line.
fn image(what: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let base = BUILT.get_or_init(|| {
        let target = "x86_64-unknown-linux-musl";
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--release", "--quiet", "--target", target]);
        cargo.args(["-p", "casemate-mux", "--example", "wire-init"]);
        assert!(cargo.status().unwrap().success(), "building wire-init for {target}");
        let work = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let init = work.join("..").join(target).join("release/examples/wire-init");
        let config = work.join("guest.toml");
        std::fs::write(&config, "# nothing to configure\n").unwrap();
        let mut spec = casemate_image::BuildSpec::new(init, config, work.join("boot-image"));
        spec.cache = work.join("image-cache");
        casemate_image::build(&spec, &mut |_| {}).unwrap();
        spec.output
    });
    let folder = base.with_file_name(format!("boot-image-{what}"));
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["kernel", "initrd"] {
        std::fs::copy(base.join(file), folder.join(file)).unwrap();
    }
    let cmdline = format!("{} wire={what}", casemate_image::DEFAULT_CMDLINE);
    std::fs::write(folder.join("cmdline"), cmdline).unwrap();
    folder
}

fn host(state: &Path) -> Host {
    // Kept between runs: its two RSA keys take a while.
    let model = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("psp-model");
    let text = format!(
        "name = \"test\"\nstate = {state:?}\n[services]\nverifier = \"unix:{}\"\n\
         gateway = \"unix:{}\"\n[psp_model]\nfolder = {model:?}\n[limits]\nconsole_kib = 64\n",
        state.join("verifier.sock").display(),
        state.join("gateway.sock").display()
    );
    Host::open(HostConfig::from_toml(&text).unwrap()).unwrap()
}

fn spec(what: &str) -> MachineSpec {
    let mut spec = MachineSpec::new(image(what), "test/boot");
    spec.memory_mib = 256;
    spec
}

/// Whether the process still exists.
fn runs(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[tokio::test]
#[ignore = "boots a machine"]
async fn a_guest_speaks_echoes_and_powers_off() {
    let state = tempfile::tempdir().unwrap();
    let host = host(state.path());
    let listener = UnixListener::bind(state.path().join("verifier.sock")).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (mut read, mut write) = stream.into_split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    let machine = Machine::launch(&host, &spec("echo")).await.unwrap();
    let status = machine.status();
    println!("{} spoke after {} ms", status.backend, status.booted_ms.unwrap());
    assert_eq!((status.state, status.boundary), (State::Running, Boundary::MicroVm));
    assert!(status.properties.contains(Property::Mediated));
    let exit = machine.wait().await;
    let status = machine.status();
    let names: Vec<_> = status.events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["up", "echoed"]);
    println!("{} {}", status.events[0].data, status.events_since(1)[0].data);
    assert_eq!(exit, Exit::PoweredOff { workload: None });
    assert!(!runs(status.pid));
    let console = std::fs::read_to_string(&status.console).unwrap();
    assert!(!console.contains("panic"), "{console}");
}

#[tokio::test]
#[ignore = "boots a machine"]
async fn claim_and_report_verify_and_name_what_was_launched() {
    let state = tempfile::tempdir().unwrap();
    let host = host(state.path());
    let listener = UnixListener::bind(state.path().join("gateway.sock")).unwrap();
    let machine = Machine::launch(&host, &spec("claim")).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let mut rest = answer.as_slice();
    let [claim, report, table] = [(); 3].map(|()| {
        let (length, after) = rest.split_first_chunk().unwrap();
        let (block, left) = after.split_at(usize::try_from(u32::from_le_bytes(*length)).unwrap());
        rest = left;
        block.to_vec()
    });
    let anchors = ["vendor = []\n", &host.enrolment(), &host.psp_anchor("model").unwrap()].concat();
    let anchors = TrustAnchors::from_toml(&anchors).unwrap();
    let table = vec![(EndorsementKind::SnpCertTable, table)];
    let items = vec![
        EvidenceItem { kind: EvidenceKind::SnpReport, evidence: report, endorsements: table },
        EvidenceItem { kind: EvidenceKind::HostClaim, evidence: claim, endorsements: vec![] },
    ];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let evidence = Evidence { items };
    let claims = verify(&evidence, &anchors, &Endorsements::default(), UnixTime(now)).unwrap();

    let files = casemate_image::Image::read(&image("claim")).unwrap();
    let report = &claims.snp().unwrap().report;
    assert_eq!(report.report_data, [7; 64]);
    assert_eq!(report.measurement, files.files().snp_measurement(1).unwrap());
    let claim = &claims.host().unwrap().claim;
    assert_eq!(claim.report_data, [7; 64]);
    assert_eq!(claim.boundary, Boundary::MicroVm);
    assert_eq!(hex::encode(claim.machine), machine.id());
    assert_eq!(claim.launch, files.files().digests());
    println!("{} {}", claim.backend, claim.properties);
}

#[tokio::test]
#[ignore = "boots a machine"]
async fn kill_destroys_a_machine_within_a_second() {
    let state = tempfile::tempdir().unwrap();
    let host = host(state.path());
    let machine = Machine::launch(&host, &spec("hang")).await.unwrap();
    let id = machine.id();
    assert_eq!(control::running(state.path()), std::slice::from_ref(&id));
    let (short, _) = id.split_at(6);
    let status = control::status(state.path(), short).await.unwrap();
    assert_eq!(status.state, State::Running);
    let started = Instant::now();
    let killed = control::kill(state.path(), short).await.unwrap();
    println!("killed after {} ms", killed.after_ms);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(killed.exit, Exit::Killed);
    assert!(!runs(status.pid));
    assert_eq!(machine.wait().await, Exit::Killed);
    assert!(control::running(state.path()).is_empty());
    let error = control::kill(state.path(), short).await.unwrap_err().to_string();
    assert!(error.contains("expected one of the running ones (none)"), "{error}");
}

#[tokio::test]
#[ignore = "boots a machine"]
async fn a_dropped_machine_is_gone() {
    let state = tempfile::tempdir().unwrap();
    let host = host(state.path());
    let machine = Machine::launch(&host, &spec("hang")).await.unwrap();
    let pid = machine.status().pid;
    drop(machine);
    let deadline = Instant::now() + Duration::from_secs(5);
    while runs(pid) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!runs(pid));
}

#[tokio::test]
#[ignore = "boots a machine"]
async fn a_guest_that_never_speaks_is_an_error_with_its_console() {
    let state = tempfile::tempdir().unwrap();
    let mut spec = spec("mute");
    spec.boot = Duration::from_secs(30);
    let error = Machine::launch(&host(state.path()), &spec).await.unwrap_err();
    println!("{error}");
    assert!(matches!(error, LaunchError::Ended { exit: Exit::NeverBooted { .. }, .. }), "{error}");
    assert!(error.to_string().contains("mute, as told"), "{error}");
}

#[tokio::test]
#[ignore = "boots a machine"]
async fn a_panic_is_a_crash_with_its_console() {
    let state = tempfile::tempdir().unwrap();
    let host = host(state.path());
    let machine = Machine::launch(&host, &spec("panic")).await.unwrap();
    let exit = machine.wait().await;
    assert!(matches!(exit, Exit::Crashed { .. }), "{exit}");
    assert!(exit.to_string().contains("Attempted to kill init"), "{exit}");
}

#[tokio::test]
#[ignore = "boots a machine"]
async fn wall_time_wire_loss_and_a_flood_end_machines() {
    let state = tempfile::tempdir().unwrap();
    let host = host(state.path());
    let mut short = spec("flood");
    short.wall = Duration::from_secs(45);
    let flood = Machine::launch(&host, &short).await.unwrap();
    assert_eq!(flood.wait().await, Exit::WallTime { seconds: 45 });
    let dropped = Machine::launch(&host, &spec("drop")).await.unwrap();
    assert_eq!(dropped.wait().await, Exit::WireLost);
}

#[tokio::test]
async fn what_cannot_be_built_is_refused_before_anything_runs() {
    let state = tempfile::tempdir().unwrap();
    let host = host(state.path());
    let launch = async |change: &dyn Fn(&mut MachineSpec)| {
        let mut spec = MachineSpec::new("/nonexistent", "test/refuse");
        change(&mut spec);
        Machine::launch(&host, &spec).await.unwrap_err()
    };
    for class in [Boundary::Tee, Boundary::MicroVmVfio, Boundary::Container] {
        let error = launch(&|spec| spec.boundary = class).await;
        assert!(matches!(error, LaunchError::Unbuildable { .. }), "{error}");
    }
    let error = launch(&|spec| spec.properties.insert(Property::OperatorExcluded)).await;
    assert!(error.to_string().contains("operator_excluded"), "{error}");
    let error = launch(&|spec| spec.vcpus = 99).await.to_string();
    assert_eq!(error, "vcpus: expected 1 to 4, got 99");
    let error = launch(&|spec| spec.task = "a b".into()).await.to_string();
    assert!(error.starts_with("task: expected"), "{error}");
    if let Err(reason) = casemate_host::probe_kvm() {
        for backend in [None, Some(Backend::Vmm), Some(Backend::Qemu)] {
            let error = launch(&|spec| {
                spec.backend = backend;
                spec.accelerator = Some(Accelerator::Kvm);
            })
            .await
            .to_string();
            assert!(error.contains(&reason.to_string()), "{error}");
        }
        let error = launch(&|spec| spec.backend = Some(Backend::Vmm)).await;
        assert!(matches!(error, LaunchError::Unbuildable { .. }), "{error}");
    }
    let error = launch(&|spec| {
        (spec.backend, spec.accelerator) = (Some(Backend::Vmm), Some(Accelerator::Tcg));
    })
    .await
    .to_string();
    assert_eq!(error, "accelerator: expected kvm, the only one of the backend vmm, got tcg");
    assert!(!state.path().join("run").exists());
}
