//! Tasks of this repository: `cargo run -p xtask -- TASK`.

mod carry;
mod fuzz;
mod instructions;
mod lab;
mod tidy;
mod vectors;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo run -p xtask -- TASK
  tidy                      house rules that the compiler does not check
  vectors DIR               verify a directory of evidence against its expectations
  fuzz SECONDS [TARGET…]    fuzz each reader of bytes from outside, CPU seconds each
  instructions [--accept]   count what verification costs, compare with what is committed
  lab [--long] [SCENARIO…]  drives our VMM on emulated hardware with nested KVM";

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["lab", rest @ ..] => lab::run(rest),
        ["instructions"] => instructions::run(false),
        ["instructions", "--accept"] => instructions::run(true),
        ["tidy"] => tidy::run(),
        ["vectors", dir] => vectors::run(std::path::Path::new(dir)),
        ["fuzz", seconds, names @ ..] => {
            fuzz::run(seconds.parse()?, names)?;
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}
