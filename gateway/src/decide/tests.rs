//! The tables of the gates.

use casemate_attestation::{Boundary, IdentityClaims, Property, UnixTime};
use casemate_ledger::constraint::Rule;
use casemate_ledger::{Authentic, Budgets, Constraint, Grant, Rate, Record};
use serde_json::json;

use super::*;
use crate::keys::SigningKey;

const START: u64 = 1_790_000_000;

fn identity() -> Identity {
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

fn grant() -> Grant {
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
        budgets: Budgets { calls: 2, bytes_out: None, bytes_in: None },
    }
}

fn signed(grant: Grant) -> Authentic<Grant> {
    let key = SigningKey::generate().unwrap();
    grant.sign(key.public(), |message| key.sign(message))
}

fn tool() -> PinnedTool {
    PinnedTool {
        digest: [5; 32],
        risk: Risk::Low,
        drifted: false,
        max_result_bytes: 1000,
        timeout_ms: 5000,
    }
}

fn at(seconds: u64) -> Now {
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
            now: at(1),
        }
    }
}

impl Case {
    fn ruling(&self) -> Ruling {
        let mut held = Held::new(signed(self.grant.clone()), 0);
        (self.held)(&mut held);
        let call = Call {
            caller: &self.caller,
            grant: Some(GrantRef { id: held.grant.id, digest: held.digest }),
            tool: self.name,
            tool_digest: self.shown,
            pinned: self.tool.as_ref(),
            arguments: &self.arguments,
            arguments_length: 2,
        };
        decide(Some(&held), &call, self.now)
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
    assert_eq!((permit.clause, permit.timeout_ms, permit.max_result_bytes), (0, 5000, 1000));
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
    };
    let held = Held::new(signed(grant()), 0);
    let other = Some(GrantRef { id: held.grant.id, digest: [0; 32] });
    for (held, named, code) in [
        (None, other, DenyCode::GrantUnknown),
        (None, None, DenyCode::GrantUnknown),
        (Some(&held), other, DenyCode::GrantUnknown),
        (Some(&held), None, DenyCode::ToolNotGranted),
    ] {
        let ruling = decide(held, &Call { grant: named, ..call }, case.now);
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
    assert_eq!(call("UTC").ruling().verdict.unwrap().clause, 0);
    assert_eq!(call("Europe/Berlin").ruling().verdict.unwrap().clause, 1);
    let denial = call("Mars").denied(DenyCode::DecisionLimit);
    assert_eq!(denial.rule, "grant/tools/0/arguments/0");
    assert!(denial.expected.contains("UTC"));
}

#[test]
fn budgets_cover_the_call_or_it_is_denied() {
    let used = |held: &mut Held| held.calls = 2;
    let denial = Case { held: Box::new(used), ..Case::default() }.denied(DenyCode::BudgetExhausted);
    assert_eq!(denial.rule, "budget/grant.calls");
    let clause = Clause { max_calls: Some(1), ..Clause::of("time.now") };
    let once = Grant { tools: vec![clause], ..grant() };
    let used = |held: &mut Held| held.clauses[0].calls = 1;
    Case { grant: once, held: Box::new(used), ..Case::default() }.denied(DenyCode::BudgetExhausted);
    let out = Budgets { calls: 9, bytes_out: Some(1), bytes_in: None };
    Case { grant: Grant { budgets: out, ..grant() }, ..Case::default() }
        .denied(DenyCode::BudgetExhausted);
    let income = Grant { budgets: Budgets { bytes_in: Some(100), ..out }, ..grant() };
    let income = Grant { budgets: Budgets { bytes_out: None, ..income.budgets }, ..income };
    let left = |held: &mut Held| held.bytes_in = 40;
    let ruling = Case { grant: income.clone(), held: Box::new(left), ..Case::default() }.ruling();
    assert_eq!(ruling.verdict.unwrap().max_result_bytes, 60);
    let spent = |held: &mut Held| held.bytes_in = 100;
    Case { grant: income, held: Box::new(spent), ..Case::default() }
        .denied(DenyCode::BudgetExhausted);
}

#[test]
fn reserving_and_settling_keep_the_sum() {
    let budgets = Budgets { calls: 5, bytes_out: Some(100), bytes_in: Some(1000) };
    let clause = Clause { max_calls: Some(5), ..Clause::of("time.now") };
    let case = Case { grant: Grant { budgets, tools: vec![clause], ..grant() }, ..Case::default() };
    let ruling = case.ruling();
    let mut held = Held::new(signed(case.grant.clone()), 0);
    held.reserve(&ruling.budgets);
    assert_eq!((held.calls, held.bytes_out, held.bytes_in, held.clauses[0].calls), (1, 2, 1000, 1));
    held.settle(1000, 30);
    assert_eq!(held.bytes_in, 30);
}

#[test]
fn pace_and_concurrency() {
    let rate = Rate { per_minute: 60, burst: 2 };
    let clause = Clause { rate: Some(rate), concurrency: Some(3), ..Clause::of("time.now") };
    let paced = || Grant { tools: vec![clause.clone()], ..grant() };
    let mut held = Held::new(signed(paced()), 0);
    let permit = Case { grant: paced(), ..Case::default() }.ruling().verdict.unwrap();
    // Two at once are the burst; the third has to wait a second.
    held.start(&permit, at(1));
    held.start(&permit, at(1));
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
    held.calls = 1;
    let call = Call {
        caller: &case.caller,
        grant: Some(GrantRef { id: held.grant.id, digest: held.digest }),
        tool: case.name,
        tool_digest: case.shown,
        pinned: case.tool.as_ref(),
        arguments: &case.arguments,
        arguments_length: 2,
    };
    assert_eq!(decide(Some(&held), &call, case.now), decide(Some(&held), &call, case.now));
}
