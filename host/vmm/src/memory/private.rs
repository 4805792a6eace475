//! Which pages are the guest's alone.
//!
//! One set for every kind of machine: on plain KVM it keeps devices away from what
//! the guest withdrew; under SNP and TDX the same pages are also encrypted, and a
//! launch fills the set before the guest runs.

use std::collections::BTreeMap;

/// Pages of 4 KiB, as ranges from a start to its end, disjoint and never touching.
#[derive(Debug, Default)]
pub(super) struct PrivateSet {
    ranges: BTreeMap<u64, u64>,
}

/// The guest made more holes than we keep account of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

/// Most ranges: a guest that alternates page by page must not eat the monitor's memory.
const RANGES_MAX: usize = 1 << 14;

impl PrivateSet {
    /// Makes `start..end` private.
    pub(super) fn add(&mut self, start: u64, end: u64) -> Result<(), TooMany> {
        // What touches the range becomes one with it.
        let touched = self.meeting(start.saturating_sub(1), end.saturating_add(1));
        if touched.is_empty() && self.ranges.len() >= RANGES_MAX {
            return Err(TooMany);
        }
        let (mut from, mut to) = (start, end);
        for (first, last) in touched {
            self.ranges.remove(&first);
            (from, to) = (from.min(first), to.max(last));
        }
        self.ranges.insert(from, to);
        Ok(())
    }

    /// Makes `start..end` shared.
    pub(super) fn remove(&mut self, start: u64, end: u64) -> Result<(), TooMany> {
        let touched = self.meeting(start, end);
        let splits = touched.iter().any(|&(first, last)| first < start && end < last);
        if splits && self.ranges.len() >= RANGES_MAX {
            return Err(TooMany);
        }
        for (first, last) in touched {
            self.ranges.remove(&first);
            if first < start {
                self.ranges.insert(first, start);
            }
            if end < last {
                self.ranges.insert(end, last);
            }
        }
        Ok(())
    }

    /// Whether a byte of `start..end` is private.
    pub(super) fn meets(&self, start: u64, end: u64) -> bool {
        self.ranges.range(..end).next_back().is_some_and(|(_, &last)| last > start)
    }

    /// Private bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// The ranges that share a byte with `start..end`.
    fn meeting(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let before = self.ranges.range(..end).rev();
        before.map(|(&first, &last)| (first, last)).take_while(|&(_, last)| last > start).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bytes::{narrow, wide};

    const PAGE: u64 = 4096;
    const PAGES: u64 = 64;

    proptest! {
        /// Any conversions leave what an array of flags says, in ranges that never touch.
        #[test]
        fn ranges_are_what_single_pages_say(
            steps in prop::collection::vec((0..PAGES, 1..PAGES, any::<bool>()), 1..60)
        ) {
            let (mut set, mut flags) = (PrivateSet::default(), vec![false; 64]);
            for (first, count, private) in steps {
                let last = (first + count).min(PAGES);
                let (start, end) = (first * PAGE, last * PAGE);
                match private {
                    true => set.add(start, end).unwrap(),
                    false => set.remove(start, end).unwrap(),
                }
                flags[narrow(first)..narrow(last)].fill(private);
                for (page, flag) in (0..PAGES).zip(&flags) {
                    let at = page * PAGE;
                    prop_assert_eq!(set.meets(at, at + PAGE), *flag);
                    prop_assert_eq!(set.meets(at + 7, at + 8), *flag);
                }
                let private = flags.iter().filter(|flag| **flag).count();
                prop_assert_eq!(set.bytes(), wide(private) * PAGE);
                let ends: Vec<_> = set.ranges.iter().collect();
                prop_assert!(ends.windows(2).all(|two| two[0].1 < two[1].0));
            }
        }
    }

    #[test]
    fn a_guest_that_alternates_is_told_to_stop() {
        let mut set = PrivateSet::default();
        let page = |n: u64| (2 * n * PAGE, (2 * n + 1) * PAGE);
        let most = wide(RANGES_MAX);
        for n in 0..most {
            set.add(page(n).0, page(n).1).unwrap();
        }
        assert_eq!(set.add(page(most).0, page(most).1), Err(TooMany));
        // What only grows a range, or joins two, is not one more.
        set.add(PAGE, 2 * PAGE).unwrap();
        assert_eq!(set.ranges.len(), RANGES_MAX - 1);
        set.add(page(most).0, page(most).1).unwrap();
        assert_eq!(set.remove(PAGE, 2 * PAGE), Err(TooMany));
        assert!(set.meets(PAGE, 2 * PAGE), "a refused step changed something");
    }
}
