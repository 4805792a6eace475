//! Counts for people who watch: Prometheus text (exposition format 0.0.4),
//! asked for on the operator's socket. Names and codes only, nothing of calls.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;

use casemate_ledger::{Decision, Outcome, Verdict};

use crate::sync::locked;

/// Decisions and outcomes since the gateway started, by what they came to.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<BTreeMap<(&'static str, &'static str), u64>>);

/// A number of the moment.
pub(crate) struct Gauge {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) value: u64,
}

const DECISIONS: &str = "casemate_gateway_decisions_total";
const OUTCOMES: &str = "casemate_gateway_outcomes_total";

impl Counters {
    /// Counts `record` if it is a decision or an outcome.
    pub(crate) fn note(&self, record: &dyn Any) {
        let key = if let Some(decision) = record.downcast_ref::<Decision>() {
            (
                DECISIONS,
                match decision.verdict {
                    Verdict::Allow => "allow",
                    Verdict::Deny(code) => code.name(),
                    Verdict::Hold(_) => "hold",
                },
            )
        } else if let Some(outcome) = record.downcast_ref::<Outcome>() {
            (OUTCOMES, outcome.status.name())
        } else {
            return;
        };
        *locked(&self.0).entry(key).or_default() += 1;
    }

    /// The exposition: these counters and `gauges`.
    pub(crate) fn text(&self, gauges: &[Gauge]) -> String {
        let counts = locked(&self.0);
        let mut text = String::new();
        for (name, label, help) in [
            (DECISIONS, "code", "Decisions since the start: allow, hold, or the denial's code."),
            (OUTCOMES, "status", "Outcomes since the start, by status."),
        ] {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
            for ((_, value), count) in counts.iter().filter(|((known, _), _)| *known == name) {
                let _ = writeln!(text, "{name}{{{label}=\"{value}\"}} {count}");
            }
        }
        for Gauge { name, help, value } in gauges {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_ledger::Status;

    #[test]
    fn outcomes_are_counted_by_status_and_nothing_else_is() {
        let counters = Counters::default();
        let outcome = Outcome {
            decision: [0; 32],
            status: Status::Unknown,
            reason: None,
            result: None,
            upstream: None,
            started_ms: 0,
            ended_ms: 0,
            bytes_out: 0,
            bytes_in: 0,
        };
        counters.note(&outcome);
        counters.note(&outcome);
        counters.note(&"something else");
        let gauge = Gauge { name: "g", help: "a gauge.", value: 7 };
        let text = counters.text(&[gauge]);
        assert!(text.contains("casemate_gateway_outcomes_total{status=\"unknown\"} 2\n"), "{text}");
        assert!(text.ends_with("# TYPE g gauge\ng 7\n"), "{text}");
    }
}
