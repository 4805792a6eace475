//! The tables of the loop rules.

use serde_json::json;

use super::*;
use crate::decide::tests::{identity, tool};
use crate::decide::{Call, PinnedTool};

struct Scene {
    loops: Loops,
    limits: LoopLimits,
    tool: PinnedTool,
    seconds: u64,
}

fn now(seconds: u64) -> Now {
    Now { unix_ms: 0, monotonic_us: seconds * 1_000_000 }
}

fn scene() -> Scene {
    Scene { loops: Loops::default(), limits: LoopLimits::default(), tool: tool(), seconds: 0 }
}

impl Scene {
    fn with<T>(
        &mut self,
        call: u8,
        act: impl FnOnce(&mut Loops, &LoopLimits, &Call<'_>, Now) -> T,
    ) -> T {
        let caller = identity();
        let call = Call {
            caller: &caller,
            grant: None,
            tool: "time.now",
            tool_digest: None,
            pinned: Some(&self.tool),
            arguments: &json!({}),
            arguments_length: 2,
            fingerprint: [call; 32],
            exact: [call; 32],
        };
        act(&mut self.loops, &self.limits, &call, now(self.seconds))
    }

    /// What is seen of `call`, which then takes its place and ends so.
    fn call(&mut self, call: u8, ended: Ended) -> Option<(Level, &'static str, u32)> {
        let finding = self.with(call, |loops, limits, call, now| {
            let finding = loops.look(limits, call, None, now);
            let number = loops.record(limits, finding, call, now);
            loops.start(number);
            loops.end(number, ended, now);
            finding
        });
        self.seconds += 1;
        finding.map(|finding| (finding.level, finding.rule, finding.count))
    }

    fn denied(&mut self, call: u8) -> Option<Denial> {
        self.with(call, |loops, limits, call, now| {
            let finding = loops.look(limits, call, None, now);
            loops.check(finding, call, now).err()
        })
    }
}

fn result(of: u8) -> Ended {
    Ended::Result([of; 32])
}

#[test]
fn the_same_call_is_warned_then_rests_then_stops() {
    let mut scene = scene();
    for number in 1..=20_u8 {
        let expected = match number {
            ..5 => None,
            5..8 => Some((Level::Warn, "identical", number.into())),
            8..12 => Some((Level::Quarantine, "identical", number.into())),
            _ => Some((Level::Stop, "identical", number.into())),
        };
        assert_eq!(scene.call(1, result(number)), expected, "{number}");
    }
    // Ten minutes later it is forgotten.
    scene.seconds += 700;
    assert_eq!(scene.call(1, result(0)), None);
}

#[test]
fn a_cycle_is_seen_at_every_period() {
    for period in 2..=8_u8 {
        let mut scene = scene();
        scene.limits.identical = [100, 200, 300];
        let mut seen = Vec::new();
        for call in 0..period * 6 {
            if let Some((level, rule, count)) = scene.call(call % period, result(call)) {
                assert_eq!(rule, "cycle");
                if seen.last() != Some(&(level, count)) {
                    seen.push((level, count));
                }
            }
        }
        let steps =
            [(Level::Warn, 3), (Level::Quarantine, 4), (Level::Quarantine, 5), (Level::Stop, 6)];
        assert_eq!(seen, steps, "period {period}");
    }
    // What differs is no cycle.
    let mut scene = scene();
    assert!((0..200).all(|call| scene.call(call, result(call)).is_none()));
}

#[test]
fn a_reading_tool_that_finds_nothing_rests() {
    let mut scene = scene();
    scene.tool.read_only = true;
    for call in 0..10 {
        assert_eq!(scene.call(call, result(0)), None, "{call}");
    }
    assert_eq!(scene.call(10, result(0)), Some((Level::Quarantine, "no_progress", 10)));
    // One other result breaks the row; a writing tool may say "done" each time.
    assert!(scene.call(11, result(1)).is_some());
    assert_eq!(scene.call(12, result(0)), None);
    let mut writes = self::scene();
    assert!((0..50).all(|call| writes.call(call, result(0)).is_none()));
}

#[test]
fn a_tool_that_fails_in_one_way_rests() {
    let mut scene = scene();
    for call in 0..5 {
        assert_eq!(scene.call(call, Ended::Failure(Status::ToolError)), None);
    }
    let found = scene.call(5, Ended::Failure(Status::Timeout));
    assert_eq!(found, Some((Level::Quarantine, "errors", 5)));
    assert_eq!(scene.call(6, result(0)), None);
}

#[test]
fn a_rest_is_longer_each_time_and_ends() {
    let mut scene = scene();
    scene.limits.identical = [2, 3, 1000];
    let mut waits = Vec::new();
    for _ in 0..8 {
        while scene.denied(1).is_none() {
            scene.call(1, result(0));
        }
        scene.call(1, result(0));
        let wait = scene.denied(2).unwrap().retry_after_ms.unwrap();
        waits.push(wait.div_ceil(1000) + 1);
        scene.seconds += wait / 1000 + 1;
        assert_eq!(scene.denied(2), None);
    }
    assert_eq!(waits, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
}

#[test]
fn a_stop_is_a_stop_and_a_quarantine_says_when() {
    let mut scene = scene();
    for _ in 0..7 {
        scene.call(1, result(0));
    }
    let denial = scene.denied(1).unwrap();
    assert_eq!((denial.code, denial.retry_after_ms), (DenyCode::LoopQuarantine, Some(60_000)));
    assert_eq!(scene.denied(2), None, "another call, before the tool rests");
    for _ in 0..4 {
        scene.call(1, Ended::Denied);
    }
    assert_eq!(scene.denied(2).unwrap().code, DenyCode::LoopQuarantine);
    let denial = scene.denied(1).unwrap();
    assert_eq!((denial.code, denial.retryable), (DenyCode::LoopStop, false));
}

#[test]
fn what_may_have_run_does_not_run_twice() {
    // How the first ended after 40 seconds, what the tool is, seconds after that, denied.
    let table = [
        (None, (false, false), 1, true),
        (None, (false, false), 30, true),
        (None, (false, false), 31, true),
        (None, (false, false), 86_400, true),
        (None, (true, false), 1, false),
        (None, (false, true), 1, false),
        (Some(Ended::Unknown), (false, false), 1, true),
        (Some(Ended::Unknown), (false, false), 30, true),
        (Some(Ended::Unknown), (false, false), 31, false),
        (Some(Ended::Failure(Status::UpstreamError)), (false, false), 1, true),
        (Some(Ended::Failure(Status::UpstreamError)), (true, false), 1, false),
        (Some(Ended::Failure(Status::NotDispatched)), (false, false), 1, false),
        (Some(Ended::Failure(Status::Timeout)), (false, false), 1, true),
        (Some(Ended::Failure(Status::ToolError)), (false, false), 1, false),
        (Some(Ended::Denied), (false, false), 1, false),
        (Some(result(1)), (false, false), 1, false),
    ];
    for (ended, (idempotent, read_only), later, expected) in table {
        let mut scene = scene();
        scene.tool = PinnedTool { idempotent, read_only, ..tool() };
        let number = scene.with(1, |loops, limits, call, now| {
            let number = loops.record(limits, None, call, now);
            loops.start(number);
            number
        });
        scene.seconds += 40;
        if let Some(ended) = ended {
            scene.with(1, |loops, _, _, now| loops.end(number, ended, now));
        }
        scene.seconds += later;
        let denial = scene.with(1, |loops, _, call, now| loops.check_duplicate(call, now).err());
        assert_eq!(denial.is_some(), expected, "{ended:?} {later}");
        if let Some(denial) = denial {
            assert_eq!(denial.code, DenyCode::DuplicateSuppressed);
        }
        assert!(scene.with(2, |loops, _, call, now| loops.check_duplicate(call, now)).is_ok());
    }
}

#[test]
fn after_a_restart_a_tool_that_may_have_run_waits() {
    for (idempotent, name, later, denied) in [
        (false, "time.now", 30, true),
        (false, "time.now", 31, false),
        (false, "other", 1, false),
        (true, "time.now", 1, false),
    ] {
        let mut scene = scene();
        scene.tool.idempotent = idempotent;
        scene.loops.note_unknown(name, 0, now(0));
        scene.seconds = later;
        let denial = scene.with(1, |loops, _, call, now| loops.check_duplicate(call, now).err());
        assert_eq!(denial.is_some(), denied, "{name} {later}");
    }
}

#[test]
fn a_call_that_waited_is_not_its_own_repetition() {
    let mut scene = scene();
    let limits = scene.limits;
    let numbers: Vec<u64> = (0..5)
        .map(|_| scene.with(1, |loops, limits, call, now| loops.record(limits, None, call, now)))
        .collect();
    let mut look = |own| {
        let found = scene.with(1, |loops, _, call, now| loops.look(&limits, call, own, now));
        found.map(|found| (found.level, found.count))
    };
    assert_eq!(look(None), Some((Level::Warn, 6)));
    assert_eq!(look(numbers.last().copied()), Some((Level::Warn, 5)));
    // Nor the last of its own cycle.
    let mut scene = self::scene();
    for call in [1, 2, 1, 2, 1] {
        scene.call(call, result(call));
    }
    let own = scene.with(2, |loops, limits, call, now| loops.record(limits, None, call, now));
    let found = scene.with(2, |loops, limits, call, now| loops.look(limits, call, Some(own), now));
    assert_eq!(found.map(|found| (found.rule, found.count)), Some(("cycle", 3)));
}

#[test]
fn a_call_that_runs_is_not_pushed_out() {
    let mut scene = scene();
    scene.with(1, |loops, limits, call, now| {
        let number = loops.record(limits, None, call, now);
        loops.start(number);
    });
    for call in 2..=200 {
        scene.call(call, result(call));
    }
    assert!(scene.with(1, |loops, _, call, now| loops.check_duplicate(call, now)).is_err());
    assert_eq!(scene.loops.ring.len(), scene.limits.ring());
}

#[test]
fn limits_must_rise() {
    assert!(LoopLimits::default().check());
    let bad = [
        LoopLimits { identical: [1, 2, 3], ..LoopLimits::default() },
        LoopLimits { identical: [5, 5, 6], ..LoopLimits::default() },
        LoopLimits { identical: [5, 8, 1025], ..LoopLimits::default() },
        LoopLimits { cycle: [3, 4, 129], ..LoopLimits::default() },
        LoopLimits { errors: 1, ..LoopLimits::default() },
    ];
    assert!(bad.iter().all(|limits| !limits.check()));
}

#[test]
fn what_an_operator_forgets_is_not_what_may_run() {
    let mut scene = scene();
    scene.tool.idempotent = false;
    scene.tool.read_only = false;
    for _ in 0..11 {
        scene.call(1, result(1));
    }
    assert!(scene.denied(1).is_some());
    scene.call(2, Ended::Failure(Status::Timeout));
    scene.with(3, |loops, limits, call, now| {
        let number = loops.record(limits, None, call, now);
        loops.start(number);
    });
    let later = now(scene.seconds);
    scene.loops.note_unknown("pay", 0, later);
    scene.loops.forget(later);
    assert!(scene.denied(1).is_none());
    for (call, duplicate) in [(1, false), (2, true), (3, true)] {
        let denied = scene.with(call, |loops, _, call, now| loops.check_duplicate(call, now).err());
        assert_eq!(denied.is_some(), duplicate, "{call}");
    }
    let caller = identity();
    let paying = scene.with(9, |loops, _, call, now| {
        let call = Call { tool: "pay", caller: &caller, ..*call };
        loops.check_duplicate(&call, now).err()
    });
    assert!(paying.is_some_and(|denial| denial.code == DenyCode::DuplicateSuppressed));
    // What ended before a restart counts for what is left of its time.
    for (ago_ms, left_ms) in [(0, Some(30_000)), (29_000, Some(1_000)), (30_000, None)] {
        let mut loops = Loops::default();
        let start = Now { unix_ms: 100_000, monotonic_us: 7 };
        loops.note_unknown("time.now", 100_000 - ago_ms, start);
        let denial = scene.with(9, |_, _, call, _| loops.check_duplicate(call, start).err());
        assert_eq!(denial.and_then(|denial| denial.retry_after_ms), left_ms, "{ago_ms}");
    }
}
