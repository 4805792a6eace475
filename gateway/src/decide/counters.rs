//! What was used of a grant: plain counts, and amounts with their time.

use std::collections::{BTreeMap, VecDeque};

use casemate_ledger::Window;

/// Counts by the names that decision records give them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    plain: BTreeMap<String, u64>,
    timed: BTreeMap<String, VecDeque<Entry>>,
}

/// An amount and when it was decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    time_ms: u64,
    amount: u64,
}

/// Entries of one sum that are told apart; older ones count as the next newer.
const MAX_ENTRIES: usize = 1024;

impl Counters {
    /// What was used of `name`.
    pub(crate) fn used(&self, name: &str) -> u64 {
        self.plain.get(name).copied().unwrap_or(0)
    }

    /// The sum `name` over `window` up to `now_ms`.
    pub(crate) fn summed(&self, name: &str, window: Window, now_ms: u64) -> u64 {
        let from = window.milliseconds().map_or(0, |length| now_ms.saturating_sub(length));
        let entries = self.timed.get(name).into_iter().flatten();
        let within =
            entries.filter(|entry| window.milliseconds().is_none() || entry.time_ms > from);
        within.fold(0, |sum: u64, entry| sum.saturating_add(entry.amount))
    }

    /// Adds `amount` to `name` at `time_ms`.
    pub(crate) fn add(&mut self, name: &str, amount: u64, time_ms: u64) {
        if !is_sum(name) {
            let count = self.plain.entry(name.to_owned()).or_default();
            *count = count.saturating_add(amount);
            return;
        }
        let entries = self.timed.entry(name.to_owned()).or_default();
        entries.push_back(Entry { time_ms, amount });
        if entries.len() > MAX_ENTRIES
            && let Some(oldest) = entries.pop_front()
            && let Some(next) = entries.front_mut()
        {
            next.amount = next.amount.saturating_add(oldest.amount);
        }
    }

    /// Takes back `amount` of `name` that was added at `time_ms`.
    pub(crate) fn give_back(&mut self, name: &str, amount: u64, time_ms: u64) {
        let count = if is_sum(name) {
            let entries = self.timed.get_mut(name).into_iter().flatten();
            let mut same = entries.filter(|e| e.time_ms >= time_ms && e.amount >= amount);
            same.next().map(|entry| &mut entry.amount)
        } else {
            self.plain.get_mut(name)
        };
        if let Some(count) = count {
            *count = count.saturating_sub(amount);
        }
    }
}

/// Whether `name` is that of a sum over a time.
fn is_sum(name: &str) -> bool {
    name.contains(".sum.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn sums_slide_with_time_and_counts_do_not() {
        let mut counters = Counters::default();
        counters.add("grant.calls", 1, 0);
        counters.add("clause.0.sum.0", 5, HOUR);
        counters.add("clause.0.sum.0", 7, 2 * HOUR);
        let sum = |window, now| counters.summed("clause.0.sum.0", window, now);
        assert_eq!(sum(Window::Hour, 2 * HOUR - 1), 12);
        assert_eq!(sum(Window::Hour, 2 * HOUR), 7);
        assert_eq!(sum(Window::Hour, 3 * HOUR), 0);
        assert_eq!(sum(Window::Day, 20 * HOUR), 12);
        assert_eq!(sum(Window::Day, 26 * HOUR), 0);
        assert_eq!(sum(Window::Task, 99 * HOUR), 12);
        assert_eq!(counters.used("grant.calls"), 1);
        assert_eq!(counters.used("other"), 0);
    }

    #[test]
    fn what_is_given_back_was_taken() {
        let mut counters = Counters::default();
        counters.add("a.sum.0", 5, 10);
        counters.add("a.sum.0", 7, 20);
        counters.give_back("a.sum.0", 7, 20);
        assert_eq!(counters.summed("a.sum.0", Window::Task, 30), 5);
        counters.give_back("a.sum.0", 9, 10);
        assert_eq!(counters.summed("a.sum.0", Window::Task, 30), 5);
        counters.add("grant.calls", 2, 0);
        counters.give_back("grant.calls", 1, 0);
        assert_eq!(counters.used("grant.calls"), 1);
    }

    #[test]
    fn many_entries_keep_their_sum_and_are_never_older_than_they_are() {
        let mut counters = Counters::default();
        for time in 0..5000 {
            counters.add("a.sum.0", 1, time * 1000);
        }
        assert_eq!(counters.summed("a.sum.0", Window::Task, 0), 5000);
        assert!(counters.summed("a.sum.0", Window::Hour, 5_000_000) >= 3600);
    }
}
