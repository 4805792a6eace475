//! Reads the gateway's log the way an operator does: `casemate log list --json`.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::world::World;

/// One decision of the log.
#[derive(Clone)]
pub(crate) struct Decision {
    /// The leaf.
    pub(crate) leaf: u64,
    /// `allow TOOL #N by …` or `deny CODE TOOL #N by …`.
    pub(crate) text: String,
}

/// The decisions from leaf `from` on. An empty answer where the gateway gives none.
pub(crate) fn decisions(world: &World, from: u64) -> Vec<Decision> {
    let admin = world.socket("gateway-admin");
    let from = from.to_string();
    let Ok(program) = std::env::current_exe() else { return Vec::new() };
    let output = Command::new(program)
        .args(["log", "list", "--json", "--admin", &admin, "--from", &from])
        .stdin(Stdio::null())
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    let leaves = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    leaves.filter_map(|leaf| decision(&leaf)).collect()
}

fn decision(leaf: &Value) -> Option<Decision> {
    if leaf.get("kind")?.as_str()? != "decision" {
        return None;
    }
    let text = leaf.get("text")?.as_str()?.to_owned();
    Some(Decision { leaf: leaf.get("index")?.as_u64()?, text })
}
