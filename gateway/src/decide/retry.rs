//! May a call that failed be made again, and when? Only if a second run is as
//! good as one by the operator's word, the grants say what the call does to the
//! world and that it reaches nobody else, and no person was asked about it.

use casemate_ledger::Effect;

use super::{Fit, PinnedTool};

/// What is known of an attempt that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// It did not reach the tool, or the tool may have run.
    Unanswered,
    /// The tool answered: with an error of its own, or with what is not taken.
    Answered,
}

/// How often a call may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetryPlan {
    /// Whether calling the tool twice is as calling it once, for all who say so.
    idempotent: bool,
}

const MAX_RETRIES: u32 = 2;
const FIRST_WAIT_MS: u64 = 100;

impl RetryPlan {
    /// The plan for calls of `tool` under these clauses; `asked` says whether
    /// people were asked: what they said yes to is one call.
    pub(super) fn of(tool: &PinnedTool, line: &[Fit<'_>], asked: bool) -> Self {
        let granted = line.iter().all(|fit| fit.clause.effect < Effect::External);
        Self { idempotent: (tool.idempotent || tool.read_only) && granted && !asked }
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
        let safe = self.idempotent && failed == Attempt::Unanswered;
        let wait = jitter % (FIRST_WAIT_MS << made.min(MAX_RETRIES)).max(1);
        (safe && made < MAX_RETRIES && wait < left_ms).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use casemate_ledger::Clause;

    use super::*;
    use crate::decide::Held;
    use crate::decide::tests::{grant, signed, tool};

    #[test]
    fn the_table_of_retries() {
        use Attempt::{Answered, Unanswered};
        let cases = [
            (true, Unanswered, 0, 5000, Some(50)),
            (true, Unanswered, 1, 5000, Some(150)),
            (true, Unanswered, 2, 5000, None),
            (true, Unanswered, 0, 50, None),
            (true, Answered, 0, 5000, None),
            (false, Unanswered, 0, 5000, None),
            (false, Answered, 0, 5000, None),
        ];
        for (idempotent, failed, made, left, expected) in cases {
            let plan = RetryPlan { idempotent };
            let jitter = if made == 0 { 50 } else { 150 };
            assert_eq!(plan.wait_ms(failed, made, left, jitter), expected, "{failed:?} {made}");
        }
        assert!((0..1000).all(|jitter| {
            RetryPlan { idempotent: true }.wait_ms(Unanswered, 0, 5000, jitter) < Some(100)
        }));
    }

    #[test]
    fn operator_grants_and_nobody_asked() {
        use Effect::{External, Read, Write};
        for (idempotent, read_only, effects, asked, expected) in [
            (true, false, [Read, Write], false, true),
            (false, true, [Read, Read], false, true),
            (false, false, [Read, Read], false, false),
            (true, true, [Write, External], false, false),
            (true, true, [External, Read], false, false),
            (true, true, [Read, Read], true, false),
        ] {
            let tool = PinnedTool { idempotent, read_only, ..tool() };
            let held = Held::new(signed(grant()), 0);
            let clauses = effects.map(|effect| Clause { effect, ..Clause::of("time.now") });
            let fit = |(level, clause)| Fit { level, held: &held, at: 0, clause };
            let line: Vec<Fit<'_>> = clauses.iter().enumerate().map(fit).collect();
            let plan = RetryPlan::of(&tool, &line, asked);
            assert_eq!(plan.idempotent, expected, "{idempotent} {read_only} {effects:?} {asked}");
        }
    }
}
