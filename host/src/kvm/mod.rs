//! Whether KVM really runs code. A node that opens proves nothing: software
//! implementations open too, and cannot boot a kernel.

mod guest;
mod sys;

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// Why KVM is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KvmUnusable {
    /// A call that every VM needs fails.
    #[error("{call} failed: {reason}")]
    Call {
        /// The call.
        call: &'static str,
        /// The system's reason.
        reason: String,
    },
    /// The test guest did not do what any CPU does.
    #[error("the test guest failed at {step}: expected {expected}, got {actual}")]
    Guest {
        /// What it was to do.
        step: &'static str,
        /// What had to come.
        expected: String,
        /// What came.
        actual: String,
    },
    /// The test guest did not end.
    #[error("the test guest hung at {step}: nothing within {seconds} s")]
    Hung {
        /// What it was to do.
        step: &'static str,
        /// How long was waited.
        seconds: u64,
    },
}

/// Runs a small guest that does what a kernel needs, in a bounded time.
pub fn probe() -> Result<(), KvmUnusable> {
    let stop = Arc::new(AtomicBool::new(false));
    let progress = Arc::new(guest::Progress::default());
    let (sender, result) = mpsc::channel();
    // A handler that does nothing, so that the signal ends KVM_RUN with EINTR.
    register_signal_handler(SIGRTMIN(), interrupt).map_err(|e| failed("sigaction", e))?;
    let thread = {
        let (stop, progress) = (Arc::clone(&stop), Arc::clone(&progress));
        std::thread::Builder::new().name("kvm-probe".into()).spawn(move || {
            // The receiver is gone once the time is up.
            let _ = sender.send(guest::run(&progress, &stop));
        })
    };
    let thread = thread.map_err(|e| failed("spawn", e))?;
    let answer = result.recv_timeout(LIMIT);
    stop.store(true, Ordering::SeqCst);
    // A signal just before KVM_RUN is lost, so it is sent until the thread is gone.
    let deadline = Instant::now() + Duration::from_secs(2);
    while !thread.is_finished() && Instant::now() < deadline {
        let _ = thread.kill(SIGRTMIN());
        std::thread::sleep(Duration::from_millis(10));
    }
    answer.unwrap_or_else(|_| {
        Err(KvmUnusable::Hung { step: progress.next_step(), seconds: LIMIT.as_secs() })
    })
}

/// [`probe`] for asynchronous callers; the reason is text.
pub(crate) async fn usable() -> Result<(), String> {
    let probed = tokio::task::spawn_blocking(probe).await;
    probed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

fn failed(call: &'static str, reason: impl std::fmt::Display) -> KvmUnusable {
    KvmUnusable::Call { call, reason: reason.to_string() }
}

extern "C" fn interrupt<Info>(_: c_int, _: *mut Info, _: *mut c_void) {}

const LIMIT: Duration = Duration::from_secs(5);
