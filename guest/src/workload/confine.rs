//! The helper process: PID 1 starts it in a new PID name space, it takes
//! everything from itself that the workload must not have, and becomes the
//! workload.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use casemate_confine::filter::{self, Network};
use casemate_confine::{StepError, privileges, step, sys};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Resource, setsid};
use rustix::thread::UnshareFlags;
use zeroize::Zeroizing;

use super::plan::{InheritedSecret, Plan};
use super::{cgroup, view};

/// The helper's exit code when the workload could not be confined or started.
pub const NOT_STARTED: u8 = 125;
const MAX_PLAN_BYTES: u64 = 2 * 1024 * 1024;

/// Why the workload was not started.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// One step of the confinement failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The plan on standard input is not one.
    #[error("plan: {0}")]
    Plan(String),
    /// The system call filter was refused.
    #[error("system call filter: {0}")]
    Filter(String),
    /// A secret's descriptor number is taken.
    #[error("secret descriptor: expected {expected} to be free, got {actual}")]
    Descriptor {
        /// The number asked for.
        expected: i32,
        /// The lowest free number.
        actual: i32,
    },
    /// The program does not exist or is not one.
    #[error("start {program}: {source}")]
    Start {
        /// The program's path in its own view.
        program: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The helper's whole life. It returns only when something failed.
pub fn main() -> ExitCode {
    let Err(error) = run();
    eprintln!("not started: {error}");
    ExitCode::from(NOT_STARTED)
}

fn run() -> Result<core::convert::Infallible, ConfineError> {
    let plan = read_plan()?;
    step("enter the cgroup", cgroup::enter())?;
    step("new name spaces", sys::new_name_spaces(NAME_SPACES))?;
    step("name the machine", rustix::system::sethostname(b"sandbox"))?;
    view::enter(&plan.root, plan.tmp_mib)?;
    let secrets = plan.secrets.iter().map(secret_descriptor).collect::<Result<Vec<_>, _>>()?;
    close_stdin()?;
    limits(&plan)?;
    let mut command = command(&plan);
    drop_privileges(plan.uid, plan.gid)?;
    step("enter the working directory", rustix::process::chdir(&plan.cwd))?;
    let program = plan.argv.first().cloned().unwrap_or_default();
    drop(plan); // wipes the secrets' text
    filter::apply(Network::Loopback).map_err(ConfineError::Filter)?;
    let source = command.exec();
    drop(secrets);
    Err(ConfineError::Start { program, source })
}

/// The PID and network name spaces are of the thread that started the helper.
const NAME_SPACES: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWCGROUP);

fn read_plan() -> Result<Plan, ConfineError> {
    let mut text = Zeroizing::new(Vec::new());
    let mut stdin = std::io::stdin().lock().take(MAX_PLAN_BYTES);
    step("read the plan", stdin.read_to_end(&mut text))?;
    serde_json::from_slice(&text).map_err(|error| ConfineError::Plan(error.to_string()))
}

fn command(plan: &Plan) -> Command {
    let mut argv = plan.argv.iter();
    let mut command = Command::new(argv.next().map_or("", String::as_str));
    command.args(argv).env_clear().envs(&plan.env);
    command
}

/// A sealed file in memory that holds the secret, at the number asked for.
fn secret_descriptor(secret: &InheritedSecret) -> Result<OwnedFd, ConfineError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let bytes = secret.bytes().map_err(|error| ConfineError::Plan(error.to_string()))?;
    let low = step("make a secret's file", memfd_create("secret", flags))?;
    // Out of the way of the numbers that are handed out.
    let file = step("move a secret's file", fcntl_dupfd_cloexec(&low, 128))?;
    drop(low);
    step("write a secret", write_all(&file, &bytes))?;
    step("seal a secret", fcntl_add_seals(&file, READ_ONLY))?;
    step("rewind a secret", rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)))?;
    let handed = step("place a secret", fcntl_dupfd_cloexec(&file, secret.fd))?;
    let actual = std::os::fd::AsRawFd::as_raw_fd(&handed);
    if actual != secret.fd {
        return Err(ConfineError::Descriptor { expected: secret.fd, actual });
    }
    step("hand on a secret", fcntl_setfd(&handed, FdFlags::empty()))?;
    Ok(handed)
}

const READ_ONLY: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), rustix::io::Errno> {
    while !bytes.is_empty() {
        let written = rustix::io::write(file, bytes)?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

fn close_stdin() -> Result<(), ConfineError> {
    let null = step("open /dev/null", std::fs::File::open("/dev/null"))?;
    Ok(step("close standard input", rustix::stdio::dup2_stdin(&null))?)
}

fn limits(plan: &Plan) -> Result<(), ConfineError> {
    let file_bytes = u64::from(plan.memory_mib.max(plan.tmp_mib)) << 20;
    let limits = [
        (Resource::Core, 0),
        (Resource::Nproc, u64::from(plan.processes)),
        (Resource::Nofile, u64::from(plan.open_files)),
        (Resource::Fsize, file_bytes),
        (Resource::Memlock, 64 * 1024),
        (Resource::Msgqueue, 64 * 1024),
        (Resource::Sigpending, 256),
    ];
    Ok(privileges::limit(&limits)?)
}

fn drop_privileges(uid: u32, gid: u32) -> Result<(), ConfineError> {
    step("start a session", setsid())?;
    privileges::drop_bounding_set()?;
    privileges::become_user(uid, gid)?;
    Ok(privileges::drop_capabilities()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_secret_is_read_from_its_number_and_cannot_be_written() {
        let mut plan = crate::workload::plan::tests::plan();
        plan.inherit(61, b"value");
        let descriptor = secret_descriptor(&plan.secrets[0]).unwrap();
        assert_eq!(std::os::fd::AsRawFd::as_raw_fd(&descriptor), 61);
        let again = secret_descriptor(&plan.secrets[0]).map(drop).unwrap_err();
        assert!(matches!(again, ConfineError::Descriptor { expected: 61, .. }), "{again}");
        let mut file = std::fs::File::from(descriptor);
        let mut value = String::new();
        file.read_to_string(&mut value).unwrap();
        assert_eq!(value, "value");
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
    }
}
