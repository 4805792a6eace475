//! The tables of the gates.

use casemate_attestation::{Boundary, IdentityClaims, Property, UnixTime};
use casemate_ledger::constraint::Rule;
use casemate_ledger::{
    Authentic, Budgets, Constraint, Effect, Grant, Outcome, Rate, Record, Status, Sum, Threshold,
    Window,
};
use serde_json::json;

use super::approval::Whose;
use super::*;
use crate::keys::SigningKey;

mod budgets;

const START: u64 = 1_790_000_000;

pub(crate) fn identity() -> Identity {
    Identity {
        sandbox: "spiffe://casemate.internal/demo/sb/00".to_owned(),
        tenant: "demo".to_owned(),
        key: [1; 32],
        claims: IdentityClaims {
            epoch: 1,
            boundary: Boundary::MicroVm,
            properties: [Property::OwnKernel].into_iter().collect(),
            bundle: [2; 32],
            measurement: vec![3; 48],
            task: "report".to_owned(),
            anchor: "local".to_owned(),
            hardware: "model".to_owned(),
        },
        expires: UnixTime(START + 900),
        digest: [4; 32],
    }
}

pub(crate) fn grant() -> Grant {
    Grant {
        id: [9; 16],
        issuer: "ops".to_owned(),
        tenant: "demo".to_owned(),
        task: "report".to_owned(),
        not_before: UnixTime(START),
        expires: UnixTime(START + 600),
        risk_ceiling: Risk::Medium,
        require: [Property::OwnKernel].into_iter().collect(),
        tools: vec![Clause::of("time.now")],
        budgets: Budgets::of(2),
        parent: None,
        owner: None,
    }
}

pub(crate) fn signed(grant: Grant) -> Authentic<Grant> {
    let key = SigningKey::generate().unwrap();
    grant.sign(key.public(), |message| key.sign(message))
}

pub(crate) fn tool() -> PinnedTool {
    PinnedTool {
        upstream: "time".to_owned(),
        digest: [5; 32],
        risk: Risk::Low,
        idempotent: false,
        read_only: false,
        cost_micro: 100,
        label: Label::Public,
        volatile: Vec::new(),
        drifted: false,
        resting: false,
        max_result_bytes: 1000,
        timeout_ms: 5000,
    }
}

pub(crate) fn facts<'a>(grants: &'a [&'a Held]) -> Facts<'a> {
    static FLOOR: std::sync::LazyLock<BoundaryFloor> =
        std::sync::LazyLock::new(BoundaryFloor::default);
    static LOOPS: std::sync::LazyLock<Loops> = std::sync::LazyLock::new(Loops::default);
    static LIMITS: std::sync::LazyLock<LoopLimits> = std::sync::LazyLock::new(LoopLimits::default);
    static BREAKERS: std::sync::LazyLock<Breakers> = std::sync::LazyLock::new(Breakers::default);
    Facts {
        grants,
        floor: &FLOOR,
        seen: Label::Public,
        loops: &LOOPS,
        loop_limits: &LIMITS,
        breakers: &BREAKERS,
        waited: None,
        standing: &Standing::New,
        reach: None,
        rules: None,
    }
}

pub(crate) fn at(seconds: u64) -> Now {
    Now { unix_ms: (START + seconds) * 1000, monotonic_us: seconds * 1_000_000 }
}

/// Everything that a case may change.
struct Case {
    grant: Grant,
    held: Box<dyn Fn(&mut Held)>,
    caller: Identity,
    tool: Option<PinnedTool>,
    shown: Option<[u8; 32]>,
    name: &'static str,
    arguments: Value,
    above: Option<Held>,
    seen: Label,
    now: Now,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            grant: grant(),
            held: Box::new(|_| ()),
            caller: identity(),
            tool: Some(tool()),
            shown: Some([5; 32]),
            name: "time.now",
            arguments: json!({}),
            above: None,
            seen: Label::Public,
            now: at(1),
        }
    }
}

impl Case {
    /// The case's call under the grant `held`.
    fn call<'a>(&'a self, held: &Held) -> Call<'a> {
        Call {
            caller: &self.caller,
            grant: Some(GrantRef { id: held.grant.id, digest: held.digest }),
            tool: self.name,
            tool_digest: self.shown,
            pinned: self.tool.as_ref(),
            arguments: &self.arguments,
            arguments_length: 2,
            fingerprint: [6; 32],
            exact: [6; 32],
        }
    }

    fn ruling(&self) -> Ruling {
        let mut held = Held::new(signed(self.grant.clone()), 0);
        (self.held)(&mut held);
        let call = self.call(&held);
        let line: Vec<&Held> = std::iter::once(&held).chain(&self.above).collect();
        let facts = Facts { seen: self.seen, ..facts(&line) };
        decide(&facts, &call, self.now)
    }

    fn denied(&self, code: DenyCode) -> Denial {
        let ruling = self.ruling();
        assert!(ruling.budgets.iter().all(|budget| budget.reserved == 0));
        let denial = ruling.verdict.unwrap_err();
        assert_eq!(denial.code, code, "{denial:?}");
        assert_eq!(ruling.rules, std::slice::from_ref(&denial.rule));
        assert!(!denial.expected.is_empty() && !denial.actual.is_empty());
        assert!(!denial.hint.is_empty());
        denial
    }
}

fn constrained(rule: Rule) -> Clause {
    let constraint = Constraint { pointer: "/zone".to_owned(), rule, optional: false };
    Clause { arguments: vec![constraint], ..Clause::of("time.now") }
}

#[test]
fn a_call_within_the_grant_is_allowed() {
    let ruling = Case::default().ruling();
    let permit = ruling.verdict.unwrap();
    assert_eq!((permit.clauses, permit.timeout_ms, permit.max_result_bytes), (vec![0], 5000, 1000));
    assert_eq!(ruling.rules, ["grant/tools/0"]);
    assert_eq!(ruling.budgets.len(), 1);
}

#[test]
fn a_grant_that_is_not_held_or_not_the_one_named_is_unknown() {
    let case = Case::default();
    let call = Call {
        caller: &case.caller,
        grant: None,
        tool: case.name,
        tool_digest: case.shown,
        pinned: case.tool.as_ref(),
        arguments: &case.arguments,
        arguments_length: 2,
        fingerprint: [6; 32],
        exact: [6; 32],
    };
    let held = Held::new(signed(grant()), 0);
    let other = Some(GrantRef { id: held.grant.id, digest: [0; 32] });
    for (held, named, code) in [
        (None, other, DenyCode::GrantUnknown),
        (None, None, DenyCode::GrantUnknown),
        (Some(&held), other, DenyCode::GrantUnknown),
        (Some(&held), None, DenyCode::ToolNotGranted),
    ] {
        let line: Vec<&Held> = held.into_iter().collect();
        let ruling = decide(&facts(&line), &Call { grant: named, ..call }, case.now);
        assert_eq!(ruling.verdict.unwrap_err().code, code);
    }
}

#[test]
fn who_when_and_where() {
    let task = |task: &str| {
        let mut caller = identity();
        task.clone_into(&mut caller.claims.task);
        caller
    };
    let tenant = Identity { tenant: "other".to_owned(), ..identity() };
    let weak = {
        let mut caller = identity();
        caller.claims.properties = Properties::default();
        caller
    };
    let bound = |held: &mut Held| {
        held.user = Some(User { sandbox: "other".to_owned(), epoch: 1, key: [1; 32] });
    };
    Case { caller: task("other"), ..Case::default() }.denied(DenyCode::GrantForeign);
    Case { caller: tenant, ..Case::default() }.denied(DenyCode::GrantForeign);
    Case { held: Box::new(bound), ..Case::default() }.denied(DenyCode::GrantForeign);
    let early = Now { unix_ms: START * 1000 - 1500, ..at(0) };
    let denial = Case { now: early, ..Case::default() }.denied(DenyCode::GrantNotYetValid);
    assert_eq!(denial.retry_after_ms, Some(1500));
    Case { now: at(600), ..Case::default() }.denied(DenyCode::GrantExpired);
    let suspend = |held: &mut Held| held.suspended = Some("12 repetitions".to_owned());
    Case { held: Box::new(suspend), ..Case::default() }.denied(DenyCode::LoopStop);
    let revoke = |held: &mut Held| held.revoked = true;
    Case { held: Box::new(revoke), ..Case::default() }.denied(DenyCode::GrantRevoked);
    let denial = Case { caller: weak, ..Case::default() }.denied(DenyCode::BoundaryInsufficient);
    assert!(denial.actual.contains("missing {own_kernel}"), "{denial:?}");
}

#[test]
fn which_tool() {
    Case { name: "time.other", ..Case::default() }.denied(DenyCode::ToolNotGranted);
    Case { tool: None, ..Case::default() }.denied(DenyCode::ToolNotGranted);
    let drifted = PinnedTool { drifted: true, ..tool() };
    Case { tool: Some(drifted), ..Case::default() }.denied(DenyCode::ToolDrift);
    Case { shown: None, ..Case::default() }.denied(DenyCode::ToolDrift);
    Case { shown: Some([0; 32]), ..Case::default() }.denied(DenyCode::ToolDrift);
    let risky = PinnedTool { risk: Risk::High, ..tool() };
    Case { tool: Some(risky), ..Case::default() }.denied(DenyCode::RiskCeiling);
}

#[test]
fn which_arguments() {
    Case { arguments: json!([]), ..Case::default() }.denied(DenyCode::ArgsInvalid);
    let utc = constrained(Rule::OneOf(vec!["UTC".to_owned()]));
    let berlin = constrained(Rule::OneOf(vec!["Europe/Berlin".to_owned()]));
    let two = || Grant { tools: vec![utc.clone(), berlin.clone()], ..grant() };
    let call =
        |zone: &str| Case { grant: two(), arguments: json!({"zone": zone}), ..Case::default() };
    assert_eq!(call("UTC").ruling().verdict.unwrap().clauses, [0]);
    assert_eq!(call("Europe/Berlin").ruling().verdict.unwrap().clauses, [1]);
    let denial = call("Mars").denied(DenyCode::DecisionLimit);
    assert_eq!(denial.rule, "grant/tools/0/arguments/0");
    assert!(denial.expected.contains("UTC"));
}

#[test]
fn risk_rises_and_meets_floor_and_ceiling() {
    let amount = Threshold {
        pointer: "/amount".into(),
        above: Decimal(1_000_000),
        approvals: Approvals::One,
    };
    let reads = Clause { effect: Effect::Read, ..Clause::of("time.now") };
    let clause = |change: fn(&mut Clause)| {
        let mut clause = reads.clone();
        change(&mut clause);
        clause
    };
    let high = |clause: Clause| Grant { tools: vec![clause], risk_ceiling: Risk::High, ..grant() };
    // What was seen, the clause, the base risk, the effective risk or the denial.
    let cases = [
        (Label::Public, clause(|_| ()), Risk::Low, Ok(Risk::Low)),
        (Label::Internal, clause(|_| ()), Risk::Low, Ok(Risk::Low)),
        (Label::Confidential, clause(|_| ()), Risk::Low, Ok(Risk::Medium)),
        (Label::Internal, clause(|c| c.effect = Effect::External), Risk::Low, Ok(Risk::Medium)),
        (
            Label::Confidential,
            clause(|c| c.effect = Effect::External),
            Risk::Low,
            Err(DenyCode::BoundaryInsufficient),
        ),
        (Label::Public, clause(|_| ()), Risk::High, Err(DenyCode::BoundaryInsufficient)),
        (
            Label::Public,
            clause(|c| c.require.insert(Property::DebugOff)),
            Risk::Low,
            Err(DenyCode::BoundaryInsufficient),
        ),
    ];
    for (at, (seen, clause, base, expected)) in cases.into_iter().enumerate() {
        let tool = Some(PinnedTool { risk: base, ..tool() });
        let case = Case { grant: high(clause), tool, seen, ..Case::default() };
        match expected {
            Ok(risk) => {
                let ruling = case.ruling();
                assert!(ruling.verdict.is_ok(), "case {at}: {ruling:?}");
                assert_eq!((ruling.risk, ruling.raised.effective), (base, risk), "case {at}");
                assert_eq!(ruling.raised.reasons.is_empty(), base == risk);
            }
            Err(code) => drop(case.denied(code)),
        }
    }
    // The ceiling is of the raised risk.
    let low = Grant { risk_ceiling: Risk::Low, tools: vec![reads.clone()], ..grant() };
    Case { grant: low, seen: Label::Confidential, ..Case::default() }.denied(DenyCode::RiskCeiling);
    let over = Clause { thresholds: vec![amount], ..reads };
    let low = Grant { risk_ceiling: Risk::Low, tools: vec![over], ..grant() };
    Case { grant: low, arguments: json!({"amount": "2"}), ..Case::default() }
        .denied(DenyCode::RiskCeiling);
}

#[test]
fn labels_stop_what_was_read_from_leaving() {
    let clause =
        |most| Clause { max_in_label: most, effect: Effect::Read, ..Clause::of("time.now") };
    let cases = [
        (Label::Public, Some(Label::Public), true),
        (Label::Internal, Some(Label::Public), false),
        (Label::Internal, Some(Label::Internal), true),
        (Label::Restricted, Some(Label::Confidential), false),
        (Label::Restricted, None, true),
    ];
    for (seen, most, allowed) in cases {
        let grant = Grant { tools: vec![clause(most)], ..grant() };
        let case = Case { grant, seen, ..Case::default() };
        if allowed {
            assert!(case.ruling().verdict.is_ok());
        } else {
            case.denied(DenyCode::FlowLabel);
        }
    }
}

#[test]
fn every_grant_in_the_line_is_asked() {
    let parent = |grant: Grant| Held::new(signed(Grant { id: [8; 16], ..grant }), 0);
    let above = |held: Held| Case { above: Some(held), ..Case::default() };
    let case = above(parent(grant()));
    let ruling = case.ruling();
    assert_eq!(ruling.verdict.unwrap().clauses, [0, 0]);
    assert_eq!(ruling.rules, ["grant/tools/0", "parent.1.grant/tools/0"]);
    let mut first = Held::new(signed(grant()), 0);
    let mut second = parent(grant());
    first.reserve(0, &ruling.budgets, "time.now", 0);
    second.reserve(1, &ruling.budgets, "time.now", 0);
    assert_eq!((first.calls(), second.calls()), (1, 1));
    let mut revoked = parent(grant());
    revoked.revoked = true;
    above(revoked).denied(DenyCode::GrantRevoked);
    let mut spent = parent(grant());
    spent.used.add("grant.calls", 2, 0);
    let denial = above(spent).denied(DenyCode::BudgetExhausted);
    assert_eq!(denial.rule, "budget/parent.1.grant.calls");
    let narrow = constrained(Rule::Present);
    let narrow = parent(Grant { tools: vec![narrow], ..grant() });
    let denial = above(narrow).denied(DenyCode::DecisionLimit);
    assert_eq!(denial.rule, "parent.1.grant/tools/0/arguments/0");
    let over = parent(Grant { expires: UnixTime(START + 1), ..grant() });
    above(over).denied(DenyCode::GrantExpired);
    let other = parent(Grant { tools: vec![Clause::of("time.other")], ..grant() });
    above(other).denied(DenyCode::DecisionLimit);
    let until = Clause { until: Some(UnixTime(START + 1)), ..Clause::of("time.now") };
    let denial =
        above(parent(Grant { tools: vec![until], ..grant() })).denied(DenyCode::GrantExpired);
    assert_eq!(denial.rule, "parent.1.grant/tools/0/until");
}

#[test]
fn pace_and_concurrency() {
    let rate = Rate { per_minute: 60, burst: 2 };
    let clause = Clause { rate: Some(rate), concurrency: Some(3), ..Clause::of("time.now") };
    let paced = || Grant { tools: vec![clause.clone()], ..grant() };
    let mut held = Held::new(signed(paced()), 0);
    let permit = Case { grant: paced(), ..Case::default() }.ruling().verdict.unwrap();
    // Two at once are the burst; the third has to wait a second.
    assert_eq!(permit.clauses, [0]);
    held.start(0, at(1));
    held.start(0, at(1));
    let usage = held.clauses[0];
    let with = move |held: &mut Held| held.clauses[0] = usage;
    let denial = Case { grant: paced(), held: Box::new(with), now: at(1), ..Case::default() }
        .denied(DenyCode::RateLimited);
    assert_eq!(denial.retry_after_ms, Some(1000));
    let later = Case { grant: paced(), held: Box::new(with), now: at(2), ..Case::default() };
    assert!(later.ruling().verdict.is_ok());
    let busy = |held: &mut Held| held.clauses[0].running = 3;
    let denial = Case { grant: paced(), held: Box::new(busy), ..Case::default() }
        .denied(DenyCode::Concurrency);
    assert!(denial.retryable);
    held.finish(0);
    assert_eq!(held.clauses[0].running, 1);
}

#[test]
fn the_same_inputs_give_the_same_ruling() {
    let case = Case::default();
    let mut held = Held::new(signed(case.grant.clone()), 0);
    held.used.add("grant.calls", 1, 0);
    let call = case.call(&held);
    let line = [&held];
    assert_eq!(decide(&facts(&line), &call, case.now), decide(&facts(&line), &call, case.now));
}

#[test]
fn loops_duplicates_and_breakers_deny_in_their_turn() {
    let held = Held::new(signed(grant()), 0);
    let line = [&held];
    let case = Case::default();
    let call = case.call(&held);
    let (limits, now) = (LoopLimits::default(), at(1));
    let repeated = |times: u32| {
        let mut loops = Loops::default();
        for _ in 0..times {
            loops.record(&limits, None, &call, now);
        }
        loops
    };
    let mut running = repeated(1);
    running.start(1);
    let mut broken = Breakers::default();
    (0..5).for_each(|_| broken.end(&case.caller.sandbox, Health::Fails, now, 0));
    let fine = Breakers::default();
    for (loops, breakers, expected) in [
        (repeated(3), &fine, None),
        (repeated(4), &fine, None),
        (repeated(7), &fine, Some(DenyCode::LoopQuarantine)),
        (repeated(11), &fine, Some(DenyCode::LoopStop)),
        (running, &fine, Some(DenyCode::DuplicateSuppressed)),
        (repeated(0), &broken, Some(DenyCode::BreakerOpen)),
        (repeated(7), &broken, Some(DenyCode::LoopQuarantine)),
    ] {
        let ruling = decide(&Facts { loops: &loops, breakers, ..facts(&line) }, &call, now);
        assert_eq!(ruling.verdict.err().map(|denial| denial.code), expected);
    }
    let warned = repeated(4);
    let ruling = decide(&Facts { loops: &warned, ..facts(&line) }, &call, now);
    assert_eq!(ruling.rules, ["grant/tools/0", "gate/loops/identical/5"]);
}

#[test]
fn people_are_asked_last_and_their_answer_counts() {
    let one = Clause { approvals: Approvals::One, ..Clause::of("time.now") };
    let two = Clause { approvals: Approvals::Two, ..one.clone() };
    let id = [7; 32];
    let yes = |count: u8| Standing::Approved(id, (0..count).map(|of| [of; 32]).collect());
    let table = [
        (&one, Standing::New, Err(DenyCode::ApprovalPending), true),
        (&one, Standing::Waiting(id), Err(DenyCode::ApprovalPending), true),
        (&one, Standing::Full(Whose::Sandbox), Err(DenyCode::ApprovalPending), false),
        (&one, Standing::Refused(id), Err(DenyCode::ApprovalDenied), false),
        (&one, yes(1), Ok(1), false),
        (&two, yes(1), Err(DenyCode::ApprovalPending), false),
        (&two, yes(2), Ok(2), false),
    ];
    for (clause, standing, expected, asks) in table {
        let held = Held::new(signed(Grant { tools: vec![clause.clone()], ..grant() }), 0);
        let case = Case::default();
        let call = case.call(&held);
        let line = [&held];
        let now = at(1);
        let ruling = decide(&Facts { standing: &standing, ..facts(&line) }, &call, now);
        let verdict = ruling.verdict.map(|_| ruling.approvals.len());
        assert_eq!(verdict.map_err(|denial| denial.code), expected, "{standing:?}");
        assert_eq!(ruling.ask.is_some(), asks, "{standing:?}");
        // Whatever people say, the other gates hold.
        let late = decide(&Facts { standing: &yes(2), ..facts(&line) }, &call, at(601));
        assert_eq!(late.verdict.unwrap_err().code, DenyCode::GrantExpired);
    }
}
