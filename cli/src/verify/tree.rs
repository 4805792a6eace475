//! A machine as a tree: its CPU, its host's word, its GPUs and switches.

use casemate_attestation::appraise::{DeviceVerdict, Hardware, Outcome};
use casemate_attestation::{Appraisal, gpu};
use serde_json::{Value, json};

/// One part of a machine.
pub(crate) struct Node {
    /// `cpu0`, `host`, `gpu0`, `nvswitch3`.
    name: String,
    /// `ok`, `failed`, `not given`; for a device also `partial`.
    outcome: &'static str,
    /// Facts, in the order they are shown.
    facts: Vec<(&'static str, String)>,
    /// Why it is not `ok`.
    reasons: Vec<String>,
    /// What the device's evidence says, under the vendor's claim names.
    claims: Option<Value>,
}

/// The parts of the machine that `appraisal` is about.
pub(crate) fn nodes(appraisal: &Appraisal, open: &[&str]) -> Vec<Node> {
    let cpu = (appraisal.hardware() != Hardware::None).then(|| cpu(appraisal, open));
    let host = appraisal.host().map(|host| host_node(appraisal, host, open));
    let devices = appraisal.devices().iter().map(|device| device_node(device, open));
    cpu.into_iter().chain(host).chain(devices).collect()
}

/// The tree, a line each.
pub(crate) fn lines(nodes: &[Node]) -> Vec<String> {
    let mut out = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        let last = at + 1 == nodes.len();
        let (branch, trunk) = if last { ("└─", "  ") } else { ("├─", "│ ") };
        out.push(format!("{branch} {:<12}{}", node.name, node.outcome));
        for (name, value) in &node.facts {
            out.push(format!("{trunk}   {name:<12}{value}"));
        }
        for reason in &node.reasons {
            out.push(format!("{trunk}   why         {reason}"));
        }
    }
    out
}

impl Node {
    /// The part as JSON.
    pub(crate) fn to_json(&self) -> Value {
        let facts: serde_json::Map<_, _> =
            self.facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({
            "name": self.name,
            "outcome": self.outcome,
            "facts": facts,
            "reasons": self.reasons,
            "claims": self.claims,
        })
    }
}

fn cpu(appraisal: &Appraisal, open: &[&str]) -> Node {
    let says = |rule: &str| {
        let found = appraisal.checks().iter().find(|check| check.rule == rule);
        found.map(|check| check.actual.clone())
    };
    let kind = if says("snp.version").is_some() { "AMD SEV-SNP" } else { "Intel TDX" };
    let firmware = says("snp.reported-tcb").or_else(|| says("tdx.tcb-status"));
    let anchor = appraisal.anchor().map(|anchor| anchor.label.as_str());
    let mut facts = vec![
        ("kind", kind.to_owned()),
        ("anchor", anchored(appraisal.hardware(), anchor)),
        ("location", "not in the evidence".to_owned()),
    ];
    facts.extend(firmware.map(|firmware| ("firmware", firmware)));
    facts.extend(appraisal.measurement().map(|digest| ("measurement", hex::encode(digest))));
    facts.push(("image", appraisal.image().unwrap_or("not known").to_owned()));
    part("cpu0", appraisal, &["snp.", "tdx.", "azure.", "evidence."], facts, open)
}

fn host_node(appraisal: &Appraisal, host: &str, open: &[&str]) -> Node {
    let facts = vec![
        ("anchor", format!("enrolled key of {host}")),
        ("boundary", appraisal.boundary().to_string()),
    ];
    part("host", appraisal, &["host."], facts, open)
}

/// A node about the rules that begin with one of `prefixes`.
fn part(
    name: &str,
    appraisal: &Appraisal,
    prefixes: &[&str],
    facts: Vec<(&'static str, String)>,
    open: &[&str],
) -> Node {
    let ours = |rule: &str| prefixes.iter().any(|prefix| rule.starts_with(prefix));
    let broken: Vec<_> = appraisal
        .checks()
        .iter()
        .filter(|check| check.outcome == Outcome::Fail && ours(check.rule))
        .collect();
    let given = broken.iter().any(|check| !open.contains(&check.rule));
    let outcome = match (broken.is_empty(), given) {
        (true, _) => "ok",
        (false, true) => "failed",
        (false, false) => "not given",
    };
    let reasons = broken
        .iter()
        .map(|check| format!("{}: expected {}, got {}", check.rule, check.expected, check.actual));
    Node { name: name.to_owned(), outcome, facts, reasons: reasons.collect(), claims: None }
}

fn device_node(device: &DeviceVerdict, open: &[&str]) -> Node {
    let claim = |names: &[&str]| {
        names.iter().find_map(|name| device.claims.get(*name)?.as_str()).map(str::to_owned)
    };
    let pdi = device.claims.get("casemate").and_then(|ours| ours.get("gpu.pdi")?.as_str());
    let facts = [
        ("kind", claim(&["hwmodel"])),
        ("identity", pdi.map(|pdi| format!("PDI {pdi}"))),
        ("anchor", Some(anchored(device.hardware, device.anchor.as_deref()))),
        ("location", Some(device.location.clone())),
        ("driver", claim(&["x-nvidia-gpu-driver-version"])),
        ("firmware", claim(&["x-nvidia-gpu-vbios-version", "x-nvidia-switch-bios-version"])),
        ("mode", claim(&["x-nvidia-gpu-mode"])),
    ];
    let rule = |reason: &String| reason.split(':').next().unwrap_or_default().to_owned();
    let failed = device.reasons.iter().any(|reason| !open.contains(&rule(reason).as_str()));
    let outcome = match (device.outcome, failed, device.reasons.is_empty()) {
        (gpu::Outcome::Fail, _, _) => "failed",
        (gpu::Outcome::Partial, _, _) => "partial",
        (gpu::Outcome::Pass, true, _) => "failed",
        (gpu::Outcome::Pass, false, false) => "not given",
        (gpu::Outcome::Pass, false, true) => "ok",
    };
    Node {
        name: device.name.clone(),
        outcome,
        facts: facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        reasons: device.reasons.clone(),
        claims: Some(Value::Object(device.claims.clone())),
    }
}

fn anchored(hardware: Hardware, anchor: Option<&str>) -> String {
    let anchor = anchor.unwrap_or("nobody");
    match hardware {
        Hardware::Genuine => format!("hardware, {anchor}"),
        Hardware::Model => format!("model, not hardware, {anchor}"),
        Hardware::None => format!("no hardware, {anchor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_branch_ends_the_tree() {
        let node = |name: &str, reasons: &[&str]| Node {
            name: name.to_owned(),
            outcome: "ok",
            facts: vec![("mode", "SPT".to_owned())],
            reasons: reasons.iter().map(|one| (*one).to_owned()).collect(),
            claims: None,
        };
        let lines = lines(&[node("cpu0", &[]), node("gpu0", &["old"])]);
        assert_eq!(
            lines,
            [
                "├─ cpu0        ok",
                "│    mode        SPT",
                "└─ gpu0        ok",
                "     mode        SPT",
                "     why         old",
            ]
        );
    }
}
