//! Named steps at which a test ends the process as `kill -9` would. Only the
//! tests' builds have them (feature `failpoints`, which no program turns on).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Signal, getpid, kill_process};

static ARMED: Mutex<Option<&'static str>> = Mutex::new(None);
static LEFT: AtomicU32 = AtomicU32::new(0);

/// From now on the process ends when it reaches `step` for the `nth` time.
pub fn arm(step: &'static str, nth: u32) {
    LEFT.store(nth, Ordering::SeqCst);
    *ARMED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(step);
}

/// The process is at `step`.
pub fn reached(step: &'static str) {
    let armed = *ARMED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if armed == Some(step) && LEFT.fetch_sub(1, Ordering::SeqCst) == 1 {
        let _ = kill_process(getpid(), Signal::KILL);
        // The signal is on its way; nothing more is done until it is here.
        loop {
            std::thread::park();
        }
    }
}
