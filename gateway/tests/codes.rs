//! Every code that a sandbox may be told, caused. Those that no other suite
//! causes are here; the table names the test for each, and holds only while
//! that test speaks of the code.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod harness;

use std::path::Path;
use std::time::Duration;

use casemate_attestation::UnixTime;
use casemate_gateway::Reply;
use casemate_ledger::cgp::{DenyCode, error_code, method};
use casemate_ledger::{Clause, Grant, GrantRef, Invocation, text};
use harness::scene::Scene;
use harness::{House, code, grant, now};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_is_known_begun_and_not_over() {
    let scene = Scene::new().await;
    let granted = |id: u8| Grant { id: [id; 16], ..grant(&["fx.echo"], 9) };
    let soon = Grant { not_before: now().plus_seconds(300), ..granted(1) };
    let short = Grant { expires: now().plus_seconds(6), ..granted(2) };
    let clause = Clause { until: Some(UnixTime(now().0)), ..Clause::of("fx.echo") };
    let over = Grant { tools: vec![clause], ..granted(3) };
    let named = |grant: &Grant| {
        let digest = casemate_ledger::digest(&scene.house.sign(grant.clone()));
        GrantRef { id: grant.id, digest }
    };
    for one in [&soon, &short, &over] {
        assert!(matches!(scene.add(one.clone()).await, Reply::Done(_)));
    }
    let mut port = scene.port().await;
    tokio::time::sleep(Duration::from_millis(6100)).await;
    let unknown = GrantRef { id: [9; 16], digest: [9; 32] };
    for (named, expected) in [
        (unknown, "grant_unknown"),
        (GrantRef { digest: [9; 32], ..named(&soon) }, "grant_unknown"),
        (named(&soon), "grant_not_yet_valid"),
        (named(&short), "grant_expired"),
        (named(&over), "grant_expired"),
    ] {
        let name = |call: &mut Invocation| call.grant = Some(named);
        let result = port.call_with("fx.echo", json!({}), &name).await.unwrap();
        assert_eq!(code(&result), expected, "{result}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ceiling_and_a_number_of_calls_at_once() {
    let mut house = House::new();
    let low = "name = \"echo\"\nrisk = \"low\"";
    house.upstreams = house.upstreams.replace(low, "name = \"echo\"\nrisk = \"high\"");
    let one = Clause { concurrency: Some(1), ..Clause::of("fx.slow") };
    let granted = Grant { tools: vec![Clause::of("fx.echo"), one], ..grant(&["fx.echo"], 9) };
    let (scene, mut port) = Scene::with_in(house, granted).await;
    // A tool above the ceiling is not listed; who calls it all the same is told.
    assert_eq!(port.list().await, ["fx.slow"]);
    let slow = port.start("fx.slow", json!({"ms": 1500}), &|_| ()).await;
    let second = port.call("fx.slow", json!({"ms": 1})).await.unwrap();
    assert_eq!(code(&second), "concurrency", "{second}");
    assert_eq!(code(&port.answer(slow).await.unwrap()), "none");
    let pins = std::fs::read(scene.house.directory.join("state/pins.json")).unwrap();
    let pins: Value = serde_json::from_slice(&pins).unwrap();
    let digest = text::from_hex(pins["fx.echo"].as_str().unwrap()).unwrap().try_into().ok();
    let name = |call: &mut Invocation| call.tool_digest = digest;
    let result = port.call_with("fx.echo", json!({}), &name).await.unwrap();
    assert_eq!(code(&result), "risk_ceiling", "{result}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_is_said_once() {
    let (_scene, mut port) = Scene::with(grant(&["fx.echo"], 9)).await;
    let error = port.request(method::HELLO, json!({})).await.unwrap_err();
    assert_eq!(error.code, error_code::INVALID_REQUEST);
    assert_eq!(code(&port.call("fx.echo", json!({})).await.unwrap()), "none");
}

/// Each code, the file and the test that cause it.
const DENIALS: [(&str, &str, &str); 24] = [
    ("grant_unknown", "codes", "a_grant_is_known_begun_and_not_over"),
    ("grant_foreign", "calls", "a_foreign_weak_or_risky_caller_is_denied"),
    ("grant_not_yet_valid", "codes", "a_grant_is_known_begun_and_not_over"),
    ("grant_expired", "codes", "a_grant_is_known_begun_and_not_over"),
    ("grant_revoked", "calls", "a_revoked_grant_denies_the_next_call"),
    ("boundary_insufficient", "calls", "a_foreign_weak_or_risky_caller_is_denied"),
    ("risk_ceiling", "codes", "a_ceiling_and_a_number_of_calls_at_once"),
    ("tool_not_granted", "calls", "denials_explain_themselves_and_are_in_the_log"),
    ("tool_drift", "resting", "a_changed_definition_is_seen_though_nobody_says_so"),
    ("args_invalid", "retries", "definitions_hold_for_arguments_and_results"),
    ("decision_limit", "red_team", "arguments_that_dress_up_are_seen"),
    ("data_reach", "native", "files_are_read_below_their_root"),
    ("policy_forbid", "rules", "forbid_wins_shadow_is_only_written_and_grants_come_first"),
    ("flow_label", "red_team", "what_was_read_does_not_leave"),
    ("duplicate_suppressed", "controls", "a_call_that_may_run_twice_to_harm_runs_once"),
    (
        "loop_quarantine",
        "controls",
        "a_sandbox_that_repeats_itself_rests_then_stops_until_the_operator_resumes",
    ),
    (
        "loop_stop",
        "controls",
        "a_sandbox_that_repeats_itself_rests_then_stops_until_the_operator_resumes",
    ),
    ("budget_exhausted", "red_team", "sixty_four_calls_at_once_spend_exactly_the_sum"),
    ("rate_limited", "calls", "denials_explain_themselves_and_are_in_the_log"),
    ("concurrency", "codes", "a_ceiling_and_a_number_of_calls_at_once"),
    ("breaker_open", "controls", "a_tool_server_that_fails_is_left_alone"),
    ("approval_pending", "spans", "a_call_that_waits_for_people_is_held_not_denied"),
    ("approval_denied", "controls", "a_no_is_a_no_and_a_yes_outlives_a_restart"),
    ("approval_expired", "red_team", "one_yes_lets_one_of_two_same_calls_run"),
];

/// Each JSON-RPC error by its name in `error_code`.
const ERRORS: [(&str, &str, &str); 10] = [
    ("INVALID_REQUEST", "codes", "hello_is_said_once"),
    ("METHOD_NOT_FOUND", "calls", "bad_lines_end_the_connection_and_nothing_else"),
    ("INVALID_PARAMS", "red_team", "envelopes_that_are_too_large_or_not_ones_cost_no_number"),
    ("ENVELOPE", "red_team", "envelopes_that_are_too_large_or_not_ones_cost_no_number"),
    ("CHAIN", "calls", "replay_reorder_splice_and_fork_are_seen"),
    ("LEASE", "calls", "leases_rotate_and_old_nonces_die"),
    ("REPLAY", "calls", "replay_reorder_splice_and_fork_are_seen"),
    ("IDENTITY", "calls", "hello_must_fit_the_certificate_and_the_chain"),
    ("LOG", "disk", "every_failing_write_is_named_runs_nothing_undecided_and_heals"),
    ("OVERLOAD", "payloads", "denied_calls_do_not_fill_the_disk"),
];

/// Each reason of an outcome.
const REASONS: [(&str, &str, &str); 17] = [
    ("refused", "refusals", "bad_arguments_are_told_and_break_nothing"),
    ("internal_error", "refusals", "a_server_that_fails_inside_is_left_alone"),
    ("server_error", "refusals", "an_https_server_that_fails_inside_is_left_alone"),
    ("upstream_error", "controls", "a_tool_server_that_fails_is_left_alone"),
    ("upstream_input_denied", "malicious_upstream", "each_bad_answer_is_an_outcome_in_time"),
    ("response_blocked", "malicious_upstream", "each_bad_answer_is_an_outcome_in_time"),
    ("response_invalid", "retries", "definitions_hold_for_arguments_and_results"),
    ("data_reach", "native", "files_are_read_below_their_root"),
    ("tool_drift", "resting", "a_changed_definition_is_seen_though_nobody_says_so"),
    ("payload_not_kept", "disk", "every_failing_write_is_named_runs_nothing_undecided_and_heals"),
    ("timeout", "malicious_upstream", "each_bad_answer_is_an_outcome_in_time"),
    ("cancelled", "cancel", "a_server_over_http_hears_of_it_in_its_era_s_way"),
    ("grant_revoked", "cancel", "an_operator_s_word_ends_what_runs_within_half_a_second"),
    (
        "grant_suspended",
        "cancel",
        "a_suspended_grant_s_calls_end_and_no_retry_follows_a_revocation",
    ),
    ("identity_revoked", "cancel", "an_operator_s_word_ends_what_runs_within_half_a_second"),
    ("sandbox_stopped", "cancel", "an_operator_s_word_ends_what_runs_within_half_a_second"),
    ("gateway_restart", "crash", "kill_minus_9_leaves_an_honest_unknown"),
];

/// Whether the test called `name` in `file` speaks of `code`.
fn speaks(file: &str, name: &str, code: &str) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/{file}.rs"));
    let text = std::fs::read_to_string(path).unwrap();
    let Some((before, after)) = text.split_once(&format!("fn {name}()")) else { return false };
    let body = after.split("\n}\n").next().unwrap_or_default();
    before.trim_end().ends_with("async") && body.contains(code)
}

#[test]
fn every_code_is_caused_by_a_test() {
    let denials: Vec<&str> = DenyCode::ALL.iter().map(|code| code.name()).collect();
    assert_eq!(DENIALS.map(|(code, ..)| code).to_vec(), denials);
    // The constants and the table of reasons, as they are written down.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let source = read("../ledger/src/cgp/mod.rs");
    let named = source.lines().filter_map(|line| {
        line.trim().strip_prefix("pub const ")?.split_once(": i64").map(|(name, _)| name)
    });
    assert_eq!(named.collect::<Vec<_>>(), ERRORS.map(|(name, ..)| name));
    let page = read("../docs/formats/outcome.md");
    let (_, table) = page.split_once("| reason | with | says |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let told: Vec<&str> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split(','))
        .map(|word| word.trim().trim_matches('`'))
        .collect();
    assert_eq!(told, REASONS.map(|(reason, ..)| reason));
    let words = |code: &str| format!("\"{code}");
    for (code, file, test) in DENIALS {
        assert!(speaks(file, test, &words(code)), "{code}: {file}.rs, {test}");
    }
    for (name, file, test) in ERRORS {
        assert!(speaks(file, test, &format!("error_code::{name}")), "{name}: {file}.rs, {test}");
    }
    for (reason, file, test) in REASONS {
        assert!(speaks(file, test, reason), "{reason}: {file}.rs, {test}");
    }
    println!(
        "{} denials, {} errors, {} reasons, each caused by a test",
        DENIALS.len(),
        ERRORS.len(),
        REASONS.len()
    );
}
