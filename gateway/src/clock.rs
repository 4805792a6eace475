//! The two clocks, read in one place.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use casemate_attestation::UnixTime;

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    /// Milliseconds since 1970: what records say and what grants expire by.
    pub(crate) unix_ms: u64,
    /// Microseconds since the gateway started, never backwards: rates.
    pub(crate) monotonic_us: u64,
}

/// The gateway's clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Now {
            unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
            monotonic_us: u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl Now {
    /// Whole seconds since 1970.
    pub(crate) fn unix(self) -> UnixTime {
        UnixTime(self.unix_ms / 1000)
    }
}
