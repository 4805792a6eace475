//! Step 3: keys made inside, evidence bound to nonce, key and TLS channel.

use super::stage::Stage;
use super::watch::{Machine, fact, part};

/// Shows what PID 1 made, and what the verifier found it to be.
pub(crate) fn show(stage: &mut Stage, machine: &Machine) -> anyhow::Result<()> {
    stage.step(3, "Evidence: keys made inside, bound to nonce and TLS channel");
    let identity = machine.wait(stage, "identity")?;
    stage.say(format!("identity key {}, made in the guest", fact(&identity, "key")?));
    let evidence = machine.wait(stage, "evidence")?;
    let sources = part(&evidence, "sources")?;
    stage.say(format!("sources      {sources}"));
    anyhow::ensure!(sources.to_string().contains("NVIDIA"), "no device gave evidence");
    let attested = machine.wait(stage, "attested")?;
    stage.say(format!("sandbox      {}", fact(&attested, "sandbox")?));
    stage.say(format!("anchor       {}", fact(&attested, "anchor")?));
    anyhow::ensure!(fact(&attested, "hardware")? == "model", "a model passed for something else");
    anyhow::ensure!(fact(&attested, "boundary")? == "microvm", "a model earned a boundary");
    stage.holds("the host's claim of the boundary is signed, and bound to this challenge");
    stage.holds("one GPU, as the policy asks: its report answers this challenge too");
    stage.holds("one verifying code path; the verdict says: model, not hardware");
    Ok(())
}
