//! The launch, top to bottom: what is asked is checked, what is given to the
//! backend is measured, what it built is asked back, and only a guest that speaks
//! makes it a machine.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::rand;
use casemate_attestation::UnixTime;
use casemate_attestation::boundary::{Boundary, Properties};
use casemate_attestation::snp::Product;
use casemate_image::Image;
use casemate_model::gpu::{DeviceSpec, GpuMachine, GpuModel};
use casemate_model::{PspConfig, PspModel};
use tokio::sync::{Notify, RwLock, watch};

use crate::backend::{self, CONSOLE, Chosen, Facts, Started, failed};
use crate::cgroup::Cgroup;
use crate::config::{
    GpuModelConfig, HostConfig, LeaseConfig, ModelDevices, ModelProduct, PspModelConfig,
};
use crate::key::{HostKey, KeyError};
use crate::lease::{Lease, Terms, Who};
use crate::machine::{Exit, Machine, MachineSpec, Shared, State, Status};
use crate::service::{Context, Psp, now};
use crate::supervise::Supervisor;
use crate::{control, qemu, vmm};

/// A host that can launch machines: its configuration, its key, and the
/// software model of the PSP where one is configured.
#[derive(Clone)]
pub struct Host {
    config: Arc<HostConfig>,
    key: Arc<HostKey>,
    psp: Option<Arc<PspModel>>,
    gpu: Option<Arc<GpuMachine>>,
}

/// Why a host cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no key to sign with.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A model's keys cannot be made or read.
    #[error("software model: {0}")]
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
    /// The backend did not build the machine.
    #[error("{backend}: {reason}")]
    Backend {
        /// Which one.
        backend: &'static str,
        /// What went wrong.
        reason: String,
    },
    /// What the backend built is not what was asked of it.
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
        let gpu = config.gpu_model.as_ref().map(open_gpu).transpose()?.map(Arc::new);
        Ok(Self { config: Arc::new(config), key: Arc::new(key), psp, gpu })
    }

    /// The `[[nvidia]]` entry that a verifier's operator adds to believe this
    /// host's model devices as models; `None` where none are configured.
    pub fn gpu_anchor(&self, label: &str) -> Option<String> {
        self.gpu.as_ref().map(|machine| machine.model().anchor_toml(label))
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
        let chosen = backend::choose(spec, &host.config).await?;
        let image = Image::read(&spec.image)?;
        let psp = host.psp.as_ref().map(|model| measured(model, &image, spec)).transpose()?;
        let mut id = [0; 16];
        rand::fill(&mut id).map_err(|_| failed("random numbers", "none to be had"))?;
        let folder = make_folder(&host.config, &hex::encode(id))?;

        let given = Given { spec, image: &image, folder: &folder, config: &host.config };
        let built = build(&chosen, &given).await;
        let (started, facts, properties) = built.inspect_err(|_| {
            let _ = fs::remove_dir_all(&folder);
        })?;

        let status = Status {
            id: hex::encode(id),
            state: State::Launched,
            paused: None,
            exit: None,
            task: spec.task.clone(),
            epoch: spec.epoch.unwrap_or_else(|| now().0),
            boundary: Boundary::MicroVm,
            properties,
            backend: format!("{} {}", chosen.name(), facts.version),
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
            gpu: host.gpu.clone(),
            shared: Arc::clone(&shared),
        };
        let supervisor = Supervisor {
            child: started.child,
            link: started.link,
            wire: started.wire,
            console: started.console,
            stderr: started.stderr,
            cgroup: started.cgroup,
            boot: spec.boot,
            wall: spec.wall,
            lease: host.config.lease.as_ref().map(|lease| lease_of(lease, &context)),
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

fn open_gpu(config: &GpuModelConfig) -> Result<GpuMachine, casemate_model::ModelError> {
    let model = GpuModel::load_or_create(&config.folder, MODEL_NOT_BEFORE)?;
    let specs = match config.devices {
        ModelDevices::Gpu => vec![DeviceSpec::gpu(0)],
        ModelDevices::Hgx => DeviceSpec::hgx(),
    };
    GpuMachine::new(model, specs)
}

/// The model measures the bytes that QEMU is given, by the plain page list.
fn measured(model: &Arc<PspModel>, image: &Image, spec: &MachineSpec) -> Result<Psp, LaunchError> {
    let measurement = image.files().snp_measurement(spec.vcpus);
    let measurement = measurement.map_err(casemate_image::BuildError::from)?;
    Ok(Psp { model: Arc::clone(model), measurement })
}

/// Has the gateway asked for the machine from now on.
fn lease_of(config: &LeaseConfig, context: &Context) -> Lease {
    let terms = Terms {
        length: Duration::from_secs(config.seconds),
        grace: Duration::from_secs(config.grace_seconds),
    };
    let who = Who {
        host: context.host.clone(),
        machine: hex::encode(context.shared.id),
        task: context.shared.status.borrow().task.clone(),
    };
    Lease::start(config.socket.clone(), terms, who)
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

/// What a backend is given to build.
pub(crate) struct Given<'a> {
    pub(crate) spec: &'a MachineSpec,
    pub(crate) image: &'a Image,
    pub(crate) folder: &'a Path,
    pub(crate) config: &'a HostConfig,
}

impl Given<'_> {
    /// The control group of this machine's process, where one is configured.
    pub(crate) fn cgroup(&self, beside_mib: u64) -> Result<Option<Cgroup>, LaunchError> {
        let id = self.folder.file_name().unwrap_or_default().to_string_lossy();
        Cgroup::make(self.config, &id, self.spec, beside_mib)
    }
}

/// Starts the backend, asks it what it built, and only then lets the guest run.
async fn build(
    chosen: &Chosen,
    given: &Given<'_>,
) -> Result<(Started, Facts, Properties), LaunchError> {
    let mut started = match chosen {
        Chosen::Vmm(program) => vmm::start(program, given).await?,
        Chosen::Qemu(accelerator) => qemu::start(*accelerator, given).await?,
    };
    let facts = started.link.facts().await?;
    let properties = chosen.earned(&facts, given.spec)?;
    started.link.run().await?;
    Ok((started, facts, properties))
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

pub(crate) fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::Io { action: action.to_owned(), source }
}

// 2026-01-01: the model's certificates say the same on every run.
const MODEL_NOT_BEFORE: UnixTime = UnixTime(1_767_225_600);
