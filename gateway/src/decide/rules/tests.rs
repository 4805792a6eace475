//! Rules that hold, and files that are refused.

use serde_json::json;

use super::*;
use crate::decide::tests::{at, facts, grant, identity, signed, tool};
use crate::decide::{Call, Facts, Held, Ruling, decide};

fn ruling(rules: &Rules, arguments: serde_json::Value) -> Ruling {
    let held = Held::new(signed(grant()), 0);
    let line = [&held];
    let (caller, tool) = (identity(), tool());
    let call = Call {
        caller: &caller,
        grant: Some(casemate_ledger::GrantRef { id: held.grant.id, digest: held.digest }),
        tool: "time.now",
        tool_digest: Some([5; 32]),
        pinned: Some(&tool),
        arguments: &arguments,
        arguments_length: 2,
        fingerprint: [6; 32],
        exact: [6; 32],
    };
    decide(&Facts { rules: Some(rules), ..facts(&line) }, &call, at(1))
}

#[test]
fn forbid_wins_and_each_decision_names_its_rules() {
    let permit = r#"@id("all") permit(principal, action, resource);"#;
    let forbid = r#"@id("no-drop") forbid(principal, action == Action::"call", resource)
        when { context.arguments like "*DROP*" };"#;
    let weak = r#"@id("own") forbid(principal, action, resource)
        unless { principal.properties.contains("own_kernel") };"#;
    let risky =
        r#"@id("risky") forbid(principal, action, resource) when { resource.risk == "low" };"#;
    let shadow = r#"@id("soon") @shadow("true") forbid(principal, action, resource)
        when { context.hour_utc < 24 };"#;
    let denied = |rule: &str| (false, vec![rule.to_owned()]);
    let clause = "grant/tools/0";
    let allowed = |rules: &[&str]| {
        (true, std::iter::once(clause).chain(rules.iter().copied()).map(str::to_owned).collect())
    };
    let table = [
        (String::new(), false, json!({}), allowed(&[])),
        (String::new(), true, json!({}), denied("policy/permit")),
        (permit.to_owned(), true, json!({}), allowed(&["policy/all"])),
        (format!("{permit}{forbid}"), true, json!({}), allowed(&["policy/all"])),
        (format!("{permit}{forbid}"), true, json!({"sql": "DROP x"}), denied("policy/no-drop")),
        (forbid.to_owned(), false, json!({"sql": "DROP x"}), denied("policy/no-drop")),
        (weak.to_owned(), false, json!({}), allowed(&[])),
        (risky.to_owned(), false, json!({}), denied("policy/risky")),
        (shadow.to_owned(), false, json!({}), allowed(&["shadow/policy/soon"])),
    ];
    for (text, require_permit, arguments, expected) in table {
        let rules = Rules::parse(&text, require_permit).unwrap();
        let ruling = ruling(&rules, arguments);
        if let Err(denial) = &ruling.verdict {
            assert_eq!(denial.code, DenyCode::PolicyForbid);
        }
        assert_eq!((ruling.verdict.is_ok(), ruling.rules), expected, "{text}");
    }
}

#[test]
fn a_rule_that_fails_denies() {
    let overflow = r#"@id("sum") forbid(principal, action, resource)
        when { context.time_s * 9223372036854775807 > 0 };"#;
    let rules = Rules::parse(overflow, false).unwrap();
    let ruling = ruling(&rules, json!({}));
    assert_eq!(ruling.rules, ["policy/error"]);
    assert_eq!(ruling.verdict.unwrap_err().code, DenyCode::PolicyForbid);
}

#[test]
fn bad_rules_are_refused_by_name() {
    let rule = |condition: &str| {
        format!(r#"@id("mine") forbid(principal, action, resource) when {{ {condition} }};"#)
    };
    for (text, word) in [
        ("forbid(principal".to_owned(), "rules"),
        ("forbid(principal, action, resource);".to_owned(), "@id"),
        (r#"@id("a b") forbid(principal, action, resource);"#.to_owned(), "@id"),
        (rule("true").repeat(2), "@id"),
        (rule("context.nothing"), "nothing"),
        (rule("context.risk > 3"), "mine"),
        (rule("principal.colour == \"red\""), "colour"),
        (rule("principal in Group::\"x\""), "Group"),
        (rule("true").replace("@id(\"mine\")", "@id(\"mine\") @shadow(\"yes\")"), "@shadow"),
        (r#"@id("t") permit(principal == ?principal, action, resource);"#.to_owned(), "template"),
    ] {
        let error = Rules::parse(&text, false).unwrap_err();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn the_digest_is_of_text_and_mode() {
    let digest = |text: &str, permit| Rules::parse(text, permit).unwrap().digest;
    assert_ne!(digest("", false), digest("", true));
    assert_ne!(digest("", false), digest(" ", false));
    let path = std::path::Path::new("/nothing/here.cedar");
    assert!(Rules::load(path, false).unwrap_err().to_string().contains("here.cedar"));
}
