//! A machine: what is asked for, what it became, and how it ended.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use casemate_attestation::boundary::{Boundary, Properties};
use casemate_attestation::host_claim::LaunchDigests;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, RwLock, watch};

use crate::backend::Backend;

/// What to start.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// The image's folder (`casemate_image::build`). Its files are launched as
    /// they are; whether they are the right ones is for the verifier to say.
    pub image: PathBuf,
    /// The task that the sandbox is for, as grants and policies name it.
    pub task: String,
    /// The boot incarnation; `None` takes the time of launch.
    pub epoch: Option<u64>,
    /// The class that must be reached. More is an error, less is never given.
    pub boundary: Boundary,
    /// Properties that must hold whatever the class.
    pub properties: Properties,
    /// What makes the machine; `None` takes our own monitor where KVM is usable, QEMU otherwise.
    pub backend: Option<Backend>,
    /// What runs the vCPUs; `None` takes KVM where it is usable, TCG otherwise.
    pub accelerator: Option<Accelerator>,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory_mib: u32,
    /// The longest wait for the guest's first words.
    pub boot: Duration,
    /// The longest life, from launch.
    pub wall: Duration,
}

/// What runs the vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The host's CPU, by KVM.
    Kvm,
    /// An emulator: a kernel of its own, and no hardware between it and the host.
    Tcg,
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The backend runs; the guest has not spoken.
    Launched,
    /// The guest spoke on the wire.
    Running,
    /// Over.
    Stopped,
}

/// Why a machine is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Exit {
    /// The guest powered itself off; `workload` is what it said of its workload.
    PoweredOff {
        /// The workload's end, if the guest told.
        #[serde(skip_serializing_if = "Option::is_none")]
        workload: Option<WorkloadExit>,
    },
    /// The guest's kernel panicked or reset.
    Crashed {
        /// The console's last lines.
        console: Vec<String>,
    },
    /// The guest did not speak in time.
    NeverBooted {
        /// How long was waited.
        seconds: u64,
        /// The console's last lines.
        console: Vec<String>,
    },
    /// The machine's time was up.
    WallTime {
        /// The limit.
        seconds: u64,
    },
    /// Somebody asked for its end.
    Killed,
    /// The gateway's operator had it destroyed.
    Destroyed,
    /// No gateway answered for it: it was paused, and then destroyed.
    LeaseOver {
        /// How long there was no answer.
        seconds: u64,
    },
    /// The guest let go of the wire and did not power off.
    WireLost,
    /// The backend ended by itself.
    BackendFailed {
        /// Its exit status.
        status: String,
        /// Its last words.
        said: String,
    },
}

/// Why the CPUs of a machine stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Paused {
    /// The gateway's operator has stopped it.
    Stop,
    /// No gateway answers for it.
    Lease,
}

/// How the workload ended, in the guest's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadExit {
    /// Its exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// A machine as its owner, `status` and `casemate` see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The machine's id, 32 hex digits.
    pub id: String,
    /// Where it is in its life.
    pub state: State,
    /// Why its CPUs stand, while they do.
    #[serde(default)]
    pub paused: Option<Paused>,
    /// Why it is over, once it is.
    pub exit: Option<Exit>,
    /// The task it is for.
    pub task: String,
    /// The boot incarnation.
    pub epoch: u64,
    /// The class that was reached. Claimed only from `running` on.
    pub boundary: Boundary,
    /// The properties of what was built.
    pub properties: Properties,
    /// Backend and version, such as `vmm-kvm 0.1.0` or `qemu-tcg 7.2.22`.
    pub backend: String,
    /// The backend's process id.
    pub pid: u32,
    /// Milliseconds from launch to the guest's first words.
    pub booted_ms: Option<u64>,
    /// The guest's last events, oldest first, at most [`Status::MAX_EVENTS`].
    pub events: Vec<Event>,
    /// How many events there were in all.
    pub events_total: u64,
    /// The console's file.
    pub console: PathBuf,
}

/// Progress that the guest reports, for people. Nothing depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub name: String,
    /// More about it.
    pub data: serde_json::Value,
}

/// A running machine. Dropping it kills it.
#[derive(Debug)]
pub struct Machine(pub(crate) Arc<Shared>);

/// What the machine's tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: [u8; 16],
    pub(crate) folder: PathBuf,
    pub(crate) digests: LaunchDigests,
    pub(crate) started: Instant,
    pub(crate) workload: Mutex<Option<WorkloadExit>>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) kill: Notify,
    pub(crate) over: watch::Sender<bool>,
    /// Read by each answer to a kill until it is on its way: whoever owns the
    /// machine may end the process as soon as the machine is over.
    pub(crate) answering: RwLock<()>,
}

impl Status {
    /// How many of the guest's events are kept.
    pub const MAX_EVENTS: usize = 32;

    /// The events after the first `seen` ones, as far as they are kept.
    pub fn events_since(&self, seen: u64) -> &[Event] {
        let fresh = usize::try_from(self.events_total.saturating_sub(seen)).unwrap_or(usize::MAX);
        self.events.get(self.events.len().saturating_sub(fresh)..).unwrap_or_default()
    }

    pub(crate) fn note(&mut self, event: Event) {
        if self.events.len() == Self::MAX_EVENTS {
            self.events.remove(0);
        }
        self.events.push(event);
        self.events_total = self.events_total.saturating_add(1);
    }
}

impl MachineSpec {
    /// A microVM for `task` with 1 vCPU, 512 MiB, 2 minutes to boot and an hour to live.
    pub fn new(image: impl Into<PathBuf>, task: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            task: task.into(),
            epoch: None,
            boundary: Boundary::MicroVm,
            properties: Properties::default(),
            backend: None,
            accelerator: None,
            vcpus: 1,
            memory_mib: 512,
            boot: Duration::from_secs(120),
            wall: Duration::from_secs(3600),
        }
    }
}

impl Machine {
    /// The machine's id, 32 hex digits.
    pub fn id(&self) -> String {
        hex::encode(self.0.id)
    }

    /// The machine's folder: console.log, control.sock while it runs, status.json after.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// What was launched.
    pub fn digests(&self) -> &LaunchDigests {
        &self.0.digests
    }

    /// Where it is now.
    pub fn status(&self) -> Status {
        self.0.status.borrow().clone()
    }

    /// Follows the machine: a new value for each change of state and each event.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.0.status.subscribe()
    }

    /// Waits for its end, and until those who asked for it were told.
    pub async fn wait(&self) -> Exit {
        let exit = self.0.wait().await;
        let told = self.0.answering.write();
        let _ = tokio::time::timeout(Duration::from_secs(1), told).await;
        exit
    }

    /// Ends it now; returns when nothing of it is left running.
    pub async fn kill(&self) -> Exit {
        self.0.kill.notify_one();
        self.wait().await
    }
}

impl Shared {
    pub(crate) async fn wait(&self) -> Exit {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
        let lost = || Exit::BackendFailed { status: "unknown".into(), said: String::new() };
        self.status.borrow().exit.clone().unwrap_or_else(lost)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.0.kill.notify_one();
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PoweredOff { workload: None } => f.write_str("the guest powered off"),
            Self::PoweredOff { workload: Some(end) } => match (end.code, end.signal) {
                (Some(code), _) => write!(f, "powered off after the workload exited with {code}"),
                (_, Some(signal)) => {
                    write!(f, "powered off after signal {signal} ended the workload")
                }
                _ => f.write_str("powered off after the workload ended"),
            },
            Self::Crashed { console } => {
                write!(f, "the guest's kernel crashed; {}", Lines(console))
            }
            Self::NeverBooted { seconds, console } => {
                write!(f, "the guest did not speak within {seconds} s; {}", Lines(console))
            }
            Self::WallTime { seconds } => write!(f, "its time of {seconds} s was up"),
            Self::Killed => f.write_str("killed"),
            Self::Destroyed => f.write_str("destroyed by the gateway's operator"),
            Self::LeaseOver { seconds } => {
                write!(f, "destroyed after {seconds} s without an answer of the gateway for it")
            }
            Self::WireLost => f.write_str("the guest let go of the wire without powering off"),
            Self::BackendFailed { status, said } => {
                write!(f, "the backend ended ({status}): {said}")
            }
        }
    }
}

/// A console's last lines in a sentence.
struct Lines<'a>(&'a [String]);

impl std::fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            [] => f.write_str("its console is empty"),
            lines => write!(f, "its console ends:\n  {}", lines.join("\n  ")),
        }
    }
}
