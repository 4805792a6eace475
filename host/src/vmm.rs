//! Our own monitor as a backend: its specification, its process, and its
//! control socket (docs/formats/vmm-control.md).

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use casemate_vmm::{
    Built, ConsoleSpec, Exit, JailSpec, LeaseSpec, LimitSpec, PciFunction, PortSpec, VmSpec,
    VmStatus,
};
use rustix::thread::CapabilitySet;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use crate::backend::{self, Facts, Link, MUX_SOCKET, Over, START_LIMIT, Started, failed, said};
use crate::cgroup::VMM_BESIDE_MIB;
use crate::config::HostConfig;
use crate::console::Console;
use crate::launch::{Given, LaunchError, io_error};
use crate::sealed::Sealed;
use crate::socket;

/// The monitor's control socket. The machine's lease is renewed on it.
pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
    exit: Option<Exit>,
}

/// Where the monitor's program is: as configured, else beside this one.
pub(crate) fn program(config: &HostConfig) -> Result<PathBuf, LaunchError> {
    let found = match &config.vmm.program {
        Some(path) if path.is_file() => return absolute(path),
        Some(path) => Err(format!("no file {}", path.display())),
        None => beside(),
    };
    found.map_err(|actual| LaunchError::Spec {
        field: "backend",
        expected: format!(
            "{NAME} beside this program or at vmm.program, or the backend qemu named"
        ),
        actual,
    })
}

/// The monitor's program beside this one; otherwise where it was looked for.
pub(crate) fn beside() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let path = own.with_file_name(NAME);
    if path.is_file() { Ok(path) } else { Err(format!("no file {}", path.display())) }
}

fn absolute(path: &Path) -> Result<PathBuf, LaunchError> {
    std::path::absolute(path).map_err(io_error("find the monitor's program"))
}

/// Starts the monitor, which builds the machine; the guest does not run yet.
pub(crate) async fn start(program: &Path, given: &Given<'_>) -> Result<Started, LaunchError> {
    let kernel = Sealed::new("kernel", &given.image.kernel).map_err(io_error("keep the kernel"))?;
    let initrd =
        Sealed::new("initrd", &given.image.initrd).map_err(io_error("keep the initramfs"))?;
    let spec = specification(given, kernel.path(), initrd.path())?;
    let text = spec.to_toml().map_err(|error| failed(NAME, &error.to_string()))?;
    let at = Instant::now();
    let cgroup = given.cgroup(VMM_BESIDE_MIB)?;
    let arguments = ["-".to_owned()];
    let mut child =
        backend::spawn(program, &arguments, given.folder, cgroup.as_ref(), Stdio::piped())
            .map_err(io_error("start setpriv and casemate-vmm"))?;
    let (console, stderr) = backend::listen(&mut child, given.folder, given.config);
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).await.map_err(io_error("tell the monitor its machine"))?;
    }
    // The control socket is made last: who finds it finds the whole machine.
    let control = connected(given.folder, CONTROL_SOCKET, &mut child, &stderr).await?;
    let wire = connected(given.folder, MUX_SOCKET, &mut child, &stderr).await?;
    let monitor = Monitor::new(control);
    Ok(Started { child, link: Link::Vmm(monitor), wire, console, stderr, at, cgroup })
}

fn specification(
    given: &Given<'_>,
    kernel: PathBuf,
    initrd: PathBuf,
) -> Result<VmSpec, LaunchError> {
    let spec = given.spec;
    let vcpus = u8::try_from(spec.vcpus).map_err(|_| LaunchError::Spec {
        field: "vcpus",
        expected: "1 to 32".into(),
        actual: spec.vcpus.to_string(),
    })?;
    Ok(VmSpec {
        kernel,
        initrd: Some(initrd),
        cmdline: given.image.cmdline.clone(),
        vcpus,
        memory_mib: spec.memory_mib.into(),
        control: Some(CONTROL_SOCKET.into()),
        console: ConsoleSpec {
            path: None, // standard output, which is kept
            bytes_max: given.config.limits.console_kib.saturating_mul(1024),
        },
        ports: vec![PortSpec {
            name: casemate_mux::PORT_NAME.to_owned(),
            socket: MUX_SOCKET.into(),
        }],
        vsock: None,
        disks: Vec::new(),
        devices: Vec::new(),
        lease: Some(lease(given.config)),
        // We end it at its time; if we cannot, the monitor does.
        limits: LimitSpec {
            wall_seconds: Some(spec.wall.as_secs().saturating_add(GRACE.as_secs())),
            cpu_seconds: None,
        },
        jail: jail(given.folder)?,
    })
}

/// The monitor's own lease: the gateway's where one answers for machines.
fn lease(config: &HostConfig) -> LeaseSpec {
    let own = LeaseSpec { seconds: LEASE.as_secs(), grace_seconds: GRACE.as_secs() };
    config.lease.as_ref().map_or(own, |lease| LeaseSpec {
        seconds: lease.seconds,
        grace_seconds: lease.grace_seconds,
    })
}

/// Namespaces and an empty root where this process may make them. System call filters, no
/// capabilities and no new privileges are the monitor's own, always.
fn jail(folder: &Path) -> Result<JailSpec, LaunchError> {
    let own = rustix::thread::capabilities(None);
    if !own.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN)) {
        return Ok(JailSpec::default());
    }
    DirBuilder::new().mode(0o700).create(folder.join(JAIL)).map_err(io_error("make the jail"))?;
    Ok(JailSpec { root: Some(JAIL.into()), user: None, namespaces: true })
}

/// Our connection to the monitor's socket, as soon as it is there, unless it ends or dawdles.
async fn connected(
    folder: &Path,
    name: &str,
    child: &mut Child,
    stderr: &Console,
) -> Result<UnixStream, LaunchError> {
    let end = Instant::now() + START_LIMIT;
    while Instant::now() < end {
        if let Ok(stream) = socket::connect(folder, name) {
            stream.set_nonblocking(true).map_err(io_error("connect to the monitor"))?;
            return UnixStream::from_std(stream).map_err(io_error("connect to the monitor"));
        }
        if let Ok(Some(status)) = child.try_wait() {
            sleep(Duration::from_millis(50)).await; // its last words are on their way
            return Err(failed(NAME, &format!("ended ({status}): {}", said(stderr))));
        }
        sleep(Duration::from_millis(2)).await;
    }
    Err(failed(NAME, &format!("no {name} within {} s: {}", START_LIMIT.as_secs(), said(stderr))))
}

/// One line on the control socket.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Exit { exit: Exit },
    Status(VmStatus),
}

impl Monitor {
    /// A monitor that listens at the other end of `control`.
    pub(crate) fn new(control: UnixStream) -> Self {
        Self { stream: BufReader::new(control), exit: None }
    }

    /// Asks what was built.
    pub(crate) async fn facts(&mut self) -> Result<Facts, LaunchError> {
        let status = self.ask(r#"{"op":"built"}"#).await.map_err(|error| failed(NAME, &error))?;
        let built = status.built.ok_or_else(|| failed(NAME, "it does not say what it built"))?;
        facts(built)
    }

    /// Lets the guest run.
    pub(crate) async fn run(&mut self) -> Result<(), LaunchError> {
        match self.ask(r#"{"op":"run"}"#).await {
            Ok(status) if status.ok => Ok(()),
            Ok(status) => Err(failed(NAME, &status.error.unwrap_or_default())),
            Err(error) => Err(failed(NAME, &error)),
        }
    }

    /// Stops the CPUs: the answer says that they stand.
    pub(crate) async fn pause(&mut self) -> Result<(), String> {
        let status = self.ask(r#"{"op":"pause"}"#).await?;
        match status.state.as_str() {
            "paused" | "lease-expired" => Ok(()),
            other => Err(format!("pause: expected paused, got {other}")),
        }
    }

    /// Renews the lease. What does not succeed shows in the machine's end.
    pub(crate) async fn renew(&mut self, length: Duration) {
        let seconds = length.as_millis().div_ceil(1000);
        let request = format!(r#"{{"op":"renew","seconds":{seconds}}}"#);
        if let Err(error) = self.ask(&request).await {
            tracing::warn!(%error, "lease not renewed");
        }
    }

    /// Why the machine ended; the monitor's process has.
    pub(crate) async fn over(mut self) -> Over {
        while self.exit.is_none() {
            if self.read().await.is_err() {
                break;
            }
        }
        match self.exit {
            Some(Exit::Shutdown) => Over::PoweredOff,
            Some(Exit::Reset | Exit::TripleFault { .. }) => Over::Crashed,
            other => Over::Other(other.and_then(|exit| serde_json::to_string(&exit).ok())),
        }
    }

    async fn ask(&mut self, request: &str) -> Result<VmStatus, String> {
        let asked = async {
            let line = format!("{request}\n");
            self.stream.get_mut().write_all(line.as_bytes()).await.map_err(|e| e.to_string())?;
            self.read().await?.ok_or_else(|| "the machine has ended".to_owned())
        };
        timeout(PATIENCE, asked)
            .await
            .unwrap_or_else(|_| Err(format!("{request}: no answer in {} s", PATIENCE.as_secs())))
    }

    /// The next answer; `None` is the machine's end, which is kept.
    async fn read(&mut self) -> Result<Option<VmStatus>, String> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(LINE_MAX);
        match limited.read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            Ok(0) => return Err("the control socket closed".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
        match serde_json::from_slice(&line).map_err(|error| format!("answer: {error}"))? {
            Line::Exit { exit } => {
                self.exit = Some(exit);
                Ok(None)
            }
            Line::Status(status) => Ok(Some(status)),
        }
    }
}

/// What the monitor says that it made, in the words of every backend.
fn facts(built: Built) -> Result<Facts, LaunchError> {
    if built.assigned != 0 {
        return Err(LaunchError::Built {
            field: "devices of the host",
            expected: "0".into(),
            actual: built.assigned.to_string(),
        });
    }
    let network = built.functions.iter().filter(|function| function.is_network());
    let shown = |function: &PciFunction| format!("{} of class {}", function.id, function.class);
    Ok(Facts {
        network_devices: network.map(shown).collect(),
        kvm: built.accelerator == "kvm",
        vcpus: built.vcpus,
        version: built.version,
    })
}

const NAME: &str = "casemate-vmm";
pub(crate) const CONTROL_SOCKET: &str = "vmm.sock";
const JAIL: &str = "jail";
/// Without a renewal the CPUs stand after this, and the machine ends after the grace.
pub(crate) const LEASE: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(10);
/// How often an owner that lives renews.
pub(crate) const RENEW_EVERY: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(5);
const LINE_MAX: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn built(class: &str, assigned: usize) -> Built {
        Built {
            version: "1".into(),
            accelerator: "kvm".into(),
            vcpus: 2,
            memory_mib: 128,
            functions: vec![PciFunction { id: "1af4:1041".into(), class: class.into() }],
            assigned,
        }
    }

    #[test]
    fn a_network_card_or_a_device_of_the_host_is_seen() {
        assert!(facts(built("ff0000", 0)).unwrap().network_devices.is_empty());
        assert_eq!(facts(built("020000", 0)).unwrap().network_devices.len(), 1);
        assert!(matches!(facts(built("ff0000", 1)), Err(LaunchError::Built { .. })));
    }

    #[tokio::test]
    async fn the_machines_end_is_an_answer_of_its_own() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{\"ok\":true,\"state\":\"running\"}\n").await.unwrap();
        theirs.write_all(b"{\"exit\":{\"reason\":\"lease-expired\"}}\n").await.unwrap();
        drop(theirs);
        let mut monitor = Monitor::new(ours);
        assert_eq!(monitor.read().await.unwrap().unwrap().state, "running");
        let over = monitor.over().await;
        assert_eq!(over, Over::Other(Some(r#"{"reason":"lease-expired"}"#.into())));
    }

    #[tokio::test]
    async fn a_pause_holds_when_the_monitor_says_so() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor::new(ours);
        for state in ["paused", "lease-expired", "running"] {
            let line = format!("{{\"ok\":true,\"state\":\"{state}\"}}\n");
            theirs.write_all(line.as_bytes()).await.unwrap();
            assert_eq!(monitor.pause().await.is_ok(), state != "running", "{state}");
        }
        drop(theirs);
        assert!(monitor.pause().await.is_err());
    }

    #[test]
    fn the_monitors_lease_is_the_gateways_where_one_answers() {
        let of = |more: &str| {
            let text = format!("name = \"h\"\nstate = \"/s\"\n{more}");
            let LeaseSpec { seconds, grace_seconds } =
                lease(&HostConfig::from_toml(&text).unwrap());
            (seconds, grace_seconds)
        };
        assert_eq!(of(""), (30, 10));
        assert_eq!(of("[lease]\nsocket = \"/x\""), (10, 60));
        assert_eq!(of("[lease]\nsocket = \"/x\"\nseconds = 3\ngrace_seconds = 4"), (3, 4));
    }

    #[test]
    fn a_program_that_is_not_there_is_named_before_anything_runs() {
        let mut config = HostConfig::from_toml("name = \"h\"\nstate = \"/s\"").unwrap();
        config.vmm.program = Some("/nowhere/casemate-vmm".into());
        let error = program(&config).unwrap_err().to_string();
        assert!(error.contains("/nowhere/casemate-vmm") && error.contains("qemu"), "{error}");
    }
}
