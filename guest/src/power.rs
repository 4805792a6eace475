//! The one way out: the machine is powered off.

use std::time::Duration;

use rustix::system::{RebootCommand, reboot};

use crate::console::say;

/// Turns the machine off. Does not return.
pub fn off() -> ! {
    rustix::fs::sync();
    // Without CAP_SYS_BOOT or without hardware for it this fails; PID 1 that
    // ends makes the kernel panic, and `panic=-1` then resets the machine.
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        say(&format!("power off: {error}"));
        std::thread::sleep(Duration::from_secs(1));
    }
    std::process::exit(1)
}

/// Makes every panic of PID 1 turn the machine off: a guest whose first
/// process is broken must not go on working.
pub fn off_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        say(&format!("panic: {info}"));
        off()
    }));
}
