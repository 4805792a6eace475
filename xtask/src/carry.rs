//! What the lab's emulated host carries beside the lab itself: the product's programs, QEMU, and
//! the tools that building an image takes, each with its shared libraries.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use casemate_image::ExtraFile;

/// Programs of Debian's that the product calls.
const TOOLS: [&str; 5] = ["setpriv", "sh", "dpkg-deb", "tar", "xz"];
/// What QEMU reads to boot a kernel without firmware of ours.
const FIRMWARE: [&str; 4] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot.bin",
];

/// QEMU, for the comparison.
pub(crate) fn qemu() -> anyhow::Result<Vec<ExtraFile>> {
    let mut files = programs(&["qemu-system-x86_64"])?;
    for path in FIRMWARE {
        files.push(file(PathBuf::from(path), path, 0o644));
    }
    Ok(files)
}

/// The product as `make build` left it below `target`, for its own demo; keys and tools with it.
pub(crate) fn product(target: &Path, musl: &Path, folder: &Path) -> anyhow::Result<Vec<ExtraFile>> {
    let release = target.join("release");
    let mut files = programs(&TOOLS)?;
    let mut ours = vec![
        (release.join("casemate"), "casemate"),
        (release.join("casemate-vmm"), "casemate-vmm"),
        (musl.join("casemate-guest"), "casemate-guest"),
        (musl.join("casemate-agent"), "casemate-agent"),
        (musl.join("casemate-lab"), "venv/bin/tool"),
    ];
    for (path, _) in &ours {
        if !path.is_file() {
            bail!("{}: not there; `make build` makes it", path.display());
        }
    }
    let linked: Vec<&Path> = ours.iter().take(2).map(|(path, _)| path.as_path()).collect();
    files.extend(libraries(&linked)?);
    for (path, name) in ours.drain(..) {
        files.push(file(path, &format!("/product/{name}"), 0o755));
    }
    for path in files_in(&model_keys(&release.join("casemate"), folder)?)? {
        let name = path.file_name().unwrap_or_default().display();
        files.push(file(path.clone(), &format!("/product/psp-model/{name}"), 0o600));
    }
    for path in files_in(Path::new(".casemate/cache"))? {
        let name = path.file_name().unwrap_or_default().display();
        files.push(file(path.clone(), &format!("/product/.casemate/cache/{name}"), 0o644));
    }
    Ok(files)
}

/// Keys of the software model, which take long to make on an emulated machine.
fn model_keys(casemate: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let (state, keys) = (folder.join("state"), folder.join("psp-model"));
    let config = folder.join("host.toml");
    let text = format!("name = \"lab\"\nstate = {state:?}\n[psp_model]\nfolder = {keys:?}\n");
    std::fs::write(&config, text)?;
    let made = Command::new(casemate)
        .args(["host", "enrolment", "--config"])
        .arg(&config)
        .output()
        .context("casemate host enrolment")?;
    if !made.status.success() {
        bail!("casemate host enrolment: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(keys)
}

fn files_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Installed programs at /usr/bin, with their libraries where they are here.
fn programs(names: &[&str]) -> anyhow::Result<Vec<ExtraFile>> {
    let mut files = Vec::new();
    let mut paths = Vec::new();
    for name in names {
        let path = installed(name)?;
        files.push(file(path.clone(), &format!("/usr/bin/{name}"), 0o755));
        paths.push(path);
    }
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    files.extend(libraries(&paths)?);
    Ok(files)
}

fn installed(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|at| at.exists());
    found.with_context(|| format!("no {name}: `make setup` installs it"))
}

/// The shared libraries of dynamic programs, and what loads them, as ldd names them.
fn libraries(programs: &[&Path]) -> anyhow::Result<Vec<ExtraFile>> {
    let mut paths = BTreeSet::new();
    for program in programs {
        let said = Command::new("ldd").arg(program).output().context("ldd")?;
        for line in String::from_utf8_lossy(&said.stdout).lines() {
            if line.contains("not found") {
                bail!("{}: {}", program.display(), line.trim());
            }
            let path = line.split_whitespace().find(|word| word.starts_with('/'));
            paths.extend(path.map(str::to_owned));
        }
    }
    Ok(paths.into_iter().map(|path| file(PathBuf::from(&path), &path, 0o755)).collect())
}

/// A file of the emulated host's image.
pub(crate) fn file(source: PathBuf, path: &str, mode: u32) -> ExtraFile {
    ExtraFile { source, path: path.to_owned(), mode }
}
