//! Calls through a whole gateway: TLS, decisions, a real MCP server, the log.

mod harness;

use std::time::Duration;

use casemate_attestation::{Property, Risk};
use casemate_gateway::{Command, Reply};
use casemate_ledger::cgp::{Message, error_code, meta, method};
use casemate_ledger::constraint::Rule;
use casemate_ledger::{Clause, Constraint, Grant, Rate, text};
use harness::scene::Scene;
use harness::{House, Port, claims, code, grant, no_arguments, text_of};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_granted_call_runs_and_has_its_records() {
    let (scene, mut port) = Scene::with(grant(&["fx.echo"], 5)).await;
    let result = port.call("fx.echo", json!({"b": 1, "a": "x"})).await.unwrap();
    // The fixture says its arguments as text, in whichever order it holds them.
    let echoed: Value = serde_json::from_str(text_of(&result)).unwrap();
    assert_eq!(echoed, json!({"a": "x", "b": 1}));
    assert_eq!(result["resultType"], "complete");
    let receipt = &result["_meta"][meta::RECEIPT];
    assert!(receipt["outcome"].as_u64().unwrap() > receipt["decision"].as_u64().unwrap());
    let Reply::Log(entries) = scene.admin(Command::Log { from: 0, count: 100 }).await else {
        panic!("no log");
    };
    let kinds: Vec<&str> = entries.iter().map(|entry| entry.kind.as_str()).collect();
    assert_eq!(kinds, ["event", "grant", "event", "event", "decision", "outcome"]);
    assert!(entries[3].text.starts_with("activation"), "{}", entries[3].text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denials_explain_themselves_and_are_in_the_log() {
    let zone = Constraint {
        pointer: "/zone".to_owned(),
        rule: Rule::OneOf(vec!["UTC".to_owned()]),
        optional: true,
    };
    let echo = Clause { arguments: vec![zone], ..Clause::of("fx.echo") };
    let slow = Clause { rate: Some(Rate { per_minute: 1, burst: 1 }), ..Clause::of("fx.slow") };
    let grant = Grant { tools: vec![echo, slow], ..grant(&["fx.echo"], 4) };
    let (scene, mut port) = Scene::with(grant).await;
    assert_eq!(port.list().await, ["fx.echo", "fx.slow"]);
    let cases = [
        ("fx.mark", json!({}), "tool_not_granted"),
        ("nothing.at_all", json!({}), "tool_not_granted"),
        ("fx.echo", json!({"zone": "Mars"}), "decision_limit"),
        ("fx.echo", json!([]), "args_invalid"),
        ("fx.slow", json!({"ms": 1}), "none"),
        ("fx.slow", json!({"ms": 1}), "rate_limited"),
        ("fx.echo", json!({}), "none"),
        ("fx.echo", json!({}), "none"),
        ("fx.echo", json!({}), "none"),
        ("fx.echo", json!({}), "budget_exhausted"),
    ];
    for (at, (tool, arguments, expected)) in cases.into_iter().enumerate() {
        let result = port.call(tool, arguments).await.unwrap();
        assert_eq!(code(&result), expected, "case {at}: {result}");
        if expected != "none" {
            let about = &result["structuredContent"]["casemate"];
            assert_eq!(result["isError"], true);
            for field in ["rule", "expected", "actual", "hint"] {
                assert!(!about[field].as_str().unwrap().is_empty(), "case {at}: {field}");
            }
        }
    }
    let result = port.call_with("fx.echo", json!({}), &|call| call.grant = None).await.unwrap();
    assert_eq!(code(&result), "tool_not_granted");
    let drifted = port.call_with("fx.echo", json!({}), &|call| call.tool_digest = Some([0; 32]));
    assert_eq!(code(&drifted.await.unwrap()), "tool_drift");
    let Reply::Log(entries) = scene.admin(Command::Log { from: 0, count: 100 }).await else {
        panic!("no log");
    };
    let denials = entries.iter().filter(|entry| entry.text.starts_with("deny")).count();
    assert_eq!(denials, 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_weak_or_risky_caller_is_denied() {
    let tee = Grant {
        require: [Property::OperatorExcluded].into_iter().collect(),
        ..grant(&["fx.echo"], 5)
    };
    let (scene, mut port) = Scene::with(tee).await;
    assert_eq!(port.list().await, Vec::<String>::new());
    let result = port.call("fx.echo", no_arguments()).await.unwrap();
    assert_eq!(code(&result), "boundary_insufficient");
    let held = harness::grant(&["fx.slow"], 6);
    scene.add(Grant { risk_ceiling: Risk::Low, ..held }).await;
    assert_eq!(port.list().await, ["fx.slow"]);
    // The weak grant can be named although tools/list does not show it.
    let Reply::Grants(grants) = scene.admin(Command::GrantList).await else { panic!() };
    assert_eq!(grants.len(), 2);
    assert_eq!(code(&port.call("fx.slow", json!({"ms": 1})).await.unwrap()), "none");
    // Another sandbox of the same task comes too late.
    let mut other = scene.port().await;
    assert_eq!(other.list().await, Vec::<String>::new());
    other.tools = port.tools.clone();
    let result = other.call("fx.slow", json!({"ms": 1})).await.unwrap();
    assert_eq!(code(&result), "grant_foreign");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_grant_denies_the_next_call() {
    let (scene, mut port) = Scene::with(grant(&["fx.echo"], 50)).await;
    assert_eq!(code(&port.call("fx.echo", no_arguments()).await.unwrap()), "none");
    let id = text::hex(&grant(&["fx.echo"], 50).id);
    let revoke = Command::GrantRevoke { id: id.clone(), reason: "over".to_owned() };
    assert!(matches!(scene.admin(revoke).await, Reply::Done(_)));
    assert_eq!(code(&port.call("fx.echo", no_arguments()).await.unwrap()), "grant_revoked");
    assert_eq!(port.list().await, Vec::<String>::new());
    // It stays revoked when the gateway starts again, and cannot be added again.
    let (credential, previous) = (port.credential, port.previous);
    let scene = Scene::in_house(scene.stop().await).await;
    let wire = scene.house.connect(&scene.gateway, &credential).await;
    let tools = port.tools;
    let mut port = Port::hello(wire, credential, 2, previous).await.unwrap();
    assert_eq!(port.sequence, 2);
    port.tools = tools;
    scene.add(grant(&["fx.echo"], 50)).await;
    assert_eq!(code(&port.call("fx.echo", no_arguments()).await.unwrap()), "grant_revoked");
    let Reply::Grants(grants) = scene.admin(Command::GrantList).await else { panic!() };
    assert!(grants.iter().any(|grant| grant.id == id && grant.state == "revoked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_sandbox_is_cut_off_and_its_call_is_cancelled() {
    let (scene, mut port) = Scene::with(grant(&["fx.slow"], 5)).await;
    // The server runs before it is asked for long.
    port.call("fx.slow", json!({"ms": 1})).await.unwrap();
    let id = port.start("fx.slow", json!({"ms": 60_000}), &|_| ()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sandbox = port.credential.sandbox.clone();
    let start = std::time::Instant::now();
    scene.admin(Command::Kill { sandbox, reason: "test".to_owned() }).await;
    let _ = port.answer(id).await;
    while port.wire.receive().await.is_some() {}
    // Long before the call would have ended by itself.
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    let credential = port.credential;
    let wire = scene.house.connect(&scene.gateway, &credential).await;
    let error = Port::hello(wire, credential, 1, [0; 32]).await.err().unwrap();
    assert_eq!(error.code, error_code::IDENTITY, "{error}");
    let Reply::Log(entries) = scene.admin(Command::Log { from: 0, count: 100 }).await else {
        panic!()
    };
    assert!(entries.iter().any(|entry| entry.text.starts_with("cancelled")), "{entries:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_upstream_does_wrong_is_an_outcome() {
    let tools = ["fx.big", "fx.number", "fx.fail", "fx.crash", "fx.slow", "fx.echo"];
    // Only the call that is to run out of time has little, and finds its server
    // running: a busy machine may take long to start one.
    let clauses = tools.map(|name| {
        let timeout_ms = (name == "fx.slow").then_some(4000);
        Clause { timeout_ms, ..Clause::of(name) }
    });
    let (scene, mut port) =
        Scene::with(Grant { tools: clauses.to_vec(), ..grant(&tools, 50) }).await;
    let cases = [
        ("fx.big", json!({"bytes": 60_000}), "none"),
        ("fx.big", json!({"bytes": 70_000}), "response_blocked"),
        ("fx.big", json!({"bytes": 9_000_000}), "upstream_error"),
        ("fx.number", json!({}), "response_blocked"),
        ("fx.fail", json!({}), "none"),
        ("fx.crash", json!({}), "upstream_error"),
        ("fx.echo", json!({}), "none"),
        ("fx.slow", json!({"ms": 600_000}), "timeout"),
        ("fx.echo", json!({}), "none"),
    ];
    for (tool, arguments, expected) in cases {
        let result = port.call(tool, arguments.clone()).await.unwrap();
        assert_eq!(code(&result), expected, "{tool} {arguments}");
    }
    let Reply::Log(entries) = scene.admin(Command::Log { from: 0, count: 100 }).await else {
        panic!()
    };
    let statuses: Vec<&str> = entries
        .iter()
        .filter(|entry| entry.kind == "outcome")
        .filter_map(|entry| entry.text.split([' ', ',']).next())
        .collect();
    assert_eq!(
        statuses,
        [
            "executed",
            "upstream_error",
            "upstream_error",
            "upstream_error",
            "tool_error",
            "upstream_error",
            "executed",
            "timeout",
            "executed"
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_child_has_nothing_of_the_gateway() {
    let (_scene, mut port) = Scene::with(grant(&["fx.descriptors", "fx.environment"], 5)).await;
    let result = port.call("fx.descriptors", no_arguments()).await.unwrap();
    for target in text_of(&result).lines() {
        let own = ["pipe:", "/dev/null", "anon_inode:", "socket:", "/proc/"];
        assert!(own.iter().any(|start| target.starts_with(start)), "{target}");
        assert!(!target.contains("wal"), "{target}");
    }
    let result = port.call("fx.environment", no_arguments()).await.unwrap();
    let environment = text_of(&result);
    assert!(
        environment.contains("FIXTURE_DRIFT") && !environment.contains("PATH"),
        "{environment}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_whose_definition_changes_stops() {
    let (scene, mut port) = Scene::with(grant(&["fx.echo", "fx.slow"], 9)).await;
    std::fs::write(scene.house.directory.join("drift"), "drift").unwrap();
    // The connection's own process is started by this call and shows another text.
    assert_eq!(code(&port.call("fx.echo", no_arguments()).await.unwrap()), "tool_drift");
    assert_eq!(code(&port.call("fx.echo", no_arguments()).await.unwrap()), "tool_drift");
    assert_eq!(code(&port.call("fx.slow", json!({"ms": 1})).await.unwrap()), "none");
    assert_eq!(port.list().await, ["fx.slow"]);
    // The pin outlives the gateway.
    let scene = Scene::in_house(scene.stop().await).await;
    let Reply::Status(status) = scene.admin(Command::Status).await else { panic!() };
    let drifted: Vec<_> = status.tools.iter().filter(|(_, word)| word == "drifted").collect();
    assert_eq!(drifted.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_that_fails_is_made_again_before_the_next_call() {
    let (_scene, mut port) = Scene::with(grant(&["fx.echo", "fx.shift"], 9)).await;
    assert_eq!(code(&port.call("fx.echo", no_arguments()).await.unwrap()), "none");
    // It says that its tools changed, fails the next list, and offers another echo.
    let told = port.call("fx.shift", no_arguments()).await.unwrap();
    assert_eq!(text_of(&told), "true");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(code(&port.call("fx.echo", no_arguments()).await.unwrap()), "upstream_error");
    assert_eq!(code(&port.call("fx.echo", no_arguments()).await.unwrap()), "tool_drift");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_tool_server_started_ends_with_it() {
    let (_scene, mut port) = Scene::with(grant(&["fx.spawn"], 1)).await;
    // A number that tells this test's process from every other.
    let seconds = format!("3{}", std::process::id());
    port.call("fx.spawn", json!({ "seconds": seconds })).await.unwrap();
    let runs = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let mut commands =
            processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        commands.any(|command| command == format!("/bin/sleep\0{seconds}\0").as_bytes())
    };
    assert!(runs());
    drop(port);
    for _ in 0..100 {
        if !runs() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    panic!("it still runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_reorder_splice_and_fork_are_seen() {
    let (scene, mut port) = Scene::with(grant(&["fx.echo"], 50)).await;
    port.call("fx.echo", no_arguments()).await.unwrap();
    // The same envelope again.
    let (params, digest) = port.sign("fx.echo", no_arguments(), &|_| ());
    assert!(port.request(method::TOOLS_CALL, params.clone()).await.is_ok());
    (port.sequence, port.previous) = (2, digest);
    let error = port.request(method::TOOLS_CALL, params).await.unwrap_err();
    assert_eq!(error.code, error_code::REPLAY);
    // A number too far.
    let (params, _) = port.sign("fx.echo", no_arguments(), &|call| call.sequence += 1);
    let error = port.request(method::TOOLS_CALL, params).await.unwrap_err();
    assert_eq!(error.code, error_code::CHAIN);
    // Other arguments, another tool, another salt than were signed.
    for (at, value) in [
        ("/arguments", json!({"x": 1})),
        ("/name", json!("fx.slow")),
        ("/_meta/dev.casemate~1salt", json!(text::base64url(&[8; 32]))),
    ] {
        let (mut params, _) = port.sign("fx.echo", no_arguments(), &|_| ());
        *params.pointer_mut(at).unwrap() = value;
        let error = port.request(method::TOOLS_CALL, params).await.unwrap_err();
        assert_eq!(error.code, error_code::ENVELOPE, "{at}: {error}");
    }
    // What the sandbox says of itself must be what its certificate says.
    let lies: [harness::Change<'_>; 5] = [
        &|call| call.sandbox.push('x'),
        &|call| call.epoch += 1,
        &|call| call.boundary.class = casemate_attestation::Boundary::Tee,
        &|call| call.boundary.bundle = [0; 32],
        &|call| call.boundary.measurement = vec![0; 48],
    ];
    for lie in lies {
        let (params, _) = port.sign("fx.echo", no_arguments(), lie);
        let error = port.request(method::TOOLS_CALL, params).await.unwrap_err();
        assert_eq!(error.code, error_code::ENVELOPE, "{error}");
    }
    let (params, _) = port.sign("fx.echo", no_arguments(), &|call| call.lease.nonce = [0; 16]);
    assert_eq!(port.request(method::TOOLS_CALL, params).await.unwrap_err().code, error_code::LEASE);
    // None of these cost a number; a second history freezes for good.
    assert!(port.call("fx.echo", no_arguments()).await.is_ok());
    let (params, _) = port.sign("fx.echo", no_arguments(), &|call| call.previous = [0; 32]);
    assert_eq!(port.request(method::TOOLS_CALL, params).await.unwrap_err().code, error_code::CHAIN);
    let error = port.call("fx.echo", no_arguments()).await.unwrap_err();
    assert!(error.message.contains("frozen"), "{error}");
    let (credential, previous) = (port.credential, port.previous);
    let scene = Scene::in_house(scene.stop().await).await;
    let wire = scene.house.connect(&scene.gateway, &credential).await;
    let error = Port::hello(wire, credential, 9, previous).await.err().unwrap();
    assert!(error.message.contains("frozen"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_must_fit_the_certificate_and_the_chain() {
    let (scene, mut port) = Scene::with(grant(&["fx.echo"], 50)).await;
    port.call("fx.echo", no_arguments()).await.unwrap();
    let other = {
        let mut claims = claims();
        claims.bundle = [0; 32];
        scene.house.authority.identity(claims)
    };
    let wire = scene.house.connect(&scene.gateway, &other).await;
    let error = Port::hello(wire, other, 0, [0; 32]).await.err().unwrap();
    assert!(error.message.contains("bundle"), "{error}");
    // A CA's certificate of another form is not an identity.
    let odd = scene.house.authority.identity_with(claims(), |params| {
        params.custom_extensions.clear();
    });
    let wire = scene.house.connect(&scene.gateway, &odd).await;
    let error = Port::hello(wire, odd, 0, [0; 32]).await.err().unwrap();
    assert_eq!(error.code, error_code::IDENTITY, "{error}");
    // The port forgot a call that was accepted.
    let credential = port.credential;
    let wire = scene.house.connect(&scene.gateway, &credential).await;
    let error = Port::hello(wire, credential, 0, [0; 32]).await.err().unwrap();
    assert_eq!(error.code, error_code::CHAIN, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_lines_end_the_connection_and_nothing_else() {
    let (scene, _port) = Scene::with(grant(&["fx.echo"], 50)).await;
    let long = vec![b'x'; 5 << 20];
    for bad in [&b"nonsense\n"[..], b"{\"jsonrpc\":\"2.0\",\"id\":1,\"id\":2}\n", &long] {
        let mut port = scene.port().await;
        port.wire.send_raw(bad).await;
        assert!(port.request(method::TOOLS_LIST, json!({})).await.is_err());
    }
    let mut port = scene.port().await;
    let error = port.request("prompts/list", json!({})).await.unwrap_err();
    assert_eq!(error.code, error_code::METHOD_NOT_FOUND);
    let error = port.request(method::TOOLS_CALL, json!({"name": 1})).await.unwrap_err();
    assert_eq!(error.code, error_code::INVALID_PARAMS);
    assert!(port.call("fx.echo", no_arguments()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_calls_never_pass_the_budget() {
    let (_scene, mut port) = Scene::with(grant(&["fx.slow"], 20)).await;
    let mut ids = Vec::new();
    for _ in 0..64 {
        ids.push(port.start("fx.slow", json!({"ms": 30}), &|_| ()).await);
    }
    let mut codes = std::collections::BTreeMap::new();
    while codes.values().sum::<usize>() < ids.len() {
        match port.wire.receive().await.unwrap() {
            Message::Response { result, .. } => {
                *codes.entry(code(&result.unwrap()).to_owned()).or_insert(0) += 1;
            }
            _ => continue,
        }
    }
    assert_eq!(codes["none"], 20);
    assert_eq!(codes["budget_exhausted"], 44);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_rotate_and_old_nonces_die() {
    let mut house = House::new();
    house.lease_ms = 6000;
    let (_scene, mut port) = Scene::with_in(house, grant(&["fx.echo"], 50)).await;
    let first = port.lease;
    let mut nonces = vec![first.nonce];
    while nonces.len() < 3 {
        let Some(Message::Notification { params, .. }) = port.wire.receive().await else {
            panic!()
        };
        port.lease = serde_json::from_value(params).unwrap();
        nonces.push(port.lease.nonce);
    }
    let previous = nonces[1];
    let old = nonces[0];
    let with =
        |nonce: [u8; 16]| move |call: &mut casemate_ledger::Invocation| call.lease.nonce = nonce;
    assert!(port.call_with("fx.echo", no_arguments(), &with(previous)).await.is_ok());
    let (params, _) = port.sign("fx.echo", no_arguments(), &with(old));
    assert_eq!(port.request(method::TOOLS_CALL, params).await.unwrap_err().code, error_code::LEASE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_is_told_what_is_wrong() {
    let scene = Scene::new().await;
    let stranger = casemate_gateway::SigningKey::generate().unwrap();
    let forged = casemate_gateway::sign_grant(grant(&["fx.echo"], 1), &stranger);
    let cases = [
        (text::base64url(forged.bytes()), "kid"),
        ("nonsense".to_owned(), "COSE"),
        (
            text::base64url(&scene.house.sign(Grant { tenant: "x".into(), ..grant(&["a"], 1) })),
            "tenant",
        ),
        (
            text::base64url(&scene.house.sign(Grant { issuer: "x".into(), ..grant(&["a"], 1) })),
            "issuer",
        ),
    ];
    for (grant, word) in cases {
        let Reply::Refused(text) = scene.admin(Command::GrantAdd { grant }).await else { panic!() };
        assert!(text.contains(word), "{text}");
    }
    let id = "00".repeat(16);
    let reply = scene.admin(Command::GrantRevoke { id, reason: "x".to_owned() }).await;
    assert!(matches!(reply, Reply::Refused(_)));
    let mode = std::fs::metadata(scene.house.directory.join("admin.sock")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
}

/// An official server that we did not write, where the tests' Python has one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_time_server_works() {
    let Some(program) = std::env::var_os("CASEMATE_MCP_SERVER_TIME") else {
        eprintln!("not run: set CASEMATE_MCP_SERVER_TIME to the path of mcp-server-time");
        return;
    };
    let mut house = House::new();
    house.upstreams = format!(
        "[[upstream]]\nname = \"time\"\ncommand = [{:?}, \"--local-timezone\", \"UTC\"]\n\
         confine = {{ read = [{:?}] }}\n\
         env = {{ PATH = \"/usr/bin:/bin\" }}\n\
         [[upstream.tool]]\nname = \"get_current_time\"\nrisk = \"low\"\n",
        program.to_str().unwrap(),
        std::path::Path::new(&program).ancestors().nth(2).unwrap()
    );
    let scene = Scene::in_house(house).await;
    scene.add(grant(&["time.get_current_time"], 2)).await;
    let mut port = scene.port().await;
    let arguments = json!({"timezone": "Europe/Berlin"});
    let result: Value = port.call("time.get_current_time", arguments).await.unwrap();
    assert!(text_of(&result).contains("Europe/Berlin"), "{result}");
}

#[tokio::test]
async fn a_cancelled_call_ends_at_once_and_the_chain_goes_on() {
    let (_scene, mut port) = Scene::with(grant(&["fx.slow", "fx.echo"], 10)).await;
    port.call("fx.echo", json!({})).await.unwrap(); // the tool server runs
    // Without the cancellation it ends much later, and otherwise.
    let id = port.start("fx.slow", json!({"ms": 60_000}), &|_| ()).await;
    let other = port.start("fx.slow", json!({"ms": 300}), &|_| ()).await;
    assert_eq!(text_of(&port.answer(other).await.unwrap()), "slept");
    // A number that is not open cancels nothing.
    for request in [999, id] {
        let params = json!({"requestId": request});
        port.wire.send(&Message::notification(method::CANCELLED, params)).await;
    }
    let cancelled = port.answer(id).await.unwrap();
    assert_eq!(cancelled["structuredContent"]["casemate"]["status"], "cancelled");
    assert!(cancelled["_meta"][meta::RECEIPT]["outcome"].is_u64());
    port.call("fx.echo", json!({})).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_reaches_who_asked_for_it_at_a_bounded_rate() {
    let (_scene, mut port) = Scene::with(grant(&["fx.steps"], 5)).await;
    let arguments = json!({"count": 300, "ms": 3});
    // Nobody asked: a notice would fail the test.
    let result = port.call("fx.steps", arguments.clone()).await.unwrap();
    assert_eq!(text_of(&result), "stepped");
    port.progress = Some(Vec::new());
    let start = std::time::Instant::now();
    let result = port.call("fx.steps", arguments).await.unwrap();
    assert_eq!(text_of(&result), "stepped");
    let told = port.progress.take().unwrap();
    // Ten in any second.
    let most = (start.elapsed().as_secs() + 1) * 10;
    assert!((2..=most).contains(&told.len().try_into().unwrap()), "{} of {most}", told.len());
    assert!(told.is_sorted_by(|one, next| one.progress < next.progress), "{told:?}");
    assert!(told.iter().all(|notice| notice.message.as_deref() == Some("a step")), "{told:?}");
}
