//! The launch, top to bottom: what is asked is checked, what is given to QEMU
//! is measured, what QEMU built is asked back, and only a guest that speaks
//! makes it a machine.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use casemate_attestation::UnixTime;
use casemate_attestation::boundary::{Boundary, Properties, Property};
use casemate_attestation::snp::Product;
use casemate_image::Image;
use casemate_model::{PspConfig, PspModel};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;
use tokio::sync::{Notify, RwLock, watch};
use tokio::time::timeout;

use crate::config::{HostConfig, ModelProduct, PspModelConfig};
use crate::console::Console;
use crate::control;
use crate::key::{HostKey, KeyError};
use crate::kvm;
use crate::machine::{Accelerator, Exit, Machine, MachineSpec, Shared, State, Status};
use crate::qemu::{self, CommandLine, MUX_SOCKET, QMP_SOCKET};
use crate::qmp::{Facts, Qmp};
use crate::sealed::Sealed;
use crate::service::{Context, Psp, now};
use crate::supervise::{Supervisor, said};

/// A host that can launch machines: its configuration, its key, and the
/// software model of the PSP where one is configured.
#[derive(Clone)]
pub struct Host {
    config: Arc<HostConfig>,
    key: Arc<HostKey>,
    psp: Option<Arc<PspModel>>,
}

/// Why a host cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no key to sign with.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The model of the PSP cannot be made or read.
    #[error("model of the PSP: {0}")]
    Model(#[from] casemate_model::ModelError),
}

/// Why there is no machine. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The specification asks for what cannot be given.
    #[error("{field}: expected {expected}, got {actual}")]
    Spec {
        /// The field.
        field: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// This host cannot build the boundary that was asked for. Nothing ran.
    #[error("boundary: asked for {asked}; this host can build {possible}: {reason}")]
    Unbuildable {
        /// What was asked.
        asked: String,
        /// What could be had.
        possible: String,
        /// Why not more.
        reason: String,
    },
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] casemate_image::BuildError),
    /// The machine's folder or sockets cannot be made.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// QEMU did not build the machine.
    #[error("QEMU: {reason}")]
    Backend {
        /// What went wrong.
        reason: String,
    },
    /// What QEMU built is not what was asked of it.
    #[error("machine as built, {field}: expected {expected}, got {actual}")]
    Built {
        /// The fact.
        field: &'static str,
        /// What it had to be.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// The machine ended before the guest spoke.
    #[error("machine {id}: {exit}")]
    Ended {
        /// The machine.
        id: String,
        /// How it ended.
        exit: Exit,
    },
}

impl Host {
    /// Opens the host's state; makes its key, and the model's keys where a
    /// model is configured (some seconds), if there are none.
    pub fn open(config: HostConfig) -> Result<Self, OpenError> {
        let key = HostKey::open(&config.state)?;
        let psp = config.psp_model.as_ref().map(open_model).transpose()?.map(Arc::new);
        Ok(Self { config: Arc::new(config), key: Arc::new(key), psp })
    }

    /// The `[[amd]]` entry that a verifier's operator adds to believe this
    /// host's model of the PSP as a model; `None` where none is configured.
    pub fn psp_anchor(&self, label: &str) -> Option<String> {
        self.psp.as_ref().map(|model| model.anchor_toml(label))
    }

    /// What a verifier's operator enrols to believe this host.
    pub fn enrolment(&self) -> String {
        self.key.enrolment(&self.config.name)
    }

    /// The key that signs this host's claims.
    pub fn key(&self) -> &HostKey {
        &self.key
    }

    /// The configuration.
    pub fn config(&self) -> &HostConfig {
        &self.config
    }
}

impl Machine {
    /// Starts a machine and returns once its guest has spoken. Must be called
    /// on a tokio runtime that lives as long as the machine: when the thread
    /// that called ends, the machine does.
    pub async fn launch(host: &Host, spec: &MachineSpec) -> Result<Self, LaunchError> {
        check(spec, &host.config)?;
        let accelerator = choose(spec).await?;
        let image = Image::read(&spec.image)?;
        let psp = host.psp.as_ref().map(|model| measured(model, &image, spec)).transpose()?;
        let mut id = [0; 16];
        rand::fill(&mut id).map_err(|_| backend("no random id"))?;
        let folder = make_folder(&host.config, &hex::encode(id))?;

        let built = build(spec, accelerator, &image, &folder, host).await;
        let (started, facts, properties) = built.inspect_err(|_| {
            let _ = fs::remove_dir_all(&folder);
        })?;

        let status = Status {
            id: hex::encode(id),
            state: State::Launched,
            exit: None,
            task: spec.task.clone(),
            epoch: spec.epoch.unwrap_or_else(|| now().0),
            boundary: Boundary::MicroVm,
            properties,
            backend: format!("{} {}", accelerator.backend(), facts.version),
            pid: started.child.id().unwrap_or_default(),
            booted_ms: None,
            events: Vec::new(),
            events_total: 0,
            console: folder.join(CONSOLE),
        };
        let shared = Arc::new(Shared {
            id,
            folder,
            digests: image.files().digests(),
            started: started.at,
            workload: Mutex::new(None),
            status: watch::Sender::new(status),
            kill: Notify::new(),
            over: watch::Sender::new(false),
            answering: RwLock::new(()),
        });
        let machine = Self(Arc::clone(&shared));
        let context = Context {
            host: host.config.name.clone(),
            key: Arc::clone(&host.key),
            services: host.config.services.clone(),
            psp,
            shared: Arc::clone(&shared),
        };
        let supervisor = Supervisor {
            child: started.child,
            qmp: started.qmp,
            wire: started.wire,
            console: started.console,
            stderr: started.stderr,
            boot: spec.boot,
            wall: spec.wall,
            context: Arc::new(context),
        };
        tokio::spawn(supervisor.run());
        control::serve(&shared).map_err(io_error("make the control socket"))?;
        spoken(&machine).await?;
        Ok(machine)
    }
}

fn open_model(config: &PspModelConfig) -> Result<PspModel, casemate_model::ModelError> {
    let product = match config.product {
        ModelProduct::Milan => Product::Milan,
        ModelProduct::Genoa => Product::Genoa,
    };
    PspModel::load_or_create(
        &config.folder,
        PspConfig { product, ..PspConfig::milan(MODEL_NOT_BEFORE) },
    )
}

/// The model measures the bytes that QEMU is given, by the plain page list.
fn measured(model: &Arc<PspModel>, image: &Image, spec: &MachineSpec) -> Result<Psp, LaunchError> {
    let measurement = image.files().snp_measurement(spec.vcpus);
    let measurement = measurement.map_err(casemate_image::BuildError::from)?;
    Ok(Psp { model: Arc::clone(model), measurement })
}

/// Waits for the guest's first words.
async fn spoken(machine: &Machine) -> Result<(), LaunchError> {
    let mut status = machine.watch();
    let settled = status.wait_for(|status| status.state != State::Launched).await;
    if settled.is_ok_and(|status| status.state == State::Running) {
        return Ok(());
    }
    let exit = machine.wait().await;
    Err(LaunchError::Ended { id: machine.id(), exit })
}

/// Starts QEMU and asks it what it built.
async fn build(
    spec: &MachineSpec,
    accelerator: Accelerator,
    image: &Image,
    folder: &Path,
    host: &Host,
) -> Result<(Started, Facts, Properties), LaunchError> {
    let mut started = start(spec, accelerator, image, folder, host).await?;
    let facts = started.qmp.facts().await.map_err(|error| backend(&error.to_string()))?;
    let properties = earned(&facts, accelerator, spec)?;
    Ok((started, facts, properties))
}

/// A QEMU that answers, with the wire connected.
struct Started {
    child: Child,
    qmp: Qmp,
    wire: UnixStream,
    console: Console,
    stderr: Console,
    at: Instant,
}

async fn start(
    spec: &MachineSpec,
    accelerator: Accelerator,
    image: &Image,
    folder: &Path,
    host: &Host,
) -> Result<Started, LaunchError> {
    let kernel = Sealed::new("kernel", &image.kernel).map_err(io_error("keep the kernel"))?;
    let initrd = Sealed::new("initrd", &image.initrd).map_err(io_error("keep the initramfs"))?;
    let wire = qemu::bind(folder, MUX_SOCKET).map_err(io_error("make the wire's socket"))?;
    let qmp = qemu::bind(folder, QMP_SOCKET).map_err(io_error("make the QMP socket"))?;
    let line = CommandLine {
        accelerator,
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        kernel: &kernel.path(),
        initrd: &initrd.path(),
        cmdline: &image.cmdline,
    };
    let at = Instant::now();
    let mut child =
        qemu::spawn(&line, folder).map_err(io_error("start setpriv and qemu-system-x86_64"))?;
    let (console, stderr) = (Console::default(), Console::default());
    if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
        let limit = host.config.limits.console_kib.saturating_mul(1024);
        let log = folder.join(CONSOLE);
        tokio::spawn({
            let console = console.clone();
            async move { console.copy(out, &log, limit).await }
        });
        let log = folder.join("qemu.log");
        tokio::spawn({
            let stderr = stderr.clone();
            async move { stderr.copy(err, &log, 64 * 1024).await }
        });
    }
    // QEMU connects while it reads its command line; when QMP answers, it has
    // read the kernel and the initramfs.
    let wire = connected(&wire, &mut child, &stderr).await?;
    let qmp = connected(&qmp, &mut child, &stderr).await?;
    let qmp = Qmp::start(qmp).await.map_err(|error| backend(&error.to_string()))?;
    Ok(Started { child, qmp, wire, console, stderr, at })
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
    Err(backend(&format!("{ended}: {}", said(stderr))))
}

/// Everything that the specification itself can have wrong.
fn check(spec: &MachineSpec, config: &HostConfig) -> Result<(), LaunchError> {
    let limits = &config.limits;
    let numbers = [
        ("vcpus", u64::from(spec.vcpus), 1, u64::from(limits.vcpus)),
        ("memory_mib", u64::from(spec.memory_mib), 128, u64::from(limits.memory_mib)),
        ("boot, seconds", spec.boot.as_secs(), 1, limits.boot_seconds),
        ("wall, seconds", spec.wall.as_secs(), 1, limits.wall_seconds),
    ];
    for (field, actual, least, most) in numbers {
        if !(least..=most).contains(&actual) {
            return Err(LaunchError::Spec {
                field,
                expected: format!("{least} to {most}"),
                actual: actual.to_string(),
            });
        }
    }
    let known = |byte: u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b':');
    if spec.task.is_empty() || spec.task.len() > 128 || !spec.task.bytes().all(known) {
        return Err(LaunchError::Spec {
            field: "task",
            expected: "1 to 128 of A-Z, a-z, 0-9, '-', '_', '.', '/', ':'".into(),
            actual: format!("{:?}", spec.task),
        });
    }
    Ok(())
}

/// The accelerator, or why the boundary cannot be built. Nothing runs before this.
async fn choose(spec: &MachineSpec) -> Result<Accelerator, LaunchError> {
    let usable = match spec.accelerator {
        Some(Accelerator::Tcg) => Err("TCG was asked for".to_owned()),
        _ => kvm::usable().await.map_err(|reason| format!("KVM is not usable: {reason}")),
    };
    let accelerator = if usable.is_ok() { Accelerator::Kvm } else { Accelerator::Tcg };
    let possible = promised(accelerator);
    let missing = possible.missing(&spec.properties);
    let unmet_kvm = spec.accelerator == Some(Accelerator::Kvm) && accelerator != Accelerator::Kvm;
    // A class below is not given either: who asked for less would be told of more.
    if spec.boundary == Boundary::MicroVm && missing.is_empty() && !unmet_kvm {
        return Ok(accelerator);
    }
    let reason = match spec.boundary {
        Boundary::Tee => "no SEV-SNP or TDX launch in this version".to_owned(),
        Boundary::MicroVmVfio => "no device assignment in this version".to_owned(),
        Boundary::SameHost | Boundary::Container => "no process backend in this version".to_owned(),
        Boundary::MicroVm => usable.err().unwrap_or_else(|| "QEMU offers no more".to_owned()),
    };
    Err(LaunchError::Unbuildable {
        asked: match spec.accelerator {
            Some(accelerator) => {
                format!("{} with {} by {}", spec.boundary, spec.properties, accelerator.backend())
            }
            None => format!("{} with {}", spec.boundary, spec.properties),
        },
        possible: format!("{} with {possible}", Boundary::MicroVm),
        reason,
    })
}

/// What a machine of this backend will have.
pub(crate) fn promised(accelerator: Accelerator) -> Properties {
    let mut properties: Properties =
        [Property::OwnKernel, Property::Mediated].into_iter().collect();
    if accelerator == Accelerator::Kvm {
        properties.insert(Property::HardwareVirtualization);
    }
    properties
}

/// What was really built has what was promised; QEMU says so itself.
fn earned(
    facts: &Facts,
    accelerator: Accelerator,
    spec: &MachineSpec,
) -> Result<Properties, LaunchError> {
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

fn make_folder(config: &HostConfig, id: &str) -> Result<PathBuf, LaunchError> {
    let run = config.state.join("run");
    let make = |path: &Path, recursive: bool| {
        DirBuilder::new().mode(0o700).recursive(recursive).create(path)
    };
    make(&run, true).map_err(io_error("make the machines' folder"))?;
    control::prune(&run);
    let folder = run.join(id);
    make(&folder, false).map_err(io_error("make the machine's folder"))?;
    fs::canonicalize(&folder).map_err(io_error("find the machine's folder"))
}

fn backend(reason: &str) -> LaunchError {
    LaunchError::Backend { reason: reason.to_owned() }
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::Io { action: action.to_owned(), source }
}

pub(crate) const CONSOLE: &str = "console.log";
// 2026-01-01: the model's certificates say the same on every run.
const MODEL_NOT_BEFORE: UnixTime = UnixTime(1_767_225_600);
const START_LIMIT: Duration = Duration::from_secs(60);
