//! The gate that every vCPU passes before it enters the guest.
//!
//! Open, closed (paused) or gone (ended). Whoever closes it kicks the threads
//! until all of them stand outside: a kick that arrives just before KVM_RUN is
//! lost, so one kick is never enough.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::exit::Exit;

/// State shared by all threads of a machine.
pub(crate) struct Gate {
    /// One of the three constants; read without the lock on every entry.
    state: AtomicU8,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Wakes the warden when the machine ended.
    ended: EventFd,
}

#[derive(Default)]
struct Inner {
    outside: usize,
    exit: Option<Exit>,
}

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const GONE: u8 = 2;

impl Gate {
    /// A closed gate. `ended` is written once when the machine ends.
    pub(crate) fn new(ended: EventFd) -> Self {
        let inner = Mutex::new(Inner::default());
        Self { state: AtomicU8::new(CLOSED), inner, changed: Condvar::new(), ended }
    }

    /// Called by a vCPU thread before each entry: waits while the gate is closed.
    /// False means that the machine has ended.
    pub(crate) fn pass(&self) -> bool {
        match self.state.load(Ordering::Acquire) {
            OPEN => true,
            GONE => false,
            _ => self.wait(),
        }
    }

    fn wait(&self) -> bool {
        let mut inner = self.lock();
        inner.outside += 1;
        self.changed.notify_all();
        while self.state.load(Ordering::Acquire) == CLOSED {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.outside -= 1;
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// Lets the vCPUs run, unless the machine has ended.
    pub(crate) fn open(&self) {
        let _inner = self.lock();
        let _ = self.state.compare_exchange(CLOSED, OPEN, Ordering::AcqRel, Ordering::Acquire);
        self.changed.notify_all();
    }

    /// Asks the vCPUs to stop at the gate; they arrive when they are next out of the guest.
    pub(crate) fn close(&self) {
        let _inner = self.lock();
        let _ = self.state.compare_exchange(OPEN, CLOSED, Ordering::AcqRel, Ordering::Acquire);
    }

    /// How many vCPUs stand outside.
    pub(crate) fn outside(&self) -> usize {
        self.lock().outside
    }

    /// Ends the machine. Only the first reason is kept.
    pub(crate) fn end(&self, exit: Exit) {
        let mut inner = self.lock();
        inner.exit.get_or_insert(exit);
        self.state.store(GONE, Ordering::Release);
        self.changed.notify_all();
        // Nobody to wake is no error: the warden reads the state as well.
        let _ = self.ended.write(1);
    }

    /// Why the machine ended, if it did.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.lock().exit.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn gate() -> Arc<Gate> {
        Arc::new(Gate::new(EventFd::new(0).unwrap()))
    }

    #[test]
    fn a_closed_gate_holds_threads_until_it_opens() {
        let gate = gate();
        let thread = std::thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.pass()
        });
        while gate.outside() == 0 {
            std::thread::yield_now();
        }
        gate.open();
        assert!(thread.join().unwrap());
        assert_eq!(gate.outside(), 0);
    }

    #[test]
    fn an_ended_machine_never_opens_again_and_keeps_its_first_reason() {
        let gate = gate();
        gate.end(Exit::Shutdown);
        gate.end(Exit::LeaseExpired);
        gate.open();
        assert!(!gate.pass());
        assert_eq!(gate.exit(), Some(Exit::Shutdown));
    }
}
