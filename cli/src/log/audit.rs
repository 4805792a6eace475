//! `casemate log audit`: a whole log, offline.

use std::path::Path;

use casemate_gateway::RulesAgain;
use casemate_ledger::receipt::{Outcome, TrustFile};
use casemate_ledger_store::Export;

use super::files::read;
use crate::{Answer, table};

const MAX_TRUST_BYTES: usize = 1 << 20;
/// What did not pass is printed up to here, failures first.
const MAX_PRINTED: usize = 200;

pub(super) fn run(export: &Path, trust: &Path, keys: Option<&Path>) -> anyhow::Result<Answer> {
    let trust = String::from_utf8(read(trust, MAX_TRUST_BYTES)?)?;
    let trust = TrustFile::from_toml(&trust)?;
    let rules = RulesAgain::default();
    let report = Export::open(export, keys)?.audit(&trust, Some(&rules))?;
    let rows = report.counts.iter().map(|(check, count)| {
        let numbers = [count.pass, count.not_checkable, count.fail].map(|n| n.to_string());
        [vec![(*check).to_owned()], numbers.to_vec()].concat()
    });
    table::print(&["CHECK", "PASS", "NOT CHECKABLE", "FAILED"], rows);
    let mut findings: Vec<_> = report.findings.iter().collect();
    findings.sort_by_key(|finding| (finding.outcome != Outcome::Fail, finding.leaf));
    for finding in findings.iter().take(MAX_PRINTED) {
        let mark = if finding.outcome == Outcome::Fail { "FAILED" } else { "not checkable" };
        let reason = table::plain(&finding.reason);
        println!("leaf {}: {} {mark}: {reason}", finding.leaf, finding.check);
    }
    println!("{} leaves walked under a signed head", report.leaves);
    Ok(if report.holds() { Answer::Yes } else { Answer::No })
}
