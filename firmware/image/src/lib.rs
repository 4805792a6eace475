//! Builds the one measured image and its reference values.
//!
//! [`build`] takes the kernel and modules from the one pinned Debian package
//! ([`KernelPin`]), our static PID 1 and its configuration, and writes a
//! folder: `kernel`, `initrd`, `cmdline`, `manifest.toml`, `reference.toml`. The same
//! inputs give the same bytes. Nothing needs root and nothing outside the
//! output and cache folders is written.
//!
//! [`launch`] is the page list by which an SEV-SNP launch digest stands for
//! these files; the builder predicts with it, the host measures with it.
//!
//! ```no_run
//! let spec = casemate_image::BuildSpec::new("casemate-guest", "guest.toml", "out/image");
//! let manifest = casemate_image::build(&spec, &mut |progress| eprintln!("{progress:?}"))?;
//! # Ok::<(), casemate_image::BuildError>(())
//! ```

mod cpio;
pub mod launch;
mod manifest;
mod mirror;
mod module;
mod pin;
mod tool;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use casemate_attestation::crypto::sha256;

use cpio::Archive;
pub use manifest::{Content, Image, Manifest};
pub use pin::KernelPin;

/// The kernel's file name in an image folder.
pub const KERNEL: &str = "kernel";
/// The initramfs' file name in an image folder.
pub const INITRD: &str = "initrd";
/// The command line's file name in an image folder; no newline ends it.
pub const CMDLINE: &str = "cmdline";
/// The manifest's file name in an image folder.
pub const MANIFEST: &str = "manifest.toml";
/// The reference values' file name in an image folder: what a verifier is given.
pub const REFERENCE: &str = "reference.toml";
/// The guest's list of modules to load, in the initramfs: one path a line, in load order.
pub const MODULE_LIST: &str = "/etc/casemate/modules";
/// The guest's measured configuration, in the initramfs.
pub const GUEST_CONFIG: &str = "/etc/casemate/guest.toml";

/// What to build an image from.
#[derive(Debug, Clone)]
pub struct BuildSpec {
    /// The static PID 1.
    pub init: PathBuf,
    /// Its configuration, measured with the image.
    pub guest_config: PathBuf,
    /// More files for the initramfs, such as the workload.
    pub extra_files: Vec<ExtraFile>,
    /// More modules of the kernel package than the pin names, loaded after them.
    pub extra_modules: Vec<String>,
    /// The image's name in reference values and results.
    pub label: String,
    /// The kernel's command line.
    pub cmdline: String,
    /// Launch digests are predicted for 1 to this many vCPUs.
    pub max_vcpus: u32,
    /// The folder that the image is written to; made if absent.
    pub output: PathBuf,
    /// Where the kernel package is kept between builds; may be deleted at any time.
    pub cache: PathBuf,
    /// The Debian mirror; by default the machine's own.
    pub mirror: Option<String>,
}

/// One more file for the initramfs.
#[derive(Debug, Clone)]
pub struct ExtraFile {
    /// The file here.
    pub source: PathBuf,
    /// Its absolute path in the guest.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The step.
    pub step: Step,
    /// Units done: bytes when downloading, otherwise 0 or 1.
    pub done: u64,
    /// Units in all.
    pub total: u64,
}

/// What a build is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Fetching the mirror's index.
    Index,
    /// Fetching the kernel package.
    Download,
    /// Unpacking kernel and modules.
    Unpack,
    /// Making the initramfs and the manifest.
    Assemble,
}

/// The command line that images get unless the specification names another.
///
/// `quiet` keeps the serial console, which is slow, for what went wrong;
/// `panic=-1` makes a panic end the machine; `reboot=t` ends it by a triple
/// fault, which needs no device; the kernel's tests of its own cryptography,
/// which nothing here uses, would take 0.6 s of 3.7 s under emulation.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on pci=realloc=off \
     cryptomgr.notests";

/// Why an image cannot be built or read.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file operation failed.
    #[error("cannot {action} {what}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A tool that the build runs is not installed.
    #[error("{tool} is not installed; it comes with Debian's package {package}")]
    NoTool {
        /// The tool.
        tool: String,
        /// The package that has it.
        package: &'static str,
    },
    /// A tool failed.
    #[error("{tool} failed: {said}")]
    Tool {
        /// The tool.
        tool: String,
        /// Its last words.
        said: String,
    },
    /// A tool did not end in time.
    #[error("{tool}: expected to end within {seconds} s, killed")]
    ToolSlow {
        /// The tool.
        tool: String,
        /// The limit.
        seconds: u64,
    },
    /// This machine's apt names no Debian mirror.
    #[error(
        "no Debian mirror for {suite}: expected apt on this machine to have that suite or its base, \
         got {actual}; name one with `mirror`"
    )]
    NoMirror {
        /// The pinned suite.
        suite: String,
        /// The suites that apt has.
        actual: String,
    },
    /// The mirror does not carry the pinned package.
    #[error(
        "kernel package: expected {expected} in {suite}, got {actual}; \
         to pin another, edit firmware/image/kernel.toml as its head says"
    )]
    NoPackage {
        /// The pinned suite.
        suite: String,
        /// Package and version.
        expected: String,
        /// The kernels that the mirror has.
        actual: String,
    },
    /// The mirror's package is not the pinned one.
    #[error(
        "kernel package {package}: expected {expected}, got {actual}; \
         to pin another, edit firmware/image/kernel.toml as its head says"
    )]
    PackageDigest {
        /// Package and version.
        package: String,
        /// The pin.
        expected: String,
        /// What came.
        actual: String,
    },
    /// kernel.toml cannot be read.
    #[error("kernel.toml: {reason}")]
    Pin {
        /// What is wrong with it.
        reason: String,
    },
    /// A wanted module is not in the package, or is no module.
    #[error("kernel module {name}: not in the package, or it names no dependencies")]
    NoModule {
        /// The module.
        name: String,
    },
    /// PID 1 would not start.
    #[error("{path}: expected a static x86-64 ELF program, got {actual}")]
    NotStatic {
        /// The program.
        path: PathBuf,
        /// What it is.
        actual: &'static str,
    },
    /// A path in the guest is not absolute and plain.
    #[error("path in the guest: expected an absolute path without '.' or '..', got {actual:?}")]
    GuestPath {
        /// What was given.
        actual: String,
    },
    /// The label has characters that other files could not carry.
    #[error("label: expected 1 to 64 of a-z, 0-9, '-', '.', '_', got {actual:?}")]
    Label {
        /// What was given.
        actual: String,
    },
    /// The launch digest cannot be predicted.
    #[error("launch digest: {0}")]
    Measure(#[from] casemate_attestation::measure::MeasureError),
    /// The command line has characters that the boot protocol has no room for.
    #[error("command line: expected 1 to 2047 printable ASCII characters on one line")]
    CommandLine,
    /// A file is larger than this program reads.
    #[error("{path}: expected at most {expected} bytes, got {actual}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        expected: u64,
        /// Its size.
        actual: u64,
    },
    /// The manifest cannot be read.
    #[error("{path}: {reason}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is not the one that the manifest describes.
    #[error("image, {file}: expected SHA-256 {expected}, got {actual}")]
    FileDigest {
        /// The file.
        file: &'static str,
        /// By the manifest.
        expected: String,
        /// By the file.
        actual: String,
    },
}

impl BuildSpec {
    /// A specification with the defaults: label `casemate`, no extra files,
    /// [`DEFAULT_CMDLINE`], launch digests for up to 4 vCPUs,
    /// cache in `.casemate/cache`, the machine's own mirror.
    pub fn new(
        init: impl Into<PathBuf>,
        guest_config: impl Into<PathBuf>,
        output: impl Into<PathBuf>,
    ) -> Self {
        Self {
            init: init.into(),
            guest_config: guest_config.into(),
            extra_files: Vec::new(),
            extra_modules: Vec::new(),
            label: "casemate".to_owned(),
            max_vcpus: 4,
            cmdline: DEFAULT_CMDLINE.to_owned(),
            output: output.into(),
            cache: PathBuf::from(".casemate/cache"),
            mirror: None,
        }
    }
}

/// Builds an image into `spec.output` and returns its manifest.
pub fn build(spec: &BuildSpec, progress: &mut dyn FnMut(Progress)) -> Result<Manifest, BuildError> {
    // Everything that can be wrong with the specification, before any work.
    if spec.cmdline.is_empty() || spec.cmdline.len() > 2047 || !is_printable(&spec.cmdline) {
        return Err(BuildError::CommandLine);
    }
    let known = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_');
    if spec.label.is_empty() || spec.label.len() > 64 || !spec.label.bytes().all(known) {
        return Err(BuildError::Label { actual: spec.label.clone() });
    }
    let mut archive = own_files(spec)?;
    let pin = KernelPin::released()?;
    fs::create_dir_all(&spec.cache).map_err(|e| BuildError::io("make", &spec.cache, e))?;
    let package = mirror::package(&pin, &spec.cache, spec.mirror.as_deref(), progress)?;
    progress(Progress { step: Step::Unpack, done: 0, total: 1 });
    let kernel = add_kernel_files(spec, &pin, &package, &mut archive)?;
    progress(Progress { step: Step::Assemble, done: 0, total: 1 });
    let image = Image { kernel, initrd: archive.encode(), cmdline: spec.cmdline.clone() };
    let manifest = Manifest {
        version: 1,
        label: spec.label.clone(),
        files: image.files().digests(),
        snp: manifest::snp_launches(&image, spec.max_vcpus)?,
        kernel: pin,
        content: content(&archive),
    };
    write(&spec.output, &image, &manifest)?;
    progress(Progress { step: Step::Assemble, done: 1, total: 1 });
    Ok(manifest)
}

/// The initramfs without what comes from the kernel package.
fn own_files(spec: &BuildSpec) -> Result<Archive, BuildError> {
    let mut archive = Archive::default();
    for folder in ["/dev", "/proc", "/sys", "/run", "/tmp"] {
        archive.folder(folder);
    }
    let init = read(&spec.init)?;
    check_static(&spec.init, &init)?;
    archive.file("/init", 0o755, init);
    archive.file(GUEST_CONFIG, 0o644, read(&spec.guest_config)?);
    for extra in &spec.extra_files {
        let plain = extra.path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !matches!(part, "" | "." | "..")) && is_printable(rest)
        });
        if !plain {
            return Err(BuildError::GuestPath { actual: extra.path.clone() });
        }
        archive.file(&extra.path, extra.mode, read(&extra.source)?);
    }
    Ok(archive)
}

/// Unpacks the package: returns the kernel, puts the modules into `archive`.
fn add_kernel_files(
    spec: &BuildSpec,
    pin: &KernelPin,
    package: &Path,
    archive: &mut Archive,
) -> Result<Vec<u8>, BuildError> {
    let folder = tempfile::tempdir().map_err(|e| BuildError::io("make", "temporary folder", e))?;
    let mut command = Command::new("dpkg-deb");
    command.arg("-x").arg(package).arg(folder.path());
    tool::run(&mut command, UNPACK_LIMIT, &mut || {})?;
    let modules = folder.path().join("lib/modules").join(&pin.release).join("kernel");
    let mut list = String::new();
    let wanted: Vec<String> = pin.modules.iter().chain(&spec.extra_modules).cloned().collect();
    for module in module::collect(&modules, &wanted)? {
        let path = format!("/lib/modules/{}.ko", module.name);
        list.push_str(&path);
        list.push('\n');
        archive.file(&path, 0o644, module.bytes);
    }
    archive.file(MODULE_LIST, 0o644, list.into_bytes());
    read(&folder.path().join("boot").join(format!("vmlinuz-{}", pin.release)))
}

fn content(archive: &Archive) -> Vec<Content> {
    archive
        .entries()
        .map(|(path, mode, bytes)| Content {
            path: format!("/{path}"),
            mode: format!("{mode:04o}"),
            size: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            sha256: sha256(bytes),
        })
        .collect()
}

fn write(folder: &Path, image: &Image, manifest: &Manifest) -> Result<(), BuildError> {
    let text = toml::to_string(manifest).map_err(|error| BuildError::Manifest {
        path: folder.join(MANIFEST),
        reason: error.to_string(),
    })?;
    fs::create_dir_all(folder).map_err(|e| BuildError::io("make", folder, e))?;
    // The manifest goes first and comes last, so that an interrupted build
    // leaves no manifest beside files that it does not describe.
    let _ = fs::remove_file(folder.join(MANIFEST));
    let reference = manifest.reference_values();
    let files: [(&str, &[u8]); 5] = [
        (KERNEL, &image.kernel),
        (INITRD, &image.initrd),
        (CMDLINE, image.cmdline.as_bytes()),
        (REFERENCE, reference.as_bytes()),
        (MANIFEST, text.as_bytes()),
    ];
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|e| BuildError::io("write", &path, e))?;
    }
    Ok(())
}

/// A dynamic program would fail in the guest, without a word of why.
fn check_static(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let refuse = |actual| Err(BuildError::NotStatic { path: path.to_owned(), actual });
    // ELF64, little-endian, e_machine 62 (System V ABI, AMD64 supplement).
    if !bytes.starts_with(b"\x7fELF\x02\x01") || bytes.get(18..20) != Some(&[62, 0]) {
        return refuse("another file");
    }
    // PT_INTERP names the dynamic loader; only a dynamic program has it.
    let number = |at: usize, len: usize| {
        let field = bytes.get(at..at + len)?;
        Some(field.iter().rev().fold(0_usize, |sum, &byte| (sum << 8) | usize::from(byte)))
    };
    let headers = number(32, 8).zip(number(54, 2)).zip(number(56, 2));
    let Some(((table, size), count)) = headers else { return refuse("a truncated one") };
    let interpreter = (0..count).any(|index| {
        let at = index.checked_mul(size).and_then(|offset| offset.checked_add(table));
        at.filter(|&at| at < bytes.len()).and_then(|at| number(at, 4)) == Some(3)
    });
    if interpreter { refuse("one that needs a dynamic loader") } else { Ok(()) }
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(|e| BuildError::io("read", path, e))
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

impl BuildError {
    pub(crate) fn io(
        action: &'static str,
        what: impl AsRef<std::ffi::OsStr>,
        source: std::io::Error,
    ) -> Self {
        Self::Io { action, what: what.as_ref().to_string_lossy().into_owned(), source }
    }
}

const UNPACK_LIMIT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_not_taken_for_pid_1() {
        let program = Path::new("/bin/sh");
        if let Ok(bytes) = fs::read(program) {
            assert!(matches!(check_static(program, &bytes), Err(BuildError::NotStatic { .. })));
        }
        assert!(check_static(program, b"#!/bin/sh").is_err());
        assert!(check_static(program, b"\x7fELF\x02\x01").is_err());
    }

    #[test]
    fn bad_specifications_are_refused_before_any_work() {
        let mut spec = BuildSpec::new("/bin/true", "/dev/null", "/nonexistent/out");
        spec.cache = PathBuf::from("/nonexistent/cache");
        spec.cmdline = "quiet\npanic".into();
        assert!(matches!(build(&spec, &mut |_| {}), Err(BuildError::CommandLine)));
        spec.cmdline = "quiet".into();
        assert!(matches!(build(&spec, &mut |_| {}), Err(BuildError::NotStatic { .. })));
    }
}
