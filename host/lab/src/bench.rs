//! The emulated host: runs scenarios one by one and says how each went.

use std::time::Instant;

use crate::{scenarios, start};

/// Runs what the command line names, or everything.
pub(crate) fn run() -> anyhow::Result<()> {
    let words = start::words();
    let wanted = words.iter().find_map(|word| word.strip_prefix("lab=")).unwrap_or_default();
    let long = words.iter().any(|word| word == "lab.long");
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    println!("LAB up after {} s", uptime.split_whitespace().next().unwrap_or_default());
    let mut good = true;
    for (name, scenario) in scenarios::ALL {
        if !wanted.is_empty() && !wanted.split(',').any(|each| each == *name) {
            continue;
        }
        println!("LAB run  {name}");
        let started = Instant::now();
        let result = scenario(long);
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(text) => println!("LAB ok   {name} {seconds:.1} s {text}"),
            Err(error) => {
                good = false;
                println!("LAB FAIL {name} {seconds:.1} s {error:#}");
            }
        }
    }
    println!("LAB end {}", if good { "good" } else { "bad" });
    Ok(())
}
