//! Does the sandbox go round in circles? Seen in what it calls and what it
//! gets, not in what it says of its progress.
//!
//! - identical: the same call, many times in ten minutes;
//! - cycle: the last 2 to 8 calls repeat as a whole;
//! - no progress: a reading tool gives one result to ten calls that differ;
//! - errors: a tool fails in one way, again and again.
//!
//! A warning goes into the record; a quarantine rests the tool, longer each
//! time; a stop suspends the grant until an operator looks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use casemate_ledger::cgp::{Denial, DenyCode};
use casemate_ledger::{Outcome, Status};
use serde::{Deserialize, Serialize};

use super::{Call, deny};
use crate::clock::Now;

/// From which count on a sandbox is warned, its tool rests, its grant stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoopLimits {
    /// Identical calls within ten minutes. Default 5, 8, 12; 2 to 1024, rising.
    pub identical: [u32; 3],
    /// Repetitions of the last 2 to 8 calls. Default 3, 4, 6; 2 to 128, rising.
    pub cycle: [u32; 3],
    /// Failures of a tool in one way, one after another, until it rests. Default 5; 2 to 1024.
    pub errors: u32,
}

impl Default for LoopLimits {
    fn default() -> Self {
        Self { identical: [5, 8, 12], cycle: [3, 4, 6], errors: 5 }
    }
}

/// How much a sandbox repeats itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Warn,
    Quarantine,
    Stop,
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// The rule that saw it.
    pub(crate) rule: &'static str,
    /// How often it repeated.
    pub(crate) count: u32,
}

/// What one sandbox called last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loops {
    ring: VecDeque<Entry>,
    next: u64,
    rests: BTreeMap<String, Rest>,
    /// Tools that were called before the gateway started again, by calls of
    /// which nobody knows whether they ran, nor with which arguments; until when.
    unsure: BTreeMap<String, u64>,
}

#[derive(Debug, Clone)]
struct Entry {
    number: u64,
    tool: String,
    call: [u8; 32],
    time_us: u64,
    /// How and when; nothing while it runs.
    ended: Option<(Ended, u64)>,
}

/// How a call ended, as far as it can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With a result of this digest.
    Result([u8; 32]),
    /// With a failure of this status.
    Failure(Status),
    /// Without anybody knowing whether it ran.
    Unknown,
    /// Before it began: it was denied.
    Denied,
}

/// A tool that rests.
#[derive(Debug, Clone, Copy, Default)]
struct Rest {
    until_us: u64,
    trips: u32,
}

const LEAST_RING: usize = 64;
const LONGEST_CYCLE: usize = 8;
const SAME_RESULTS: usize = 10;
const IDENTICAL_US: u64 = 600_000_000;
const DUPLICATE_US: u64 = 30_000_000;
const FIRST_REST_US: u64 = 60_000_000;
const LONGEST_REST_US: u64 = 3_600_000_000;

impl LoopLimits {
    /// Whether the numbers are within their limits and rise.
    pub(crate) fn check(&self) -> bool {
        let rising = |steps: [u32; 3], most: u32| {
            let [warn, quarantine, stop] = steps;
            2 <= warn && warn < quarantine && quarantine < stop && stop <= most
        };
        rising(self.identical, 1024) && rising(self.cycle, 128) && (2..=1024).contains(&self.errors)
    }

    /// The calls that have to be remembered.
    fn ring(&self) -> usize {
        let [.., identical] = self.identical;
        let [.., cycle] = self.cycle;
        let needed = identical.max(self.errors).max(cycle.saturating_mul(8));
        usize::try_from(needed).unwrap_or(LEAST_RING).max(LEAST_RING)
    }
}

impl Loops {
    /// What would be seen if `call` came now. Changes nothing. `own` is the
    /// call's place among those before it, when it is decided on again.
    pub(crate) fn look(
        &self,
        limits: &LoopLimits,
        call: &Call<'_>,
        own: Option<u64>,
        now: Now,
    ) -> Option<Finding> {
        let found = [
            self.identical(limits, call, own, now),
            self.cycle(limits, call, own),
            self.errors(limits, call),
            self.no_progress(call),
        ];
        found.into_iter().flatten().max_by_key(|finding| finding.level)
    }

    /// Denies a call that goes too far, or whose tool rests.
    pub(super) fn check(
        &self,
        finding: Option<Finding>,
        call: &Call<'_>,
        now: Now,
    ) -> Result<(), Denial> {
        if let Some(finding) = finding.filter(|finding| finding.level == Level::Stop) {
            return Err(stopped(format!("{} repetitions ({})", finding.count, finding.rule)));
        }
        let rest_us = self
            .rests
            .get(call.tool)
            .map_or(0, |rest| rest.until_us.saturating_sub(now.monotonic_us));
        let fresh = finding.filter(|finding| finding.level == Level::Quarantine);
        if rest_us == 0 && fresh.is_none() {
            return Ok(());
        }
        let wait_us = if rest_us > 0 { rest_us } else { self.rest_length(call.tool) };
        let actual = fresh.map_or_else(
            || "a tool that rests".to_owned(),
            |finding| format!("{} repetitions ({})", finding.count, finding.rule),
        );
        let expected = "calls that differ or get somewhere";
        let draft = deny(DenyCode::LoopQuarantine, "gate/loops", expected, actual);
        Err(draft.retry_after(wait_us.div_ceil(1000)))
    }

    /// Takes a call that came as far as this gate, with what was seen of it.
    /// Returns its number.
    pub(crate) fn record(
        &mut self,
        limits: &LoopLimits,
        finding: Option<Finding>,
        call: &Call<'_>,
        now: Now,
    ) -> u64 {
        let resting = self.rests.get(call.tool).is_some_and(|r| r.until_us > now.monotonic_us);
        if finding.is_some_and(|finding| finding.level >= Level::Quarantine) && !resting {
            let until_us = now.monotonic_us.saturating_add(self.rest_length(call.tool));
            let rest = self.rests.entry(call.tool.to_owned()).or_default();
            *rest = Rest { until_us, trips: rest.trips.saturating_add(1) };
        }
        self.next += 1;
        self.ring.push_back(Entry {
            number: self.next,
            tool: call.tool.to_owned(),
            call: call.fingerprint,
            time_us: now.monotonic_us,
            ended: Some((Ended::Denied, now.monotonic_us)),
        });
        // One that runs stays, however many come after it: their number is
        // bounded elsewhere, and it must not run twice.
        while self.ring.len() > limits.ring() {
            let Some(at) = self.ring.iter().position(|entry| entry.ended.is_some()) else { break };
            self.ring.remove(at);
        }
        self.next
    }

    /// Call `number` was allowed and runs.
    pub(crate) fn start(&mut self, number: u64) {
        if let Some(entry) = self.ring.iter_mut().find(|entry| entry.number == number) {
            entry.ended = None;
        }
    }

    /// Forgets what was repeated. What still runs, or may have run, stays: an
    /// operator who looks at a loop says nothing about a payment under way.
    pub(crate) fn forget(&mut self, now: Now) {
        self.ring.retain(|entry| entry.open_until(now).is_some());
        self.rests.clear();
    }

    /// Denies a call that was made already and may have run, or still runs,
    /// when running twice is not as good as running once.
    pub(super) fn check_duplicate(&self, call: &Call<'_>, now: Now) -> Result<(), Denial> {
        if call.pinned.is_some_and(|tool| tool.idempotent || tool.read_only) {
            return Ok(());
        }
        let same = self.ring.iter().filter(|entry| entry.call == call.fingerprint);
        let open = same.filter_map(|entry| {
            let actual = match entry.ended {
                None => "the same call, which still runs",
                Some(_) => "the same call, which may have run",
            };
            Some((entry.open_until(now)?, actual))
        });
        let unsure = self.unsure.get(call.tool).filter(|until_us| now.monotonic_us <= **until_us);
        let unsure = unsure.map(|until_us| {
            (*until_us, "a call of this tool, which may have run before the gateway started again")
        });
        let Some((until_us, actual)) = open.chain(unsure).max_by_key(|(until_us, _)| *until_us)
        else {
            return Ok(());
        };
        let wait_us = until_us.saturating_sub(now.monotonic_us);
        let expected = "a call that does not run already";
        Err(deny(DenyCode::DuplicateSuppressed, "gate/duplicate", expected, actual)
            .retry_after(wait_us.div_ceil(1000)))
    }

    /// A call of `tool` ended at `ended_ms` so that it may have run, before the
    /// gateway started or with it. What it was called with is in no record that
    /// can be read here, so that every call of the tool may be the same.
    pub(crate) fn note_unknown(&mut self, tool: &str, ended_ms: u64, now: Now) {
        let ago_us = now.unix_ms.saturating_sub(ended_ms).saturating_mul(1000);
        let left_us = DUPLICATE_US.saturating_sub(ago_us);
        let until_us = now.monotonic_us.saturating_add(left_us);
        if left_us > 0 {
            let known = self.unsure.entry(tool.to_owned()).or_default();
            *known = until_us.max(*known);
        }
    }

    /// Notes how call `number` ended.
    pub(crate) fn end(&mut self, number: u64, ended: Ended, now: Now) {
        if let Some(entry) = self.ring.iter_mut().find(|entry| entry.number == number) {
            entry.ended = Some((ended, now.monotonic_us));
        }
    }

    fn rest_length(&self, tool: &str) -> u64 {
        let trips = self.rests.get(tool).map_or(0, |rest| rest.trips);
        FIRST_REST_US.saturating_mul(1 << trips.min(6)).min(LONGEST_REST_US)
    }

    fn identical(
        &self,
        limits: &LoopLimits,
        call: &Call<'_>,
        own: Option<u64>,
        now: Now,
    ) -> Option<Finding> {
        let since = now.monotonic_us.saturating_sub(IDENTICAL_US);
        let same = |entry: &&Entry| entry.call == call.fingerprint && entry.time_us >= since;
        graded("identical", count(self.others(own).filter(same).count() + 1), limits.identical)
    }

    fn cycle(&self, limits: &LoopLimits, call: &Call<'_>, own: Option<u64>) -> Option<Finding> {
        let tail: Vec<&[u8; 32]> = std::iter::once(&call.fingerprint)
            .chain(self.others(own).rev().map(|entry| &entry.call))
            .collect();
        let repeated = |period: usize| {
            let first = tail.get(..period)?;
            let whole = tail.chunks_exact(period).take_while(|chunk| *chunk == first).count();
            let differs = first.iter().any(|call| Some(call) != first.first());
            (differs && whole > 1).then_some(count(whole))
        };
        let most = (2..=LONGEST_CYCLE).filter_map(repeated).max()?;
        graded("cycle", most, limits.cycle)
    }

    fn errors(&self, limits: &LoopLimits, call: &Call<'_>) -> Option<Finding> {
        let mut last = self.ended_calls(call).map(|(_, ended)| ended);
        let Some(Ended::Failure(status)) = last.next() else { return None };
        let more = last.take_while(|ended| *ended == Ended::Failure(status)).count();
        let failures = count(more + 1);
        (failures >= limits.errors).then_some(Finding {
            level: Level::Quarantine,
            rule: "errors",
            count: failures,
        })
    }

    /// Only of a tool that reads: one that writes may well say "done" each time.
    fn no_progress(&self, call: &Call<'_>) -> Option<Finding> {
        if !call.pinned.is_some_and(|tool| tool.read_only) {
            return None;
        }
        let last: Vec<(&[u8; 32], Ended)> = self.ended_calls(call).take(SAME_RESULTS).collect();
        let (_, first) = last.first()?;
        let same =
            matches!(first, Ended::Result(_)) && last.iter().all(|(_, ended)| ended == first);
        let distinct: BTreeSet<_> = last.iter().map(|(call, _)| *call).collect();
        (same && last.len() == SAME_RESULTS && distinct.len() > 1).then_some(Finding {
            level: Level::Quarantine,
            rule: "no_progress",
            count: count(SAME_RESULTS),
        })
    }

    /// Every call but `own`.
    fn others(&self, own: Option<u64>) -> impl DoubleEndedIterator<Item = &Entry> {
        self.ring.iter().filter(move |entry| Some(entry.number) != own)
    }

    /// The calls of the tool that ended, newest first.
    fn ended_calls(&self, call: &Call<'_>) -> impl Iterator<Item = (&[u8; 32], Ended)> {
        let of_tool = self.ring.iter().rev().filter(move |entry| entry.tool == call.tool);
        of_tool
            .filter_map(|entry| Some((&entry.call, entry.ended?.0)))
            .filter(|(_, ended)| *ended != Ended::Denied)
    }
}

impl Entry {
    /// Until when the call counts as one that may run, if it still does: as
    /// long as it runs, and half a minute after an end that leaves it open.
    fn open_until(&self, now: Now) -> Option<u64> {
        let (ended, at_us) = match self.ended {
            None => return Some(now.monotonic_us.saturating_add(DUPLICATE_US)),
            Some(ended) => ended,
        };
        let until_us = at_us.saturating_add(DUPLICATE_US);
        (ended.may_have_run() && now.monotonic_us <= until_us).then_some(until_us)
    }
}

impl Ended {
    /// Whether it leaves open if the call ran.
    pub(crate) fn may_have_run(self) -> bool {
        matches!(self, Self::Unknown | Self::Failure(Status::Timeout | Status::UpstreamError))
    }

    /// How the call with this outcome ended.
    pub(crate) fn of(outcome: &Outcome, result: Option<[u8; 32]>) -> Self {
        match (outcome.status, result) {
            (Status::Executed, digest) => Self::Result(digest.unwrap_or_default()),
            (Status::Cancelled | Status::Unknown, _) => Self::Unknown,
            (status, _) => Self::Failure(status),
        }
    }
}

/// The denial of a grant that waits for its operator.
pub(super) fn stopped(actual: impl Into<String>) -> Denial {
    deny(DenyCode::LoopStop, "gate/loops", "a task that gets somewhere", actual)
        .hint("the grant is suspended; the operator must look and resume it")
}

fn graded(rule: &'static str, count: u32, [warn, quarantine, stop]: [u32; 3]) -> Option<Finding> {
    let level = match count {
        _ if count >= stop => Level::Stop,
        _ if count >= quarantine => Level::Quarantine,
        _ if count >= warn => Level::Warn,
        _ => return None,
    };
    Some(Finding { level, rule, count })
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
