//! The other side of a machine: starts the monitor's program and holds its
//! control socket. Format: docs/formats/vmm-control.md.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::exit::Exit;
use crate::spec::VmSpec;

/// A machine in a process of its own. Dropping it kills the process, and the machine with it.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    control: BufReader<UnixStream>,
}

/// What a machine says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmStatus {
    /// Whether the request was obeyed.
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
    /// `created`, `running`, `paused`, `lease-expired` or `ended`.
    #[serde(default)]
    pub state: String,
    /// Time since the machine was made.
    #[serde(default)]
    pub uptime_ms: u64,
    /// Time left on the lease, if there is one.
    pub lease_left_ms: Option<u64>,
    /// Processor time of the process, guest included.
    #[serde(default)]
    pub cpu_ms: u64,
}

/// Why a machine cannot be had or spoken to.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The specification names no control socket.
    #[error("specification: control is absent, expected a path")]
    NoControl,
    /// The program did not start, or its socket or pipe failed.
    #[error("{step}: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The program ended before the machine ran; these are its words.
    #[error("the monitor ended: {words}")]
    Ended {
        /// What it wrote to standard error.
        words: String,
    },
    /// It is there, but does not answer in time.
    #[error("{step}: no answer in {seconds} s")]
    Silent {
        /// What was waited for.
        step: &'static str,
        /// How long.
        seconds: u64,
    },
    /// An answer that is none.
    #[error("answer {actual:?} to {request}")]
    Answer {
        /// What was asked.
        request: String,
        /// What came back.
        actual: String,
    },
}

/// Longest wait for an answer, and for the socket after the start.
const PATIENCE: Duration = Duration::from_secs(30);
/// Standard error of a monitor is short; more is not kept.
const WORDS_MAX: u64 = 64 << 10;

impl Vm {
    /// Starts `program` (`casemate-vmm`) with a specification; the machine is created, not run.
    pub fn create(program: &Path, spec: &VmSpec) -> Result<Self, VmError> {
        let socket = spec.control.as_ref().ok_or(VmError::NoControl)?;
        let text = spec.to_toml().map_err(|error| VmError::Io {
            step: "write specification",
            source: std::io::Error::other(error),
        })?;
        let mut command = Command::new(program);
        command.arg("-").stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(io("start the monitor"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(text.as_bytes()).map_err(io("write specification"))?;
        }
        match connect(&mut child, socket) {
            Ok(stream) => Ok(Self { child, control: BufReader::new(stream) }),
            Err(error) => {
                // Nothing of a machine that nobody can rule is left behind.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// The process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks how it is.
    pub fn status(&mut self) -> Result<VmStatus, VmError> {
        self.ask(r#"{"op":"status"}"#)
    }

    /// Lets it run.
    pub fn run(&mut self) -> Result<VmStatus, VmError> {
        self.ask(r#"{"op":"run"}"#)
    }

    /// Stops its CPUs; they stand when this returns.
    pub fn pause(&mut self) -> Result<VmStatus, VmError> {
        self.ask(r#"{"op":"pause"}"#)
    }

    /// Lets the lease end this long from now.
    pub fn renew(&mut self, seconds: u64) -> Result<VmStatus, VmError> {
        self.ask(&format!(r#"{{"op":"renew","seconds":{seconds}}}"#))
    }

    /// Ends it. [`Vm::wait`] says how it ended.
    pub fn destroy(&mut self) -> Result<VmStatus, VmError> {
        self.ask(r#"{"op":"destroy"}"#)
    }

    /// Why it ended, if it has; `None` while it lives.
    pub fn ended(&mut self) -> Result<Option<Exit>, VmError> {
        if self.child.try_wait().map_err(io("wait for the monitor"))?.is_none() {
            return Ok(None);
        }
        let words = words(&mut self.child);
        let last = words.lines().last().unwrap_or_default();
        serde_json::from_str(last).map(Some).map_err(|_| VmError::Ended { words })
    }

    /// Waits for its end, at most this long.
    pub fn wait(&mut self, limit: Duration) -> Result<Exit, VmError> {
        let end = Instant::now() + limit;
        loop {
            if let Some(exit) = self.ended()? {
                return Ok(exit);
            }
            if Instant::now() >= end {
                return Err(VmError::Silent { step: "end", seconds: limit.as_secs() });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn ask(&mut self, request: &str) -> Result<VmStatus, VmError> {
        let step = "control socket";
        writeln!(self.control.get_mut(), "{request}").map_err(io(step))?;
        let mut actual = String::new();
        self.control.read_line(&mut actual).map_err(io(step))?;
        serde_json::from_str(&actual)
            .map_err(|_| VmError::Answer { request: request.to_owned(), actual })
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects as soon as the socket is there.
fn connect(child: &mut Child, socket: &Path) -> Result<UnixStream, VmError> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Ok(stream) = UnixStream::connect(socket) {
            stream.set_read_timeout(Some(PATIENCE)).map_err(io("control socket"))?;
            return Ok(stream);
        }
        if child.try_wait().map_err(io("wait for the monitor"))?.is_some() {
            return Err(VmError::Ended { words: words(child) });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(VmError::Silent { step: "control socket", seconds: PATIENCE.as_secs() })
}

fn words(child: &mut Child) -> String {
    let mut bytes = Vec::new();
    if let Some(stderr) = child.stderr.as_mut() {
        let _ = stderr.take(WORDS_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

fn io(step: &'static str) -> impl Fn(std::io::Error) -> VmError {
    move |source| VmError::Io { step, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(control: Option<&str>) -> VmSpec {
        let mut spec =
            VmSpec::parse("kernel = \"k\"\ncmdline = \"\"\nvcpus = 1\nmemory_mib = 64").unwrap();
        spec.control = control.map(Into::into);
        spec
    }

    #[test]
    fn a_program_that_ends_at_once_is_heard_and_gone() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("monitor");
        std::fs::write(&program, "#!/bin/sh\ncat >/dev/null\necho no KVM here >&2\nexit 2\n")
            .unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let control = folder.path().join("control");
        match Vm::create(&program, &spec(control.to_str())) {
            Err(VmError::Ended { words }) => assert_eq!(words, "no KVM here"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(Vm::create(&program, &spec(None)), Err(VmError::NoControl)));
    }

    #[test]
    fn answers_are_read_strictly() {
        let text = r#"{"ok":true,"state":"running","uptime_ms":1,"cpu_ms":2}"#;
        let status: VmStatus = serde_json::from_str(text).unwrap();
        assert_eq!((status.state.as_str(), status.lease_left_ms), ("running", None));
        let refused: VmStatus = serde_json::from_str(r#"{"ok":false,"error":"no"}"#).unwrap();
        assert_eq!(refused.error.as_deref(), Some("no"));
        assert!(serde_json::from_str::<VmStatus>(r#"{"ok":true,"new":1}"#).is_err());
    }
}
