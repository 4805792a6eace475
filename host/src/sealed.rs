//! Files that a backend reads are the very bytes that were measured: sealed memory,
//! not names that somebody could point elsewhere in between.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Bytes that can no longer change, under a path that lives as long as this value.
#[derive(Debug)]
pub(crate) struct Sealed(File);

impl Sealed {
    /// Copies `bytes` and seals them.
    pub(crate) fn new(name: &str, bytes: &[u8]) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create(name, flags)?);
        file.write_all(bytes)?;
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        Ok(Self(file))
    }

    /// A path by which another process of this user opens the bytes.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_can_be_read_and_not_changed() {
        let sealed = Sealed::new("kernel", b"bytes").unwrap();
        assert_eq!(std::fs::read(sealed.path()).unwrap(), b"bytes");
        let writing = std::fs::OpenOptions::new().write(true).open(sealed.path());
        assert!(writing.is_err() || writing.unwrap().write_all(b"x").is_err());
    }
}
