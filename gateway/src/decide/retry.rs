//! May a call that failed be made again, and when? Only if the first attempt
//! is known not to have run, or a second run is as good as one.

#![cfg_attr(not(test), expect(dead_code, reason = "the executing side takes it up"))]

use super::PinnedTool;

/// What is known of an attempt that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// It did not reach the tool: refused connection, 429 or 503 before a body.
    NotExecuted,
    /// The tool may have run.
    MaybeExecuted,
    /// The tool answered: with an error of its own, or with what is not taken.
    Answered,
}

/// How often a call may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetryPlan {
    /// Whether calling the tool twice is as calling it once.
    pub(crate) idempotent: bool,
}

const MAX_RETRIES: u32 = 2;
const FIRST_WAIT_MS: u64 = 100;

impl RetryPlan {
    /// The plan for calls of `tool`.
    pub(crate) fn of(tool: &PinnedTool) -> Self {
        Self { idempotent: tool.idempotent }
    }

    /// Milliseconds to wait before the next attempt, if there may be one.
    /// `made` retries were made already, `left_ms` are left of the call's
    /// time, and `jitter` is any number.
    pub(crate) fn wait_ms(
        self,
        failed: Attempt,
        made: u32,
        left_ms: u64,
        jitter: u64,
    ) -> Option<u64> {
        let safe = match failed {
            Attempt::NotExecuted => true,
            Attempt::MaybeExecuted => self.idempotent,
            Attempt::Answered => false,
        };
        let wait = jitter % (FIRST_WAIT_MS << made.min(MAX_RETRIES)).max(1);
        (safe && made < MAX_RETRIES && wait < left_ms).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_retries() {
        use Attempt::{Answered, MaybeExecuted, NotExecuted};
        let cases = [
            (false, NotExecuted, 0, 5000, Some(50)),
            (false, NotExecuted, 1, 5000, Some(150)),
            (false, NotExecuted, 2, 5000, None),
            (false, NotExecuted, 0, 50, None),
            (false, MaybeExecuted, 0, 5000, None),
            (true, MaybeExecuted, 0, 5000, Some(50)),
            (true, MaybeExecuted, 2, 5000, None),
            (true, Answered, 0, 5000, None),
            (false, Answered, 0, 5000, None),
        ];
        for (idempotent, failed, made, left, expected) in cases {
            let plan = RetryPlan { idempotent };
            let jitter = if made == 0 { 50 } else { 150 };
            assert_eq!(plan.wait_ms(failed, made, left, jitter), expected, "{failed:?} {made}");
        }
        assert!((0..1000).all(|jitter| {
            RetryPlan { idempotent: true }.wait_ms(NotExecuted, 0, 5000, jitter) < Some(100)
        }));
    }
}
