//! `/init` of the image. The same binary, started as `casemate-guest workload`
//! by itself, is the helper that confines the workload.

use std::process::ExitCode;

use casemate_guest::{boot, workload};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == workload::HELPER) {
        return workload::confine::main();
    }
    if std::process::id() != 1 {
        eprintln!("casemate-guest is the first process of a sandbox image; it does not run here");
        return ExitCode::from(64);
    }
    boot::run()
}
