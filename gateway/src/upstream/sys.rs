//! What a tool server's process may be: set between fork and exec.

#![expect(unsafe_code, reason = "code between fork and exec is the caller's promise")]

use rustix::process::{Resource, Rlimit, Signal};
use tokio::process::Command;

/// The most files that a tool server may have open.
const MAX_FILES: u64 = 1024;
/// The largest file that a tool server may write.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Gives the child a session of its own, no way to more privilege, limits, and
/// death when the gateway dies. Descriptors are not inherited: each is made
/// close-on-exec where it is made, which a test checks from inside a child.
pub(super) fn confine(command: &mut Command) {
    // SAFETY: the closure makes system calls and nothing else; it allocates no
    // memory and takes no lock, so it may run between fork and exec.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            rustix::thread::set_no_new_privs(true)?;
            for (resource, limit) in [
                (Resource::Core, 0),
                (Resource::Nofile, MAX_FILES),
                (Resource::Fsize, MAX_FILE_BYTES),
            ] {
                let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
                rustix::process::setrlimit(resource, limit)?;
            }
            Ok(())
        });
    }
}
