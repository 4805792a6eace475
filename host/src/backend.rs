//! What runs a machine: our own monitor on KVM, or QEMU. Which one, what it
//! promises, and the few things that a launch and a watch need of either.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use casemate_attestation::boundary::{Boundary, Properties, Property};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::cgroup::Cgroup;
use crate::config::HostConfig;
use crate::console::Console;
use crate::launch::LaunchError;
use crate::machine::{Accelerator, MachineSpec};
use crate::qmp::Qmp;
use crate::vmm::Monitor;
use crate::{kvm, vmm};

/// A program that makes machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Our own monitor, `casemate-vmm`. It needs KVM.
    Vmm,
    /// QEMU, on KVM or its own emulator.
    Qemu,
}

/// A backend that was found usable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Chosen {
    /// Our monitor, and where its program is.
    Vmm(PathBuf),
    Qemu(Accelerator),
}

/// What the backend says of the machine that it built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The backend's version, such as `7.2.22`.
    pub(crate) version: String,
    /// Whether KVM runs the vCPUs.
    pub(crate) kvm: bool,
    /// PCI devices of class network; a machine of ours has none.
    pub(crate) network_devices: Vec<String>,
    /// How many vCPUs there are.
    pub(crate) vcpus: usize,
}

/// A backend's process that answers, with the wire connected.
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) link: Link,
    pub(crate) wire: UnixStream,
    pub(crate) console: Console,
    pub(crate) stderr: Console,
    pub(crate) at: Instant,
    /// What the process may use, where a control group is configured.
    pub(crate) cgroup: Option<Cgroup>,
}

/// The line on which a backend is asked.
pub(crate) enum Link {
    Qemu(Qmp),
    Vmm(Monitor),
}

/// Why a machine ended, in its backend's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Over {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest's kernel panicked or reset.
    Crashed,
    /// Anything else.
    Other(Option<String>),
}

/// The backend and what it runs on, or why the boundary cannot be built. Nothing runs before this.
pub(crate) async fn choose(spec: &MachineSpec, config: &HostConfig) -> Result<Chosen, LaunchError> {
    let usable = match spec.accelerator {
        Some(Accelerator::Tcg) => Err("TCG was asked for".to_owned()),
        _ => kvm::usable().await.map_err(|reason| format!("KVM is not usable: {reason}")),
    };
    let kind = kind(spec, usable.is_ok())?;
    let possible = promised(kind.1);
    let missing = possible.missing(&spec.properties);
    let needs_kvm =
        spec.accelerator == Some(Accelerator::Kvm) || spec.backend == Some(Backend::Vmm);
    let met = missing.is_empty() && (usable.is_ok() || !needs_kvm);
    // A class below is not given either: who asked for less would be told of more.
    if spec.boundary == Boundary::MicroVm && met {
        return match kind {
            (Backend::Vmm, _) => Ok(Chosen::Vmm(vmm::program(config)?)),
            (Backend::Qemu, accelerator) => Ok(Chosen::Qemu(accelerator)),
        };
    }
    let reason = match spec.boundary {
        Boundary::Tee => "no SEV-SNP or TDX launch in this version".to_owned(),
        Boundary::MicroVmVfio => "no device assignment in this version".to_owned(),
        Boundary::SameHost | Boundary::Container => "no process backend in this version".to_owned(),
        Boundary::MicroVm => usable.err().unwrap_or_else(|| "no backend offers more".to_owned()),
    };
    Err(LaunchError::Unbuildable {
        asked: asked(spec),
        possible: format!("{} with {possible}", Boundary::MicroVm),
        reason,
    })
}

/// Our own monitor wherever KVM runs code, unless another one is named.
fn kind(spec: &MachineSpec, kvm: bool) -> Result<(Backend, Accelerator), LaunchError> {
    match (spec.backend, spec.accelerator) {
        (Some(Backend::Vmm), Some(Accelerator::Tcg)) => Err(LaunchError::Spec {
            field: "accelerator",
            expected: "kvm, the only one of the backend vmm".into(),
            actual: "tcg".into(),
        }),
        (None | Some(Backend::Vmm), _) if kvm => Ok((Backend::Vmm, Accelerator::Kvm)),
        _ if kvm => Ok((Backend::Qemu, Accelerator::Kvm)),
        _ => Ok((Backend::Qemu, Accelerator::Tcg)),
    }
}

fn asked(spec: &MachineSpec) -> String {
    let mut asked = format!("{} with {}", spec.boundary, spec.properties);
    let backend = spec.backend.map(|backend| match backend {
        Backend::Vmm => "vmm",
        Backend::Qemu => "qemu",
    });
    let accelerator = spec.accelerator.map(|accelerator| match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    });
    for name in backend.into_iter().chain(accelerator) {
        asked.push_str(" by ");
        asked.push_str(name);
    }
    asked
}

/// What a machine will have whose vCPUs this runs.
pub(crate) fn promised(accelerator: Accelerator) -> Properties {
    let mut properties: Properties =
        [Property::OwnKernel, Property::Mediated].into_iter().collect();
    if accelerator == Accelerator::Kvm {
        properties.insert(Property::HardwareVirtualization);
    }
    properties
}

impl Chosen {
    /// The backend's name in claims.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Vmm(_) => "vmm-kvm",
            Self::Qemu(Accelerator::Kvm) => "qemu-kvm",
            Self::Qemu(Accelerator::Tcg) => "qemu-tcg",
        }
    }

    /// What was really built has what was promised; the backend says so itself.
    pub(crate) fn earned(
        &self,
        facts: &Facts,
        spec: &MachineSpec,
    ) -> Result<Properties, LaunchError> {
        let accelerator = match self {
            Self::Vmm(_) => Accelerator::Kvm,
            Self::Qemu(accelerator) => *accelerator,
        };
        let built = |field, expected: String, actual: String| {
            if expected == actual {
                return Ok(());
            }
            Err(LaunchError::Built { field, expected, actual })
        };
        built("KVM", (accelerator == Accelerator::Kvm).to_string(), facts.kvm.to_string())?;
        built("network devices", String::new(), facts.network_devices.join(", "))?;
        built("vCPUs", spec.vcpus.to_string(), facts.vcpus.to_string())?;
        Ok(promised(accelerator))
    }
}

impl Link {
    /// Asks what was built.
    pub(crate) async fn facts(&mut self) -> Result<Facts, LaunchError> {
        match self {
            Self::Qemu(qmp) => {
                qmp.facts().await.map_err(|error| failed("QEMU", &error.to_string()))
            }
            Self::Vmm(monitor) => monitor.facts().await,
        }
    }

    /// Lets the guest run, where the backend waits for it. QEMU does not.
    pub(crate) async fn run(&mut self) -> Result<(), LaunchError> {
        match self {
            Self::Qemu(_) => Ok(()),
            Self::Vmm(monitor) => monitor.run().await,
        }
    }

    /// Says that the owner watches for so long, where the backend keeps a lease.
    pub(crate) async fn renew(&mut self, length: Duration) {
        if let Self::Vmm(monitor) = self {
            monitor.renew(length).await;
        }
    }

    /// Stops the CPUs; they stand when this returns.
    pub(crate) async fn pause(&mut self) -> Result<(), String> {
        match self {
            Self::Qemu(qmp) => qmp.pause().await.map_err(|error| error.to_string()),
            Self::Vmm(monitor) => monitor.pause().await,
        }
    }

    /// Lets the CPUs go on, with a lease of this length.
    pub(crate) async fn resume(&mut self, length: Duration) -> Result<(), String> {
        match self {
            Self::Qemu(qmp) => qmp.resume().await.map_err(|error| error.to_string()),
            Self::Vmm(monitor) => {
                monitor.renew(length).await;
                monitor.run().await.map_err(|error| error.to_string())
            }
        }
    }

    /// Why the machine ended; its process has.
    pub(crate) async fn over(self) -> Over {
        match self {
            Self::Qemu(qmp) => match qmp.shutdown_reason().await.as_deref() {
                Some("guest-shutdown") => Over::PoweredOff,
                Some("guest-reset" | "guest-panic") => Over::Crashed,
                other => Over::Other(other.map(str::to_owned)),
            },
            Self::Vmm(monitor) => monitor.over().await,
        }
    }
}

/// Starts a backend in `folder`. It dies with this process or with the returned value.
pub(crate) fn spawn(
    program: &Path,
    arguments: &[String],
    folder: &Path,
    cgroup: Option<&Cgroup>,
    stdin: Stdio,
) -> io::Result<Child> {
    // The shell joins the group and becomes the rest: "0" is who writes.
    let mut command = match cgroup.map(Cgroup::procs) {
        None => Command::new("setpriv"),
        Some(procs) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", "echo 0 > \"$0\" && exec \"$@\""]).arg(procs).arg("setpriv");
            shell
        }
    };
    // setpriv (util-linux, on every Debian) sets the parent-death signal and becomes
    // the backend: without it a killed host would leave the machine running.
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0) // the terminal's ^C goes to us; we stop the machine in order
        .kill_on_drop(true)
        .spawn()
}

/// Keeps what the backend prints: the guest's console, and its own words.
pub(crate) fn listen(child: &mut Child, folder: &Path, config: &HostConfig) -> (Console, Console) {
    let (console, stderr) = (Console::default(), Console::default());
    if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
        let limit = config.limits.console_kib.saturating_mul(1024);
        tokio::spawn(console.clone().copy(out, folder.join(CONSOLE), limit));
        tokio::spawn(stderr.clone().copy(err, folder.join(LOG), LOG_MAX));
    }
    (console, stderr)
}

/// A backend's last words in one line.
pub(crate) fn said(stderr: &Console) -> String {
    let lines = stderr.tail(4);
    if lines.is_empty() { "no message".into() } else { lines.join("; ") }
}

pub(crate) fn failed(backend: &'static str, reason: &str) -> LaunchError {
    LaunchError::Backend { backend, reason: reason.to_owned() }
}

pub(crate) const CONSOLE: &str = "console.log";
const LOG: &str = "backend.log";
const LOG_MAX: u64 = 64 * 1024;
/// The wire's socket in the machine's folder, where the backend runs.
pub(crate) const MUX_SOCKET: &str = "mux.sock";
/// The longest wait for a backend that starts.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(backend: Option<Backend>, accelerator: Option<Accelerator>) -> MachineSpec {
        let mut spec = MachineSpec::new("/image", "task");
        (spec.backend, spec.accelerator) = (backend, accelerator);
        spec
    }

    #[test]
    fn our_monitor_is_taken_wherever_kvm_runs_code() {
        use {Accelerator::*, Backend::*};
        for (backend, accelerator, usable, expected) in [
            (None, None, true, (Vmm, Kvm)),
            (None, Some(Kvm), true, (Vmm, Kvm)),
            (Some(Vmm), None, true, (Vmm, Kvm)),
            (Some(Qemu), None, true, (Qemu, Kvm)),
            (None, None, false, (Qemu, Tcg)),
            (Some(Qemu), Some(Tcg), false, (Qemu, Tcg)),
        ] {
            assert_eq!(kind(&asks(backend, accelerator), usable).unwrap(), expected);
        }
        assert!(kind(&asks(Some(Vmm), Some(Tcg)), false).is_err());
    }

    #[test]
    fn what_is_asked_is_named_in_full() {
        let asked = asked(&asks(Some(Backend::Vmm), Some(Accelerator::Kvm)));
        assert!(asked.ends_with("by vmm by kvm"), "{asked}");
    }
}
