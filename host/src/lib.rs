//! Starts and stops sandboxes at a named boundary and reports the boundary that was really built.
//!
//! [`Machine::launch`] either reaches the asked boundary or fails; it never
//! falls back to a weaker one. The backend is our own monitor on KVM wherever
//! the probe ([`probe_kvm`]) finds that KVM really runs code, and QEMU q35 with
//! its emulator elsewhere, or where it is named. There is no network card: one
//! virtio-serial port to the host, which relays bytes that it cannot read to
//! the configured verifier and gateway, is the only wire out.
//!
//! What a machine is, is what the backend says it built and a guest that spoke; below
//! `tee` the claim of it is this host's signed word, and labelled so. Start
//! reading at `launch.rs`, then `supervise.rs` (what ends a machine) and
//! `service.rs` (what the guest may ask).
//!
//! ```no_run
//! # async fn walk() -> Result<(), Box<dyn std::error::Error>> {
//! use casemate_host::{Host, HostConfig, Machine, MachineSpec};
//! let host = Host::open(HostConfig::read("host.toml".as_ref())?)?;
//! println!("{}", host.enrolment());
//! let machine = Machine::launch(&host, &MachineSpec::new("out/image", "demo")).await?;
//! println!("{:?}", machine.status());
//! println!("{}", machine.wait().await);
//! # Ok(()) }
//! ```
//!
//! *Invariant*: what is measured is what the backend reads (sealed memory files).
//! *Invariant*: a machine dies with this process, with its [`Machine`], at its
//! wall time, when its guest lets go of the wire, and, where a gateway answers
//! for it (`lease.rs`), some time after the last answer.
//! *Invariant*: `unsafe` exists in kvm/sys.rs alone.

mod backend;
mod cgroup;
mod config;
mod console;
pub mod control;
mod doctor;
mod key;
mod kvm;
mod launch;
mod lease;
mod machine;
mod qemu;
mod qmp;
mod relay;
mod sealed;
mod service;
mod socket;
mod supervise;
mod vmm;

pub use backend::Backend;
pub use config::{
    Address, ConfigError, GpuModelConfig, HostConfig, LeaseConfig, Limits, ModelDevices,
    ModelProduct, PspModelConfig, Services, VmmConfig,
};
pub use doctor::{Class, Doctor, Fact, Gpu, doctor};
pub use key::{HostKey, KeyError};
pub use kvm::{KvmUnusable, probe as probe_kvm};
pub use launch::{Host, LaunchError, OpenError};
pub use machine::{
    Accelerator, Event, Exit, Machine, MachineSpec, Paused, State, Status, WorkloadExit,
};
