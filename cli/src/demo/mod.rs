//! `casemate demo`: the main job on this machine, start to end.
//!
//! Seven steps, one file each, played through the same commands that a person
//! types; every line marked `ok` was checked, and a check that fails ends the
//! demo with an error. Nothing is prepared beforehand but the programs.

mod evidence;
mod image;
mod launch;
mod proof;
mod record;
mod refusal;
mod release;
mod stage;
mod watch;
mod work;
mod world;

use std::path::PathBuf;

use clap::Args;

use crate::Answer;
use stage::Stage;
use world::World;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Where the demo keeps what it makes.
    #[arg(long, value_name = "DIR", default_value = ".casemate/demo")]
    folder: PathBuf,
    /// The folder with the static programs of the image; by default where `make` builds them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// The Python of the environment in which mcp-server-time is installed.
    #[arg(long, value_name = "FILE", default_value = ".casemate/venv/bin/python3")]
    python: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Answer> {
    let mut stage = Stage::new(&arguments.folder)?;
    let world = World::make(&stage, arguments)?;
    image::build(&stage, &world)?;
    world.start_services(&mut stage)?;
    let machine = launch::start(&mut stage, &world)?;
    evidence::show(&mut stage, &machine)?;
    release::show(&mut stage, &world, &machine)?;
    work::show(&mut stage, &world, &machine)?;
    refusal::show(&mut stage, &world, &machine)?;
    proof::show(&mut stage, &world)?;
    let seconds = stage.elapsed().as_secs_f32();
    println!("\nAll seven steps hold, in {seconds:.1} s. What they left is in {}.", stage.shown());
    Ok(Answer::Yes)
}
