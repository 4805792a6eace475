#![expect(unsafe_code, reason = "leaving namespaces is marked unsafe by rustix")]
//! Namespaces.

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// New mount, network, IPC and host name namespaces. Not a new PID namespace: it would only
/// hold children, and a process that has left its own can make no threads.
pub(crate) fn unshare() -> std::io::Result<()> {
    let flags =
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: no file descriptor table is unshared, so no owned descriptor loses its meaning.
    Ok(unsafe { unshare_unsafe(flags) }?)
}
