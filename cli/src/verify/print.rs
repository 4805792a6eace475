//! The result of `casemate verify`, for people and as JSON.

use casemate_attestation::appraise::{NOT_ASKED, Outcome};
use casemate_attestation::{Appraisal, Reason, Risk, VerifyError};
use serde_json::{Value, json};

use super::tree::{self, Node};
use crate::Answer;
use crate::table::plain;

/// Prints an appraisal: the machine as a tree, then every rule. `open` are the
/// failed rules that nothing was given for.
pub(crate) fn appraisal(appraisal: &Appraisal, open: &[&str], as_json: bool) -> Answer {
    let answer = answer(appraisal, open);
    let nodes = tree::nodes(appraisal, open);
    if as_json {
        println!("{}", to_json(appraisal, &nodes, open, &answer));
        return answer;
    }
    println!("{}", plain(&appraisal.label()));
    tree::lines(&nodes).iter().for_each(|line| println!("{}", plain(line)));
    for check in appraisal.checks() {
        let (mark, detail) = match check.outcome {
            Outcome::Pass => ("ok", check.actual.clone()),
            Outcome::NotApplicable if check.expected == NOT_ASKED => {
                ("not asked", check.actual.clone())
            }
            Outcome::NotApplicable => ("n/a", format!("{}; {}", check.actual, check.expected)),
            Outcome::Fail if open.contains(&check.rule) => ("not given", check.hint.clone()),
            Outcome::Fail => (
                "FAILED",
                format!("expected {}, got {}; {}", check.expected, check.actual, check.hint),
            ),
        };
        println!("  {mark:<10}{:<28}{}", check.rule, plain(&detail));
    }
    println!("boundary   {} {}", appraisal.boundary(), appraisal.properties());
    for risk in [Risk::Low, Risk::Medium, Risk::High] {
        match appraisal.affirmed(risk) {
            Ok(_) => println!("{risk:<10} affirmed"),
            Err(denial) => println!("{risk:<10} no: {}", plain(&denial.to_string())),
        }
    }
    answer
}

/// Evidence that did not verify. Where all that is wrong is that nobody gave
/// what it takes, the answer is that nobody can tell.
pub(crate) fn not_verified(error: &VerifyError, as_json: bool) -> Answer {
    let answer = match error.reason {
        Reason::CertMissing | Reason::CollateralMissing => Answer::Unknown,
        _ => Answer::No,
    };
    refusal_with(answer, error.reason.code(), &error.to_string(), as_json)
}

/// What could not even be read, as JSON; for people it goes where errors go.
pub(crate) fn unknown(error: &anyhow::Error) -> Answer {
    eprintln!("casemate: {error:#}");
    let (answer, reason) = (Answer::Unknown, format!("{error:#}"));
    let name = answer.name();
    println!("{}", json!({"version": 1, "answer": name, "code": "input", "reason": reason}));
    answer
}

/// Evidence that is refused.
pub(crate) fn refusal(code: &str, reason: &str, as_json: bool) -> Answer {
    refusal_with(Answer::No, code, reason, as_json)
}

fn refusal_with(answer: Answer, code: &str, reason: &str, as_json: bool) -> Answer {
    if as_json {
        let name = answer.name();
        println!("{}", json!({"version": 1, "answer": name, "code": code, "reason": reason}));
    } else {
        println!("NOT VERIFIED: {}", plain(reason));
    }
    answer
}

fn answer(appraisal: &Appraisal, open: &[&str]) -> Answer {
    let failed = |check: &&casemate_attestation::Check| !open.contains(&check.rule);
    match (appraisal.failures().find(failed), open.is_empty()) {
        (Some(_), _) => Answer::No,
        (None, false) => Answer::Unknown,
        (None, true) => Answer::Yes,
    }
}

fn to_json(appraisal: &Appraisal, nodes: &[Node], open: &[&str], answer: &Answer) -> Value {
    json!({
        "version": 1,
        "answer": answer.name(),
        "label": appraisal.label(),
        "boundary": appraisal.boundary(),
        "properties": appraisal.properties(),
        "hardware": appraisal.hardware().name(),
        "anchor": appraisal.anchor().map(|anchor| anchor.label.as_str()),
        "known_attacks": appraisal.known_attacks(),
        "image": appraisal.image(),
        "measurement": appraisal.measurement().map(hex::encode),
        "appraised_at": appraisal.appraised_at().0,
        "machine": nodes.iter().map(Node::to_json).collect::<Vec<_>>(),
        "not_given": open,
        "checks": appraisal.checks(),
    })
}
