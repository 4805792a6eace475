//! The calls that rustix marks unsafe or does not have.
#![expect(unsafe_code, reason = "unshare is unsafe in rustix, and mount_setattr is not in it")]

use std::ffi::CStr;

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread new name spaces. Only name-space flags pass.
pub fn new_name_spaces(flags: UnshareFlags) -> Result<(), Errno> {
    if !NAME_SPACES.contains(flags) {
        return Err(Errno::INVAL);
    }
    // SAFETY: the only hazard of unshare is CLONE_FILES, which leaves threads
    // with different descriptor tables; the check above lets no flag but the
    // name spaces through.
    unsafe { unshare_unsafe(flags) }
}

/// Adds `attributes` to the mount at `path` and, if asked, to all below it.
pub fn add_mount_attributes(path: &CStr, recursive: bool, attributes: u64) -> Result<(), Errno> {
    let change = MountAttributes { set: attributes, clear: 0, propagation: 0, user_name_space: 0 };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and the structure has the kernel's layout
    // (linux/mount.h, struct mount_attr) and the size that is passed; the call
    // reads both and keeps neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const change,
            size_of::<MountAttributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Lets the next program have no descriptor but the first three, whatever this
/// process inherited.
pub fn inherit_no_descriptors() -> Result<(), Errno> {
    // SAFETY: the flag only marks descriptors; none is closed in this process.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_ON_EXEC) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// linux/close_range.h: CLOSE_RANGE_CLOEXEC.
const CLOSE_ON_EXEC: libc::c_uint = 4;

fn last_error() -> Errno {
    let error = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(error.unwrap_or(libc::EIO))
}

/// linux/mount.h: MOUNT_ATTR_RDONLY.
pub const READ_ONLY: u64 = 0x1;
/// linux/mount.h: MOUNT_ATTR_NOSUID.
pub const NO_SUID: u64 = 0x2;
/// linux/mount.h: MOUNT_ATTR_NODEV.
pub const NO_DEV: u64 = 0x4;

/// linux/mount.h: struct mount_attr, version 0.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_name_space: u64,
}

const _: () = assert!(size_of::<MountAttributes>() == 32);

const NAME_SPACES: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWUSER)
    .union(UnshareFlags::NEWPID)
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWCGROUP);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_flags_are_refused() {
        assert_eq!(new_name_spaces(UnshareFlags::FILES), Err(Errno::INVAL));
        let mixed = UnshareFlags::NEWNS | UnshareFlags::FILES;
        assert_eq!(new_name_spaces(mixed), Err(Errno::INVAL));
    }

    #[test]
    fn a_mount_that_is_not_there_is_refused() {
        assert_eq!(add_mount_attributes(c"/nowhere", true, READ_ONLY), Err(Errno::NOENT));
    }
}
