//! `casemate-agent SCRIPT.toml`: see the library.

use std::process::ExitCode;

use casemate_agent::{Script, run};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: casemate-agent SCRIPT.toml");
        return ExitCode::from(2);
    };
    let script = std::fs::read_to_string(&path)
        .map_err(|error| error.to_string())
        .and_then(|text| Script::parse(&text).map_err(|error| error.to_string()));
    let script = match script {
        Ok(script) => script,
        Err(error) => {
            eprintln!("{path}: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        runtime.block_on(run(&script, &mut std::io::stdout())).map_err(|error| error.to_string())
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("casemate-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
