#![expect(unsafe_code, reason = "vsock addresses and device memory have no safe wrapper here")]
//! Sockets of the vsock family, a PCI BAR, and memory whose physical address is known.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, ensure};

/// Connects to a context and port.
pub(crate) fn vsock_connect(cid: u32, port: u32) -> anyhow::Result<File> {
    let (socket, address, length) = vsock(cid, port)?;
    // SAFETY: the address is a whole sockaddr_vm on our stack, and its length is given.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    ensure!(result == 0, "connect to {cid}:{port}: {}", std::io::Error::last_os_error());
    Ok(File::from(socket))
}

/// Listens on a port of this guest and takes one connection.
pub(crate) fn vsock_accept(port: u32, ready: impl FnOnce()) -> anyhow::Result<File> {
    let (socket, address, length) = vsock(libc::VMADDR_CID_ANY, port)?;
    let raw = socket.as_raw_fd();
    // SAFETY: as above; listen and accept take no memory of ours.
    let accepted = unsafe {
        ensure!(libc::bind(raw, (&raw const address).cast(), length) == 0, "bind");
        ensure!(libc::listen(raw, 1) == 0, "listen");
        ready();
        libc::accept(raw, std::ptr::null_mut(), std::ptr::null_mut())
    };
    ensure!(accepted >= 0, "accept: {}", std::io::Error::last_os_error());
    // SAFETY: accept just returned this descriptor, and nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(accepted) }))
}

fn vsock(cid: u32, port: u32) -> anyhow::Result<(OwnedFd, libc::sockaddr_vm, libc::socklen_t)> {
    // SAFETY: no memory is involved.
    let raw = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    ensure!(raw >= 0, "socket: {}", std::io::Error::last_os_error());
    // SAFETY: socket just returned this descriptor, and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: all bytes zero is a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK.try_into()?;
    (address.svm_cid, address.svm_port) = (cid, port);
    Ok((socket, address, size_of::<libc::sockaddr_vm>().try_into()?))
}

/// A mapping that is only touched by volatile words.
pub(crate) struct Words {
    base: *mut u8,
    length: usize,
}

impl Words {
    /// Maps a whole file of `length` bytes: a BAR.
    pub(crate) fn map(file: &File, length: usize) -> anyhow::Result<Self> {
        Self::new(length, libc::MAP_SHARED, file.as_raw_fd())
    }

    /// Memory that stays where it is.
    pub(crate) fn locked(length: usize) -> anyhow::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_LOCKED | libc::MAP_POPULATE;
        Self::new(length, flags, -1)
    }

    fn new(length: usize, flags: i32, file: i32) -> anyhow::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing is replaced.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, file, 0) };
        ensure!(base != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Ok(Self { base: base.cast(), length })
    }

    /// Writes a word; beyond the end nothing happens.
    pub(crate) fn set<T: Copy>(&self, at: usize, value: T) {
        if at.is_multiple_of(size_of::<T>()) && at + size_of::<T>() <= self.length {
            // SAFETY: inside the mapping and aligned, both just checked.
            unsafe { self.base.add(at).cast::<T>().write_volatile(value) };
        }
    }

    /// Reads a word inside the mapping.
    pub(crate) fn get(&self, at: usize) -> u32 {
        if at.is_multiple_of(4) && at + 4 <= self.length {
            // SAFETY: inside the mapping and aligned, both just checked.
            return unsafe { self.base.add(at).cast::<u32>().read_volatile() };
        }
        0
    }

    /// The physical address of each page, from /proc/self/pagemap.
    pub(crate) fn pages(&self) -> anyhow::Result<Vec<u64>> {
        let map = File::open("/proc/self/pagemap")?;
        let first = u64::try_from(self.base.addr())? / 4096;
        let count = u64::try_from(self.length)? / 4096;
        (first..first + count)
            .map(|page| {
                let mut entry = [0; 8];
                map.read_exact_at(&mut entry, page * 8)?;
                let entry = u64::from_le_bytes(entry);
                (entry >> 63 == 1).then_some((entry & ((1 << 55) - 1)) << 12).context("not present")
            })
            .collect()
    }
}
