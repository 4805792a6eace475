//! `/init` of the image. The same binary is also the helper that confines the
//! workload, when it is started as `casemate-guest workload` by itself, and the
//! port's door for programs, when it is started under the name `mcp`.

use std::path::Path;
use std::process::ExitCode;

use casemate_guest::port::stdio;
use casemate_guest::{boot, workload};

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let first = arguments.next();
    if Path::new(&name).file_name().is_some_and(|name| name == stdio::PROGRAM) {
        return stdio::main(first.as_deref());
    }
    if first.is_some_and(|word| word == workload::HELPER) {
        return workload::confine::main();
    }
    if std::process::id() != 1 {
        eprintln!("casemate-guest is the first process of a sandbox image; it does not run here");
        return ExitCode::from(64);
    }
    boot::run()
}
