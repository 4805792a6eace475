//! The workload's private root: its directory of the image, read-only, with
//! an own `/proc`, five harmless devices, a small `/tmp` and the port, whose
//! program is PID 1's own file under another name.

use std::ffi::CString;
use std::os::unix::fs::symlink;
use std::path::Path;

use casemate_confine::{StepError, step};
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_move, mount_remount,
};
use rustix::process::{chdir, chroot};

use crate::port::stdio;

/// The port's directory, in PID 1's view and in the workload's.
pub const PORT_DIRECTORY: &str = "/run/casemate";
/// PID 1's file in the image.
const INIT: &str = "/init";
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
const LINKS: [(&str, &str); 4] = [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")];

/// Makes `root` the file system of the calling process, which must have a
/// mount name space and a PID name space of its own.
pub(super) fn enter(root: &Path, tmp_mib: u32) -> Result<(), StepError> {
    step("make mounts private", mount_change("/", PRIVATE))?;
    for directory in ["proc", "dev", "tmp", "run/casemate"] {
        make_directory(&root.join(directory))?;
    }
    step("bind the root", mount_bind(root, root))?;
    step("bind the port", mount_bind(PORT_DIRECTORY, root.join("run/casemate")))?;
    step("close the port", read_only(&root.join("run/casemate"), MountFlags::NOEXEC))?;
    let program = root.join("run/casemate").join(stdio::PROGRAM);
    step("bind the port's program", mount_bind(INIT, &program))?;
    step("close the port's program", read_only(&program, MountFlags::empty()))?;
    step("close the root", read_only(root, MountFlags::empty()))?;
    mount_new("proc", &root.join("proc"), CLOSED, "hidepid=invisible,subset=pid")?;
    let size = format!("mode=1777,size={tmp_mib}m,nr_inodes=4096");
    mount_new("tmpfs", &root.join("tmp"), CLOSED, &size)?;
    devices(&root.join("dev"))?;
    step("enter the root", chdir(root))?;
    // pivot_root does not work on an initramfs, so the new root is moved over
    // the old one, as switch_root does.
    step("move the root", mount_move(".", "/"))?;
    step("change the root", chroot("."))?;
    step("enter /", chdir("/"))
}

fn devices(dev: &Path) -> Result<(), StepError> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_new("tmpfs", dev, flags, "mode=0755,size=64k,nr_inodes=32")?;
    for name in DEVICES {
        let target = dev.join(name);
        step("make a device's place", std::fs::write(&target, b""))?;
        step("bind a device", mount_bind(Path::new("/dev").join(name), &target))?;
    }
    for (name, tail) in LINKS {
        step("link a device", symlink(format!("/proc/self/fd{tail}"), dev.join(name)))?;
    }
    step("close /dev", mount_remount(dev, flags | MountFlags::BIND | MountFlags::RDONLY, c""))
}

fn make_directory(path: &Path) -> Result<(), StepError> {
    step("make a mount point", std::fs::create_dir_all(path))
}

fn mount_new(fs: &str, target: &Path, flags: MountFlags, options: &str) -> Result<(), StepError> {
    let options = CString::new(options).unwrap_or_default();
    step("mount", mount(fs, target, fs, flags, Some(options.as_c_str())))
}

fn read_only(target: &Path, more: MountFlags) -> Result<(), rustix::io::Errno> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(target, flags | more, c"")
}

const PRIVATE: MountPropagationFlags =
    MountPropagationFlags::PRIVATE.union(MountPropagationFlags::REC);
const CLOSED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
