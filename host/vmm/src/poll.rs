//! Waiting for many files at once: epoll, with a number for each of them.
//!
//! Edge-triggered throughout: whoever is woken reads and writes until the file
//! would block, and tries again when the guest makes room. So nothing spins on
//! a file that cannot make progress, and interests never change.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};

/// A set of files.
pub(crate) struct Poll {
    epoll: OwnedFd,
}

/// Adds files of one device to the set: their numbers carry the device's.
#[derive(Clone)]
pub(crate) struct Registrar {
    poll: Arc<Poll>,
    device: u32,
}

fn flags() -> EventFlags {
    EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET
}

/// Events taken at once.
const BATCH: usize = 32;

impl Poll {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Waits, at most `timeout_ms` when given; returns the numbers of the files that are ready.
    pub(crate) fn wait(&self, timeout_ms: Option<u64>) -> std::io::Result<Vec<u64>> {
        let timeout = timeout_ms.map(|ms| rustix::event::Timespec {
            tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(ms % 1000 * 1_000_000).unwrap_or(0),
        });
        let mut events = Vec::with_capacity(BATCH);
        let space = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, space, timeout.as_ref()) {
            Ok(_) => Ok(events.iter().map(|event| event.data.u64()).collect()),
            Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Adds a file under a number.
    pub(crate) fn add(&self, file: BorrowedFd<'_>, number: u64) -> std::io::Result<()> {
        Ok(epoll::add(&self.epoll, file, EventData::new_u64(number), flags())?)
    }
}

impl Registrar {
    pub(crate) fn new(poll: Arc<Poll>, device: u32) -> Self {
        Self { poll, device }
    }

    pub(crate) fn add(&self, file: BorrowedFd<'_>, token: u32) -> std::io::Result<()> {
        self.poll.add(file, self.number(token))
    }

    fn number(&self, token: u32) -> u64 {
        u64::from(self.device) << 32 | u64::from(token)
    }
}
