//! `casemate run`: one machine from launch to its end, as events.

use std::path::PathBuf;
use std::time::Duration;

use casemate_attestation::{Boundary, Property};
use casemate_host::{
    Accelerator, Backend, Exit, Host, HostConfig, Machine, MachineSpec, State, Status,
};
use clap::Args;
use serde_json::{Value, json};

use crate::table::plain;
use crate::{Answer, service};

#[derive(Args)]
pub(crate) struct Arguments {
    /// host.toml (docs/formats/host-config.md).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The image's folder.
    #[arg(long, value_name = "DIR")]
    image: PathBuf,
    /// The task that the sandbox is for.
    #[arg(long, value_name = "NAME")]
    task: String,
    /// The boundary class that must be reached; more than can be built is an error.
    #[arg(long, default_value = "microvm", value_name = "CLASS")]
    boundary: Boundary,
    /// A property that must hold whatever the class, such as hardware_virtualization.
    #[arg(long = "property", value_name = "NAME")]
    properties: Vec<Property>,
    /// What makes the machine; by default our own monitor where KVM runs code, else QEMU.
    #[arg(long, value_enum)]
    backend: Option<Maker>,
    /// What runs the vCPUs; by default KVM where it runs code, else TCG.
    #[arg(long, value_enum)]
    accelerator: Option<Accelerate>,
    /// Virtual CPUs.
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Guest memory.
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u32>,
    /// The longest wait for the guest's first words.
    #[arg(long, value_name = "SECONDS")]
    boot_seconds: Option<u64>,
    /// The longest life.
    #[arg(long, value_name = "SECONDS")]
    wall_seconds: Option<u64>,
    /// Events as JSON lines: {"event": …, "facts": …}.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Accelerate {
    Kvm,
    Tcg,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Maker {
    Vmm,
    Qemu,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Answer> {
    let host = Host::open(HostConfig::read(&arguments.config)?)?;
    service::run(follow(&host, &specification(arguments), arguments.json))
}

fn specification(arguments: &Arguments) -> MachineSpec {
    let mut spec = MachineSpec::new(&arguments.image, &arguments.task);
    spec.boundary = arguments.boundary;
    spec.properties = arguments.properties.iter().copied().collect();
    spec.backend = arguments.backend.map(|maker| match maker {
        Maker::Vmm => Backend::Vmm,
        Maker::Qemu => Backend::Qemu,
    });
    spec.accelerator = arguments.accelerator.map(|accelerator| match accelerator {
        Accelerate::Kvm => Accelerator::Kvm,
        Accelerate::Tcg => Accelerator::Tcg,
    });
    spec.vcpus = arguments.vcpus.unwrap_or(spec.vcpus);
    spec.memory_mib = arguments.memory_mib.unwrap_or(spec.memory_mib);
    spec.boot = arguments.boot_seconds.map_or(spec.boot, Duration::from_secs);
    spec.wall = arguments.wall_seconds.map_or(spec.wall, Duration::from_secs);
    spec
}

async fn follow(host: &Host, spec: &MachineSpec, json: bool) -> anyhow::Result<Answer> {
    let machine = Machine::launch(host, spec).await?;
    let (mut told, mut paused) = (0, None);
    let mut states = machine.watch();
    tell(json, "running", running(&machine.status()));
    let exit = loop {
        let status = states.borrow_and_update().clone();
        told = tell_new(json, &status, told);
        if status.paused != paused {
            paused = status.paused;
            let event = if paused.is_some() { "paused" } else { "resumed" };
            tell(json, event, json!({"by": paused}));
        }
        if status.state == State::Stopped {
            break machine.wait().await;
        }
        tokio::select! {
            changed = states.changed() => changed?,
            _ = tokio::signal::ctrl_c() => break machine.kill().await,
        }
    };
    tell(json, "exit", serde_json::to_value(&exit)?);
    Ok(if finished(&exit) { Answer::Yes } else { Answer::No })
}

/// The machine did what it was started for: its workload ran and ended well.
fn finished(exit: &Exit) -> bool {
    let Exit::PoweredOff { workload: Some(workload) } = exit else { return false };
    workload.code == Some(0)
}

fn running(status: &Status) -> Value {
    json!({
        "id": status.id,
        "task": status.task,
        "boundary": status.boundary,
        "properties": status.properties,
        "backend": status.backend,
        "booted_ms": status.booted_ms,
        "console": status.console,
    })
}

/// Tells the events that were not told yet. Only the last ones are kept in a
/// status, so a burst may be told with a gap, which is said.
fn tell_new(json: bool, status: &Status, told: u64) -> u64 {
    let kept = u64::try_from(status.events.len()).unwrap_or(u64::MAX);
    let first_kept = status.events_total.saturating_sub(kept);
    if first_kept > told {
        tell(json, "events-lost", json!({"count": first_kept - told}));
    }
    let skip = usize::try_from(told.saturating_sub(first_kept)).unwrap_or(usize::MAX);
    for event in status.events.iter().skip(skip) {
        tell(json, &event.name, event.data.clone());
    }
    status.events_total
}

fn tell(json: bool, event: &str, facts: Value) {
    if json {
        println!("{}", json!({"event": event, "facts": facts}));
    } else {
        println!("{:<16} {}", plain(event), plain(&facts.to_string()));
    }
}
