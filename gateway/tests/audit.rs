//! A whole log of real calls is audited offline, and each kind of tampering by
//! somebody who even has the gateway's keys shows as what it is.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

mod harness;

use casemate_gateway::{Command, Reply, SigningKey};
use casemate_ledger::audit::NOT_REPLAYED;
use casemate_ledger::constraint::Rule;
use casemate_ledger::{
    Approval, Approvals, Clause, Constraint, Decision, Grant, Leaf, LeafKind, Outcome, Record,
    Stop, Verdict, record,
};
use casemate_ledger_store::Export;
use harness::audited::{Scene, failures, taken};
use harness::people::approving;
use harness::scene::Scene as Live;
use harness::{code, grant};
use serde_json::json;

/// Three allowed calls, one over the constraint, one over the budget.
async fn scene() -> Scene {
    let one = Constraint::at("/to", Rule::OneOf(vec!["alice".to_owned(), "bob".to_owned()]));
    let clause = Clause { arguments: vec![one], ..Clause::of("fx.echo") };
    let (live, mut port) =
        Live::with(Grant { tools: vec![clause], ..grant(&["fx.echo"], 3) }).await;
    for (number, to) in ["alice", "bob", "mallory", "alice", "bob"].into_iter().enumerate() {
        port.call("fx.echo", json!({ "to": to, "number": number })).await.unwrap();
    }
    drop(port);
    taken(live).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_log_is_audited_and_every_change_has_its_name() {
    let scene = scene().await;
    let export = Export::open(&scene.state(), Some(&scene.keys())).unwrap();
    let report = export.audit(&scene.trust, None).unwrap();
    println!("{:?}", report.counts);
    assert!(report.holds(), "{:?}", report.findings);
    // Three allows and both denials are made again.
    let replay = report.counts["decision.replay"];
    assert_eq!((replay.pass, replay.not_checkable), (5, 0), "{:?}", report.findings);
    // What is not made again is said, with the number of calls that it is of.
    for (gate, why) in NOT_REPLAYED {
        assert_eq!(report.counts[gate].not_checkable, 3);
        assert!(report.findings.iter().any(|one| one.check == gate && one.reason.contains(why)));
    }
    assert_eq!(report.counts["chain.order"].pass, 5);
    assert_eq!(report.counts["pair.decision"].pass, 3);
    // Without the task's key the arguments are not disclosed: said, not failed.
    let closed = Export::open(&scene.state(), None).unwrap().audit(&scene.trust, None).unwrap();
    assert!(closed.holds());
    assert_eq!(closed.counts["decision.replay"].not_checkable, 5, "{:?}", closed.findings);

    let decision = scene.find(LeafKind::Decision, |_| true);
    let outcome = scene.find(LeafKind::Outcome, |_| true);
    let changed = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut leaves = scene.leaves.clone();
        change(&mut leaves);
        failures(&scene.audit(&leaves))
    };
    let cases: [(&str, Vec<&str>); 5] = [
        ("a decision left out", changed(&|leaves| drop(leaves.remove(decision)))),
        ("an outcome twice", changed(&|leaves| leaves.push(leaves[outcome].clone()))),
        ("a flipped bit", changed(&|leaves| leaves[decision][200] ^= 1)),
        ("outcome first", changed(&|leaves| leaves.swap(decision, outcome))),
        ("another kind", changed(&|leaves| leaves[decision][1] = 4)),
    ];
    assert_eq!(cases[0].1, ["chain.order", "decision.replay", "pair.decision"]);
    assert_eq!(cases[1].1, ["pair.decision"]);
    for (what, found) in &cases {
        assert!(!found.is_empty(), "{what}");
        println!("{what}: {}", found.join(", "));
    }
    forged(&scene, decision);
}

/// What the gateway's own key can sign and still not get past the auditor.
fn forged(scene: &Scene, decision: usize) {
    let key = SigningKey::open(&scene.state().join("keys/record.key")).unwrap();
    let leaf = Leaf::decode(&scene.leaves[decision]).unwrap();
    let (_, genuine) = record::peek::<Decision>(&leaf.record).unwrap();
    let denied = scene.find(LeafKind::Decision, |leaf| {
        let (_, decision) = record::peek::<Decision>(&leaf.record).unwrap();
        !decision.verdict.is_allow()
    });
    let leaf = Leaf::decode(&scene.leaves[denied]).unwrap();
    let (_, refused) = record::peek::<Decision>(&leaf.record).unwrap();
    let sign = |decision: Decision| {
        let signed = decision.sign(key.public(), |message| key.sign(message));
        Leaf::new(LeafKind::Decision, signed.bytes()).encode()
    };
    let late = Decision { time_ms: genuine.time_ms + 700_000, ..genuine.clone() };
    let rule = Decision { rules: vec!["grant/tools/7".to_owned()], ..genuine.clone() };
    let allowed = Decision {
        verdict: Verdict::Allow,
        rules: genuine.rules.clone(),
        budgets: Vec::new(),
        ..refused
    };
    for (at, forged) in [(decision, late), (decision, rule), (denied, allowed)] {
        let mut leaves = scene.leaves.clone();
        leaves[at] = sign(forged);
        let found = failures(&scene.audit(&leaves));
        assert!(found.contains(&"decision.replay"), "{found:?}");
    }
    // An outcome of a call that was denied.
    let outcome = Leaf::decode(&scene.leaves[scene.find(LeafKind::Outcome, |_| true)]).unwrap();
    let (_, outcome) = record::peek::<Outcome>(&outcome.record).unwrap();
    let outcome = Outcome { decision: casemate_ledger::digest(&leaf.record), ..outcome };
    let signed = outcome.sign(key.public(), |message| key.sign(message));
    let mut leaves = scene.leaves.clone();
    leaves.push(Leaf::new(LeafKind::Outcome, signed.bytes()).encode());
    assert_eq!(failures(&scene.audit(&leaves)), ["pair.decision"]);
}

type Keys = Vec<(&'static str, SigningKey)>;

/// A call that is approved while it waits (0), one that is made again and then
/// approved (1), one that is approved and then made again (2), a stop that is
/// lifted, and one more approved call (3).
async fn asked(live: Live, keys: &Keys) -> Scene {
    let clause = Clause { approvals: Approvals::One, ..Clause::of("fx.echo") };
    live.add(Grant { tools: vec![clause], ..grant(&["fx.echo"], 20) }).await;
    let mut port = live.port().await;
    for number in [0, 1] {
        if number == 1 {
            live.left_waiting(&mut port, json!({ "number": number })).await;
        }
        let id = port.start("fx.echo", json!({ "number": number }), &|_| ()).await;
        port.list().await;
        let waiting = live.waiting(1).await.remove(0);
        assert!(matches!(live.say(keys, "bob", &waiting, |_| ()).await, Reply::Done(_)));
        assert_eq!(code(&port.answer(id).await.unwrap()), "none");
    }
    let (scope, reason) = ("task:report".to_owned(), "test".to_owned());
    let stop =
        Command::Stop { scope: scope.clone(), level: "freeze".to_owned(), reason: reason.clone() };
    for number in [2, 3] {
        if number == 3 {
            assert!(matches!(live.admin(stop.clone()).await, Reply::Done(_)));
            let lift = Command::StopLift {
                scope: scope.clone(),
                reason: reason.clone(),
                approvals: vec![],
            };
            assert!(matches!(live.admin(lift).await, Reply::Done(_)));
            port = live.again(port).await;
        }
        let waiting = live.left_waiting(&mut port, json!({ "number": number })).await;
        assert!(matches!(live.say(keys, "bob", &waiting, |_| ()).await, Reply::Done(_)));
        let done = port.call("fx.echo", json!({ "number": number })).await.unwrap();
        assert_eq!(code(&done), "none");
    }
    drop(port);
    taken(live).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_and_calls_that_are_made_again_are_read_as_what_they_are() {
    let (house, keys) = approving();
    let scene = asked(Live::in_house(house).await, &keys).await;
    let report = scene.audit(&scene.leaves);
    println!("{:?}", report.counts);
    assert!(report.holds(), "{:?}", report.findings);
    assert_eq!(report.counts["chain.held"].pass, 2);
    assert_eq!(report.counts["approval.signature"].pass, 4);
    // Four calls that ran, and the five times that one was held.
    assert_eq!(report.counts["decision.replay"].pass, 9, "{:?}", report.findings);
    // What was approved before it was made again shows in its arguments alone.
    let closed = Export::open(&scene.state(), None).unwrap().audit(&scene.trust, None).unwrap();
    assert!(closed.holds(), "{:?}", closed.findings);
    assert_eq!(closed.counts["decision.replay"].pass, 7, "{:?}", closed.findings);

    let without = |at: usize| {
        let mut leaves = scene.leaves.clone();
        leaves.remove(at);
        failures(&scene.audit(&leaves))
    };
    let lift = scene
        .find(LeafKind::Stop, |leaf| record::peek::<Stop>(&leaf.record).unwrap().1.level.is_none());
    assert_eq!(without(lift), ["revocation.order"]);
    assert_eq!(without(scene.find(LeafKind::Approval, |_| true)), ["decision.replay"]);
    approved_elsewhere(&scene);
    approved_by_nobody(scene);
}

/// What an approver's key shows, and what is said without one.
fn approved_by_nobody(mut scene: Scene) {
    let approval = scene.find(LeafKind::Approval, |_| true);
    let (_, genuine) =
        record::peek::<Approval>(&Leaf::decode(&scene.leaves[approval]).unwrap().record).unwrap();
    // The gateway's operator says yes in an approver's name.
    let operator = SigningKey::open(&scene.state().join("keys/record.key")).unwrap();
    let forged = genuine.sign(operator.public(), |message| operator.sign(message));
    let mut leaves = scene.leaves.clone();
    leaves[approval] = Leaf::new(LeafKind::Approval, forged.bytes()).encode();
    assert_eq!(failures(&scene.audit(&leaves)), ["approval.signature", "decision.replay"]);
    scene.trust.approvers.remove("bob");
    assert_eq!(failures(&scene.audit(&scene.leaves)), ["approval.signature", "decision.replay"]);
    // Without any keys nobody can tell, and that is said.
    scene.trust.approvers.clear();
    let report = scene.audit(&scene.leaves);
    assert!(report.holds(), "{:?}", report.findings);
    let signatures = report.counts["approval.signature"];
    assert_eq!((signatures.pass, signatures.not_checkable), (0, 4));
    // That they were held is as it was.
    assert_eq!(report.counts["decision.replay"].pass, 5, "{:?}", report.findings);
}

/// The gateway's own key cannot have a yes count for another call.
fn approved_elsewhere(scene: &Scene) {
    let key = SigningKey::open(&scene.state().join("keys/record.key")).unwrap();
    let leaves = scene.leaves.iter().map(|leaf| Leaf::decode(leaf).unwrap()).enumerate();
    let decisions = leaves.filter(|(_, leaf)| leaf.kind == LeafKind::Decision);
    let read = decisions.map(|(at, leaf)| (at, record::peek::<Decision>(&leaf.record).unwrap().1));
    let allowed: Vec<_> = read.filter(|(_, decision)| decision.verdict.is_allow()).collect();
    let (first, rest) = (&allowed[0].1, &allowed[1..]);
    assert_eq!(rest.len(), 3);
    for (at, decision) in rest {
        let approvals = first.approvals.clone();
        let forged = Decision { approvals, ..decision.clone() };
        let signed = forged.sign(key.public(), |message| key.sign(message));
        let mut leaves = scene.leaves.clone();
        leaves[*at] = Leaf::new(LeafKind::Decision, signed.bytes()).encode();
        let found = failures(&scene.audit(&leaves));
        assert!(found.contains(&"decision.replay"), "{found:?}");
    }
}
