//! The one place that reads the time; everything else is told it.

use std::sync::Arc;
use std::time::SystemTime;

use casemate_attestation::UnixTime;

/// What the service takes the time from.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> UnixTime + Send + Sync>);

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::new(|| {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            // A clock before 1970 makes everything expired, which refuses everything.
            UnixTime(since.map_or(u64::MAX, |since| since.as_secs()))
        })
    }

    /// A clock that says what `now` says.
    pub fn new(now: impl Fn() -> UnixTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time.
    pub fn now(&self) -> UnixTime {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}
