//! Named steps at which a test ends the process as `kill -9` would, and a disk
//! that fails where a test says. Only the tests' builds have them (feature
//! `failpoints`, which no program turns on).

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Signal, getpid, kill_process};

static ARMED: Mutex<Option<&'static str>> = Mutex::new(None);
static LEFT: AtomicU32 = AtomicU32::new(0);
static FAULT: Mutex<Option<Fault>> = Mutex::new(None);

/// What of the disk fails.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// The operation: `create`, `write`, `write the rest of`, `sync` or `rename`.
    pub operation: &'static str,
    /// Part of the paths that it fails on; their end stands as `$`.
    pub place: &'static str,
    /// How many times it works before.
    pub after: u32,
    /// The system's error number.
    pub errno: i32,
}

/// From now on the process ends when it reaches `step` for the `nth` time.
pub fn arm(step: &'static str, nth: u32) {
    LEFT.store(nth, Ordering::SeqCst);
    *ARMED.lock().unwrap_or_else(PoisonError::into_inner) = Some(step);
}

/// From now on the disk fails as `fault` says, until there is another or none.
pub fn set_fault(fault: Option<Fault>) {
    *FAULT.lock().unwrap_or_else(PoisonError::into_inner) = fault;
}

/// The process is at `step`.
pub fn reached(step: &'static str) {
    let armed = *ARMED.lock().unwrap_or_else(PoisonError::into_inner);
    if armed == Some(step) && LEFT.fetch_sub(1, Ordering::SeqCst) == 1 {
        let _ = kill_process(getpid(), Signal::KILL);
        // The signal is on its way; nothing more is done until it is here.
        loop {
            std::thread::park();
        }
    }
}

/// Whether the disk lets `operation` on `path` happen.
pub(crate) fn may(operation: &str, path: &Path) -> io::Result<()> {
    let mut fault = FAULT.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(fault) = fault.as_mut() else { return Ok(()) };
    if operation != fault.operation || !format!("{}$", path.display()).contains(fault.place) {
        return Ok(());
    }
    if fault.after > 0 {
        fault.after -= 1;
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(fault.errno))
}
