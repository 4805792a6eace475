//! Counts for people who watch: Prometheus text (exposition format 0.0.4), on
//! the operator's socket and, if it is configured, on a loopback address. Names
//! and codes only, nothing of calls.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::Duration;

use casemate_ledger::{Decision, Outcome, Verdict};

use crate::sync::locked;

/// Decisions and outcomes since the gateway started, by what they came to, and
/// how long their parts took.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    counts: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    times: Mutex<[Histogram; 3]>,
}

/// What takes time in a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    /// From the call's line to its decision's place in the log.
    Decide,
    /// From a record's place in the log to the disk.
    Commit,
    /// What a tool took, by the outcome.
    Upstream,
}

/// Durations in buckets.
#[derive(Debug, Default)]
struct Histogram {
    /// How many were at most as long as each of [`BOUNDS_US`], and no shorter bound.
    buckets: [u64; BOUNDS_US.len()],
    count: u64,
    sum_us: u64,
}

/// The buckets' bounds in microseconds, and as Prometheus writes them.
const BOUNDS_US: [(u64, &str); 14] = [
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (1_000_000, "1"),
    (5_000_000, "5"),
    (30_000_000, "30"),
    (120_000_000, "120"),
];

/// A number of the moment.
pub(crate) struct Gauge {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) value: u64,
}

/// Where the page is, and what it is.
pub(crate) const PATH: &str = "/metrics";
pub(crate) const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";
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
            if outcome.started_ms != 0 {
                let took_ms = outcome.ended_ms.saturating_sub(outcome.started_ms);
                self.took(Stage::Upstream, Duration::from_millis(took_ms));
            }
            (OUTCOMES, outcome.status.name())
        } else {
            return;
        };
        *locked(&self.counts).entry(key).or_default() += 1;
    }

    /// Counts how long a part of a call took.
    pub(crate) fn took(&self, stage: Stage, time: Duration) {
        let mut times = locked(&self.times);
        let [decide, commit, upstream] = &mut *times;
        match stage {
            Stage::Decide => decide,
            Stage::Commit => commit,
            Stage::Upstream => upstream,
        }
        .note(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// The exposition: these counters and `gauges`.
    pub(crate) fn text(&self, gauges: &[Gauge]) -> String {
        let counts = locked(&self.counts);
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
        let times = locked(&self.times);
        let told = [
            ("decide", "From a call's line to its decision's place in the log."),
            ("commit", "From a record's place in the log to the disk."),
            ("upstream", "What a tool took, in whole milliseconds."),
        ];
        for (histogram, (stage, help)) in times.iter().zip(told) {
            histogram.write(&mut text, &format!("casemate_gateway_{stage}_seconds"), help);
        }
        for Gauge { name, help, value } in gauges {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        text
    }
}

impl Histogram {
    fn note(&mut self, took_us: u64) {
        let buckets = self.buckets.iter_mut().zip(BOUNDS_US);
        if let Some((bucket, _)) = buckets.into_iter().find(|(_, (most, _))| took_us <= *most) {
            *bucket += 1;
        }
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(took_us);
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut below = 0;
        for (count, (_, bound)) in self.buckets.iter().zip(BOUNDS_US) {
            below += count;
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let (count, seconds, rest) = (self.count, self.sum_us / 1_000_000, self.sum_us % 1_000_000);
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum {seconds}.{rest:06}\n{name}_count {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_ledger::Status;

    #[test]
    fn times_are_cumulative_buckets_with_their_sum() {
        let counters = Counters::default();
        for took in [100, 250, 251, 3_000_000, 999_000_000] {
            counters.took(Stage::Commit, Duration::from_micros(took));
        }
        let text = counters.text(&[]);
        for line in [
            "# TYPE casemate_gateway_commit_seconds histogram\n",
            "casemate_gateway_commit_seconds_bucket{le=\"0.00025\"} 2\n",
            "casemate_gateway_commit_seconds_bucket{le=\"0.0005\"} 3\n",
            "casemate_gateway_commit_seconds_bucket{le=\"5\"} 4\n",
            "casemate_gateway_commit_seconds_bucket{le=\"120\"} 4\n",
            "casemate_gateway_commit_seconds_bucket{le=\"+Inf\"} 5\n",
            "casemate_gateway_commit_seconds_sum 1002.000601\n",
            "casemate_gateway_commit_seconds_count 5\n",
            "casemate_gateway_decide_seconds_count 0\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

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
