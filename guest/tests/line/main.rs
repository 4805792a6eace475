//! The guest's two sessions over the wire, against stand-ins that check every
//! byte they are given: bindings, proofs, the chain of calls.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod gateway;
mod pki;
mod verifier;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use casemate_guest::attest::{AttestError, Attested, Session};
use casemate_guest::certificate::CertificateError;
use casemate_guest::config::{self, Receiver, Secret};
use casemate_guest::evidence::devices::Devices;
use casemate_guest::evidence::{Psp, Sources};
use casemate_guest::gateway::{GatewayError, Machine, Tools, connect};
use casemate_guest::host::Host;
use casemate_guest::identity::Identity;
use casemate_guest::release::{ReleaseError, Released};
use casemate_guest::tls::TlsError;
use casemate_ledger::cgp::error_code;
use casemate_mux::Guest;
use gateway::Gateway;
use pki::Ca;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use verifier::{Fault, Verifier};

const VERIFIER: &str = "verifier.test";
const GATEWAY: &str = "gateway.test";
/// More hellos than a test has time for.
const ALWAYS: u64 = 1_000_000;

struct Line {
    mux: Guest,
    config: config::Verifier,
    gateway: config::Peer,
    identity: Arc<Identity>,
    /// Streams to the gateway so far, and to the verifier.
    streams: Arc<AtomicU32>,
    attestations: Arc<AtomicU32>,
    /// How many of the next streams the host cannot relay to the gateway.
    down: Arc<AtomicU32>,
}

/// A machine whose host relays to the stand-ins. `tune` changes the gateway.
fn line(fault: Fault, tune: fn(&mut Gateway)) -> Line {
    let (guest_end, host_end) = tokio::io::duplex(256 * 1024);
    let identity = Arc::new(Identity::generate(3).unwrap());
    let tls = Ca::new();
    let verifier = Verifier::new(fault);
    let config = config::Verifier {
        server_name: VERIFIER.to_owned(),
        ca_pem: tls.pem(),
        identity_ca_pem: verifier.issuer.pem(),
    };
    let peer = config::Peer { server_name: GATEWAY.to_owned(), ca_pem: tls.pem() };
    let key = *identity.public_key();
    let mut host = casemate_mux::Host::start(host_end, ["verifier", "gateway", "host", "psp"]);
    let (streams, attestations) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
    let counts = (Arc::clone(&streams), Arc::clone(&attestations));
    let down = Arc::<AtomicU32>::default();
    let left = Arc::clone(&down);
    let mut fresh = Gateway::new(key);
    tune(&mut fresh);
    // One gateway for all streams: it remembers what it decided.
    let remembered = Arc::new(tokio::sync::Mutex::new(fresh));
    let acceptors = (tls.server(VERIFIER, None), tls.server(GATEWAY, Some(&verifier.issuer)));
    tokio::spawn(async move {
        while let Some(incoming) = host.accept().await {
            let service = incoming.service().to_owned();
            let mut stream = incoming.accept().await.unwrap();
            match service.as_str() {
                "verifier" => {
                    counts.1.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(Arc::clone(&verifier).serve(stream, acceptors.0.clone()));
                }
                "gateway" => {
                    counts.0.fetch_add(1, Ordering::Relaxed);
                    let less = |left: u32| left.checked_sub(1);
                    if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
                        continue;
                    }
                    let (gateway, acceptor) = (Arc::clone(&remembered), acceptors.1.clone());
                    tokio::spawn(async move { gateway.lock().await.serve(stream, acceptor).await });
                }
                "psp" => {
                    let mut report_data = [0; 64];
                    stream.read_exact(&mut report_data).await.unwrap();
                    let answer = [&block(&report_data)[..], &block(b"table")].concat();
                    stream.write_all(&answer).await.unwrap();
                    stream.flush().await.unwrap();
                }
                _ => {
                    let mut line = Vec::new();
                    while !line.ends_with(b"\n") {
                        line.push(stream.read_u8().await.unwrap());
                    }
                    let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
                    let report_data = hex::decode(line["report_data"].as_str().unwrap()).unwrap();
                    stream.write_all(&block(&report_data)).await.unwrap();
                    stream.flush().await.unwrap();
                }
            }
        }
    });
    let mux = Guest::start(guest_end);
    Line { mux, config, gateway: peer, identity, streams, attestations, down }
}

fn block(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_le_bytes(), bytes].concat()
}

impl Line {
    async fn attest(&self) -> Result<(Session, Attested), AttestError> {
        let mut session = Session::connect(&self.mux, &self.config).await?;
        let host = Host::new(self.mux.clone());
        let devices = Devices::new("/absent".as_ref(), None);
        let mut sources = Sources::find(host, Some(Psp(self.mux.clone())), devices).unwrap();
        assert_eq!(sources.names().len(), 2);
        let issuer = &self.config.identity_ca_pem;
        let own = &self.identity;
        let attested = session.attest_when_served(own, &mut sources, "task", issuer).await?;
        Ok((session, attested))
    }

    /// A greeted gateway and the task of its session.
    async fn connect(&self) -> (impl Tools + use<>, JoinHandle<GatewayError>) {
        let (_, attested) = self.attest().await.unwrap();
        let identity = Arc::clone(&self.identity);
        let (tools, keeper) = connect(self.machine(), identity, attested, 4).await.unwrap();
        (tools, tokio::spawn(keeper.run()))
    }

    fn machine(&self) -> Machine {
        Machine {
            mux: self.mux.clone(),
            verifier: self.config.clone(),
            gateway: self.gateway.clone(),
            identity: Arc::clone(&self.identity),
            task: "task".to_owned(),
            psp: true,
            gpu: false,
        }
    }
}

fn secret(name: &str, required: bool) -> Secret {
    Secret { name: name.to_owned(), receiver: Receiver::Guest, fd: None, required }
}

#[tokio::test]
async fn evidence_earns_an_identity_and_a_secret() {
    let line = line(Fault::None, |_| {});
    let (mut session, attested) = line.attest().await.unwrap();
    assert_eq!(attested.certificate.sandbox, pki::SANDBOX);
    assert_eq!(attested.certificate.claims.epoch, 3);
    let sandbox = attested.certificate.sandbox;
    let released = session.release(&line.identity, &sandbox, &secret("api", true)).await.unwrap();
    let Released::Secret { value, lease } = released else { panic!("{released:?}") };
    assert_eq!((value.expose(), lease.as_str()), (&b"the secret"[..], "l1"));
    assert!(!format!("{value:?}").contains("the secret"));
}

/// The host accepts the stream and then relays nothing.
#[tokio::test(start_paused = true)]
async fn a_silent_verifier_is_not_waited_for() {
    let (guest_end, host_end) = tokio::io::duplex(256 * 1024);
    let mut host = casemate_mux::Host::start(host_end, ["verifier"]);
    tokio::spawn(async move {
        let stream = host.accept().await.unwrap().accept().await.unwrap();
        std::future::pending::<()>().await;
        drop((stream, host));
    });
    let ca = Ca::new();
    let config = config::Verifier {
        server_name: VERIFIER.to_owned(),
        ca_pem: ca.pem(),
        identity_ca_pem: ca.pem(),
    };
    let error = Session::connect(&Guest::start(guest_end), &config).await.unwrap_err();
    let AttestError::Tls(TlsError::Timeout { peer }) = error else { panic!("{error}") };
    assert_eq!(peer, VERIFIER);
}

#[tokio::test(start_paused = true)]
async fn a_verifier_that_is_busy_is_asked_again_and_not_for_ever() {
    line(Fault::BusyAtFirst(2), |_| {}).attest().await.unwrap();
    let start = tokio::time::Instant::now();
    let error = line(Fault::BusyAtFirst(u32::MAX), |_| {}).attest().await.unwrap_err();
    assert!(error.to_string().contains("busy"), "{error}");
    assert!((30..40).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    // A no is a no.
    let start = tokio::time::Instant::now();
    line(Fault::RefusesAtOnce, |_| {}).attest().await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_refused_secret_is_explained_and_ends_only_what_needs_it() {
    let line = line(Fault::None, |_| {});
    let (mut session, attested) = line.attest().await.unwrap();
    let sandbox = attested.certificate.sandbox;
    let refused = session.release(&line.identity, &sandbox, &secret("high", false)).await.unwrap();
    let Released::Refused(denial) = refused else { panic!("{refused:?}") };
    assert_eq!((denial.rule.as_str(), denial.hint.as_str()), ("risk", "use a TEE"));
    let error = session.release(&line.identity, &sandbox, &secret("high", true)).await.unwrap_err();
    assert!(matches!(error, ReleaseError::Required { .. }), "{error}");
}

#[tokio::test]
async fn a_wrong_answer_of_the_verifier_is_no_identity() {
    let key = line(Fault::OtherKey, |_| {}).attest().await.unwrap_err();
    assert!(matches!(key, AttestError::Certificate(CertificateError::ForeignKey)), "{key}");
    let epoch = line(Fault::OtherEpoch, |_| {}).attest().await.unwrap_err();
    assert!(epoch.to_string().contains("epoch: expected 3, got 4"), "{epoch}");
    let bundle = line(Fault::OtherBundle, |_| {}).attest().await.unwrap_err();
    assert!(matches!(bundle, AttestError::Bundle { .. }), "{bundle}");
    let mut foreign = line(Fault::None, |_| {});
    foreign.config.identity_ca_pem = Ca::new().pem();
    let issuer = foreign.attest().await.unwrap_err();
    assert!(matches!(issuer, AttestError::Certificate(CertificateError::Chain(_))), "{issuer}");
    let mut other = line(Fault::None, |_| {});
    other.config.ca_pem = Ca::new().pem();
    let tls = other.attest().await.unwrap_err();
    assert!(matches!(tls, AttestError::Tls(_)), "{tls}");
}

#[tokio::test]
async fn a_secret_sealed_for_another_name_does_not_open() {
    let line = line(Fault::OtherSecret, |_| {});
    let (mut session, attested) = line.attest().await.unwrap();
    let sandbox = attested.certificate.sandbox;
    let error = session.release(&line.identity, &sandbox, &secret("api", false)).await.unwrap_err();
    assert!(matches!(error, ReleaseError::Open { .. }), "{error}");
}

#[tokio::test]
async fn calls_are_signed_in_one_chain() {
    let line = line(Fault::None, |_| {});
    let (tools, session) = line.connect().await;
    let list = tools.list().await.unwrap();
    assert_eq!(list["tools"][0]["name"], "echo");
    for turn in 0..5 {
        let result = tools.call("echo".into(), json!({"turn": turn}), None).await.unwrap();
        assert_eq!(result["structuredContent"]["turn"], turn);
    }
    // The stand-in panics when a number that was not taken is not used again.
    let overload = json!({"fail": error_code::OVERLOAD});
    assert_eq!(
        tools.call("echo".into(), overload, None).await.unwrap_err().code,
        error_code::OVERLOAD
    );
    tools.call("echo".into(), json!({}), None).await.unwrap();
    // A tool that was never listed goes out without grant and digest.
    tools.call("unknown".into(), json!({}), None).await.unwrap();
    assert!(!session.is_finished());
}

#[tokio::test]
async fn many_callers_share_one_order() {
    let line = line(Fault::None, |_| {});
    let (tools, session) = line.connect().await;
    let calls: Vec<_> = (0..40)
        .map(|turn| {
            let tools = tools.clone();
            tokio::spawn(
                async move { tools.call("echo".into(), json!({"turn": turn}), None).await },
            )
        })
        .collect();
    let (mut answered, mut refused) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => answered += 1,
            Err(error) => {
                assert_eq!(error.code, error_code::OVERLOAD);
                refused += 1;
            }
        }
    }
    assert!(answered >= 4 && answered + refused == 40, "{answered} {refused}");
    assert!(!session.is_finished());
}

#[tokio::test]
async fn a_broken_chain_ends_the_machines_calls() {
    let line = line(Fault::None, |_| {});
    let (tools, session) = line.connect().await;
    let fail = json!({"fail": error_code::CHAIN});
    let error = tools.call("echo".into(), fail, None).await.unwrap_err();
    assert_eq!(error.code, error_code::CHAIN);
    let ended = session.await.unwrap();
    assert!(
        matches!(&ended, GatewayError::Refused(error) if error.code == error_code::CHAIN),
        "{ended}"
    );
}

#[tokio::test]
async fn a_stream_that_ends_is_made_again_and_the_chain_goes_on() {
    let line = line(Fault::None, |_| {});
    let (tools, session) = line.connect().await;
    for turn in 0..3 {
        tools.call("echo".into(), json!({"turn": turn}), None).await.unwrap();
        // The stand-in says that it serves no more calls, or just hangs up: it
        // panics if the next stream does not go on where this one was.
        for code in [error_code::LEASE, error_code::LOG, error_code::IDENTITY] {
            // Whether the number was used, the next hello's answer says.
            for decided in [false, true] {
                let fail = json!({"fail": code, "decided": decided});
                let error = tools.call("echo".into(), fail, None).await.unwrap_err();
                assert_eq!(error.code, code);
                tools.call("echo".into(), json!({}), None).await.unwrap();
            }
        }
        // Hangs up after it decided: what became of the call is unknown here.
        let lost = tools.call("echo".into(), json!({"lose": "answer"}), None).await.unwrap();
        assert_eq!(lost["structuredContent"]["casemate"]["code"], "outcome_unknown");
        // Hangs up before it decided: the call is sent again.
        let sent = tools.call("echo".into(), json!({"lose": "call"}), None).await.unwrap();
        assert_eq!(sent["structuredContent"]["lose"], "call");
    }
    assert!(!session.is_finished());
}

#[tokio::test]
async fn a_call_that_ends_each_stream_is_given_up_and_others_go_on() {
    let line = line(Fault::None, |_| {});
    let (tools, session) = line.connect().await;
    let before = line.streams.load(Ordering::Relaxed);
    let error = tools.call("echo".into(), json!({"lose": "always"}), None).await.unwrap_err();
    assert_eq!(error.code, error_code::OVERLOAD);
    assert!(error.message.contains("did not run"), "{error}");
    // It was sent on three streams, and not on the fourth.
    assert_eq!(line.streams.load(Ordering::Relaxed), before + 3);
    tools.call("echo".into(), json!({}), None).await.unwrap();
    assert!(!session.is_finished());
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_ends_the_stream() {
    let line = line(Fault::None, |gateway| gateway.ttl_ms = 200);
    let (tools, session) = line.connect().await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    tools.call("echo".into(), json!({}), None).await.unwrap();
    assert!(line.streams.load(Ordering::Relaxed) >= 3);
    assert!(!session.is_finished());
}

#[tokio::test]
async fn calls_behind_a_refused_one_are_signed_anew() {
    let line = line(Fault::None, |_| {});
    let (tools, session) = line.connect().await;
    tools.list().await.unwrap();
    for _ in 0..10 {
        let call = |arguments| {
            let tools = tools.clone();
            tokio::spawn(async move { tools.call("echo".into(), arguments, None).await })
        };
        let refused = call(json!({"fail": error_code::OVERLOAD}));
        let behind = [call(json!({"turn": 1})), call(json!({"turn": 2}))];
        assert_eq!(refused.await.unwrap().unwrap_err().code, error_code::OVERLOAD);
        for call in behind {
            call.await.unwrap().unwrap();
        }
    }
    assert!(!session.is_finished());
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_cancelled() {
    let line = line(Fault::None, |_| {});
    let (tools, _session) = line.connect().await;
    let (progress, mut notices) = tokio::sync::mpsc::channel(4);
    let slow = tools.call("echo".into(), json!({"hold": true}), Some(progress));
    let notice = tokio::select! {
        notice = notices.recv() => notice.unwrap(),
        answer = slow => panic!("{answer:?}"),
    };
    assert_eq!((notice.progress, notice.total), (0.5, Some(1.0)));
    // The stand-in answers the held call when it is cancelled, and panics if
    // anything else comes first. Then the chain goes on.
    tools.call("echo".into(), json!({}), None).await.unwrap();
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_not_sent_again() {
    let line = line(Fault::None, |_| {});
    let (tools, session) = line.connect().await;
    let before = line.streams.load(Ordering::Relaxed);
    let (progress, mut notices) = tokio::sync::mpsc::channel(4);
    let call = tools.call("echo".into(), json!({"lose": gateway::ABANDONED}), Some(progress));
    tokio::select! {
        notice = notices.recv() => drop(notice.unwrap()),
        answer = call => panic!("{answer:?}"),
    }
    // The stand-in hangs up when it hears of it, and panics if the call comes on
    // the next stream all the same.
    let begun = std::time::Instant::now();
    while line.streams.load(Ordering::Relaxed) == before {
        assert!(begun.elapsed() < Duration::from_secs(30), "no second stream");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for turn in 0..3 {
        let result = tools.call("echo".into(), json!({"turn": turn}), None).await.unwrap();
        assert_eq!(result["structuredContent"]["turn"], turn);
    }
    assert_eq!(line.streams.load(Ordering::Relaxed), before + 1);
    assert!(!session.is_finished());
}

#[tokio::test]
async fn an_identity_is_renewed_before_it_ends() {
    let line = line(Fault::ShortLife, |_| {});
    let (tools, session) = line.connect().await;
    let started = std::time::Instant::now();
    let mut turn = 0;
    while started.elapsed() < Duration::from_secs(7) {
        tools.call("echo".into(), json!({"turn": turn}), None).await.unwrap();
        turn += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (attested, streams) =
        (line.attestations.load(Ordering::Relaxed), line.streams.load(Ordering::Relaxed));
    assert!(attested >= 2 && streams >= 2, "{attested} {streams}");
    assert!(!session.is_finished());
}

#[tokio::test]
async fn a_gateway_that_remembers_other_calls_is_refused() {
    let line = line(Fault::None, |gateway| gateway.accepted = (7, [7; 32]));
    let (_, attested) = line.attest().await.unwrap();
    let identity = Arc::clone(&line.identity);
    let outcome = connect(line.machine(), identity, attested, 4).await;
    let error = outcome.map(drop).unwrap_err();
    assert!(error.to_string().contains("accepted_sequence: expected 0"), "{error}");
}

impl Line {
    /// Has the stand-in refuse the next hellos; returns when the first one was made.
    async fn refuse(&self, tools: &impl Tools, code: i64, times: u64) {
        let before = self.streams.load(Ordering::Relaxed);
        let tools = tools.clone();
        let arguments = json!({"refuse": code, "times": times});
        tokio::spawn(async move { tools.call("echo".into(), arguments, None).await });
        while self.streams.load(Ordering::Relaxed) == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn a_stopped_sandbox_lives_on_and_its_calls_are_told_of_the_stop() {
    let line = line(Fault::None, |gateway| gateway.refusals = (2, error_code::LEASE));
    // Stopped when it boots already: it waits for its first session.
    let (tools, session) = line.connect().await;
    assert_eq!(line.streams.load(Ordering::Relaxed), 3);
    tools.call("echo".into(), json!({}), None).await.unwrap();
    line.refuse(&tools, error_code::LEASE, 5).await;
    let mut told = 0;
    let result = loop {
        match tools.call("echo".into(), json!({"turn": 1}), None).await {
            Ok(result) => break result,
            Err(error) => {
                assert_eq!((error.code, error.message.as_str()), (error_code::LEASE, "not now"));
                told += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    // Lifted: the chain goes on where it was.
    assert_eq!(result["structuredContent"]["turn"], 1);
    assert!(told >= 2, "{told}");
    assert!(!session.is_finished());
}

/// Runs on the clock of the test: ten minutes pass at once.
#[tokio::test(start_paused = true)]
async fn a_stop_is_waited_out_and_a_gateway_that_cannot_serve_only_for_a_minute() {
    for (code, lives) in
        [(error_code::LEASE, true), (error_code::LOG, false), (error_code::OVERLOAD, false)]
    {
        let line = line(Fault::None, |_| {});
        let (tools, session) = line.connect().await;
        let start = tokio::time::Instant::now();
        line.refuse(&tools, code, ALWAYS).await;
        let ended = tokio::time::timeout(Duration::from_secs(600), session).await;
        assert_eq!(ended.is_err(), lives, "{code}");
        if let Ok(ended) = ended {
            let ended = ended.unwrap();
            assert!(matches!(&ended, GatewayError::Interrupted(e) if e.code == code), "{ended}");
            let waited = start.elapsed();
            assert!((60..70).contains(&waited.as_secs()), "{waited:?}");
        }
    }
}

#[tokio::test]
async fn a_gateway_that_cannot_serve_for_now_is_waited_for() {
    for code in [error_code::LOG, error_code::OVERLOAD] {
        let line = line(Fault::None, |_| {});
        let (tools, session) = line.connect().await;
        line.refuse(&tools, code, 3).await;
        let result = tools.call("echo".into(), json!({"turn": 2}), None).await.unwrap();
        assert_eq!(result["structuredContent"]["turn"], 2);
        assert!(!session.is_finished());
    }
}

#[tokio::test]
async fn an_identity_that_is_refused_for_good_ends_the_machines_calls() {
    let line = line(Fault::None, |_| {});
    let (tools, session) = line.connect().await;
    line.refuse(&tools, error_code::IDENTITY, ALWAYS).await;
    let ended = session.await.unwrap();
    let refused = matches!(&ended, GatewayError::Refused(e) if e.code == error_code::IDENTITY);
    assert!(refused, "{ended}");
}

/// As when the machine was paused, and its clock with it, past the certificate's end.
#[tokio::test]
async fn a_gateway_that_hangs_up_is_tried_under_a_new_certificate() {
    let line = line(Fault::None, |_| {});
    let (tools, session) = line.connect().await;
    let before = line.attestations.load(Ordering::Relaxed);
    line.refuse(&tools, 0, 5).await;
    tools.call("echo".into(), json!({}), None).await.unwrap();
    assert_eq!(line.attestations.load(Ordering::Relaxed), before + 1);
    assert!(!session.is_finished());
}

/// The gateway starts anew: its host cannot reach it, and the verifier is busy.
#[tokio::test(start_paused = true)]
async fn a_gateway_that_is_away_costs_no_certificate() {
    for fault in [Fault::Busy, Fault::Refuses, Fault::Silent] {
        let line = line(fault, |_| {});
        let (tools, session) = line.connect().await;
        let (start, before) =
            (tokio::time::Instant::now(), line.attestations.load(Ordering::Relaxed));
        line.down.store(12, Ordering::Relaxed);
        line.refuse(&tools, 0, 0).await;
        tools.call("echo".into(), json!({}), None).await.unwrap();
        assert_eq!(line.down.load(Ordering::Relaxed), 0);
        assert_eq!(line.attestations.load(Ordering::Relaxed), before, "{fault:?}");
        assert!(!session.is_finished());
        println!("{fault:?}: served again after {:?}", start.elapsed());
        session.abort();
    }
}

/// What hangs up at hello may do so because of the certificate, or not: the old
/// one, which is still valid, goes on where the verifier gives no new one.
#[tokio::test(start_paused = true)]
async fn a_verifier_that_cannot_certify_now_leaves_the_old_certificate() {
    for fault in [Fault::Busy, Fault::Silent] {
        let line = line(fault, |_| {});
        let (tools, session) = line.connect().await;
        let before = line.attestations.load(Ordering::Relaxed);
        line.refuse(&tools, 0, 5).await;
        tools.call("echo".into(), json!({}), None).await.unwrap();
        assert!(line.attestations.load(Ordering::Relaxed) > before, "{fault:?}");
        assert!(!session.is_finished());
        session.abort();
    }
}

/// As when the machine was paused between challenge and answer.
#[tokio::test(start_paused = true)]
async fn a_challenge_that_ran_out_is_asked_for_again() {
    let line = line(Fault::Expired, |_| {});
    let (tools, session) = line.connect().await;
    let before = line.attestations.load(Ordering::Relaxed);
    line.refuse(&tools, 0, 5).await;
    tools.call("echo".into(), json!({}), None).await.unwrap();
    assert_eq!(line.attestations.load(Ordering::Relaxed), before + 2);
    assert!(!session.is_finished());
}

#[tokio::test]
async fn a_verifier_that_refuses_ends_a_machine_that_the_gateway_refuses() {
    let line = line(Fault::Refuses, |_| {});
    let (tools, session) = line.connect().await;
    line.refuse(&tools, 0, ALWAYS).await;
    let ended = session.await.unwrap();
    assert!(matches!(&ended, GatewayError::Renewal(_)), "{ended}");
}
