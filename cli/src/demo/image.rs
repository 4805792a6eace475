//! Step 1: one measured image, known to the bit before anything runs.

use super::stage::Stage;
use super::world::{World, text};

/// Builds the image twice, compares, and gives the tenant its reference values.
pub(crate) fn build(stage: &Stage, world: &World) -> anyhow::Result<()> {
    stage.step(1, "Image: known to the bit before anything runs");
    build_into(stage, world, "image", Stage::watch)?;
    build_into(stage, world, "image-again", |stage, arguments| stage.must(arguments).map(drop))?;
    for name in ["kernel", "initrd", "cmdline", "manifest.toml", "reference.toml"] {
        let one = std::fs::read(stage.path("image").join(name))?;
        let two = std::fs::read(stage.path("image-again").join(name))?;
        anyhow::ensure!(one == two, "{name} differs between two builds of the same inputs");
    }
    stage.forget("image-again")?;
    stage.holds("built twice from the same inputs: the same bytes");
    let values = std::fs::read_to_string(stage.path("image/reference.toml"))?;
    stage.write("verifier/reference.toml", &values)?;
    stage.holds("the tenant has the image's reference values, before any machine starts");
    Ok(())
}

fn build_into(
    stage: &Stage,
    world: &World,
    folder: &str,
    run: impl Fn(&Stage, &[&str]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let agent = format!("{}=/workload/bin/casemate-agent:0755", world.agent.display());
    let script = format!("{}=/workload/script.toml", stage.path("agent/script.toml").display());
    run(
        stage,
        &[
            "image",
            "build",
            "--init",
            text(&world.guest)?,
            "--config",
            text(&stage.path("agent/guest.toml"))?,
            "--file",
            &agent,
            "--file",
            &script,
            "--out",
            text(&stage.path(folder))?,
        ],
    )
}
