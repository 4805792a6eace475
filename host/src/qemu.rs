//! The QEMU backend: one command line, q35 without a network card, and the
//! process that runs it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::machine::Accelerator;

/// Everything that QEMU is told.
#[derive(Debug, Clone)]
pub(crate) struct CommandLine<'a> {
    pub(crate) accelerator: Accelerator,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: &'a Path,
    pub(crate) cmdline: &'a str,
}

/// Names of the sockets in the machine's folder, where QEMU runs.
pub(crate) const MUX_SOCKET: &str = "mux.sock";
pub(crate) const QMP_SOCKET: &str = "qmp.sock";

/// The version of the installed QEMU, as it prints it.
pub(crate) async fn version() -> Result<String, io::Error> {
    let asked = Command::new(PROGRAM).arg("--version").stdin(Stdio::null()).output();
    let output = timeout(Duration::from_secs(10), asked).await.map_err(|_| timed_out())??;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split("version ").nth(1).and_then(|rest| rest.split([' ', '\n']).next());
    version.map(str::to_owned).ok_or_else(|| io::Error::other(format!("no version in {text:?}")))
}

/// Starts QEMU in `folder`. It dies with this process or with the returned value.
pub(crate) fn spawn(line: &CommandLine<'_>, folder: &Path) -> io::Result<Child> {
    // setpriv (util-linux, on every Debian) sets the parent-death signal and
    // becomes QEMU: without it a killed host would leave the machine running.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", PROGRAM])
        .args(line.arguments())
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0) // the terminal's ^C goes to us; we stop the machine in order
        .kill_on_drop(true)
        .spawn()
}

/// Binds the socket `name` in `folder`, whatever the length of the folder's path.
pub(crate) fn bind(folder: &Path, name: &str) -> io::Result<UnixListener> {
    match fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folder = open_folder(folder)?;
    UnixListener::bind(short_path(&folder, name))
}

/// Connects to the socket `name` in `folder`.
pub(crate) fn connect(folder: &Path, name: &str) -> io::Result<std::os::unix::net::UnixStream> {
    let folder = open_folder(folder)?;
    std::os::unix::net::UnixStream::connect(short_path(&folder, name))
}

fn open_folder(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::empty())?)
}

/// A socket's address holds 107 bytes; through a descriptor any folder fits.
fn short_path(folder: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name)
}

impl CommandLine<'_> {
    /// QEMU's arguments. Everything is named; `-nodefaults` keeps the rest out.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let (accel, cpu) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            // QEMU 7.2 TCG leaves garbage in EFLAGS after CMPXCHG16B, which
            // 6.12 kernels do not survive; they do without the instruction.
            Accelerator::Tcg => ("tcg,thread=multi", "max,-cx16"),
        };
        let text = [
            // The machine.
            "-machine",
            "q35,usb=off,vmport=off,smm=off,hpet=off",
            "-accel",
            accel,
            "-cpu",
            cpu,
            "-smp",
            &self.vcpus.to_string(),
            "-m",
            &format!("{}M", self.memory_mib),
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-nic",
            "none",
            // QEMU itself gives up what it does not need.
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            // What it boots.
            "-kernel",
            &self.kernel.display().to_string(),
            "-initrd",
            &self.initrd.display().to_string(),
            "-append",
            self.cmdline,
            // The console goes to us, the wire and QMP to our sockets.
            "-chardev",
            "stdio,id=console,signal=off",
            "-serial",
            "chardev:console",
            "-chardev",
            &format!("socket,id=mux,path={MUX_SOCKET}"),
            "-device",
            "virtio-serial-pci,max_ports=2",
            "-device",
            &format!("virtserialport,chardev=mux,name={}", casemate_mux::PORT_NAME),
            "-chardev",
            &format!("socket,id=qmp,path={QMP_SOCKET}"),
            "-mon",
            "chardev=qmp,mode=control",
            "-object",
            "rng-random,id=rng,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,rng=rng,max-bytes=65536,period=1000",
        ];
        text.iter().map(|&argument| argument.to_owned()).collect()
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s")
}

const PROGRAM: &str = "qemu-system-x86_64";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_network_card_on_the_command_line() {
        let line = CommandLine {
            accelerator: Accelerator::Tcg,
            vcpus: 2,
            memory_mib: 256,
            kernel: Path::new("/k"),
            initrd: Path::new("/i"),
            cmdline: "quiet",
        };
        let arguments = line.arguments();
        let has = |text: &str| arguments.iter().any(|argument| argument.contains(text));
        assert!(arguments.windows(2).any(|pair| pair == ["-nic", "none"]));
        assert!(has("-nodefaults") && has("max,-cx16"));
        assert!(!has("netdev") && !has("virtio-net"));
    }

    #[tokio::test]
    async fn a_socket_fits_in_a_deep_folder() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        drop(bind(&deep, "a.sock").unwrap());
        let _listener = bind(&deep, "a.sock").unwrap();
        connect(&deep, "a.sock").unwrap();
    }
}
