//! The product itself in the lab: `casemate demo`, whose host finds that KVM runs code here and
//! builds its machines with our monitor.

use std::ffi::CStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use rustix::mount::{MountFlags, mount};

/// All seven steps, each with its own checks, by the programs that `make build` made.
pub(crate) fn demo(_: bool) -> anyhow::Result<String> {
    leave_the_initramfs()?;
    fs::create_dir_all("/tmp")?;
    fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777))?;
    // Keys of the software model, made beforehand: two of them are slow to make.
    fs::create_dir_all("/run/demo")?;
    copy_folder("/product/psp-model", "/run/demo/psp-model")?;
    let mut demo = Command::new("/product/casemate")
        .args(["demo", "--folder", "/run/demo", "--programs", "/product"])
        .args(["--python", "/product/venv/bin/tool"])
        .current_dir("/product")
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = Vec::new();
    for line in BufReader::new(demo.stdout.take().context("its output")?).lines() {
        let line = line?;
        println!("  {line}");
        lines.push(line);
    }
    let status = demo.wait()?;
    ensure!(status.success(), "{status}{}", last_words("/run/demo/host/state/run"));
    let said = |start: &str| {
        let line = lines.iter().map(|line| line.trim()).find(|line| line.starts_with(start));
        line.map(str::to_owned).with_context(|| format!("no line {start:?}"))
    };
    let backend = said("backend")?;
    ensure!(backend.contains("vmm-kvm"), "another backend than ours: {backend}");
    let held = lines.iter().filter(|line| line.trim_start().starts_with("ok ")).count();
    said("All seven steps hold")?;
    Ok(format!("all seven steps, {held} checks; {backend}"))
}

/// A machine of the demo's image in a control group: its limits stand while it runs, and the
/// group goes with it. Its services are gone, so it ends by itself.
pub(crate) fn cgroup(long: bool) -> anyhow::Result<String> {
    if !Path::new("/run/demo/host/host.toml").exists() {
        demo(long)?;
    }
    let parent = Path::new("/sys/fs/cgroup/machines");
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None::<&CStr>)?;
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu +memory +pids")?;
    fs::create_dir(parent)?;
    let config = fs::read_to_string("/run/demo/host/host.toml")?;
    fs::write("/run/demo/grouped.toml", format!("cgroup = \"{}\"\n{config}", parent.display()))?;
    let mut run = Command::new("/product/casemate")
        .args(["run", "--config", "/run/demo/grouped.toml", "--image", "/run/demo/image"])
        .args(["--task", "plan-a-meeting", "--json"])
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(run.stdout.take().context("its output")?).lines();
    let running = lines.by_ref().map_while(Result::ok).find(|line| line.contains("\"running\""));
    running.context("the machine never ran")?;
    let group = fs::read_dir(parent)?
        .flatten()
        .find(|entry| entry.path().is_dir())
        .context("no group of the machine's own")?
        .path();
    let read = |name: &str| fs::read_to_string(group.join(name)).context(name.to_owned());
    let process = read("cgroup.procs")?;
    let name = fs::read_to_string(format!("/proc/{}/comm", process.trim()))?;
    ensure!(name.trim() == "casemate-vmm", "another process in the group: {name}");
    let (most, used) = (read("memory.max")?, read("memory.current")?);
    let (most, used): (u64, u64) = (most.trim().parse()?, used.trim().parse()?);
    ensure!(used > 32 << 20 && used < most && most < 1 << 30, "{used} of {most} bytes");
    ensure!(read("cpu.max")?.trim() == "200000 100000", "{}", read("cpu.max")?);
    ensure!(read("pids.max")?.trim() == "65", "{}", read("pids.max")?);
    lines.for_each(drop);
    run.wait()?;
    ensure!(!group.exists(), "the group outlived its machine");
    Ok(format!("{} of {} MiB while it ran; gone with the machine", used >> 20, most >> 20))
}

/// The gateway confines tool servers with a user name space and a root of their own. The kernel
/// gives neither below an initramfs, and the first not in a chroot: from here on the root is a
/// mount over the initramfs, as it is on any installed system.
fn leave_the_initramfs() -> anyhow::Result<()> {
    fs::create_dir_all("/root-mount")?;
    rustix::mount::mount_bind_recursive("/", "/root-mount")?;
    rustix::process::chdir("/root-mount")?;
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

/// What the machines and their monitors said last.
fn last_words(machines: &str) -> String {
    let mut words = String::new();
    for entry in fs::read_dir(machines).into_iter().flatten().flatten() {
        for name in ["console.log", "backend.log"] {
            let text = fs::read(entry.path().join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().rev().take(20).collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            words.push_str(&format!("\n  {name}:\n  {}", lines.join("\n  ")));
        }
    }
    words
}

fn copy_folder(from: &str, to: &str) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), Path::new(to).join(entry.file_name()))?;
    }
    Ok(())
}
