//! Does the tool's server still work? One that fails again and again is left
//! alone for a while, then tried with one call.

use std::collections::{BTreeMap, VecDeque};

use casemate_ledger::cgp::{Denial, DenyCode};
use casemate_ledger::{Outcome, Status};

use super::{PinnedTool, deny};
use crate::clock::Now;

/// The breakers of one tool of one upstream, by sandbox.
///
/// Each sandbox's failures open its own breaker, so that none can rest a tool
/// for others by calling it badly. A tool rests for all only while the breakers
/// of [`MANY`] sandboxes are open: what two callers see that share nothing (a
/// process, a connection, a grant) is the server's fault. A sandbox cannot be
/// two: it has one attested identity, and each identity needs a grant of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Breakers(BTreeMap<String, Breaker>);

/// One tool as one sandbox finds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Breaker {
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

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
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
/// So many sandboxes' breakers, open at once, rest a tool for all.
const MANY: usize = 2;

impl Health {
    /// What an outcome says of the upstream: a tool's own error is an answer
    /// unless the server says that it failed inside, and so is what this gateway does not pass on. A call that reached for
    /// too much is its sandbox's doing.
    pub(crate) fn of(outcome: &Outcome) -> Self {
        match (outcome.status, outcome.reason.as_deref()) {
            (Status::ToolError, Some("internal_error" | "server_error")) => Self::Fails,
            (Status::Executed | Status::ToolError, _)
            | (
                Status::UpstreamError,
                Some("response_blocked" | "response_invalid" | "upstream_input_denied"),
            ) => Self::Works,
            (_, Some("data_reach")) => Self::Silent,
            (Status::UpstreamError | Status::Timeout, _)
            | (Status::NotDispatched, Some("upstream_error")) => Self::Fails,
            _ => Self::Silent,
        }
    }
}

impl Breakers {
    /// Denies a call of `sandbox` to a server that is left alone.
    pub(super) fn check(&self, sandbox: &str, now: Now) -> Result<(), Denial> {
        self.0.get(sandbox).map_or(Ok(()), |own| own.check(now))?;
        let others = self.0.iter().filter(|(of, _)| *of != sandbox);
        let open = others.filter(|(_, other)| other.position(now) == Position::Open);
        let mut until: Vec<u64> = open.filter_map(|(_, other)| other.open_until_us).collect();
        until.sort_unstable_by(|one, other| other.cmp(one));
        match until.get(MANY - 1) {
            Some(until) => Err(resting(until.saturating_sub(now.monotonic_us))),
            None => Ok(()),
        }
    }

    /// The sandboxes for which the tool rests, and for how many milliseconds.
    pub(crate) fn open(&self, now: Now) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().filter_map(move |(sandbox, breaker)| {
            let left_us = breaker.open_until_us?.saturating_sub(now.monotonic_us);
            Some((sandbox.as_str(), left_us.div_ceil(1000)))
        })
    }

    /// A call of `sandbox` goes to the server.
    pub(crate) fn start(&mut self, sandbox: &str, now: Now) {
        if let Some(own) = self.0.get_mut(sandbox) {
            own.start(now);
        }
    }

    /// A call of `sandbox` ended. `jitter` is any number.
    pub(crate) fn end(&mut self, sandbox: &str, health: Health, now: Now, jitter: u64) {
        self.0.retain(|of, other| of == sandbox || !other.is_idle(now));
        self.0.entry(sandbox.to_owned()).or_default().end(health, now, jitter);
    }
}

/// Denies a call to a server that was down when the gateway started and was not
/// seen since.
pub(super) fn up(tool: &PinnedTool) -> Result<(), Denial> {
    if !tool.resting {
        return Ok(());
    }
    let actual = "one that is down since the gateway started";
    let draft = deny(DenyCode::BreakerOpen, "gate/upstream", "a tool server that works", actual);
    Err(draft.retry_after(5_000))
}

fn resting(wait_us: u64) -> Denial {
    let actual = "one that fails";
    deny(DenyCode::BreakerOpen, "gate/breaker", "a tool server that works", actual)
        .retry_after(wait_us.div_ceil(1000))
}

impl Breaker {
    /// Whether it says nothing: closed, and of no call in the last minute.
    fn is_idle(&self, now: Now) -> bool {
        let since = now.monotonic_us.saturating_sub(WINDOW_US);
        self.open_until_us.is_none() && self.recent.iter().all(|(at, _)| *at < since)
    }

    /// Where it stands at `now`.
    fn position(&self, now: Now) -> Position {
        match self.open_until_us {
            None => Position::Closed,
            Some(until) if now.monotonic_us < until => Position::Open,
            Some(_) => Position::HalfOpen,
        }
    }

    /// Denies a call to a server that is left alone.
    fn check(&self, now: Now) -> Result<(), Denial> {
        let until = self.open_until_us.unwrap_or(0);
        match self.position(now) {
            Position::HalfOpen if self.probing => Err(resting(1_000_000)),
            Position::Closed | Position::HalfOpen => Ok(()),
            Position::Open => Err(resting(until.saturating_sub(now.monotonic_us))),
        }
    }

    /// A call goes to the server; when it was left alone, this one tries it.
    fn start(&mut self, now: Now) {
        self.probing = self.position(now) == Position::HalfOpen;
    }

    /// A call ended. `jitter` is any number: it spreads the next attempt.
    fn end(&mut self, health: Health, now: Now, jitter: u64) {
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
    fn one_sandbox_rests_a_tool_for_itself_and_two_for_all() {
        let mut breakers = Breakers::default();
        let mut fail = |sandbox: &str, seconds: u64| {
            (0..5).for_each(|_| breakers.end(sandbox, Health::Fails, at(seconds), MIDDLE));
            ["a", "b", "c"].map(|of| {
                breakers.check(of, at(seconds)).err().and_then(|denial| denial.retry_after_ms)
            })
        };
        assert_eq!(fail("a", 0), [Some(30_000), None, None]);
        assert_eq!(fail("a", 5), [Some(25_000), None, None]);
        // The second one ends the rest of all when the first one's time is over.
        assert_eq!(fail("b", 10), [Some(20_000), Some(30_000), Some(20_000)]);
        assert_eq!(breakers.check("c", at(30)), Ok(()));
        assert_eq!(breakers.check("a", at(30)), Ok(()));
        assert!(breakers.check("b", at(30)).is_err());
        // What is over and long ago is forgotten.
        breakers.end("c", Health::Works, at(31), 0);
        breakers.end("d", Health::Works, at(100), 0);
        assert_eq!(breakers.0.keys().collect::<Vec<_>>(), ["a", "b", "d"]);
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
            (Status::ToolError, Some("refused"), Health::Works),
            (Status::ToolError, Some("internal_error"), Health::Fails),
            (Status::ToolError, Some("server_error"), Health::Fails),
            (Status::UpstreamError, Some("upstream_error"), Health::Fails),
            (Status::UpstreamError, Some("response_blocked"), Health::Works),
            (Status::UpstreamError, Some("upstream_input_denied"), Health::Works),
            (Status::UpstreamError, Some("data_reach"), Health::Silent),
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
            assert_eq!(Health::of(&outcome), expected, "{status:?} {reason:?}");
        }
    }
}
