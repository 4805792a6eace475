//! May what the sandbox has seen go where this call goes?
//!
//! A sandbox has the highest label of all results that it was given. This is
//! the one control against "read a secret, then send it" made of two calls
//! that are each allowed.

use casemate_ledger::budget::prefix;
use casemate_ledger::cgp::{Denial, DenyCode};

use super::{Facts, Fit, deny};

/// The sandbox has seen nothing above what each clause takes.
pub(super) fn check(facts: &Facts<'_>, line: &[Fit<'_>]) -> Result<(), Denial> {
    for fit in line {
        match fit.clause.max_in_label {
            Some(most) if facts.seen > most => {
                return Err(deny(
                    DenyCode::FlowLabel,
                    format!("{}grant/tools/{}/max_in_label", prefix(fit.level), fit.at),
                    format!("a sandbox that has seen nothing above {}", most.name()),
                    format!("one that has seen {} data", facts.seen.name()),
                )
                .hint(
                    "this task has read data that may not go there; a new task may start clean",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}
