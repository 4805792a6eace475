//! A tool server's process, confined before it becomes the server.
//!
//! The gateway starts its own program again with one word, [`OUTSIDE`], and
//! the plan in one environment variable. That process becomes another user (if
//! it is root), makes name spaces, and starts the program once more with
//! [`INSIDE`]: as the first process of the new PID name space, which mounts
//! its view, drops what it has left, and starts the server as its child. It
//! stays to watch: it dies with the server, and by the kernel's hand with the
//! helper, and all processes of its name space die with it. The server cannot
//! prevent that: no signal of its own reaches the first process, and its
//! memory is closed to it. A server's own sessions, groups and signals change
//! nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, Resource, Signal, WaitOptions, getgid, getppid, getuid,
    set_dumpable_behavior, set_parent_process_death_signal, wait,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, configure_capability_in_ambient_set,
    set_capabilities, set_keep_capabilities, set_no_new_privs,
};
use serde::{Deserialize, Serialize};

use crate::filter::{self, Network};
use crate::step::{StepError, step};
use crate::{privileges, sys, view};

/// The word that starts the helper.
pub const OUTSIDE: &str = "confine-tool";
/// The word that starts its second half.
const INSIDE: &str = "confine-tool-inside";
/// The environment variable with the plan, which only the process's owner can read.
pub const PLAN: &str = "CASEMATE_CONFINE_PLAN";
/// The helper's exit code when the server was not started.
pub const NOT_STARTED: u8 = 125;

/// Everything that the helper needs to become the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The program by absolute path, and its arguments.
    pub command: Vec<String>,
    /// Its environment, whole.
    pub env: BTreeMap<String, String>,
    /// The process that asks, so that its end cannot be missed.
    pub parent: i32,
    /// The user and group to become when the helper is root.
    pub uid: u32,
    /// Paths that the server may read.
    pub read: Vec<PathBuf>,
    /// Paths that it may write to.
    pub write: Vec<PathBuf>,
    /// Whether it keeps the host's network.
    pub network: bool,
    /// The most processes and threads.
    pub processes: u64,
    /// The most data memory of one process.
    pub memory_mib: u64,
    /// The size of its `/tmp`.
    pub tmp_mib: u64,
}

/// Why a server was not started.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// One step of the confinement failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The plan is not one.
    #[error("plan: {0}")]
    Plan(String),
    /// The process that asked is gone.
    #[error("parent: expected process {expected}, got another")]
    Parent {
        /// Its number.
        expected: i32,
    },
    /// The system call filter was refused.
    #[error("system call filter: {0}")]
    Filter(String),
    /// The program does not exist or is not one.
    #[error("start {program}: {source}")]
    Start {
        /// The program's path in its own view.
        program: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The helper, if `word` is one of its words. A program whose gateway confines
/// tool servers calls this first, before it starts a thread.
pub fn main_if_asked(word: Option<&str>) -> Option<ExitCode> {
    let result = match word {
        Some(OUTSIDE) => outside(),
        Some(INSIDE) => inside(),
        _ => return None,
    };
    Some(result.unwrap_or_else(|error| {
        eprintln!("not started: {error}");
        ExitCode::from(NOT_STARTED)
    }))
}

fn outside() -> Result<ExitCode, ToolError> {
    let mut plan = read_plan()?;
    step("keep descriptors", sys::inherit_no_descriptors())?;
    let root = getuid().is_root();
    let taken = if root { Some(view::take(&plan)?) } else { None };
    if root {
        give_up_root(plan.uid)?;
    }
    step("die with the gateway", set_parent_process_death_signal(Some(Signal::KILL)))?;
    if getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(plan.parent) {
        return Err(ToolError::Parent { expected: plan.parent });
    }
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let network = if plan.network { UnshareFlags::empty() } else { UnshareFlags::NEWNET };
    step("make name spaces", sys::new_name_spaces(NAME_SPACES | network))?;
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", &format!("{gid} {gid} 1"))?;
    let pieces = taken.map_or_else(|| view::take(&plan), Ok)?;
    view::stage(&plan, &pieces)?;
    pass_on_capabilities()?;
    step("forbid new privileges", set_no_new_privs(true))?;
    plan.parent = i32::try_from(std::process::id()).unwrap_or(0);
    let text = serde_json::to_string(&plan).map_err(|error| ToolError::Plan(error.to_string()))?;
    let mut inside = Command::new("/proc/self/exe");
    inside.arg(INSIDE).env_clear().env(PLAN, text).current_dir("/");
    let status = step("start the second half", inside.status())?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, Into::into))
}

fn inside() -> Result<ExitCode, ToolError> {
    let plan = read_plan()?;
    step("die with the first half", set_parent_process_death_signal(Some(Signal::KILL)))?;
    if outer_parent() != Some(plan.parent) {
        return Err(ToolError::Parent { expected: plan.parent });
    }
    step("name the machine", rustix::system::sethostname(b"tool"))?;
    view::enter()?;
    privileges::limit(&limits(&plan))?;
    privileges::drop_bounding_set()?;
    privileges::drop_capabilities()?;
    // The server is of the same user, and must not reach into this process.
    step("close the memory", set_dumpable_behavior(DumpableBehavior::NotDumpable))?;
    let mut argv = plan.command.iter();
    let program = argv.next().cloned().unwrap_or_default();
    let mut command = Command::new(&program);
    command.args(argv).env_clear().envs(&plan.env);
    let network = if plan.network { Network::Internet } else { Network::Local };
    filter::apply(network).map_err(ToolError::Filter)?;
    let server = command.spawn().map_err(|source| ToolError::Start { program, source })?;
    Ok(step("watch the server", watch(server.id()))?)
}

/// The parent by its number outside: to the first process of a name space its
/// own parent is 0. The view with another `/proc` is not entered yet.
fn outer_parent() -> Option<i32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// Waits for everything that ends in this name space, until the server does.
fn watch(server: u32) -> Result<ExitCode, Errno> {
    let server = i32::try_from(server).ok().and_then(Pid::from_raw);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if Some(ended) == server => {
                let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
                return Ok(code.map_or(ExitCode::FAILURE, Into::into));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn read_plan() -> Result<Plan, ToolError> {
    let text = std::env::var(PLAN).map_err(|error| ToolError::Plan(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| ToolError::Plan(error.to_string()))
}

/// Becomes another user and keeps the one capability that user name spaces
/// need where the administrator closed them to others.
fn give_up_root(uid: u32) -> Result<(), StepError> {
    step("keep a capability", set_keep_capabilities(true))?;
    privileges::become_user(uid, uid)?;
    let kept = CapabilitySets {
        effective: CapabilitySet::SYS_ADMIN,
        permitted: CapabilitySet::SYS_ADMIN,
        inheritable: CapabilitySet::empty(),
    };
    step("keep a capability", set_capabilities(None, kept))?;
    // A process that changed its user does not own its files in /proc else.
    step("own the process", set_dumpable_behavior(DumpableBehavior::Dumpable))
}

/// The second half's capabilities, over the new name spaces alone.
fn pass_on_capabilities() -> Result<(), StepError> {
    let passed = CapabilitySet::SYS_ADMIN | CapabilitySet::SETPCAP;
    let sets = CapabilitySets { effective: passed, permitted: passed, inheritable: passed };
    step("choose capabilities", set_capabilities(None, sets))?;
    for capability in passed.iter() {
        let passed = configure_capability_in_ambient_set(capability, true);
        step("pass a capability on", passed)?;
    }
    Ok(())
}

fn limits(plan: &Plan) -> [(Resource, u64); 8] {
    [
        (Resource::Core, 0),
        (Resource::Nproc, plan.processes),
        (Resource::Nofile, 1024),
        (Resource::Fsize, 1 << 30),
        (Resource::Data, plan.memory_mib << 20),
        (Resource::Memlock, 64 * 1024),
        (Resource::Msgqueue, 64 * 1024),
        (Resource::Sigpending, 256),
    ]
}

fn write(path: &'static str, text: &str) -> Result<(), StepError> {
    step(path, std::fs::write(path, text))
}

const NAME_SPACES: UnshareFlags = UnshareFlags::NEWUSER
    .union(UnshareFlags::NEWNS)
    .union(UnshareFlags::NEWPID)
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWCGROUP);
