//! Unix sockets by folder and name: a socket's address holds 107 bytes, and
//! through a descriptor any folder fits.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixListener;

/// Binds the socket `name` in `folder`, whatever the length of the folder's path.
pub(crate) fn bind(folder: &Path, name: &str) -> io::Result<UnixListener> {
    match fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folder = open_folder(folder)?;
    UnixListener::bind(short_path(&folder, name))
}

/// Connects to the socket `name` in `folder`.
pub(crate) fn connect(folder: &Path, name: &str) -> io::Result<UnixStream> {
    let folder = open_folder(folder)?;
    UnixStream::connect(short_path(&folder, name))
}

fn open_folder(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::empty())?)
}

fn short_path(folder: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_fits_in_a_deep_folder() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        drop(bind(&deep, "a.sock").unwrap());
        let _listener = bind(&deep, "a.sock").unwrap();
        connect(&deep, "a.sock").unwrap();
    }
}
