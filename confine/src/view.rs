//! A tool server's private root: what its plan names and nothing else, with an
//! own `/proc`, five harmless devices and a small `/tmp`.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, pivot_root};

use crate::step::{StepError, step};
use crate::sys::{NO_DEV, NO_SUID, READ_ONLY, add_mount_attributes};
use crate::tool::Plan;

/// What every server sees, where the host has it.
const SYSTEM: [&str; 11] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/ssl/certs",
    "/etc/passwd",
    "/etc/group",
];
/// What a server with a network sees too.
const NETWORK: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
const LINKS: [(&str, &str); 4] = [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")];
/// Where the new root is put together.
const STAGE: &str = "/tmp";

/// A file or directory of the host on its way into the view.
pub(crate) struct Piece {
    path: PathBuf,
    tree: OwnedFd,
    directory: bool,
    attributes: u64,
}

/// Puts the view together in the calling process's own mount name space.
pub(crate) fn stage(plan: &Plan, pieces: &[Piece]) -> Result<(), StepError> {
    step("make mounts private", mount_change("/", PRIVATE))?;
    mount_new("tmpfs", STAGE, MountFlags::NOSUID | MountFlags::NODEV, "mode=0755,size=1m")?;
    for directory in ["proc", "dev", "tmp"] {
        step("make a mount point", fs::create_dir_all(Path::new(STAGE).join(directory)))?;
    }
    let size = format!("mode=1777,size={}m,nr_inodes=4096", plan.tmp_mib);
    mount_new("tmpfs", "/tmp/tmp", MountFlags::NOSUID | MountFlags::NODEV, &size)?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_new("tmpfs", "/tmp/dev", flags, "mode=0755,size=64k")?;
    for name in SYSTEM.into_iter().filter(is_link) {
        copy_link(Path::new(name))?;
    }
    pieces.iter().try_for_each(place)?;
    for (name, tail) in LINKS {
        let link = Path::new("/tmp/dev").join(name);
        step("link a device", symlink(format!("/proc/self/fd{tail}"), link))?;
    }
    step("close /dev", add_mount_attributes(c"/tmp/dev", false, READ_ONLY))
}

/// Makes the staged view the file system of the calling process, which is the
/// first of its PID name space.
pub(crate) fn enter() -> Result<(), StepError> {
    proc()?;
    step("close the root", add_mount_attributes(c"/tmp", false, READ_ONLY))?;
    step("enter the root", chdir(STAGE))?;
    // The old root lands on top of the new one and is taken away from there.
    step("change the root", pivot_root(".", "."))?;
    step("leave the old root", unmount(".", UnmountFlags::DETACH))?;
    step("enter /", chdir("/"))
}

/// Everything that the view shows, taken before the stage hides any of it and,
/// by root, before it becomes a user who may not enter the directories above.
/// Short paths come first, so that what lies inside another piece lands on it.
pub(crate) fn take(plan: &Plan) -> Result<Vec<Piece>, StepError> {
    let closed = READ_ONLY | NO_SUID | NO_DEV;
    let network = if plan.network { &NETWORK[..] } else { &[] };
    let system = SYSTEM
        .iter()
        .chain(network)
        .copied()
        .filter(|name| !is_link(name) || Path::new(name).is_file());
    let present = system.map(PathBuf::from).filter(|path| path.exists());
    let covered = |program: &PathBuf| {
        let named = plan.read.iter().chain(&plan.write).any(|path| program.starts_with(path));
        named || SYSTEM.iter().any(|path| program.starts_with(path))
    };
    let program = plan.command.first().map(PathBuf::from).filter(|program| !covered(program));
    let read = present.chain(plan.read.iter().cloned()).chain(program).map(|path| (path, closed));
    let write = plan.write.iter().cloned().map(|path| (path, NO_SUID | NO_DEV));
    let devices =
        DEVICES.map(|name| (Path::new("/dev").join(name), NO_SUID | READ_ONLY)).into_iter();
    let mut pieces = read
        .chain(write)
        .chain(devices)
        .map(|(path, kind)| piece(path, kind))
        .collect::<Result<Vec<_>, _>>()?;
    pieces.sort_by_key(|piece| piece.path.components().count());
    Ok(pieces)
}

fn piece(path: PathBuf, attributes: u64) -> Result<Piece, StepError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = step("take a path", open_tree(CWD, &path, flags))?;
    Ok(Piece { directory: path.is_dir(), path, tree, attributes })
}

fn place(piece: &Piece) -> Result<(), StepError> {
    let target = staged(&piece.path);
    let parent = if piece.directory { Some(target.as_path()) } else { target.parent() };
    if let Some(parent) = parent {
        step("make a mount point", fs::create_dir_all(parent))?;
    }
    if !piece.directory && !target.exists() {
        step("make a mount point", fs::write(&target, b""))?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    step("place a path", move_mount(&piece.tree, c"", CWD, &target, flags))?;
    let path = CString::new(target.as_os_str().as_bytes()).unwrap_or_default();
    step("close a path", add_mount_attributes(&path, true, piece.attributes))
}

fn staged(path: &Path) -> PathBuf {
    Path::new(STAGE).join(path.strip_prefix("/").unwrap_or(path))
}

fn is_link(path: &&str) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.is_symlink())
}

/// `/bin` and its like are links into `/usr` on most systems.
fn copy_link(path: &Path) -> Result<(), StepError> {
    if path.is_file() {
        return Ok(());
    }
    let target = step("read a link", fs::read_link(path))?;
    step("copy a link", symlink(target, staged(path)))
}

/// The server's own processes. A container may forbid a new `/proc`; then the
/// view has an empty one.
fn proc() -> Result<(), StepError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = c"hidepid=invisible,subset=pid";
    match mount("proc", "/tmp/proc", "proc", flags, Some(options)) {
        Err(Errno::PERM) => Ok(()),
        result => step("mount /proc", result),
    }
}

fn mount_new(kind: &str, target: &str, flags: MountFlags, options: &str) -> Result<(), StepError> {
    let options = CString::new(options).unwrap_or_default();
    step("mount", mount(kind, target, kind, flags, Some(options.as_c_str())))
}

const PRIVATE: MountPropagationFlags =
    MountPropagationFlags::PRIVATE.union(MountPropagationFlags::REC);
