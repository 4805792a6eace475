//! Does the tool's server still work? One that fails again and again is left
//! alone for a while, then tried with one call.

use std::collections::VecDeque;

use casemate_ledger::cgp::{Denial, DenyCode};
use casemate_ledger::{Outcome, Status};

use super::deny;
use crate::clock::Now;

/// One tool of one upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Breaker {
    /// Calls that ended in the last minute: when, and whether they failed.
    recent: VecDeque<(u64, bool)>,
    consecutive: u32,
    /// Until when it is open; closed if it never opened or a probe succeeded.
    open_until_us: Option<u64>,
    /// How often it opened without a success between.
    trips: u32,
    /// Whether one call is trying it.
    probing: bool,
}

/// How a call ended, for a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// The upstream answered, whatever it said.
    Works,
    /// It did not answer as it must.
    Fails,
    /// The call says nothing about it.
    Silent,
}

/// The breaker's name for people and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    Closed,
    Open,
    HalfOpen,
}

const WINDOW_US: u64 = 60_000_000;
const MAX_RECENT: usize = 256;
const MAX_CONSECUTIVE: u32 = 5;
const LEAST_CALLS: usize = 10;
const FIRST_OPEN_US: u64 = 30_000_000;
const LONGEST_OPEN_US: u64 = 600_000_000;

impl Health {
    /// What an outcome says of the upstream: a tool's own error is an answer.
    pub(crate) fn of(outcome: &Outcome) -> Self {
        match outcome.status {
            Status::Executed | Status::ToolError => Self::Works,
            Status::UpstreamError | Status::Timeout => Self::Fails,
            Status::NotDispatched if outcome.reason.as_deref() == Some("upstream_error") => {
                Self::Fails
            }
            _ => Self::Silent,
        }
    }
}

impl Breaker {
    /// Where it stands at `now`.
    pub(crate) fn position(&self, now: Now) -> Position {
        match self.open_until_us {
            None => Position::Closed,
            Some(until) if now.monotonic_us < until => Position::Open,
            Some(_) => Position::HalfOpen,
        }
    }

    /// Denies a call to a server that is left alone.
    pub(super) fn check(&self, now: Now) -> Result<(), Denial> {
        let until = self.open_until_us.unwrap_or(0);
        let (actual, wait_us) = match self.position(now) {
            Position::Closed => return Ok(()),
            Position::HalfOpen if !self.probing => return Ok(()),
            Position::HalfOpen => ("one that is being tried", 1_000_000),
            Position::Open => ("one that fails", until.saturating_sub(now.monotonic_us)),
        };
        Err(deny(DenyCode::BreakerOpen, "gate/breaker", "a tool server that works", actual)
            .retry_after(wait_us.div_ceil(1000)))
    }

    /// A call goes to the server; when it was left alone, this one tries it.
    pub(crate) fn start(&mut self, now: Now) {
        self.probing = self.position(now) == Position::HalfOpen;
    }

    /// A call ended. `jitter` is any number: it spreads the next attempt.
    pub(crate) fn end(&mut self, health: Health, now: Now, jitter: u64) {
        match health {
            Health::Silent => self.probing = false,
            Health::Works => {
                *self = Self { recent: std::mem::take(&mut self.recent), ..Self::default() };
                self.note(false, now);
            }
            Health::Fails => {
                self.consecutive = self.consecutive.saturating_add(1);
                self.note(true, now);
                if self.probing || (self.open_until_us.is_none() && self.is_bad()) {
                    self.open(now, jitter);
                }
            }
        }
    }

    fn note(&mut self, failed: bool, now: Now) {
        let since = now.monotonic_us.saturating_sub(WINDOW_US);
        self.recent.retain(|(at, _)| *at >= since);
        if self.recent.len() >= MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((now.monotonic_us, failed));
    }

    fn is_bad(&self) -> bool {
        let failed = self.recent.iter().filter(|(_, failed)| *failed).count();
        self.consecutive >= MAX_CONSECUTIVE
            || (self.recent.len() >= LEAST_CALLS && failed * 2 >= self.recent.len())
    }

    /// Opens for twice as long as last time, up to a fifth more or less.
    fn open(&mut self, now: Now, jitter: u64) {
        let base = FIRST_OPEN_US.saturating_mul(1 << self.trips.min(8)).min(LONGEST_OPEN_US);
        let fifth = base / 5;
        let length = base - fifth + jitter % (2 * fifth + 1);
        self.open_until_us = Some(now.monotonic_us.saturating_add(length));
        self.trips = self.trips.saturating_add(1);
        self.probing = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now { unix_ms: 0, monotonic_us: seconds * 1_000_000 }
    }

    /// No jitter: the middle of the range.
    const MIDDLE: u64 = FIRST_OPEN_US / 5;

    fn failing(times: u32) -> Breaker {
        let mut breaker = Breaker::default();
        (0..times).for_each(|_| breaker.end(Health::Fails, at(0), MIDDLE));
        breaker
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_one_success_closes_it() {
        assert_eq!(failing(4).check(at(0)), Ok(()));
        let mut breaker = failing(5);
        let denial = breaker.check(at(0)).unwrap_err();
        assert_eq!((denial.code, denial.retry_after_ms), (DenyCode::BreakerOpen, Some(30_000)));
        assert!(breaker.check(at(29)).is_err());
        // Half open: one call tries, others wait.
        assert_eq!(breaker.position(at(30)), Position::HalfOpen);
        assert_eq!(breaker.check(at(30)), Ok(()));
        breaker.start(at(30));
        assert!(breaker.check(at(30)).is_err());
        breaker.end(Health::Works, at(31), 0);
        assert_eq!(breaker.position(at(31)), Position::Closed);
        // A success between failures starts the count again.
        let mut breaker = failing(4);
        breaker.end(Health::Works, at(0), 0);
        breaker.end(Health::Fails, at(0), 0);
        assert_eq!(breaker.check(at(0)), Ok(()));
    }

    #[test]
    fn a_failed_probe_opens_it_for_twice_as_long_up_to_ten_minutes() {
        let mut breaker = failing(5);
        let mut now = 30;
        for expected in [60, 120, 240, 480, 600, 600] {
            breaker.start(at(now));
            let jitter = (expected * 1_000_000) / 5;
            breaker.end(Health::Fails, at(now), jitter);
            let denial = breaker.check(at(now)).unwrap_err();
            assert_eq!(denial.retry_after_ms, Some(expected * 1000));
            now += expected;
        }
        // A probe that says nothing leaves the place to another.
        breaker.start(at(now));
        breaker.end(Health::Silent, at(now), 0);
        assert_eq!(breaker.check(at(now)), Ok(()));
    }

    #[test]
    fn half_of_ten_calls_in_a_minute_open_it() {
        let mut breaker = Breaker::default();
        for call in 0..10 {
            assert_eq!(breaker.check(at(call)), Ok(()), "call {call}");
            let health = if call % 2 == 1 { Health::Fails } else { Health::Works };
            breaker.end(health, at(call), MIDDLE);
        }
        assert_eq!(breaker.position(at(10)), Position::Open);
        let mut slow = Breaker::default();
        for call in 0..10 {
            let health = if call % 2 == 1 { Health::Fails } else { Health::Works };
            slow.end(health, at(call * 10), MIDDLE);
        }
        assert_eq!(slow.position(at(100)), Position::Closed);
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        for jitter in [0, 1, MIDDLE, u64::MAX] {
            let mut breaker = failing(4);
            breaker.end(Health::Fails, at(0), jitter);
            let wait = breaker.check(at(0)).unwrap_err().retry_after_ms.unwrap();
            assert!((24_000..=36_000).contains(&wait), "{wait}");
        }
    }

    #[test]
    fn only_a_server_that_does_not_answer_fails() {
        let table = [
            (Status::Executed, None, Health::Works),
            (Status::ToolError, None, Health::Works),
            (Status::UpstreamError, Some("response_blocked"), Health::Fails),
            (Status::Timeout, Some("timeout"), Health::Fails),
            (Status::NotDispatched, Some("upstream_error"), Health::Fails),
            (Status::NotDispatched, Some("tool_drift"), Health::Silent),
            (Status::Cancelled, None, Health::Silent),
            (Status::Unknown, None, Health::Silent),
        ];
        for (status, reason, expected) in table {
            let outcome = Outcome {
                decision: [0; 32],
                status,
                reason: reason.map(str::to_owned),
                result: None,
                upstream: None,
                started_ms: 0,
                ended_ms: 0,
                bytes_out: 0,
                bytes_in: 0,
            };
            assert_eq!(Health::of(&outcome), expected, "{status:?}");
        }
    }
}
