//! The product itself in the lab: `casemate demo`, whose host finds that KVM runs code here and
//! builds its machines with our monitor.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

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
        fs::copy(entry.path(), std::path::Path::new(to).join(entry.file_name()))?;
    }
    Ok(())
}
