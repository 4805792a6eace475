//! A microVM monitor on KVM: one process, one machine, one leash.
//!
//! [`VmSpec`] says what a machine is to be; [`run`] makes it, runs it and says
//! why it ended. `launch` is the order of things; `warden` keeps lease and
//! limits; `virtio` is what the guest can reach, and treats it as hostile.
//!
//! One machine model serves plain KVM now and SEV-SNP and TDX later: local
//! APICs only, hardware-reduced ACPI, PCI by ECAM with MSI-X, a polled serial
//! port. There is no network card.

mod acpi;
mod boot;
mod bytes;
mod control;
mod cpu;
mod devices;
mod exit;
mod gate;
mod jail;
mod launch;
mod layout;
mod leash;
mod memory;
mod pci;
mod poll;
mod ports;
mod serial;
mod spec;
mod sys;
mod vcpu;
mod virtio;
mod warden;

use std::rc::Rc;
use std::sync::Arc;

pub use boot::BootError;
pub use exit::Exit;
pub use jail::JailError;
pub use launch::LaunchError;
pub use memory::{Memory, OutOfRange};
pub use spec::{
    ConsoleSpec, DiskSpec, JailSpec, LeaseSpec, LimitSpec, PortSpec, SpecError, VmSpec, VsockSpec,
};
pub use virtio::queue;

/// Makes a machine, runs it to its end in this process, and says why it ended.
pub fn run(spec: &VmSpec) -> Result<Exit, LaunchError> {
    let host = |step| move |source| LaunchError::Host { step, source };
    let launch::Prepared { vcpus, board, poll, devices, control, ended, gate, memory, vm } =
        launch::prepare(spec)?;
    sys::prepare_kick().map_err(host("signal"))?;
    let leash = leash::Leash::new(spec.lease, spec.limits);
    let own = Rc::new(poll::Poll::new().map_err(host("epoll"))?);
    let control = control
        .map(|listener| control::Control::new(listener, &own))
        .transpose()
        .map_err(host("control socket"))?;
    let mut threads = Vec::new();
    for (id, cpu) in (0u8..).zip(vcpus) {
        let board = Arc::clone(&board);
        threads.push(spawn(&format!("vcpu{id}"), move || vcpu::run(cpu, id, &board))?);
    }
    let (io, loop_gate) = (Arc::clone(&devices), Arc::clone(&gate));
    spawn("devices", move || devices::run(&poll, &io, &loop_gate))?;
    let mut warden =
        warden::Warden::new(gate, leash, threads, own, control, ended).map_err(host("epoll"))?;
    let exit = warden.rule();
    // What the guest sent before it ended still goes out.
    for attached in devices.iter() {
        attached.device.service(virtio::Event::Start);
    }
    warden.announce(&exit);
    drop(vm);
    drop(memory);
    Ok(exit)
}

/// Stacks are small: no function here recurses or keeps large arrays.
const STACK: usize = 128 << 10;

fn spawn(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<std::thread::JoinHandle<()>, LaunchError> {
    std::thread::Builder::new()
        .name(name.into())
        .stack_size(STACK)
        .spawn(work)
        .map_err(|source| LaunchError::Host { step: "thread", source })
}

/// One line for the operator. Bounded: each caller speaks once per event that ends something.
fn log(text: &str) {
    eprintln!("casemate-vmm: {text}");
}
