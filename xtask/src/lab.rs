//! The lab: our VMM on real KVM, inside a machine that QEMU emulates.
//!
//! L0 is this machine. L1 is an emulated AMD machine with nested SVM, whose PID 1
//! (`host/lab`) drives `casemate-vmm`. L2 is the guest of that. Nothing needs
//! KVM or root here.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use casemate_image::BuildSpec;

use crate::carry::{self, file};

/// The short form, part of `make test`: it takes some minutes where nothing else runs.
const SHORT: Duration = Duration::from_secs(1500);
/// The long form: many more rounds.
const LONG: Duration = Duration::from_secs(3600);
const TARGET: &str = "x86_64-unknown-linux-musl";

/// Modules of the guest: its sockets and its disk. The rest is in the kernel.
const GUEST_MODULES: [&str; 2] = ["vmw_vsock_virtio_transport", "virtio_blk"];
/// Modules of the emulated host: KVM, devices given to guests, and the sockets of QEMU's.
const HOST_MODULES: [&str; 4] = ["kvm_amd", "vfio_iommu_type1", "vfio_pci", "vhost_vsock"];

/// Builds both images, runs the lab, and shows what it says.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    let long = arguments.contains(&"--long");
    let scenarios: Vec<&str> =
        arguments.iter().copied().filter(|argument| !argument.starts_with("--")).collect();
    let folder = build(&scenarios)?;
    let started = Instant::now();
    let good = boot(&folder, &scenarios, long)?;
    println!("lab: {:.0} s", started.elapsed().as_secs_f64());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the programs and the two images; says where they are.
fn build(scenarios: &[&str]) -> anyhow::Result<PathBuf> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let built = Command::new("cargo")
        .args(["build", "--locked", "--quiet", "--release", "--target", TARGET])
        .args(["-p", "casemate-vmm", "-p", "casemate-lab"])
        .status()?;
    if !built.success() {
        bail!("cargo build: {built}");
    }
    let programs = target.join(TARGET).join("release");
    let folder = target.join("lab");
    std::fs::create_dir_all(&folder)?;
    let none = folder.join("none");
    std::fs::write(&none, "")?;
    let mut guest = BuildSpec::new(programs.join("casemate-lab"), &none, folder.join("guest"));
    guest.max_vcpus = 1;
    guest.extra_modules = GUEST_MODULES.map(String::from).to_vec();
    guest.extra_files = vec![file(none.clone(), "/guest", 0o644)];
    casemate_image::build(&guest, &mut |_| {}).context("the guest's image")?;
    let mut host = BuildSpec::new(programs.join("casemate-lab"), &none, folder.join("host"));
    host.max_vcpus = 1;
    host.extra_modules = HOST_MODULES.map(String::from).to_vec();
    host.extra_files = vec![
        file(programs.join("casemate-vmm"), "/casemate-vmm", 0o755),
        file(folder.join("guest/kernel"), "/kernel", 0o644),
        file(folder.join("guest/initrd"), "/initrd", 0o644),
    ];
    let wanted = |name| scenarios.is_empty() || scenarios.contains(&name);
    let mut more = Vec::new();
    if wanted("compare") {
        more.extend(carry::qemu()?);
    }
    if wanted("demo") || wanted("cgroup") {
        more.extend(carry::product(&target, &programs, &folder)?);
    }
    // Programs share libraries; each file is carried once.
    more.sort_by(|one, two| one.path.cmp(&two.path));
    more.dedup_by(|one, two| one.path == two.path);
    host.extra_files.extend(more);
    casemate_image::build(&host, &mut |_| {}).context("the host's image")?;
    Ok(folder.join("host"))
}

/// Runs the emulated machine. True when its last line says that everything passed.
fn boot(folder: &Path, scenarios: &[&str], long: bool) -> anyhow::Result<bool> {
    // no_timer_check: where this machine is busy, the emulated one does not get the four ticks in
    // time by which its kernel tells a timer that works, and panics.
    let mut line = format!(
        "console=ttyS0 quiet panic=-1 no_timer_check intel_iommu=on lab={}",
        scenarios.join(",")
    );
    if long {
        line.push_str(" lab.long");
    }
    let image = folder.join("nvme.img");
    let bytes: Vec<u8> =
        (0..4u64 << 20).map(|n| (n % 249).to_le_bytes()).map(|[n, ..]| n).collect();
    std::fs::write(&image, bytes)?;
    let mut drive = std::ffi::OsString::from("if=none,id=n0,format=raw,file=");
    drive.push(&image);
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-M", "q35,kernel-irqchip=split", "-accel", "tcg"])
        // cx16: QEMU 7.2 corrupts flags after it under nesting. xsave: L2 cannot set XCR0 there.
        .args(["-cpu", "EPYC,+svm,+npt,-cx16,-xsave,-avx,-avx2,-fma,-f16c"])
        .args(["-smp", "1", "-m", "3072", "-nodefaults", "-nographic", "-no-reboot"])
        .args(["-serial", "stdio", "-device", "intel-iommu,intremap=on,caching-mode=on"])
        .args(["-device", "pcie-root-port,id=port1,chassis=1"])
        .args(["-device", "nvme,drive=n0,serial=lab,bus=port1"])
        .arg("-drive")
        .arg(drive)
        .arg("-kernel")
        .arg(folder.join("kernel"))
        .arg("-initrd")
        .arg(folder.join("initrd"))
        .args(["-append", &line])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("qemu-system-x86_64")?;
    let output = machine.stdout.take().context("output of the machine")?;
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    let good = watch(&receive, if long { LONG } else { SHORT });
    // Whether it ended by itself or not: nothing of it stays.
    let _ = machine.kill();
    machine.wait()?;
    good
}

/// Prints what the lab says until it is done, silent, or late; names what failed.
fn watch(lines: &mpsc::Receiver<String>, limit: Duration) -> anyhow::Result<bool> {
    let end = Instant::now() + limit;
    let (mut running, mut failed) = ("its own boot".to_owned(), Vec::new());
    loop {
        let line = match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("the lab took longer than {limit:?}; it was at {running}")
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                bail!("the machine ended without a verdict; it was at {running}")
            }
        };
        if let Some(name) = line.trim_end().strip_prefix("LAB run  ") {
            name.clone_into(&mut running);
            continue;
        }
        println!("{line}");
        if line.starts_with("LAB FAIL ") {
            failed.push(running.clone());
        }
        if let Some(verdict) = line.trim_end().strip_prefix("LAB end ") {
            if !failed.is_empty() {
                println!("lab: failed: {}", failed.join(", "));
            }
            return Ok(verdict == "good" && failed.is_empty());
        }
    }
}
