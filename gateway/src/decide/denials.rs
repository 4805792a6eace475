//! How much a sandbox may have written down that no budget pays for: denials,
//! whose arguments are kept too, and hellos. Without a limit a sandbox could fill
//! the disk that all calls depend on.

use std::collections::HashMap;

use crate::clock::Now;

/// For each sandbox, when what it cost is paid off: a bucket that leaks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Denials(HashMap<String, u64>);

/// So many bytes at once, and so many a second from then on.
const BURST_BYTES: u64 = 8 << 20;
const BYTES_PER_SECOND: u64 = 16 << 10;

impl Denials {
    /// The milliseconds that `sandbox` must wait until its next call or hello, if
    /// it cost too much. Every call waits: what it comes to is not known before.
    pub(crate) fn wait_ms(&self, sandbox: &str, now: Now) -> Option<u64> {
        let paid_us = self.0.get(sandbox)?;
        let wait_us = paid_us.saturating_sub(cost_us(BURST_BYTES)).saturating_sub(now.monotonic_us);
        (wait_us > 0).then_some(wait_us.div_ceil(1000))
    }

    /// A call of `sandbox` that was not allowed, or a hello, took `bytes` of the disk.
    pub(crate) fn charge(&mut self, sandbox: &str, bytes: u64, now: Now) {
        self.0.retain(|_, paid_us| *paid_us > now.monotonic_us);
        let paid_us = self.0.entry(sandbox.to_owned()).or_insert(now.monotonic_us);
        *paid_us = paid_us.saturating_add(cost_us(bytes));
    }
}

fn cost_us(bytes: u64) -> u64 {
    bytes.saturating_mul(1_000_000) / BYTES_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now { unix_ms: 0, monotonic_us: seconds * 1_000_000 }
    }

    #[test]
    fn a_sandbox_that_is_denied_too_much_waits_and_others_do_not() {
        let mut denials = Denials::default();
        let mebibyte = 1 << 20;
        for _ in 0..8 {
            assert_eq!(denials.wait_ms("a", at(0)), None);
            denials.charge("a", mebibyte, at(0));
        }
        assert_eq!(denials.wait_ms("a", at(0)), None, "all of the burst, and not more");
        denials.charge("a", mebibyte, at(0));
        assert_eq!(denials.wait_ms("a", at(0)), Some(64_000));
        assert_eq!(denials.wait_ms("a", at(63)), Some(1_000));
        assert_eq!((denials.wait_ms("a", at(64)), denials.wait_ms("b", at(0))), (None, None));
        // A day of it is bounded by the pace.
        let mut kept = 0;
        for second in 64..86_400 {
            while denials.wait_ms("a", at(second)).is_none() {
                denials.charge("a", mebibyte, at(second));
                kept += mebibyte;
            }
        }
        assert!(kept <= 86_400 * BYTES_PER_SECOND + 2 * mebibyte, "{kept}");
        denials.charge("b", 1, at(200_000));
        assert_eq!(denials.0.len(), 1, "who owes nothing is forgotten");
    }
}
