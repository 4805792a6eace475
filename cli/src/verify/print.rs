//! The result of `casemate verify`, for people and as JSON.

use casemate_attestation::appraise::Outcome;
use casemate_attestation::{Appraisal, Risk};
use serde_json::{Value, json};

use crate::Answer;
use crate::table::plain;

/// Prints an appraisal. `open` are the failed rules that nothing was given for.
pub(crate) fn appraisal(appraisal: &Appraisal, open: &[&str], as_json: bool) -> Answer {
    let answer = answer(appraisal, open);
    if as_json {
        println!("{}", to_json(appraisal, open, &answer));
        return answer;
    }
    println!("{}", plain(&appraisal.label()));
    for check in appraisal.checks() {
        let (mark, detail) = match check.outcome {
            Outcome::Pass => ("ok", check.actual.clone()),
            Outcome::NotApplicable => ("not asked", check.actual.clone()),
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

/// Evidence that did not verify.
pub(crate) fn refusal(code: &str, reason: &str, as_json: bool) -> Answer {
    if as_json {
        println!("{}", json!({"version": 1, "answer": "no", "code": code, "reason": reason}));
    } else {
        println!("NOT VERIFIED: {}", plain(reason));
    }
    Answer::No
}

fn answer(appraisal: &Appraisal, open: &[&str]) -> Answer {
    let failed = |check: &&casemate_attestation::Check| !open.contains(&check.rule);
    match (appraisal.failures().find(failed), open.is_empty()) {
        (Some(_), _) => Answer::No,
        (None, false) => Answer::Unknown,
        (None, true) => Answer::Yes,
    }
}

fn to_json(appraisal: &Appraisal, open: &[&str], answer: &Answer) -> Value {
    json!({
        "version": 1,
        "answer": answer.name(),
        "label": appraisal.label(),
        "boundary": appraisal.boundary(),
        "properties": appraisal.properties(),
        "hardware": appraisal.hardware().name(),
        "anchor": appraisal.anchor().map(|anchor| anchor.label.as_str()),
        "image": appraisal.image(),
        "measurement": appraisal.measurement().map(hex::encode),
        "appraised_at": appraisal.appraised_at().0,
        "not_given": open,
        "checks": appraisal.checks(),
    })
}
