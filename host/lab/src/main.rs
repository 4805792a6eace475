//! PID 1 of the lab, in two places: on the emulated host it drives the VMM
//! through scenarios, and in the VMM's guest it does what a scenario asks. Under the
//! name `tool` it is the tool server of the demo's scenario.

mod agent;
mod bench;
mod compare;
mod hostile;
mod machine;
mod passthrough;
mod pattern;
mod private;
mod product;
mod scenarios;
mod start;
mod sys;
mod tool;
mod traffic;

use std::path::Path;

fn main() -> anyhow::Result<()> {
    // A confined tool server is PID 1 too, of its own name space: the name tells.
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).ends_with("tool") {
        return tool::serve();
    }
    let result = start::prepare()
        .and_then(|()| if Path::new("/guest").exists() { agent::run() } else { bench::run() });
    if let Err(error) = result {
        println!("LAB error {error:#}");
    }
    start::power_off();
}
