//! How many requests pass in a second.

use std::sync::Mutex;
use std::time::Instant;

/// A bucket that holds one second's requests and fills steadily.
#[derive(Debug)]
pub(crate) struct RequestRate {
    per_second: f64,
    state: Mutex<(f64, Instant)>,
}

impl RequestRate {
    /// A full bucket of `per_second` requests.
    pub(crate) fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, state: Mutex::new((per_second, Instant::now())) }
    }

    /// Takes one request at `now`, or says after how many milliseconds there is room.
    pub(crate) fn take(&self, now: Instant) -> Result<(), u64> {
        // A poisoned lock is a panic elsewhere, which ends the machine anyway.
        let Ok(mut state) = self.state.lock() else { return Err(1000) };
        let elapsed = now.saturating_duration_since(state.1).as_secs_f64();
        let filled = elapsed.mul_add(self.per_second, state.0).min(self.per_second);
        if filled < 1.0 {
            *state = (filled, now);
            let wait = std::time::Duration::from_secs_f64((1.0 - filled) / self.per_second);
            return Err(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1));
        }
        *state = (filled - 1.0, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_passes_and_a_flood_waits() {
        let rate = RequestRate::new(10);
        let start = Instant::now();
        let passed = (0..100).filter(|_| rate.take(start).is_ok()).count();
        assert_eq!(passed, 10);
        assert!(rate.take(start).unwrap_err() <= 100);
        let later = start + Duration::from_millis(500);
        let passed = (0..100).filter(|_| rate.take(later).is_ok()).count();
        assert!((4..=6).contains(&passed), "{passed}");
    }
}
