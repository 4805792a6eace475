//! Step 4: a secret for this boundary, and a refusal that explains itself.

use serde_json::Value;

use super::stage::Stage;
use super::watch::{Machine, fact, part};
use super::world::{HIGH_SECRET, MEDIUM_SECRET, World};

/// Shows what was released and what was refused.
pub(crate) fn show(stage: &mut Stage, world: &World, machine: &Machine) -> anyhow::Result<()> {
    stage.step(4, "Release: sealed to the attested key, or refused with a reason");
    let released = machine.wait(stage, "secret-released")?;
    anyhow::ensure!(fact(&released, "name")? == MEDIUM_SECRET, "another secret was released");
    stage.holds(format!("{MEDIUM_SECRET} (medium risk) released under a lease"));
    let refused = machine.wait(stage, "secret-refused")?;
    anyhow::ensure!(fact(&refused, "name")? == HIGH_SECRET, "another secret was refused");
    let denial = part(&refused, "denial")?;
    anyhow::ensure!(
        fact(denial, "code")? == "risk-refused",
        "refused for another reason: {denial}"
    );
    explain(stage, denial)?;
    stage.holds(format!("{HIGH_SECRET} (high risk) refused at this boundary"));
    let leases = stage.must(&["secret", "leases", "--admin", &world.socket("verifier-admin")])?;
    anyhow::ensure!(leases.lines().count() == 1, "expected one lease, got:\n{leases}");
    Ok(())
}

/// A denial: the rule, what it expected, what it got, what would make it pass.
pub(crate) fn explain(stage: &Stage, denial: &Value) -> anyhow::Result<()> {
    for part in ["rule", "expected", "actual", "hint"] {
        stage.say(format!("  {part:<9}{}", fact(denial, part)?));
    }
    Ok(())
}
