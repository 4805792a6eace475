//! `casemate-probe`: tries what a confined program must not be able to do.
//!
//! One JSON line an attempt; exit code 0 when everything was refused, 1 when
//! something was not. It needs no arguments and leaves nothing behind. First it
//! does the little that it may do, so that a refusal means what it says.

mod network;
mod sys;

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{Uid, set_thread_res_uid};

type Attempt = (&'static str, fn() -> Result<(), String>);

/// What a workload may do.
const RIGHTS: [Attempt; 2] =
    [("use the port over HTTP", network::door), ("run the port's program", program)];

const ATTEMPTS: [Attempt; 18] = [
    ("see a virtio port", || exists("/dev/vport0p1").or_else(|_| exists("/dev/vport1p1"))),
    ("see the console", || exists("/dev/console")),
    ("see sysfs", || exists("/sys/class")),
    ("see the guest's configuration", || exists("/etc/casemate/guest.toml")),
    ("see the guest's binary", || exists("/init")),
    ("read the command line", || read("/proc/cmdline")),
    ("see another process", other_process),
    ("read PID 1's environment", || outside_read("environ")),
    ("read PID 1's memory", || outside_read("mem")),
    ("signal PID 1 from outside", || io(kill_process(pid(2), Signal::KILL))),
    ("trace a process", || io(sys::ptrace_attach(parent()))),
    ("mount", || io(mount("tmpfs", "/tmp", "tmpfs", MountFlags::empty(), None))),
    ("become root", || io(set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))),
    ("make a user name space", || io(sys::unshare_user())),
    ("write to the root", || io(fs::write("/probe", b"x"))),
    ("make a device", make_device),
    ("replace the port's socket", || io(fs::remove_file("/run/casemate/mcp.sock"))),
    ("write to the port's program", || {
        io(OpenOptions::new().write(true).open("/run/casemate/mcp"))
    }),
];

fn main() -> ExitCode {
    let mut as_it_must_be = true;
    for (name, right) in RIGHTS {
        let outcome = right();
        as_it_must_be &= outcome.is_ok();
        say(name, if outcome.is_ok() { "works" } else { "BROKEN" }, outcome);
    }
    for (name, attempt) in ATTEMPTS.iter().chain(&network::ATTEMPTS) {
        let outcome = attempt();
        as_it_must_be &= outcome.is_err();
        say(name, if outcome.is_err() { "refused" } else { "POSSIBLE" }, outcome);
    }
    if as_it_must_be { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say(name: &str, word: &str, outcome: Result<(), String>) {
    let why = outcome.err().unwrap_or_default();
    println!("{}", serde_json::json!({"try": name, "outcome": word, "why": why}));
}

fn io<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<(), String> {
    result.map(drop).map_err(|error| error.to_string())
}

fn exists(path: &str) -> Result<(), String> {
    io(fs::symlink_metadata(path))
}

fn read(path: &str) -> Result<(), String> {
    io(fs::read(path))
}

/// The port's program ends well when its client says nothing.
fn program() -> Result<(), String> {
    let mut program = Command::new("/run/casemate/mcp");
    let status = program.stdin(Stdio::null()).status().map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}

/// A process that is neither this one nor its first process.
fn other_process() -> Result<(), String> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").map_err(|error| error.to_string())?;
    let other = entries.flatten().map(|entry| entry.file_name()).find(|name| {
        name.to_str().is_some_and(|name| name.parse::<u32>().is_ok() && name != own && name != "1")
    });
    other.map(drop).ok_or_else(|| "none visible".into())
}

/// Reads a file of process 1, unless process 1 is the probe itself.
fn outside_read(file: &str) -> Result<(), String> {
    if std::process::id() == 1 {
        return Err("process 1 here is the probe itself".into());
    }
    let path = Path::new("/proc/1").join(file);
    io(OpenOptions::new().read(true).open(path))
}

fn make_device() -> Result<(), String> {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let device = rustix::fs::makedev(1, 1);
    let kind = rustix::fs::FileType::CharacterDevice;
    io(rustix::fs::mknodat(rustix::fs::CWD, "/tmp/mem", kind, mode, device))
}

fn parent() -> i32 {
    rustix::process::getppid().map_or(1, Pid::as_raw_pid)
}

fn pid(raw: i32) -> Pid {
    Pid::from_raw(raw).unwrap_or(Pid::INIT)
}
