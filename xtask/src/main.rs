//! Tasks of this repository: `cargo run -p xtask -- TASK`.

mod tidy;
mod vectors;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo run -p xtask -- TASK
  tidy           house rules that the compiler does not check";

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["tidy"] => tidy::run(),
        ["vectors", dir] => vectors::run(std::path::Path::new(dir)),
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}
