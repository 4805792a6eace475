//! What an auditor finds of people who were not asked, of stops that nobody
//! lifted, and of grants that name each other.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

mod harness;

use std::sync::mpsc;
use std::time::Duration;

use casemate_gateway::{Command, Reply, SigningKey};
use casemate_ledger::{
    Approval, Approvals, Clause, Decimal, Decision, Grant, GrantRef, Leaf, LeafKind, Record, Scope,
    Stop, StopLevel, Threshold, record, text,
};
use harness::audited::{Scene, failures, taken};
use harness::people::approving;
use harness::scene::Scene as Live;
use harness::{code, grant, now};
use serde_json::json;

type Keys = Vec<(&'static str, SigningKey)>;

/// A small amount, a large one that bob approves, and a stop of all that alice
/// and carol lift before one more call.
async fn paid(live: Live, keys: &Keys) -> Scene {
    let threshold = Threshold {
        pointer: "/amount".to_owned(),
        above: Decimal(100 * 1_000_000),
        approvals: Approvals::One,
    };
    let clause = Clause { thresholds: vec![threshold], ..Clause::of("fx.echo") };
    live.add(Grant { tools: vec![clause], ..grant(&["fx.echo"], 20) }).await;
    let mut port = live.port().await;
    port.list().await;
    assert_eq!(code(&port.call("fx.echo", json!({"amount": "5"})).await.unwrap()), "none");
    let waiting = live.left_waiting(&mut port, json!({"amount": "500"})).await;
    assert!(matches!(live.say(keys, "bob", &waiting, |_| ()).await, Reply::Done(_)));
    let large = port.call("fx.echo", json!({"amount": "500"})).await.unwrap();
    assert_eq!(code(&large), "none");
    let stop = Command::Stop {
        scope: "all".to_owned(),
        level: "freeze".to_owned(),
        reason: "test".to_owned(),
    };
    assert!(matches!(live.admin(stop).await, Reply::Done(_)));
    let Reply::Stops(stops) = live.admin(Command::StopList).await else { unreachable!() };
    let yes = |name: &str| {
        let key = &keys.iter().find(|(known, _)| *known == name).unwrap().1;
        let approval = Approval {
            hold: text::from_hex(&stops[0].id).unwrap().try_into().unwrap(),
            approve: true,
            approver: name.to_owned(),
            display: casemate_ledger::digest(stops[0].display.as_ref().unwrap().as_bytes()),
            expires: now().plus_seconds(60),
            reason: None,
        };
        text::base64url(approval.sign(key.public(), |message| key.sign(message)).bytes())
    };
    let lift = Command::StopLift {
        scope: "all".to_owned(),
        reason: "test".to_owned(),
        approvals: vec![yes("alice"), yes("carol")],
    };
    assert!(matches!(live.admin(lift).await, Reply::Done(_)));
    let mut port = live.again(port).await;
    port.list().await;
    assert_eq!(code(&port.call("fx.echo", json!({"amount": "7"})).await.unwrap()), "none");
    drop(port);
    taken(live).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_who_were_not_asked_are_missed() {
    let (house, keys) = approving();
    let mut scene = paid(Live::in_house(house).await, &keys).await;
    let report = scene.audit(&scene.leaves);
    assert!(report.holds(), "{:?}", report.findings);
    assert_eq!(report.counts["stop.lift"].pass, 1);
    // Three that ran, and the one that was held.
    assert_eq!(report.counts["decision.replay"].pass, 4, "{:?}", report.findings);

    // The large amount without the word on which it rests, with that of a call
    // that used it, and with one that is over.
    let large = scene.find(LeafKind::Decision, |leaf| {
        !record::peek::<Decision>(&leaf.record).unwrap().1.approvals.is_empty()
    });
    let genuine: Decision = scene.read(large);
    let with = |decision: Decision| {
        let mut leaves = scene.leaves.clone();
        leaves[large] = scene.forged(LeafKind::Decision, decision);
        failures(&scene.audit(&leaves))
    };
    let nobody = with(Decision { approvals: Vec::new(), ..genuine.clone() });
    assert!(nobody.contains(&"decision.replay"), "{nobody:?}");
    let late = with(Decision { time_ms: genuine.time_ms + 61_000, ..genuine.clone() });
    assert!(late.contains(&"decision.replay"), "{late:?}");
    // The same without the keys of those who approve: still nobody was asked.
    let approvers = std::mem::take(&mut scene.trust.approvers);
    let mut leaves = scene.leaves.clone();
    leaves[large] = scene.forged(LeafKind::Decision, Decision { approvals: Vec::new(), ..genuine });
    assert!(failures(&scene.audit(&leaves)).contains(&"decision.replay"));
    let unknown = scene.audit(&scene.leaves);
    assert!(unknown.holds(), "{:?}", unknown.findings);
    assert_eq!(unknown.counts["stop.lift"].not_checkable, 1);
    scene.trust.approvers = approvers;
    lifted_by_too_few(&scene);
}

/// A stop of all that the operator lifts alone goes on, and is said.
fn lifted_by_too_few(scene: &Scene) {
    let is_lift = |leaf: &Leaf| record::peek::<Stop>(&leaf.record).unwrap().1.level.is_none();
    let at = scene.find(LeafKind::Stop, is_lift);
    let genuine: Stop = scene.read(at);
    assert_eq!(genuine.approvals.len(), 2);
    let with = |lift: Stop| {
        let mut leaves = scene.leaves.clone();
        leaves[at] = scene.forged(LeafKind::Stop, lift);
        failures(&scene.audit(&leaves))
    };
    let [one, two] = [genuine.approvals[0], genuine.approvals[1]];
    for approvals in [vec![], vec![one], vec![two, two], vec![one, [7; 32]]] {
        let found = with(Stop { approvals, ..genuine.clone() });
        assert_eq!(found, ["revocation.order", "stop.lift"]);
    }
    // Words that are over by then; another scope; a second lift.
    let late = with(Stop { time_ms: genuine.time_ms + 61_000, ..genuine.clone() });
    assert_eq!(late, ["revocation.order", "stop.lift"]);
    let other = with(Stop { scope: Scope::Tenant("demo".to_owned()), ..genuine.clone() });
    assert_eq!(other, ["revocation.order", "stop.lift"]);
    let mut leaves = scene.leaves.clone();
    leaves.insert(at, leaves[at].clone());
    assert_eq!(failures(&scene.audit(&leaves)), ["stop.lift"]);
    // The words were for another stop of the same scope.
    let again = Stop { level: Some(StopLevel::Freeze), approvals: Vec::new(), ..genuine };
    let mut leaves = scene.leaves.clone();
    leaves.insert(at, scene.forged(LeafKind::Stop, again));
    assert_eq!(failures(&scene.audit(&leaves)), ["revocation.order", "stop.lift"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grants_that_name_each_other_are_refused_and_the_walk_ends() {
    let (live, mut port) = Live::with(grant(&["fx.echo"], 3)).await;
    assert_eq!(code(&port.call("fx.echo", json!({})).await.unwrap()), "none");
    drop(port);
    let scene = taken(live).await;
    let genuine: Grant = scene.read(scene.find(LeafKind::Grant, |_| true));
    let other = [9; 16];
    let part = |id, parent| {
        let parent = Some(GrantRef { id: parent, digest: [0; 32] });
        let signed = scene.house.sign(Grant { id, parent, ..genuine.clone() });
        Leaf::new(LeafKind::Grant, &signed).encode()
    };
    // Both by the issuer, the first under the id that the call names.
    let mut leaves = vec![part(genuine.id, other), part(other, genuine.id)];
    leaves.extend(scene.leaves.iter().cloned());
    let (said, heard) = mpsc::channel();
    std::thread::spawn(move || said.send(failures(&scene.audit(&leaves))));
    let found = heard.recv_timeout(Duration::from_secs(20)).expect("the walk ends");
    assert_eq!(found, ["grant.parent"]);
}
