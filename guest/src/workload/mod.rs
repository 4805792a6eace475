//! The untrusted program: another user, with name spaces, a file system and
//! limits of its own, and no privilege. Its only way out is the port. Its
//! network is a loopback that leads nowhere but to the port's HTTP door.

mod cgroup;
pub mod confine;
mod output;
mod plan;
mod view;

use std::io::Write;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use casemate_confine::sys;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use rustix::thread::UnshareFlags;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::port;

pub use plan::Plan;
pub use view::PORT_DIRECTORY;

/// The argument that makes this binary the helper.
pub const HELPER: &str = "workload";

/// Why the workload could not be started or watched.
#[derive(Debug, thiserror::Error)]
#[error("workload, {step}: {source}")]
pub struct WorkloadError {
    step: &'static str,
    source: std::io::Error,
}

/// How the workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Exit {
    /// Its exit code, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// A running workload.
#[derive(Debug)]
pub struct Running {
    exit: oneshot::Receiver<Result<Exit, WorkloadError>>,
}

impl Running {
    /// Starts the workload. Needs a tokio runtime for its output. The second
    /// is the listener of the port's HTTP door, in the workload's network and
    /// there before it.
    pub fn start(
        plan: Plan,
        output_bytes_per_second: u32,
    ) -> Result<(Self, oneshot::Receiver<TcpListener>), WorkloadError> {
        at("make the cgroup", cgroup::create(plan.memory_mib, plan.processes))?;
        let (stdout, stderr) = (output::Pipe::new(), output::Pipe::new());
        let (stdout, stderr) = (at("make a pipe", stdout)?, at("make a pipe", stderr)?);
        let (report, exit) = oneshot::channel();
        let (give, loopback) = oneshot::channel();
        let ends = (stdout.writer, stderr.writer);
        let thread = std::thread::Builder::new().name("workload".into());
        let work = move || report.send(spawn_and_wait(&plan, ends, give));
        at("start a thread", thread.spawn(work))?;
        tokio::spawn(output::forward([stdout.reader, stderr.reader], output_bytes_per_second));
        Ok((Self { exit }, loopback))
    }

    /// Waits until the workload has ended; nothing it started is left then,
    /// because the end of its first process ends its PID name space.
    pub async fn wait(&mut self) -> Result<Exit, WorkloadError> {
        let lost = || std::io::Error::other("the watching thread ended");
        (&mut self.exit)
            .await
            .unwrap_or_else(|_| Err(WorkloadError { step: "wait", source: lost() }))
    }

    /// Kills everything the workload started.
    pub fn kill(&self) {
        // It may have ended by itself; the exit is then on its way.
        let _ = cgroup::kill();
    }
}

/// Runs on a thread of its own: the new PID name space is for the children of
/// this thread alone, the new network for it and them, and it reaps them.
fn spawn_and_wait(
    plan: &Plan,
    ends: (OwnedFd, OwnedFd),
    give: oneshot::Sender<TcpListener>,
) -> Result<Exit, WorkloadError> {
    let name_spaces = sys::new_name_spaces(UnshareFlags::NEWPID | UnshareFlags::NEWNET);
    at("make name spaces", name_spaces.map_err(std::io::Error::from))?;
    at("bring up the loopback", sys::bring_up_loopback().map_err(std::io::Error::from))?;
    let listener = at("open the port's HTTP door", TcpListener::bind(port::HTTP_ADDRESS))?;
    // Without a port to take it the machine is about to end.
    let _ = give.send(listener);
    let mut child = at("start the helper", spawn(ends))?;
    let sent = send_plan(&mut child, plan);
    let exit = at("wait for the helper", reap_until(&child))?;
    // A helper that ended before it read its plan said why on the console.
    if exit.code == Some(0) { at("send the plan", sent).map(|()| exit) } else { Ok(exit) }
}

fn spawn((stdout, stderr): (OwnedFd, OwnedFd)) -> std::io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg(HELPER)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
}

fn send_plan(child: &mut Child, plan: &Plan) -> std::io::Result<()> {
    let text = Zeroizing::new(serde_json::to_vec(plan)?);
    let Some(mut stdin) = child.stdin.take() else { return Ok(()) };
    stdin.write_all(&text)
}

/// Reaps every child of PID 1 until the workload's first process has ended.
fn reap_until(child: &Child) -> std::io::Result<Exit> {
    let wanted = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if Some(pid) == wanted => return Ok(exit_of(status)),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn exit_of(status: WaitStatus) -> Exit {
    Exit { code: status.exit_status(), signal: status.terminating_signal() }
}

fn at<T>(step: &'static str, result: std::io::Result<T>) -> Result<T, WorkloadError> {
    result.map_err(|source| WorkloadError { step, source })
}
