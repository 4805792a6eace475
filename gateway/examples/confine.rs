//! The helper that confines tool servers, for the gateway's tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    let word = std::env::args().nth(1);
    casemate_confine::tool::main_if_asked(word.as_deref()).unwrap_or(ExitCode::FAILURE)
}
