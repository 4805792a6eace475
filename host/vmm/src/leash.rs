//! When a machine must pause and when it must end: lease, grace and limits.
//!
//! Pure arithmetic over times since the start; the warden asks and obeys.

use std::time::Duration;

use crate::exit::Exit;
use crate::spec::{LeaseSpec, LimitSpec};

/// The terms of one machine.
#[derive(Debug, Clone)]
pub(crate) struct Leash {
    /// When the lease runs out, counted from the start, and the grace after it.
    lease: Option<(Duration, Duration)>,
    wall: Option<Duration>,
    cpu: Option<Duration>,
}

/// What the terms say at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing has run out.
    Run,
    /// The lease has run out, its grace has not.
    Pause,
    /// The machine is to end.
    End(Exit),
}

/// Processor time has no timer: it is looked at this often.
const CPU_LOOK: Duration = Duration::from_secs(1);

impl Leash {
    pub(crate) fn new(lease: Option<LeaseSpec>, limits: LimitSpec) -> Self {
        let seconds = Duration::from_secs;
        Self {
            lease: lease.map(|lease| (seconds(lease.seconds), seconds(lease.grace_seconds))),
            wall: limits.wall_seconds.map(seconds),
            cpu: limits.cpu_seconds.map(seconds),
        }
    }

    /// Extends the lease from `now`. False when the machine was started without one.
    pub(crate) fn renew(&mut self, now: Duration, length: Duration) -> bool {
        let Some((ends, _)) = &mut self.lease else { return false };
        *ends = now.saturating_add(length);
        true
    }

    /// What holds `now`, with this much processor time used.
    pub(crate) fn verdict(&self, now: Duration, cpu: Duration) -> Verdict {
        if self.wall.is_some_and(|wall| now >= wall) {
            return Verdict::End(Exit::WallLimit);
        }
        if self.cpu.is_some_and(|limit| cpu >= limit) {
            return Verdict::End(Exit::CpuLimit);
        }
        match self.lease {
            Some((ends, grace)) if now >= ends.saturating_add(grace) => {
                Verdict::End(Exit::LeaseExpired)
            }
            Some((ends, _)) if now >= ends => Verdict::Pause,
            _ => Verdict::Run,
        }
    }

    /// How long until the verdict may change; `None` when it never does by itself.
    pub(crate) fn next_look(&self, now: Duration) -> Option<Duration> {
        let moments = [
            self.wall,
            self.lease.map(|(ends, _)| ends),
            self.lease.map(|(ends, grace)| ends.saturating_add(grace)),
        ];
        let times = moments.into_iter().flatten().filter(|moment| *moment > now);
        times.map(|moment| moment - now).chain(self.cpu.map(|_| CPU_LOOK)).min()
    }

    /// Time left on the lease, if there is one.
    pub(crate) fn lease_left(&self, now: Duration) -> Option<Duration> {
        self.lease.map(|(ends, _)| ends.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn leash() -> Leash {
        let limits = LimitSpec { wall_seconds: Some(100), cpu_seconds: Some(50) };
        Leash::new(Some(LeaseSpec { seconds: 10, grace_seconds: 5 }), limits)
    }

    #[test]
    fn a_lease_pauses_then_ends_and_renewal_moves_both() {
        let mut leash = leash();
        let verdict = |leash: &Leash, now| leash.verdict(at(now), at(0));
        assert_eq!(verdict(&leash, 9), Verdict::Run);
        assert_eq!(verdict(&leash, 10), Verdict::Pause);
        assert_eq!(verdict(&leash, 14), Verdict::Pause);
        assert_eq!(verdict(&leash, 15), Verdict::End(Exit::LeaseExpired));
        assert!(leash.renew(at(14), at(10)));
        assert_eq!(verdict(&leash, 15), Verdict::Run);
        assert_eq!(verdict(&leash, 24), Verdict::Pause);
        assert_eq!(verdict(&leash, 29), Verdict::End(Exit::LeaseExpired));
    }

    #[test]
    fn limits_end_a_machine_whatever_the_lease_says() {
        let mut leash = leash();
        leash.renew(at(0), at(1000));
        assert_eq!(leash.verdict(at(99), at(49)), Verdict::Run);
        assert_eq!(leash.verdict(at(100), at(0)), Verdict::End(Exit::WallLimit));
        assert_eq!(leash.verdict(at(1), at(50)), Verdict::End(Exit::CpuLimit));
    }

    #[test]
    fn nothing_is_looked_at_later_than_it_runs_out() {
        let leash =
            Leash::new(Some(LeaseSpec { seconds: 10, grace_seconds: 5 }), LimitSpec::default());
        assert_eq!(leash.next_look(at(0)), Some(at(10)));
        assert_eq!(leash.next_look(at(10)), Some(at(5)));
        assert_eq!(leash.next_look(at(15)), None);
        assert_eq!(Leash::new(None, LimitSpec::default()).next_look(at(0)), None);
    }

    #[test]
    fn no_number_overflows() {
        let mut leash = Leash::new(
            Some(LeaseSpec { seconds: u64::MAX, grace_seconds: u64::MAX }),
            LimitSpec::default(),
        );
        leash.renew(at(u64::MAX), at(u64::MAX));
        assert_eq!(leash.verdict(at(5), at(0)), Verdict::Run);
    }
}
