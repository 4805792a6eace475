//! The QEMU backend: one command line, q35 without a network card, and the
//! process that runs it.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::backend::{self, Link, MUX_SOCKET, START_LIMIT, Started, failed, said};
use crate::cgroup::QEMU_BESIDE_MIB;
use crate::console::Console;
use crate::launch::{Given, LaunchError, io_error};
use crate::machine::Accelerator;
use crate::qmp::Qmp;
use crate::sealed::Sealed;
use crate::socket;

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

/// The version of the installed QEMU, as it prints it.
pub(crate) async fn version() -> Result<String, io::Error> {
    let asked = Command::new(PROGRAM).arg("--version").stdin(Stdio::null()).output();
    let output = timeout(Duration::from_secs(10), asked).await.map_err(|_| timed_out())??;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split("version ").nth(1).and_then(|rest| rest.split([' ', '\n']).next());
    version.map(str::to_owned).ok_or_else(|| io::Error::other(format!("no version in {text:?}")))
}

/// Starts QEMU and connects to it; when QMP answers, it has read the kernel and the initramfs.
pub(crate) async fn start(
    accelerator: Accelerator,
    given: &Given<'_>,
) -> Result<Started, LaunchError> {
    let (image, folder) = (given.image, given.folder);
    let kernel = Sealed::new("kernel", &image.kernel).map_err(io_error("keep the kernel"))?;
    let initrd = Sealed::new("initrd", &image.initrd).map_err(io_error("keep the initramfs"))?;
    let wire = socket::bind(folder, MUX_SOCKET).map_err(io_error("make the wire's socket"))?;
    let qmp = socket::bind(folder, QMP_SOCKET).map_err(io_error("make the QMP socket"))?;
    let line = CommandLine {
        accelerator,
        vcpus: given.spec.vcpus,
        memory_mib: given.spec.memory_mib,
        kernel: &kernel.path(),
        initrd: &initrd.path(),
        cmdline: &image.cmdline,
    };
    let at = Instant::now();
    let cgroup = given.cgroup(QEMU_BESIDE_MIB)?;
    let arguments = line.arguments();
    let mut child =
        backend::spawn(PROGRAM.as_ref(), &arguments, folder, cgroup.as_ref(), Stdio::null())
            .map_err(io_error("start setpriv and qemu-system-x86_64"))?;
    let (console, stderr) = backend::listen(&mut child, folder, given.config);
    let wire = connected(&wire, &mut child, &stderr).await?;
    let qmp = connected(&qmp, &mut child, &stderr).await?;
    let qmp = Qmp::start(qmp).await.map_err(|error| failed(NAME, &error.to_string()))?;
    Ok(Started { child, link: Link::Qemu(qmp), wire, console, stderr, at, cgroup })
}

/// QEMU's connection to `listener`, unless it ends or dawdles.
async fn connected(
    listener: &UnixListener,
    child: &mut Child,
    stderr: &Console,
) -> Result<UnixStream, LaunchError> {
    let ended = tokio::select! {
        accepted = timeout(START_LIMIT, listener.accept()) => match accepted {
            Ok(accepted) => return accepted.map(|(stream, _)| stream).map_err(io_error("accept")),
            Err(_) => format!("did not connect within {} s", START_LIMIT.as_secs()),
        },
        status = child.wait() => match status {
            Ok(status) => format!("ended ({status})"),
            Err(error) => error.to_string(),
        },
    };
    tokio::time::sleep(Duration::from_millis(50)).await; // its last words are on their way
    Err(failed(NAME, &format!("{ended}: {}", said(stderr))))
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

pub(crate) const QMP_SOCKET: &str = "qmp.sock";
const NAME: &str = "QEMU";
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
}
