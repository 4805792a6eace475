//! The two system calls of the probe that no safe wrapper offers.
#![expect(unsafe_code, reason = "ptrace and bpf have no safe wrapper")]

use std::io::Error;

/// Tries to attach to process `pid` as a debugger.
pub(crate) fn ptrace_attach(pid: i32) -> Result<(), Error> {
    // SAFETY: PTRACE_ATTACH takes a pid and two ignored arguments; it reads
    // and writes no memory of this process.
    outcome(unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid, 0, 0) })
}

/// Tries to make name spaces of its own.
pub(crate) fn unshare_user() -> Result<(), Error> {
    // SAFETY: CLONE_NEWUSER changes credentials and name spaces only; no
    // memory and no descriptor table is touched.
    outcome(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into())
}

fn outcome(result: libc::c_long) -> Result<(), Error> {
    if result == -1 { Err(Error::last_os_error()) } else { Ok(()) }
}
