//! Step 2: a real microVM, and what the host says that it built.

use super::stage::Stage;
use super::watch::{Machine, fact, part};
use super::world::{TASK, World, text};

/// Starts the machine and waits until its kernel runs our PID 1.
pub(crate) fn start(stage: &mut Stage, _world: &World) -> anyhow::Result<Machine> {
    stage.step(2, "Launch: a real Linux microVM, no network card");
    let config = stage.path("host/host.toml");
    let image = stage.path("image");
    let arguments = ["run", "--config", text(&config)?, "--image", text(&image)?];
    stage.spawn("machine", &[&arguments[..], &["--task", TASK, "--json"]].concat())?;
    let machine = Machine::of(stage, "machine");
    let facts = machine.wait(stage, "running")?;
    stage.say(format!("machine  {}", fact(&facts, "id")?));
    stage.say(format!("backend  {}", fact(&facts, "backend")?));
    stage.say(format!(
        "boundary {}, properties {}",
        fact(&facts, "boundary")?,
        part(&facts, "properties")?
    ));
    anyhow::ensure!(fact(&facts, "boundary")? == "microvm", "another boundary than was built");
    stage.holds("the label is what was built, and no more: microvm, without hardware's word");
    Ok(machine)
}
