//! An auditor makes decisions again: budgets, sums, labels, parents and the
//! organisation's rules; and what the gateway's own key says otherwise fails.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

mod harness;

use casemate_attestation::{Properties, Risk};
use casemate_gateway::RulesAgain;
use casemate_ledger::audit::{Count, Report, Rules};
use casemate_ledger::cgp::DenyCode;
use casemate_ledger::{
    BudgetUse, Budgets, Clause, Decimal, Decision, Event, EventKind, Grant, GrantRef, Label, Leaf,
    LeafKind, Sum, Verdict, Window, record,
};
use casemate_ledger_store::Export;
use harness::audited::{Scene, failures, taken};
use harness::scene::Scene as Live;
use harness::{House, code, grant};
use serde_json::json;

const RULES: &str = r#"
@id("all") permit(principal, action, resource);
@id("no-drop") forbid(principal, action == Action::"call", resource)
  when { context.arguments like "*DROP*" };
@id("soon") @shadow("true") forbid(principal, action, resource)
  when { resource.label == "internal" && principal.seen == "internal" };
"#;

/// Rules, and an echo that costs and has a label.
fn house() -> House {
    let mut house = House::new();
    std::fs::write(house.directory.join("rules.cedar"), RULES).unwrap();
    house.settings = format!(
        "rules = {{ file = {:?}, require_permit = true }}",
        house.directory.join("rules.cedar")
    );
    let echo = "name = \"echo\"\nrisk = \"low\"\n";
    assert!(house.upstreams.contains(echo));
    let labelled = format!("{echo}label = \"internal\"\ncost_micro = 7\n");
    house.upstreams = house.upstreams.replace(echo, &labelled);
    house
}

fn parts() -> (Grant, Grant) {
    let sum =
        Sum { pointer: "/amount".to_owned(), window: Window::Day, max: Decimal(100 * 1_000_000) };
    let echo = Clause {
        sums: vec![sum],
        max_calls: Some(10),
        max_bytes_out: Some(1000),
        ..Clause::of("fx.echo")
    };
    let slow = Clause { max_in_label: Some(Label::Public), ..Clause::of("fx.slow") };
    let budgets = Budgets {
        bytes_out: Some(1000),
        bytes_in: Some(1_000_000),
        cost_micro: Some(100),
        wall_ms: Some(1_000_000),
        distinct_tools: Some(2),
        ..Budgets::of(20)
    };
    let parent = Grant { tools: vec![echo, slow], budgets, ..grant(&["fx.echo"], 20) };
    (parent.clone(), Grant { id: [3; 16], ..parent })
}

/// Three calls that run, one each that label, sum and rules deny; a restart between.
async fn scene() -> Scene {
    let live = Live::in_house(house()).await;
    let (parent, child) = parts();
    let digest = |grant: &Grant| casemate_ledger::digest(&live.house.sign(grant.clone()));
    let above = GrantRef { id: parent.id, digest: digest(&parent) };
    let child = Grant { parent: Some(above), ..child };
    let of_child = Some(GrantRef { id: child.id, digest: digest(&child) });
    live.add(parent).await;
    live.add(child).await;
    let mut port = live.port().await;
    let mut live = live;
    let mut codes = Vec::new();
    for (at, (tool, arguments)) in [
        ("fx.echo", json!({"amount": "10"})),
        ("fx.echo", json!({"amount": "20"})),
        ("fx.slow", json!({"ms": 1})),
        ("fx.echo", json!({"amount": "80"})),
        ("fx.echo", json!({"amount": "1", "sql": "DROP x"})),
        ("fx.echo", json!({"amount": "5"})),
    ]
    .into_iter()
    .enumerate()
    {
        if at == 2 {
            (port, live) = live.restart(port).await;
        }
        let named = port.call_with(tool, arguments, &|call| call.grant = of_child).await;
        codes.push(code(&named.unwrap()).to_owned());
    }
    let expected = ["none", "none", "flow_label", "budget_exhausted", "policy_forbid", "none"];
    assert_eq!(codes, expected);
    drop(port);
    taken(live).await
}

fn export(scene: &Scene, rules: bool) -> Report {
    let again = RulesAgain::default();
    let rules: Option<&dyn Rules> = if rules { Some(&again) } else { None };
    Export::open(&scene.state(), Some(&scene.keys())).unwrap().audit(&scene.trust, rules).unwrap()
}

/// The leaf of the last decision with this verdict.
fn last(scene: &Scene, wanted: Verdict) -> usize {
    let mut decisions = scene.leaves.iter().enumerate().filter_map(|(at, leaf)| {
        let leaf = Leaf::decode(leaf).unwrap();
        let is_decision = leaf.kind == LeafKind::Decision;
        is_decision.then(|| (at, record::peek::<Decision>(&leaf.record).unwrap().1.verdict))
    });
    decisions.rfind(|(_, verdict)| *verdict == wanted).unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_labels_parents_and_rules_are_made_again() {
    let scene = scene().await;
    let report = export(&scene, true);
    assert!(report.holds(), "{:?}", report.findings);
    let passed = |report: &Report, check: &str| report.counts[check].pass;
    assert_eq!(passed(&report, "decision.replay"), 6, "{:?}", report.findings);
    assert_eq!(passed(&report, "decision.policy"), 3, "{:?}", report.findings);
    assert_eq!(passed(&report, "decision.rules"), 3, "{:?}", report.findings);
    assert_eq!(passed(&report, "grant.parent"), 1);
    let forged = |at: usize, decision: Decision| {
        let mut leaves = scene.leaves.clone();
        leaves[at] = scene.forged(LeafKind::Decision, decision);
        failures(&scene.audit(&leaves))
    };

    let at = last(&scene, Verdict::Allow);
    let genuine: Decision = scene.read(at);
    // Of the child and of its parent: calls, tools, both bytes, cost, time; the
    // clause's calls, bytes and sum.
    assert_eq!(genuine.budgets.len(), 18);
    for place in 0..genuine.budgets.len() {
        let changes: [fn(&mut BudgetUse); 5] = [
            |budget| budget.before = budget.before.wrapping_sub(1),
            |budget| budget.before += 1,
            |budget| budget.limit += 1,
            |budget| budget.reserved += 1,
            |budget| budget.name.push('x'),
        ];
        for change in changes {
            let mut decision = genuine.clone();
            change(&mut decision.budgets[place]);
            let name = &genuine.budgets[place].name;
            assert!(forged(at, decision).contains(&"decision.replay"), "{name}");
        }
        let mut decision = genuine.clone();
        decision.budgets.remove(place);
        assert!(forged(at, decision).contains(&"decision.replay"));
    }
    let rules = |without: &str| genuine.rules.iter().filter(|r| *r != without).cloned().collect();
    let none = Properties::default();
    let cases = [
        ("decision.policy", Decision { label: Label::Public, ..genuine.clone() }),
        ("decision.policy", Decision { policy: [7; 32], ..genuine.clone() }),
        ("decision.policy", Decision { risk: Risk::Medium, ..genuine.clone() }),
        ("decision.replay", Decision { raised: None, ..genuine.clone() }),
        ("decision.rules", Decision { rules: rules("policy/all"), ..genuine.clone() }),
        ("decision.rules", Decision { rules: rules("shadow/policy/soon"), ..genuine.clone() }),
        ("decision.replay", Decision { rules: rules("grant/tools/0"), ..genuine.clone() }),
        ("decision.replay", {
            let mut decision = genuine.clone();
            decision.boundary.required = none;
            decision
        }),
    ];
    for (check, decision) in cases {
        let found = forged(at, decision);
        assert!(found.contains(&check), "{check}: {found:?}");
    }
    denials(&scene, &genuine, &forged);
    one_certificate_less(&scene);
    without(scene);
}

/// What was denied is not allowed, and not denied for another reason.
fn denials(
    scene: &Scene,
    allowed: &Decision,
    forged: &dyn Fn(usize, Decision) -> Vec<&'static str>,
) {
    let codes = [
        (DenyCode::FlowLabel, "decision.replay"),
        (DenyCode::BudgetExhausted, "decision.replay"),
        (DenyCode::PolicyForbid, "decision.rules"),
    ];
    for (code, check) in codes {
        let at = last(scene, Verdict::Deny(code));
        let genuine: Decision = scene.read(at);
        let allow = Decision { invocation: genuine.invocation.clone(), ..allowed.clone() };
        assert!(forged(at, allow).contains(&check), "{code:?}");
        for (other, _) in codes.into_iter().filter(|(other, _)| *other != code) {
            let verdict = Verdict::Deny(other);
            let found = forged(at, Decision { verdict, ..genuine.clone() });
            assert!(found.contains(&"decision.replay"), "{code:?} as {other:?}: {found:?}");
        }
    }
    // A gateway that nobody was seen to start.
    let mut leaves = scene.leaves.clone();
    leaves.retain(|leaf| {
        let leaf = Leaf::decode(leaf).unwrap();
        leaf.kind != LeafKind::Event
            || record::peek::<Event>(&leaf.record).unwrap().1.kind != EventKind::GatewayStart
    });
    assert!(failures(&scene.audit(&leaves)).contains(&"decision.policy"));
    // A grant that nobody was seen to use first.
    let mut leaves = scene.leaves.clone();
    leaves.remove(scene.find(LeafKind::Event, |leaf| {
        record::peek::<Event>(&leaf.record).unwrap().1.kind == EventKind::Activation
    }));
    assert!(failures(&scene.audit(&leaves)).contains(&"decision.replay"));
}

/// Without the certificate of the first two calls these are not checked, and the
/// later ones, which rest on what they used, are.
fn one_certificate_less(scene: &Scene) {
    let first = scene.find(LeafKind::Decision, |_| true);
    let of_first = scene.read::<Decision>(first).certificate;
    let certificates = scene.state().join("certificates");
    let file = std::fs::read_dir(&certificates).unwrap().map(|one| one.unwrap().path());
    let file = file
        .into_iter()
        .find(|one| casemate_ledger::digest(&std::fs::read(one).unwrap()) == of_first);
    let (file, aside) = (file.unwrap(), scene.state().join("aside"));
    std::fs::rename(&file, &aside).unwrap();
    let report = scene.audit(&scene.leaves);
    assert!(report.holds(), "{:?}", report.findings);
    let some = |pass, not_checkable| Count { pass, not_checkable, fail: 0 };
    assert_eq!(report.counts["call.certificate"], some(1, 1));
    assert_eq!(report.counts["chain.order"], some(6, 0));
    for check in ["call.signature", "decision.replay"] {
        assert_eq!(report.counts[check], some(4, 2), "{check}");
    }
    assert_eq!(report.counts["decision.policy"], some(1, 2));
    // What fails without asking who called, fails.
    let allowed: Decision = scene.read(first);
    let forged = |decision: Decision| {
        let mut leaves = scene.leaves.clone();
        leaves[first] = scene.forged(LeafKind::Decision, decision);
        failures(&scene.audit(&leaves))
    };
    let other = forged(Decision { policy: [7; 32], ..allowed.clone() });
    assert!(other.contains(&"decision.policy"), "{other:?}");
    let no_call = forged(Decision { invocation: vec![0], ..allowed });
    assert!(no_call.contains(&"call.signature"), "{no_call:?}");
    // What the unproved calls used still counts against the proved.
    let mut leaves = scene.leaves.clone();
    leaves.remove(first);
    let found = failures(&scene.audit(&leaves));
    assert!(found.contains(&"chain.order") && found.contains(&"decision.replay"), "{found:?}");
    std::fs::rename(&aside, &file).unwrap();
}

/// What is said when rules are not evaluated, not there, or the policy is not.
fn without(scene: Scene) {
    let rules = |report: &Report| (report.counts["decision.rules"], report.holds());
    let nobody = Count { pass: 0, not_checkable: 3, fail: 0 };
    assert_eq!(rules(&export(&scene, false)), (nobody, true));
    let policies = scene.state().join("policies");
    let genuine: Decision = scene.read(last(&scene, Verdict::Allow));
    let policy = policies.join(casemate_ledger::text::hex(&genuine.policy));
    let all: Vec<_> =
        std::fs::read_dir(&policies).unwrap().map(|one| one.unwrap().path()).collect();
    assert_eq!(all.len(), 2);
    for file in all.iter().filter(|file| **file != policy) {
        std::fs::remove_file(file).unwrap();
    }
    assert_eq!(rules(&export(&scene, true)), (nobody, true));
    // A policy that is not the one that decisions name.
    let whole = std::fs::read(&policy).unwrap();
    std::fs::write(&policy, [&whole[..], b" "].concat()).unwrap();
    assert_eq!(failures(&export(&scene, true)), ["policy.file"]);
    std::fs::remove_file(&policy).unwrap();
    let report = export(&scene, true);
    assert_eq!(rules(&report), (nobody, true));
    assert_eq!(report.counts["decision.policy"], nobody);
    // What a tool may use is not known then; the rest of the decisions is.
    assert_eq!(report.counts["decision.replay"].fail, 0);
}

/// Where more rules decide than a decision names, those that it names are
/// compared, and that they are as many as it can name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_more_rules_than_are_named_the_named_are_compared() {
    let house = house();
    let shadow = |at: usize| {
        format!("@id(\"s{at}\") @shadow(\"true\") forbid(principal, action, resource);\n")
    };
    let rules = RULES.to_owned() + &(0..60).map(shadow).collect::<String>();
    std::fs::write(house.directory.join("rules.cedar"), rules).unwrap();
    let live = Live::in_house(house).await;
    live.add(grant(&["fx.echo"], 5)).await;
    let mut port = live.port().await;
    let result = port.call("fx.echo", json!({"a": 1})).await.unwrap();
    assert_eq!(code(&result), "none");
    drop(port);
    let scene = taken(live).await;
    let report = scene.audit(&scene.leaves);
    assert!(report.holds(), "{:?}", report.findings);
    assert_eq!(report.counts["decision.rules"].pass, 1);
    let at = last(&scene, Verdict::Allow);
    let genuine: Decision = scene.read(at);
    let is_policy = |rule: &String| rule.contains("policy/");
    assert_eq!(genuine.rules.iter().filter(|rule| is_policy(rule)).count(), 48);
    let forged = |change: &dyn Fn(&mut Vec<String>)| {
        let mut decision = genuine.clone();
        change(&mut decision.rules);
        let mut leaves = scene.leaves.clone();
        leaves[at] = scene.forged(LeafKind::Decision, decision);
        failures(&scene.audit(&leaves))
    };
    let place = genuine.rules.iter().position(is_policy).unwrap();
    let other = forged(&|rules| rules[place] = "shadow/policy/none".to_owned());
    assert!(other.contains(&"decision.rules"), "{other:?}");
    let fewer = forged(&|rules| drop(rules.remove(place)));
    assert!(fewer.contains(&"decision.rules"), "{fewer:?}");
}
