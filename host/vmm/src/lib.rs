//! A microVM monitor on KVM: one process, one machine, one leash.
//!
//! [`VmSpec`] says what a machine is to be; [`run`] makes it, runs it and says
//! why it ended. [`VmStatus`] is what it says of itself meanwhile. `launch` is the order of things; `warden` keeps lease and
//! limits; `virtio` is what the guest can reach, and treats it as hostile.
//!
//! One machine model serves plain KVM now and SEV-SNP and TDX later: local
//! APICs only, hardware-reduced ACPI, PCI by ECAM with MSI-X, a polled serial
//! port. There is no network card.

mod acpi;
mod boot;
mod bytes;
mod control;
mod convert;
mod cpu;
mod devices;
mod exit;
mod gate;
mod jail;
mod launch;
mod layout;
mod leash;
mod memory;
mod net;
mod out;
mod pci;
mod poll;
mod ports;
mod serial;
mod spec;
mod status;
mod sys;
mod vcpu;
mod vfio;
mod virtio;
mod warden;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jail::Role;

pub use boot::BootError;
pub use exit::Exit;
pub use jail::JailError;
pub use launch::LaunchError;
pub use memory::{Memory, OutOfRange};
pub use spec::{
    ConsoleSpec, DeviceSpec, DiskSpec, JailSpec, LeaseSpec, LimitSpec, PortSpec, SpecError, VmSpec,
    VsockSpec,
};
pub use status::{Built, PciFunction, VmStatus};
pub use vfio::{VfioRefusal, handover};
#[cfg(fuzzing)]
pub use virtio::fuzzing;
pub use virtio::queue;

/// Makes a machine, runs it to its end in this process, and says why it ended.
pub fn run(spec: &VmSpec) -> Result<Exit, LaunchError> {
    let host = |step| move |source| LaunchError::Host { step, source };
    let prepared = launch::prepare(spec)?;
    let built = prepared.built();
    let launch::Prepared { vcpus, board, poll, devices, control, ended, gate, memory, vm, .. } =
        prepared;
    sys::prepare_kick().map_err(host("signal"))?;
    let leash = leash::Leash::new(spec.lease, spec.limits);
    let own = Rc::new(poll::Poll::new().map_err(host("epoll"))?);
    let control = control
        .map(|listener| control::Control::new(listener, &own))
        .transpose()
        .map_err(host("control socket"))?;
    let filters = jail::Filters::new(!spec.devices.is_empty())?;
    jail::enter(spec)?;
    let mut threads = Vec::new();
    for (id, cpu) in (0u8..).zip(vcpus) {
        let board = Arc::clone(&board);
        let work = move || vcpu::run(cpu, id, &board);
        threads.push(spawn(&format!("vcpu{id}"), &gate, &filters, Role::Vcpu, work)?);
    }
    let (io, of_devices) = (Arc::clone(&devices), Arc::clone(&gate));
    let work = move || devices::run(&poll, &io, &of_devices);
    let io = spawn("devices", &gate, &filters, Role::Devices, work)?;
    let mut warden =
        warden::Warden::new(gate, leash, threads, own, control, ended).map_err(host("epoll"))?;
    warden.made = Some((built, memory.clone()));
    filters.apply(Role::Warden)?;
    let exit = warden.rule();
    devices::wake(&devices);
    wait_for(&io, LAST_WORK);
    warden.announce(&exit);
    // Assigned devices are given up by the kernel when the process ends: their own way makes
    // calls that are not on this thread's list. All that works on guest memory is kept till then.
    std::mem::forget((devices, board, vm, memory));
    Ok(exit)
}

/// Stacks are small: no function here recurses or keeps large arrays.
const STACK: usize = 128 << 10;

/// The devices' time for what the guest sent before it ended. One event takes milliseconds; a
/// service that does not read must not keep a machine that is over.
const LAST_WORK: Duration = Duration::from_secs(2);

fn wait_for(thread: &JoinHandle<()>, limit: Duration) {
    let started = Instant::now();
    while !thread.is_finished() && started.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Starts a thread that confines itself before it works; if it cannot, the machine ends.
fn spawn(
    name: &str,
    gate: &Arc<gate::Gate>,
    filters: &jail::Filters,
    role: Role,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, LaunchError> {
    let (gate, filters) = (Arc::clone(gate), filters.clone());
    let confined = move || match filters.apply(role) {
        Ok(()) => work(),
        Err(error) => gate.end(Exit::Monitor { detail: error.to_string() }),
    };
    std::thread::Builder::new()
        .name(name.into())
        .stack_size(STACK)
        .spawn(confined)
        .map_err(|source| LaunchError::Host { step: "thread", source })
}

/// One line for the operator. Only the first lines are written: a guest that breaks its devices
/// again and again must not fill a pipe that nobody reads, and hold up the last words.
fn log(text: &str) {
    static LINES: AtomicU32 = AtomicU32::new(0);
    const LINES_MAX: u32 = 20;
    let before = LINES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lines| {
        (lines < LINES_MAX).then_some(lines + 1)
    });
    if before.is_ok() {
        eprintln!("casemate-vmm: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EventFd;

    /// Warden, device thread and a CPU thread work and end within their system call filters.
    /// In a process of its own: filters cannot be taken off, and a call too many is the end.
    #[test]
    fn all_threads_live_within_their_filters() {
        let own = std::env::current_exe().unwrap();
        let mut child = std::process::Command::new(own);
        child.args(["--exact", "tests::confined", "--ignored", "--nocapture"]);
        let output = child.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    #[test]
    #[ignore = "run by the test above, in its own process"]
    fn confined() {
        let nonblocking = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let ended = nonblocking();
        let gate = Arc::new(gate::Gate::new(ended.try_clone().unwrap()));
        sys::prepare_kick().unwrap();
        let filters = jail::Filters::new(true).unwrap();
        let work = {
            let gate = Arc::clone(&gate);
            move || while gate.pass() {}
        };
        let cpu = spawn("vcpu0", &gate, &filters, Role::Vcpu, work).unwrap();
        let poll = Arc::new(poll::Poll::new().unwrap());
        let of_devices = Arc::clone(&gate);
        let work = move || devices::run(&poll, &[], &of_devices);
        spawn("devices", &gate, &filters, Role::Devices, work).unwrap();
        let limits = LimitSpec { wall_seconds: Some(1), cpu_seconds: None };
        let leash = leash::Leash::new(None, limits);
        let own = Rc::new(poll::Poll::new().unwrap());
        let mut warden = warden::Warden::new(gate, leash, vec![cpu], own, None, ended).unwrap();
        filters.apply(Role::Warden).unwrap();
        assert_eq!(warden.rule(), Exit::WallLimit);
        std::process::exit(0);
    }
}
