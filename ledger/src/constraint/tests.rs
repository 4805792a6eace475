//! The table of rules.

use super::*;
use serde_json::json;

fn at(pointer: &str, rule: Rule) -> Constraint {
    Constraint::at(pointer, rule)
}

#[test]
fn the_table_of_rules() {
    let zone = || Rule::OneOf(vec!["UTC".into(), "Europe/Berlin".into()]);
    let path = || Rule::PathUnder(vec!["/srv/repo".into()]);
    let cases = [
        (at("/tz", zone()), json!({"tz": "UTC"}), true),
        (at("/tz", zone()), json!({"tz": "utc"}), false),
        (at("/tz", zone()), json!({"tz": ["UTC"]}), false),
        (at("/tz", zone()), json!({}), false),
        (Constraint { optional: true, ..at("/tz", zone()) }, json!({}), true),
        (Constraint { optional: true, ..at("/tz", zone()) }, json!({"tz": null}), false),
        (at("/p", path()), json!({"p": "/srv/repo"}), true),
        (at("/p", path()), json!({"p": "/srv/repo/a/b"}), true),
        (at("/p", path()), json!({"p": "/srv/repo2"}), false),
        (at("/p", path()), json!({"p": "/srv/repo/../x"}), false),
        (at("/p", path()), json!({"p": "/srv/repo//x"}), false),
        (at("/p", path()), json!({"p": "/srv/repo/"}), false),
        (at("/p", path()), json!({"p": "/srv/repo/%2e%2e/x"}), false),
        (at("/n", Rule::IntRange(-1, 3)), json!({"n": 3}), true),
        (at("/n", Rule::IntRange(-1, 3)), json!({"n": 4}), false),
        (at("/n", Rule::IntRange(-1, 3)), json!({"n": 2.5}), false),
        (at("/n", Rule::IntRange(-1, 3)), json!({"n": "2"}), false),
        (at("/s", Rule::MaxLen(3)), json!({"s": "abc"}), true),
        (at("/s", Rule::MaxLen(3)), json!({"s": "abcd"}), false),
        (at("/s", Rule::MaxLen(3)), json!({"s": 1}), false),
    ];
    holds(cases.to_vec());
}

#[test]
fn the_table_of_later_rules() {
    let cases = [
        (at("/b", equals(json!(false))), json!({"b": false}), true),
        (at("/b", equals(json!(false))), json!({"b": 0}), false),
        (at("/b", equals(json!({"x": [1, 2]}))), json!({"b": {"x": [1, 2]}}), true),
        (at("/b", equals(json!(1))), json!({"b": 1.0}), true),
        (at("/b", equals(json!("1"))), json!({"b": 1}), false),
        (at("/m", matches()), json!({"m": "INV-2026"}), true),
        (at("/m", matches()), json!({"m": "xINV-2026"}), false),
        (at("/m", matches()), json!({"m": "INV-2026\n"}), false),
        (at("/m", matches()), json!({"m": 2026}), false),
        (at("/d", most()), json!({"d": "99.99"}), true),
        (at("/d", most()), json!({"d": "100"}), true),
        (at("/d", most()), json!({"d": 100}), true),
        (at("/d", most()), json!({"d": "100.01"}), false),
        (at("/d", most()), json!({"d": "99.999"}), false),
        (at("/d", most()), json!({"d": 99.5}), false),
        (at("/d", most()), json!({"d": "-1"}), false),
        (at("/d", most()), json!({"d": "1e1"}), false),
        (at("/t", days()), json!({"t": "2026-02-28"}), true),
        (at("/t", days()), json!({"t": "2026-02-29"}), false),
        (at("/t", days()), json!({"t": "2024-02-29"}), false),
        (at("/t", days()), json!({"t": "2026-12-31"}), true),
        (at("/t", days()), json!({"t": "2027-01-01"}), false),
        (at("/t", days()), json!({"t": "2026-2-3"}), false),
        (at("/t", days()), json!({"t": "2026-02-28T00:00:00Z"}), false),
        (at("/l", some()), json!({"l": ["a", "b", "a"]}), true),
        (at("/l", some()), json!({"l": []}), true),
        (at("/l", some()), json!({"l": ["a", "c"]}), false),
        (at("/l", some()), json!({"l": "a"}), false),
        (at("/l", some()), json!({"l": [1]}), false),
        (at("/y", Rule::Present), json!({"y": null}), true),
        (at("/y", Rule::Present), json!({}), false),
        (both(), json!({"a": 1, "b": "x"}), true),
        (both(), json!({"a": 1}), false),
        (either(), json!({"a": 2, "b": "x"}), true),
        (either(), json!({"a": 2, "b": "y"}), false),
        (neither(), json!({"b": "y"}), true),
        (neither(), json!({"b": "x"}), false),
        (at("", Rule::OnlyKeys(vec!["a".into()])), json!({"a": 1}), true),
        (at("", Rule::OnlyKeys(vec!["a".into()])), json!({"a": 1, "b": 2}), false),
        (at("/x", Rule::Absent), json!({}), true),
        (at("/x", Rule::Absent), json!({"x": null}), false),
    ];
    holds(cases.to_vec());
}

/// Checks each case, and that each constraint survives its encoding.
fn holds(cases: Vec<(Constraint, Value, bool)>) {
    for (constraint, arguments, expected) in cases {
        assert!(!constraint.describe().is_empty());
        assert_eq!(constraint.holds(&arguments), expected, "{constraint:?} on {arguments}");
        assert_eq!(Constraint::from_value(constraint.to_value()), Ok(constraint));
    }
}

fn equals(value: Value) -> Rule {
    Rule::Equals(value)
}

fn matches() -> Rule {
    Rule::Matches(Pattern::new("[A-Z]{3}-[0-9]{4}").unwrap())
}

fn most() -> Rule {
    Rule::DecimalMax("100".parse().unwrap(), 2)
}

fn days() -> Rule {
    Rule::DateWithin("2026-01-01".into(), "2026-12-31".into())
}

fn some() -> Rule {
    Rule::SubsetOf(vec!["a".into(), "b".into()])
}

fn pair() -> Vec<Constraint> {
    vec![at("/a", equals(json!(1))), at("/b", equals(json!("x")))]
}

fn both() -> Constraint {
    at("", Rule::All(pair()))
}

fn either() -> Constraint {
    at("", Rule::Any(pair()))
}

fn neither() -> Constraint {
    at("", Rule::Not(Box::new(at("/b", equals(json!("x"))))))
}

#[test]
fn malformed_rules_are_refused() {
    let deep = (0..5).fold(at("", Rule::Present), |inner, _| at("", Rule::Not(Box::new(inner))));
    let bad = [
        Rule::IntRange(3, 1),
        Rule::IntRange(0, i64::MAX),
        Rule::DecimalMax("1".parse().unwrap(), 7),
        Rule::DateWithin("2026-02-30".into(), "2026-03-01".into()),
        Rule::DateWithin("2026-03-02".into(), "2026-03-01".into()),
        Rule::Equals(json!("x".repeat(1024))),
        Rule::All(vec![]),
        Rule::Any(vec![at("/a", Rule::Present); 65]),
        deep.rule,
    ];
    for rule in bad {
        assert!(Constraint::from_value(at("/n", rule).to_value()).is_err());
    }
    assert!(Constraint::from_value(at("n", Rule::Absent).to_value()).is_err());
}
