//! The file systems PID 1 needs, mounted in a fixed order.

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// Why a file system could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point could not be made.
    #[error("mount point {target}: {source}")]
    Point {
        /// The directory.
        target: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel refused the mount.
    #[error("mount {fs} on {target}: {source}")]
    Mount {
        /// The file system's name.
        fs: &'static str,
        /// The directory.
        target: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
}

/// One line of the table of mounts.
#[derive(Debug, Clone, Copy)]
pub struct Mount {
    /// The file system's name.
    pub fs: &'static str,
    /// Where it goes.
    pub target: &'static str,
    /// Restrictions on what is in it.
    pub flags: MountFlags,
    /// Options of the file system.
    pub options: &'static str,
}

/// What is mounted before anything else happens.
pub const FIRST: [Mount; 6] = [
    Mount { fs: "proc", target: "/proc", flags: CLOSED, options: "" },
    Mount { fs: "sysfs", target: "/sys", flags: CLOSED, options: "" },
    Mount { fs: "devtmpfs", target: "/dev", flags: DEVICES, options: "mode=0755" },
    Mount { fs: "tmpfs", target: "/run", flags: CLOSED, options: "mode=0755,size=1m" },
    Mount { fs: "tmpfs", target: "/tmp", flags: CLOSED, options: "mode=0700,size=1m" },
    Mount { fs: "cgroup2", target: "/sys/fs/cgroup", flags: CLOSED, options: "" },
];

/// What is mounted when the modules are loaded: where TEE evidence comes from.
pub const CONFIGFS: Mount =
    Mount { fs: "configfs", target: "/sys/kernel/config", flags: CLOSED, options: "" };

const CLOSED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);

/// Mounts everything in [`FIRST`].
pub fn first() -> Result<(), MountError> {
    FIRST.iter().try_for_each(|entry| one(entry, Path::new(entry.target)))
}

/// Mounts configfs; `false` when this kernel has none.
pub fn configfs() -> Result<bool, MountError> {
    let target = Path::new(CONFIGFS.target);
    if !target.exists() {
        return Ok(false); // sysfs offers the mount point only when the module is there
    }
    match one(&CONFIGFS, target) {
        Err(MountError::Mount { source: Errno::NODEV, .. }) => Ok(false),
        other => other.map(|()| true),
    }
}

fn one(entry: &Mount, target: &Path) -> Result<(), MountError> {
    make_directory(target)?;
    let options = std::ffi::CString::new(entry.options).unwrap_or_default();
    mount(entry.fs, target, entry.fs, entry.flags, Some(options.as_c_str()))
        .map_err(|source| MountError::Mount { fs: entry.fs, target: target.into(), source })
}

fn make_directory(target: &Path) -> Result<(), MountError> {
    std::fs::create_dir_all(target)
        .map_err(|source| MountError::Point { target: target.into(), source })
}
