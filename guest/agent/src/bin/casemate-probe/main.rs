//! `casemate-probe`: tries what a confined program must not be able to do.
//!
//! One JSON line an attempt; exit code 0 when everything was refused, 1 when
//! something was not. It needs no arguments and leaves nothing behind.

mod sys;

use std::fs::{self, OpenOptions};
use std::net::UdpSocket;
use std::path::Path;
use std::process::ExitCode;

use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{Uid, set_thread_res_uid};

type Attempt = (&'static str, fn() -> Result<(), String>);

const ATTEMPTS: [Attempt; 20] = [
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
    ("open a network socket", || io(UdpSocket::bind("127.0.0.1:0"))),
    ("open a vsock socket", || {
        io(rustix::net::socket(VSOCK, rustix::net::SocketType::STREAM, None))
    }),
    ("open a netlink socket", || {
        io(rustix::net::socket(
            rustix::net::AddressFamily::NETLINK,
            rustix::net::SocketType::RAW,
            None,
        ))
    }),
    ("mount", || io(mount("tmpfs", "/tmp", "tmpfs", MountFlags::empty(), None))),
    ("become root", || io(set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))),
    ("make a user name space", || io(sys::unshare_user())),
    ("write to the root", || io(fs::write("/probe", b"x"))),
    ("make a device", make_device),
    ("replace the port's socket", || io(fs::remove_file("/run/casemate/mcp.sock"))),
];

fn main() -> ExitCode {
    let mut refused_all = true;
    for (name, attempt) in ATTEMPTS {
        let outcome = attempt();
        refused_all &= outcome.is_err();
        let word = if outcome.is_err() { "refused" } else { "POSSIBLE" };
        let why = outcome.err().unwrap_or_default();
        println!("{}", serde_json::json!({"try": name, "outcome": word, "why": why}));
    }
    if refused_all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

const VSOCK: rustix::net::AddressFamily = rustix::net::AddressFamily::from_raw(40);

fn io<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<(), String> {
    result.map(drop).map_err(|error| error.to_string())
}

fn exists(path: &str) -> Result<(), String> {
    io(fs::symlink_metadata(path))
}

fn read(path: &str) -> Result<(), String> {
    io(fs::read(path))
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
