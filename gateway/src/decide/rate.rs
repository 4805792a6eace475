//! Do the calls come too fast, or too many at once? The generic cell rate
//! algorithm on whole microseconds, so that the answer is the same everywhere.

use casemate_ledger::Rate;
use casemate_ledger::budget::prefix;
use casemate_ledger::cgp::{Denial, DenyCode};

use super::{Fit, deny};
use crate::clock::Now;

const MINUTE_US: u64 = 60_000_000;

/// Checks the clause's rate and concurrency.
pub(super) fn check(fit: &Fit<'_>, now: Now) -> Result<(), Denial> {
    let (at, clause, prefix) = (fit.at, fit.clause, prefix(fit.level));
    let usage = fit.held.clauses.get(at).copied().unwrap_or_default();
    if let Some(limit) = clause.concurrency
        && usage.running >= limit
    {
        return Err(deny(
            DenyCode::Concurrency,
            format!("{prefix}grant/tools/{at}/concurrency"),
            format!("at most {limit} calls at once"),
            format!("{} running", usage.running),
        )
        .retry_soon("wait for a running call to end, then call again"));
    }
    let Some(rate) = clause.rate else { return Ok(()) };
    let wait_us = usage.rest_us.saturating_sub(tolerance(rate)).saturating_sub(now.monotonic_us);
    if wait_us == 0 {
        return Ok(());
    }
    Err(deny(
        DenyCode::RateLimited,
        format!("{prefix}grant/tools/{at}/rate"),
        format!("{} calls a minute, {} at once", rate.per_minute, rate.burst),
        "a faster pace",
    )
    .retry_after(wait_us.div_ceil(1000)))
}

/// When the rate is at rest again after one more call now.
pub(super) fn advance(rate: Rate, rest_us: u64, now: Now) -> u64 {
    rest_us.max(now.monotonic_us).saturating_add(interval(rate))
}

fn interval(rate: Rate) -> u64 {
    (MINUTE_US / rate.per_minute.max(1)).max(1)
}

fn tolerance(rate: Rate) -> u64 {
    interval(rate).saturating_mul(rate.burst.saturating_sub(1))
}
