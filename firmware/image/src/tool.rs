//! Running the few Debian tools that the build needs, each in a bounded time.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::BuildError;

/// What a tool said: its standard output and error, each cut at [`MAX_OUTPUT`].
pub(crate) struct Said {
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
    pub(crate) success: bool,
}

/// Runs `command` to its end, calling `watch` now and then; an error when it
/// fails or takes longer than `limit`.
pub(crate) fn run(
    command: &mut Command,
    limit: Duration,
    watch: &mut dyn FnMut(),
) -> Result<Vec<u8>, BuildError> {
    let said = run_any(command, limit, watch)?;
    if said.success {
        return Ok(said.out);
    }
    Err(BuildError::Tool { tool: name_of(command.get_program()), said: tail(&said.err) })
}

/// As [`run`], but a failing tool is the caller's to judge.
pub(crate) fn run_any(
    command: &mut Command,
    limit: Duration,
    watch: &mut dyn FnMut(),
) -> Result<Said, BuildError> {
    let tool = name_of(command.get_program());
    // Files, not pipes: nobody has to read while the tool runs.
    let (mut out, mut err) = (scratch()?, scratch()?);
    let (to_out, to_err) = (out.try_clone(), err.try_clone());
    command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(to_out.map_err(|e| BuildError::io("share", "temporary file", e))?)
        .stderr(to_err.map_err(|e| BuildError::io("share", "temporary file", e))?);
    let mut child = command.spawn().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            BuildError::NoTool { tool: tool.clone(), package: package_of(&tool) }
        }
        _ => BuildError::io("start", &tool, source),
    })?;
    let deadline = Instant::now() + limit;
    let status = loop {
        match child.try_wait().map_err(|e| BuildError::io("wait for", &tool, e))? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(BuildError::ToolSlow { tool, seconds: limit.as_secs() });
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
        watch();
    };
    let err = String::from_utf8_lossy(&read_back(&mut err)?).into_owned();
    Ok(Said { out: read_back(&mut out)?, err, success: status.success() })
}

fn scratch() -> Result<File, BuildError> {
    tempfile::tempfile().map_err(|e| BuildError::io("make", "temporary file", e))
}

fn read_back(file: &mut File) -> Result<Vec<u8>, BuildError> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.take(MAX_OUTPUT).read_to_end(&mut bytes))
        .map_err(|e| BuildError::io("read", "temporary file", e))?;
    Ok(bytes)
}

fn name_of(program: &OsStr) -> String {
    program.to_string_lossy().into_owned()
}

fn package_of(tool: &str) -> &'static str {
    match tool {
        "apt-get" | "apt-cache" => "apt",
        "dpkg-deb" => "dpkg",
        "xz" => "xz-utils",
        _ => "unknown",
    }
}

/// The last lines of what a tool said.
fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("; ")
}

const MAX_OUTPUT: u64 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_slow_and_missing_tools_are_named() {
        let run = |script: &str| {
            run(Command::new("sh").args(["-c", script]), Duration::from_millis(300), &mut || {})
        };
        assert_eq!(run("printf hello").unwrap(), b"hello");
        let error = run("echo no such thing >&2; false").unwrap_err().to_string();
        assert_eq!(error, "sh failed: no such thing");
        assert!(matches!(run("exec sleep 9"), Err(BuildError::ToolSlow { .. })));
        let missing =
            super::run(&mut Command::new("/nonexistent/xz"), Duration::from_secs(1), &mut || {});
        assert!(matches!(missing, Err(BuildError::NoTool { .. })));
    }
}
