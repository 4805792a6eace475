//! The rule on generations of hardware that are known broken.

use super::Findings;
use crate::break_list::BrokenGeneration;
use crate::policy::Policy;
use crate::snp::SnpClaims;
use crate::tdx::TdxClaims;
use crate::time::UnixTime;

/// The weakest of the TCBs that the guest has run on decides: a key that
/// leaked before an update has leaked.
pub(super) fn snp(claims: &SnpClaims, policy: &Policy, now: UnixTime, findings: &mut Findings) {
    let Some(list) = policy.break_list() else {
        return findings.checks.not_asked("snp.generation", claims.product);
    };
    let launch = claims.report.launch_tcb.components(claims.product).unwrap_or_default();
    let committed = claims.report.committed_tcb.components(claims.product).unwrap_or_default();
    let mut broken: Vec<_> = Vec::new();
    for tcb in [claims.reported_tcb, committed, launch] {
        let found = list.snp(claims.product, tcb).filter(|entry| !broken.contains(entry));
        let found: Vec<_> = found.collect();
        broken.extend(found);
    }
    compare("snp.generation", &broken, claims.product.name(), policy, now, findings);
}

pub(super) fn tdx(claims: &TdxClaims, policy: &Policy, now: UnixTime, findings: &mut Findings) {
    let fmspc = crate::wire::hex(&claims.platform.fmspc);
    let Some(list) = policy.break_list() else {
        return findings.checks.not_asked("tdx.generation", fmspc);
    };
    let broken: Vec<_> = list.tdx(claims.platform.fmspc, &claims.platform.tcb).collect();
    compare("tdx.generation", &broken, &fmspc, policy, now, findings);
}

fn compare(
    rule: &'static str,
    broken: &[&BrokenGeneration],
    generation: &str,
    policy: &Policy,
    now: UnixTime,
    findings: &mut Findings,
) {
    findings.known_attacks.extend(broken.iter().map(|entry| entry.id.clone()));
    let accept = &policy.generations().accept;
    let accepted = |entry: &&BrokenGeneration| {
        accept.iter().any(|grace| grace.id == entry.id && now < grace.until)
    };
    let list: Vec<String> = broken.iter().map(|e| format!("{}: {}", e.id, e.text)).collect();
    let actual = match list.as_slice() {
        [] => format!("{generation} is not on the list"),
        list => format!("{generation}: {}", list.join("; ")),
    };
    let excused: Vec<_> = accept.iter().map(|g| format!("{} until {}", g.id, g.until)).collect();
    let expected = match excused.as_slice() {
        [] => "a generation that is not known broken".to_owned(),
        excused => format!("a generation not known broken, but for {}", excused.join(", ")),
    };
    findings.checks.compare(
        rule,
        broken.iter().all(accepted),
        expected,
        actual,
        "run on another generation or a fixed TCB, or accept the entry by its id until a date",
    );
}
