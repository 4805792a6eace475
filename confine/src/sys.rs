//! The calls that rustix marks unsafe or does not have.
#![expect(unsafe_code, reason = "unshare is unsafe in rustix, and mount_setattr is not in it")]

use std::ffi::CStr;
use std::os::fd::AsRawFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
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

/// Brings up the loopback of the calling thread's network name space; the
/// kernel gives it 127.0.0.1/8.
pub fn bring_up_loopback() -> Result<(), Errno> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut request = InterfaceRequest { name: [0; 16], flags: IFF_UP, rest: [0; 22] };
    request.name.iter_mut().zip(b"lo").for_each(|(to, from)| *to = *from);
    // SAFETY: the descriptor is open, and the structure has the size and layout
    // of the kernel's struct ifreq (linux/if.h), of which the call reads name
    // and flags and keeps nothing.
    let result = unsafe {
        // Not libc's ioctl, whose second argument has another type with each C library.
        libc::syscall(libc::SYS_ioctl, socket.as_raw_fd(), SET_FLAGS, &raw const request)
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// linux/sockios.h: SIOCSIFFLAGS.
const SET_FLAGS: libc::c_ulong = 0x8914;
/// linux/if.h: IFF_UP.
const IFF_UP: i16 = 1;

/// linux/if.h: struct ifreq, of which the flags are used.
#[repr(C, align(8))]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

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
    use std::io::ErrorKind;

    #[test]
    fn other_flags_are_refused() {
        assert_eq!(new_name_spaces(UnshareFlags::FILES), Err(Errno::INVAL));
        let mixed = UnshareFlags::NEWNS | UnshareFlags::FILES;
        assert_eq!(new_name_spaces(mixed), Err(Errno::INVAL));
    }

    // A thread of its own, whose network nobody else has.
    #[test]
    fn a_new_network_has_a_loopback_and_no_way_out() {
        if !rustix::process::getuid().is_root() {
            eprintln!("not run: needs root; `make e2e` shows it in a machine");
            return;
        }
        let outcome = std::thread::spawn(|| {
            new_name_spaces(UnshareFlags::NEWNET).unwrap();
            let listen = || std::net::TcpListener::bind("127.0.0.1:7007");
            let connect = |to: &str| std::net::TcpStream::connect(to).map_err(|e| e.kind());
            let before = connect("127.0.0.1:7007").err();
            bring_up_loopback().unwrap();
            let listener = listen().unwrap();
            let up = connect("127.0.0.1:7007").is_ok();
            let twice = listen().err().map(|error| error.kind());
            drop(listener);
            (before, up, twice, connect("192.0.2.1:80").err())
        })
        .join()
        .unwrap();
        let (none, used) = (ErrorKind::NetworkUnreachable, ErrorKind::AddrInUse);
        assert_eq!(outcome, (Some(none), true, Some(used), Some(none)));
    }

    #[test]
    fn a_mount_that_is_not_there_is_refused() {
        assert_eq!(add_mount_attributes(c"/nowhere", true, READ_ONLY), Err(Errno::NOENT));
    }
}
