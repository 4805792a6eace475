//! `casemate-vmm SPEC.toml`: runs one machine to its end; `-` reads the specification from
//! standard input. `casemate-vmm give ADDRESS` binds a PCI device to vfio-pci for a machine,
//! `give-back ADDRESS` to the host's own driver again.
//!
//! The last line of standard error is the exit reason as JSON. Exit code 0: the guest
//! ended itself; 1: it was ended; 2: it never ran.

use std::io::Read;
use std::process::ExitCode;

use casemate_vmm::{Exit, VmSpec, handover};

fn main() -> ExitCode {
    abort_on_panic();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let path = match arguments.as_slice() {
        [path] => path,
        [verb, address] if verb == "give" || verb == "give-back" => {
            return hand_over(verb == "give", &address.to_string_lossy());
        }
        _ => {
            eprintln!("usage: casemate-vmm SPEC.toml | give ADDRESS | give-back ADDRESS");
            return ExitCode::from(2);
        }
    };
    match start(path.as_ref()) {
        Ok(exit) => {
            let text = serde_json::to_string(&exit).unwrap_or_default();
            eprintln!("{text}");
            ExitCode::from(if exit.is_orderly() { 0 } else { 1 })
        }
        Err(error) => {
            eprintln!("casemate-vmm: {error}");
            ExitCode::from(2)
        }
    }
}

fn hand_over(give: bool, address: &str) -> ExitCode {
    let done = match give {
        true => handover::give(address).map(|()| "vfio-pci".to_owned()),
        false => handover::give_back(address),
    };
    match done {
        Ok(driver) => {
            println!("{address}: driver {}", if driver.is_empty() { "none" } else { &driver });
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("casemate-vmm: {error}");
            ExitCode::from(2)
        }
    }
}

fn start(path: &std::path::Path) -> Result<Exit, Box<dyn std::error::Error>> {
    let text = match path == std::path::Path::new("-") {
        true => std::io::read_to_string(std::io::stdin().take(SPEC_MAX))?,
        false => std::fs::read_to_string(path)?,
    };
    Ok(casemate_vmm::run(&VmSpec::parse(&text)?)?)
}

/// Longest specification that is read from standard input.
const SPEC_MAX: u64 = 1 << 20;

/// A thread that fails must not leave a machine running half-watched.
fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("casemate-vmm: {panic}");
        std::process::abort();
    }));
}
