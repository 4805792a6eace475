//! The tables of budgets and amounts.

use super::*;

/// A grant of which `used` is used, each by name.
fn with_use(used: &'static [(&'static str, u64)]) -> Box<dyn Fn(&mut Held)> {
    Box::new(move |held| used.iter().for_each(|(name, count)| held.used.add(name, *count, 0)))
}

#[test]
fn budgets_cover_the_call_or_it_is_denied() {
    let of = |budgets: Budgets, clause: Clause| Grant { budgets, tools: vec![clause], ..grant() };
    let calls = || Budgets::of(9);
    let now = || Clause::of("time.now");
    type Row = (Grant, &'static [(&'static str, u64)], Option<&'static str>);
    let cases: [Row; 16] = [
        (grant(), &[("grant.calls", 1)], None),
        (grant(), &[("grant.calls", 2)], Some("grant.calls")),
        (of(calls(), Clause { max_calls: Some(1), ..now() }), &[], None),
        (
            of(calls(), Clause { max_calls: Some(1), ..now() }),
            &[("clause.0.calls", 1)],
            Some("clause.0.calls"),
        ),
        (of(Budgets { bytes_out: Some(2), ..calls() }, now()), &[], None),
        (of(Budgets { bytes_out: Some(1), ..calls() }, now()), &[], Some("grant.bytes_out")),
        (
            of(calls(), Clause { max_bytes_out: Some(4), ..now() }),
            &[("clause.0.bytes_out", 2)],
            None,
        ),
        (
            of(calls(), Clause { max_bytes_out: Some(4), ..now() }),
            &[("clause.0.bytes_out", 3)],
            Some("clause.0.bytes_out"),
        ),
        (
            of(Budgets { cost_micro: Some(200), ..calls() }, now()),
            &[("grant.cost_micro", 100)],
            None,
        ),
        (
            of(Budgets { cost_micro: Some(200), ..calls() }, now()),
            &[("grant.cost_micro", 101)],
            Some("grant.cost_micro"),
        ),
        (of(Budgets { wall_ms: Some(6000), ..calls() }, now()), &[("grant.wall_ms", 5999)], None),
        (
            of(Budgets { wall_ms: Some(6000), ..calls() }, now()),
            &[("grant.wall_ms", 6000)],
            Some("grant.wall_ms"),
        ),
        (of(Budgets { bytes_in: Some(100), ..calls() }, now()), &[("grant.bytes_in", 99)], None),
        (
            of(Budgets { bytes_in: Some(100), ..calls() }, now()),
            &[("grant.bytes_in", 100)],
            Some("grant.bytes_in"),
        ),
        (of(Budgets { distinct_tools: Some(1), ..calls() }, now()), &[], None),
        (
            of(Budgets { distinct_tools: Some(1), ..calls() }, now()),
            &[("grant.distinct_tools", 1)],
            Some("grant.distinct_tools"),
        ),
    ];
    for (at, (grant, used, expected)) in cases.into_iter().enumerate() {
        let case = Case { grant, held: with_use(used), ..Case::default() };
        match expected {
            None => assert!(case.ruling().verdict.is_ok(), "case {at}"),
            Some(name) => {
                let denial = case.denied(DenyCode::BudgetExhausted);
                assert_eq!(denial.rule, format!("budget/{name}"), "case {at}");
            }
        }
    }
}

#[test]
fn what_is_left_bounds_the_call() {
    let of = |budgets: Budgets, clause: Clause| Grant { budgets, tools: vec![clause], ..grant() };
    let budgets = Budgets { bytes_in: Some(100), wall_ms: Some(6000), ..Budgets::of(9) };
    let left = with_use(&[("grant.bytes_in", 40), ("grant.wall_ms", 4000)]);
    let permit = Case { grant: of(budgets, Clause::of("time.now")), held: left, ..Case::default() };
    let permit = permit.ruling().verdict.unwrap();
    assert_eq!((permit.max_result_bytes, permit.timeout_ms), (60, 2000));
}

fn outcome(status: Status) -> Outcome {
    Outcome {
        decision: [0; 32],
        status,
        reason: None,
        result: None,
        upstream: None,
        started_ms: if status == Status::NotDispatched { 0 } else { 1000 },
        ended_ms: 1700,
        bytes_out: 2,
        bytes_in: 30,
    }
}

#[test]
fn reserving_and_settling_keep_the_sum() {
    let budgets = Budgets {
        bytes_out: Some(100),
        bytes_in: Some(1000),
        cost_micro: Some(1000),
        wall_ms: Some(100_000),
        ..Budgets::of(5)
    };
    let sum = Sum { pointer: "/amount".into(), window: Window::Day, max: Decimal(10_000_000) };
    let clause = Clause { max_calls: Some(5), sums: vec![sum], ..Clause::of("time.now") };
    let names = ["calls", "bytes_out", "bytes_in", "cost_micro", "wall_ms"];
    for (status, expected, summed) in [
        (Status::Executed, [1, 2, 30, 100, 700], 4_000_000),
        (Status::Timeout, [1, 2, 30, 100, 700], 4_000_000),
        (Status::NotDispatched, [1, 0, 0, 0, 0], 0),
        (Status::Unknown, [1, 2, 1000, 100, 5000], 4_000_000),
    ] {
        let case = Case {
            grant: Grant { budgets, tools: vec![clause.clone()], ..grant() },
            arguments: json!({"amount": "4"}),
            ..Case::default()
        };
        let ruling = case.ruling();
        let mut held = Held::new(signed(case.grant.clone()), 0);
        held.reserve(0, &ruling.budgets, "time.now", 7);
        let used = |held: &Held| names.map(|name| held.used.used(&format!("grant.{name}")));
        assert_eq!(used(&held), [1, 2, 1000, 100, 5000]);
        assert_eq!(held.used.summed("clause.0.sum.0", Window::Day, 7), 4_000_000);
        held.settle(0, &ruling.budgets, &outcome(status), 7);
        assert_eq!(used(&held), expected, "{status:?}");
        assert_eq!(held.used.used("clause.0.calls"), 1);
        assert_eq!(held.used.summed("clause.0.sum.0", Window::Day, 7), summed, "{status:?}");
    }
}

#[test]
fn sums_and_thresholds_count_amounts() {
    let sum = Sum { pointer: "/amount".into(), window: Window::Hour, max: Decimal(10_000_000) };
    let threshold = |above: u64, approvals| Threshold {
        pointer: "/amount".into(),
        above: Decimal(above * 1_000_000),
        approvals,
    };
    let summed = Clause { sums: vec![sum], ..Clause::of("time.now") };
    let asked = Clause {
        thresholds: vec![threshold(3, Approvals::One), threshold(6, Approvals::Two)],
        ..Clause::of("time.now")
    };
    let always = Clause { approvals: Approvals::One, ..Clause::of("time.now") };
    let cases = [
        (&summed, json!({"amount": "6"}), None),
        (&summed, json!({"amount": "6.000001"}), Some(DenyCode::BudgetExhausted)),
        (&summed, json!({"amount": 6}), None),
        (&summed, json!({"amount": 6.0}), Some(DenyCode::DecisionLimit)),
        (&summed, json!({"amount": "-6"}), Some(DenyCode::DecisionLimit)),
        (&summed, json!({}), Some(DenyCode::DecisionLimit)),
        (&asked, json!({"amount": "3"}), None),
        (&asked, json!({"amount": "3.01"}), Some(DenyCode::ApprovalPending)),
        (&asked, json!({"amount": "7"}), Some(DenyCode::ApprovalPending)),
        (&asked, json!({"amount": true}), Some(DenyCode::DecisionLimit)),
        (&always, json!({}), Some(DenyCode::ApprovalPending)),
    ];
    for (at, (clause, arguments, expected)) in cases.into_iter().enumerate() {
        let case = Case {
            grant: Grant { tools: vec![clause.clone()], ..grant() },
            held: Box::new(|held| held.used.add("clause.0.sum.0", 4_000_000, START * 1000)),
            arguments,
            ..Case::default()
        };
        match expected {
            None => assert!(case.ruling().verdict.is_ok(), "case {at}: {:?}", case.ruling()),
            Some(code) => drop(case.denied(code)),
        }
    }
}
