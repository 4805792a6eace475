//! Step 6: no. Outside the grant, over the budget, revoked, killed, tampered with.

use std::time::Duration;

use anyhow::Context;

use super::stage::Stage;
use super::watch::{Machine, fact, part};
use super::work::{allowed, denied, wait_for};
use super::world::{TASK, World, text};
use super::{record, release};

/// Shows every way in which Casemate says no.
pub(crate) fn show(stage: &mut Stage, world: &World, machine: &Machine) -> anyhow::Result<()> {
    stage.step(6, "No: budget, grant, revocation, kill, tampered image");
    denials(stage, world)?;
    revocation(stage, world)?;
    kill(stage, machine)?;
    tampered(stage)
}

fn denials(stage: &mut Stage, world: &World) -> anyhow::Result<()> {
    let calls = wait_for(stage, world, "the agent's denied calls", |calls| {
        allowed(calls, "time.get_current_time").next().is_some()
    })?;
    for (code, tool, why) in [
        ("budget_exhausted", "time.convert_time", "the third of two calls: the budget is spent"),
        ("decision_limit", "time.get_current_time", "a time zone that the grant does not name"),
        ("tool_not_granted", "shell.run", "a tool that the grant does not name"),
    ] {
        let call = denied(&calls, code, tool).next();
        let call = call.with_context(|| format!("no call of {tool} was denied {code}"))?;
        stage.say(format!("leaf {:<3} {}", call.leaf, call.text));
        stage.holds(why);
    }
    Ok(())
}

fn revocation(stage: &mut Stage, world: &World) -> anyhow::Result<()> {
    let admin = world.socket("gateway-admin");
    let grants = stage.must(&["grant", "list", "--admin", &admin])?;
    let id = grants.lines().nth(1).and_then(|line| line.split_whitespace().next());
    let id = id.context("the gateway lists no grant")?;
    // What was allowed until now; after the revocation nothing may be added.
    stage.must(&["grant", "revoke", "--admin", &admin, id, "--reason", "the meeting is off"])?;
    let before = allowed(&record::decisions(world, 0), "time.get_current_time").count();
    let calls = wait_for(stage, world, "a call after the revocation", |calls| {
        denied(calls, "grant_revoked", "time.get_current_time").next().is_some()
    })?;
    let after = allowed(&calls, "time.get_current_time").count();
    anyhow::ensure!(before == after, "{} calls were allowed after the revocation", after - before);
    stage.holds("revoked while the agent worked: its next call was denied grant_revoked");
    Ok(())
}

fn kill(stage: &mut Stage, machine: &Machine) -> anyhow::Result<()> {
    let id = machine.event("running").context("the machine never ran")?;
    let config = stage.path("host/host.toml");
    let said = stage.must(&["kill", "--config", text(&config)?, fact(&id, "id")?])?;
    // From the request to the end of the machine's process; starting this program is no part of it.
    let took = said.split_whitespace().find_map(|word| word.parse::<u64>().ok());
    let took = took.with_context(|| format!("no time in {said:?}"))?;
    anyhow::ensure!(took < 1000, "the kill took {took} ms, expected under 1000");
    stage.say(said);
    stage.join(&machine.name, Duration::from_secs(10))?;
    stage.holds(format!("the operator's kill ended the machine in {took} ms"));
    Ok(())
}

/// The same image with one byte of its command line changed.
fn tampered(stage: &mut Stage) -> anyhow::Result<()> {
    copy_image(stage)?;
    let path = stage.path("tampered/cmdline");
    let cmdline = std::fs::read_to_string(&path)?;
    std::fs::write(&path, cmdline.replacen("quiet", "quieT", 1))?;
    let config = stage.path("host/host.toml");
    let image = stage.path("tampered");
    let arguments = ["run", "--config", text(&config)?, "--image", text(&image)?];
    stage.spawn("tampered-machine", &[&arguments[..], &["--task", TASK, "--json"]].concat())?;
    let machine = Machine::of(stage, "tampered-machine");
    let refused = machine.wait(stage, "attest-refused")?;
    let denial = part(&refused, "denial")?;
    let rule = fact(denial, "rule")?;
    anyhow::ensure!(rule == "snp.measurement" || rule == "host.launch", "another rule: {rule}");
    release::explain(stage, denial)?;
    let code = stage.join(&machine.name, Duration::from_secs(60))?;
    anyhow::ensure!(code == Some(1), "expected the run to end with 1, got {code:?}");
    stage.holds("one changed byte in the command line: refused, and the machine is gone");
    Ok(())
}

fn copy_image(stage: &Stage) -> anyhow::Result<()> {
    std::fs::create_dir_all(stage.path("tampered"))?;
    for name in ["kernel", "initrd", "cmdline", "manifest.toml"] {
        std::fs::copy(stage.path("image").join(name), stage.path("tampered").join(name))?;
    }
    Ok(())
}
