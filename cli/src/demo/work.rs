//! Step 5: an ordinary MCP client at work, each call signed, decided, recorded.

use std::time::Duration;

use super::record::{Decision, decisions};
use super::stage::Stage;
use super::watch::Machine;
use super::world::World;

/// Waits for the agent's first calls and shows what the log has of them.
pub(crate) fn show(stage: &mut Stage, world: &World, machine: &Machine) -> anyhow::Result<()> {
    stage.step(5, "Work: an unmodified MCP client, no key, no network, one door");
    machine.wait(stage, "workload")?;
    stage.say("the agent runs as another uid, in namespaces of its own");
    let calls = wait_for(stage, world, "the agent's calls", |calls| {
        allowed(calls, "time.convert_time").count() == 2
    })?;
    for call in &calls {
        stage.say(format!("leaf {:<3} {}", call.leaf, call.text));
    }
    stage.holds("signed in the guest, decided outside, executed by mcp-server-time, recorded");
    Ok(())
}

/// The decisions that allowed a call of `tool`.
pub(crate) fn allowed<'a>(
    calls: &'a [Decision],
    tool: &str,
) -> impl Iterator<Item = &'a Decision> + use<'a> {
    let start = format!("allow {tool} ");
    calls.iter().filter(move |call| call.text.starts_with(&start))
}

/// The decisions that denied a call of `tool` for the reason `code`.
pub(crate) fn denied<'a>(
    calls: &'a [Decision],
    code: &str,
    tool: &str,
) -> impl Iterator<Item = &'a Decision> + use<'a> {
    let start = format!("deny {code} {tool} ");
    calls.iter().filter(move |call| call.text.starts_with(&start))
}

/// Follows the log until its decisions satisfy `enough`.
pub(crate) fn wait_for(
    stage: &mut Stage,
    world: &World,
    what: &str,
    enough: impl Fn(&[Decision]) -> bool,
) -> anyhow::Result<Vec<Decision>> {
    stage.wait(what, LIMIT, || Some(decisions(world, 0)).filter(|calls| enough(calls)))
}

const LIMIT: Duration = Duration::from_secs(120);
