//! The result of `casemate verify`, for people and as JSON.

use casemate_attestation::appraise::{NOT_ASKED, Outcome};
use casemate_attestation::{Appraisal, Check, Reason, Risk, UnixTime, VerifyError};
use serde_json::{Value, json};

use super::bundled::Facts;
use super::gather::LeftOut;
use super::tree::{self, Node};
use crate::Answer;
use crate::output::Said;
use crate::table::line;

/// How it was judged: part of every result.
pub(crate) struct Setting<'a> {
    /// Whether the result goes to a program.
    pub(crate) as_json: bool,
    /// The time that was judged at.
    pub(crate) time: UnixTime,
    /// Where that time is from.
    pub(crate) clock: &'static str,
    /// What was not judged.
    pub(crate) left_out: &'a [LeftOut],
    /// The bundle that was judged by what is inside it.
    pub(crate) bundle: Option<Facts>,
}

/// An appraisal: the machine as a tree, then every rule. `open` are the failed rules that
/// nothing was given for.
pub(crate) fn appraisal(appraisal: &Appraisal, open: &[&str], setting: &Setting<'_>) -> Said {
    let answer = answer(appraisal, open, setting);
    let nodes = tree::nodes(appraisal, open);
    if setting.as_json {
        return Said::json(&to_json(appraisal, &nodes, open, &answer, setting), answer);
    }
    let mut lines = vec![appraisal.label()];
    lines.extend(tree::lines(&nodes));
    lines.extend(appraisal.checks().iter().map(|check| rule(check, open)));
    lines.push(format!("boundary   {} {}", appraisal.boundary(), appraisal.properties()));
    lines.extend(setting.lines());
    lines.extend([Risk::Low, Risk::Medium, Risk::High].map(|risk| {
        let word = match (appraisal.affirmed(risk), setting.doubt()) {
            (Ok(_), None) => "affirmed".to_owned(),
            (Ok(_), Some(one)) => format!("could not tell: {} was left out", one.name),
            (Err(denial), _) => format!("no: {denial}"),
        };
        // Its Display does not know a width.
        format!("{:<10} {word}", risk.to_string())
    }));
    people(&lines, answer)
}

fn rule(check: &Check, open: &[&str]) -> String {
    let (mark, detail) = match check.outcome {
        Outcome::Pass => ("ok", check.actual.clone()),
        Outcome::NotApplicable if check.expected == NOT_ASKED => {
            ("not asked", check.actual.clone())
        }
        Outcome::NotApplicable => ("n/a", format!("{}; {}", check.actual, check.expected)),
        Outcome::Fail if open.contains(&check.rule) => ("not given", check.hint.clone()),
        Outcome::Fail => {
            ("FAILED", format!("expected {}, got {}; {}", check.expected, check.actual, check.hint))
        }
    };
    format!("  {mark:<10}{:<28}{detail}", check.rule)
}

/// Why evidence did not verify, and the file that is at fault where that is known.
pub(crate) struct Refusal<'a> {
    pub(crate) error: VerifyError,
    pub(crate) file: Option<&'a str>,
}

/// Whether `reason` says that nobody gave what it takes.
pub(crate) fn is_missing(reason: Reason) -> bool {
    matches!(reason, Reason::CertMissing | Reason::CollateralMissing)
}

/// Evidence that did not verify. Where all that is wrong is that nobody gave what it takes,
/// the answer is that nobody can tell; `rootless` says that evidence was given without the
/// report that it belongs to.
pub(crate) fn not_verified(why: &Refusal<'_>, rootless: bool, setting: &Setting<'_>) -> Said {
    let error = &why.error;
    let alone = rootless && error.actual == "none";
    let answer = match error.reason {
        reason if is_missing(reason) => Answer::Unknown,
        Reason::EventLog | Reason::HclBinding if alone => Answer::Unknown,
        _ => Answer::No,
    };
    let file = why.file.map_or_else(String::new, |file| format!(", in {file}"));
    refusal(answer, error.reason.code(), &format!("{error}{file}"), setting)
}

/// What was not judged to its end, and why.
pub(crate) fn refusal(answer: Answer, code: &str, reason: &str, setting: &Setting<'_>) -> Said {
    if setting.as_json {
        let object = json!({
            "version": 1,
            "answer": answer.name(),
            "code": code,
            "reason": reason,
            "appraised_at": setting.time.0,
            "bundle": setting.bundle.as_ref().map(Facts::to_json),
            "left_out": setting.left_out_json(),
        });
        return Said::json(&object, answer);
    }
    let mut lines = vec![format!("NOT VERIFIED: {reason}")];
    lines.extend(setting.lines());
    people(&lines, answer)
}

fn people(lines: &[String], answer: Answer) -> Said {
    let text = lines.iter().map(|one| line(one) + "\n").collect();
    Said { text, answer }
}

impl Setting<'_> {
    /// Something that was left out and may be evidence or an endorsement.
    pub(crate) fn doubt(&self) -> Option<&LeftOut> {
        self.left_out.iter().find(|one| one.matters)
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = match &self.bundle {
            None => vec![format!("judged     at {} ({})", self.time.rfc3339(), self.clock)],
            Some(bundle) => bundle.lines(self.time),
        };
        lines.extend(self.left_out.iter().map(|one| {
            let may = if one.matters { "; it may matter" } else { "" };
            format!("left out   {}: {}{may}", one.name, one.why)
        }));
        lines
    }

    fn left_out_json(&self) -> Vec<Value> {
        self.left_out.iter().map(LeftOut::to_json).collect()
    }
}

fn answer(appraisal: &Appraisal, open: &[&str], setting: &Setting<'_>) -> Answer {
    let failed = |check: &&Check| !open.contains(&check.rule);
    let whole = open.is_empty() && setting.doubt().is_none();
    match (appraisal.failures().find(failed), whole) {
        (Some(_), _) => Answer::No,
        (None, false) => Answer::Unknown,
        (None, true) => Answer::Yes,
    }
}

fn to_json(
    appraisal: &Appraisal,
    nodes: &[Node],
    open: &[&str],
    answer: &Answer,
    setting: &Setting<'_>,
) -> Value {
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
        "left_out": setting.left_out_json(),
        "bundle": setting.bundle.as_ref().map(Facts::to_json),
        "checks": appraisal.checks(),
    })
}
