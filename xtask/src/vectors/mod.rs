//! Runs a directory laid out like the project's evidence vectors.

mod nvgpu;

use std::process::ExitCode;

pub(crate) fn run(dir: &std::path::Path) -> anyhow::Result<ExitCode> {
    let lines = nvgpu::run(&dir.join("nvgpu"))?;
    let failed = lines.iter().filter(|line| line.outcome.is_err()).count();
    for line in &lines {
        match &line.outcome {
            Ok(what) => println!("ok    nvgpu/{} {what}", line.name),
            Err(why) => println!("FAIL  nvgpu/{}: {why}", line.name),
        }
    }
    println!("{} passed, {failed} failed", lines.len().saturating_sub(failed));
    Ok(ExitCode::from(u8::from(failed > 0)))
}
