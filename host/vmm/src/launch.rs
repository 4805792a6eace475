//! How a machine comes to be, top to bottom in the order that KVM and the
//! confidential computing specifications require.
//!
//! `prepare` opens and loads everything and runs nothing. A confidential launch
//! will differ in steps 2 (type of VM), 3 (memory that starts private, in a
//! guest_memfd) and 6 (measured pages, before the first run), and nowhere else:
//! which pages are private is kept for every machine (`memory`, `convert`).

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_CAP_EXIT_HYPERCALL, KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_msi};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use vfio_ioctls::VfioContainer;
use vmm_sys_util::eventfd::EventFd;

use crate::boot::{self, BootError, Entry};
use crate::convert::{self, Converter};
use crate::cpu::Model;
use crate::devices::{self, Attached};
use crate::gate::Gate;
use crate::memory::{Memory, OutOfRange};
use crate::out::Out;
use crate::pci::msix::Messages;
use crate::pci::{Bus, Function, Windows};
use crate::poll::{Poll, Registrar};
use crate::serial::Serial;
use crate::spec::{SpecError, VmSpec};
use crate::status::Built;
use crate::vcpu::Board;
use crate::vfio::dma::DmaMap;
use crate::vfio::{self, Assigned, VfioRefusal};
use crate::virtio::Device;
use crate::virtio::block::Block;
use crate::virtio::console::{Console, Port};
use crate::virtio::pci::{BAR_LEN, NOTIFY, VirtioPci};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;
use crate::{acpi, layout, sys};

/// Why a machine could not be made. Nothing has run.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The specification is out of bounds.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// This host's KVM cannot do what a machine needs.
    #[error("kvm: {capability} is {actual}, expected {expected}")]
    Platform {
        /// What is missing.
        capability: &'static str,
        /// What a machine needs.
        expected: i32,
        /// What KVM has.
        actual: i32,
    },
    /// A call to KVM failed.
    #[error("kvm: {step}: {source}")]
    Kvm {
        /// Which step of the launch.
        step: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// A file or socket could not be opened.
    #[error("{what} {path}: {source}")]
    Open {
        /// What it was for.
        what: &'static str,
        /// Where it is.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Kernel or initrd cannot be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The host has not the memory or the files for a machine.
    #[error("{step}: {source}")]
    Host {
        /// Which step of the launch.
        step: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A device does not fit on the bus.
    #[error("no room on the bus for {device}")]
    Bus {
        /// Which device.
        device: &'static str,
    },
    /// Our own layout left RAM: cannot happen with a checked memory size.
    #[error(transparent)]
    Memory(#[from] OutOfRange),
    /// A device of the host cannot be given to a guest.
    #[error(transparent)]
    Vfio(#[from] VfioRefusal),
    /// The jail could not be closed as asked.
    #[error(transparent)]
    Jail(#[from] crate::jail::JailError),
}

/// A machine with everything open and loaded, of which nothing runs yet.
pub(crate) struct Prepared {
    pub(crate) vcpus: Vec<VcpuFd>,
    pub(crate) board: Arc<Board>,
    pub(crate) poll: Arc<Poll>,
    pub(crate) devices: Arc<Vec<Attached>>,
    pub(crate) control: Option<UnixListener>,
    pub(crate) ended: EventFd,
    pub(crate) gate: Arc<Gate>,
    /// Kept to the end: KVM works on this memory.
    pub(crate) memory: Memory,
    pub(crate) vm: Arc<VmFd>,
    /// Devices of the host among the guest's.
    assigned: usize,
}

impl Prepared {
    /// What stands now, for who asks.
    pub(crate) fn built(&self) -> Built {
        Built {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            accelerator: "kvm".to_owned(),
            vcpus: self.vcpus.len(),
            memory_mib: self.memory.size() >> 20,
            functions: self.board.bus.functions(),
            assigned: self.assigned,
        }
    }
}

/// Opens and loads everything that the machine needs.
pub(crate) fn prepare(spec: &VmSpec) -> Result<Prepared, LaunchError> {
    spec.check()?;
    // 1. The platform.
    let kvm = Kvm::new().map_err(kvm_step("open /dev/kvm"))?;
    check_platform(&kvm)?;
    // 2. The VM and its interrupt controllers: local APICs only.
    let vm = Arc::new(create_vm(&kvm)?);
    // 3. Memory.
    let memory = Memory::new(spec.memory_bytes()).map_err(host_step("guest memory"))?;
    sys::register_memory(&vm, &memory).map_err(kvm_step("memory slots"))?;
    // 4. What boots.
    let entry = load(spec, &memory)?;
    acpi::write(&memory, spec.vcpus)?;
    // 5. The CPUs.
    let vcpus = create_vcpus(&kvm, &vm, spec.vcpus, &entry)?;
    // 6. Devices, each with its files.
    let mut bench = Bench::new(&vm, &memory)?;
    let (console, serial) = console(spec, &bench)?;
    bench.attach("console", Box::new(console))?;
    bench.attach("rng", Box::new(Rng))?;
    if let Some(vsock) = &spec.vsock {
        let listener = listen("vsock", &vsock.socket)?;
        let path = crate::jail::inside(&spec.jail, &vsock.socket)?;
        let may_reach = vsock.guest_may_reach.clone();
        let vsock = Vsock::new(vsock.cid, path, listener, may_reach, bench.registrar());
        bench.attach("vsock", Box::new(vsock.map_err(host_step("vsock"))?))?;
    }
    for disk in &spec.disks {
        let file = open("disk", &disk.path)?;
        let block = Block::new(file).map_err(open_step("disk", &disk.path))?;
        bench.attach("disk", Box::new(block))?;
    }
    let dma = bench.assign(spec)?;
    let converter = Converter::new(memory.clone(), dma);
    // 7. The control socket, last: who finds it finds a machine.
    let control = spec.control.as_deref().map(|path| listen("control", path)).transpose()?;
    let event = || EventFd::new(libc::EFD_NONBLOCK).map_err(host_step("eventfd"));
    let ended = event()?;
    let gate = Arc::new(Gate::new(ended.try_clone().map_err(host_step("eventfd"))?));
    let Bench { bus, poll, devices, assigned, .. } = bench;
    devices::listen(&poll, &devices).map_err(host_step("doorbells"))?;
    let board =
        Arc::new(Board { bus, serial: Mutex::new(serial), gate: Arc::clone(&gate), converter });
    Ok(Prepared {
        vcpus,
        board,
        poll,
        devices: Arc::new(devices),
        control,
        ended,
        gate,
        memory,
        vm,
        assigned,
    })
}

fn check_platform(kvm: &Kvm) -> Result<(), LaunchError> {
    const API_VERSION: i32 = 12;
    let need = |capability, expected, actual: i32| match actual >= expected {
        true => Ok(()),
        false => Err(LaunchError::Platform { capability, expected, actual }),
    };
    need("API version", API_VERSION, kvm.get_api_version())?;
    for (capability, name) in [
        (Cap::SplitIrqchip, "split irqchip"),
        (Cap::UserMemory, "user memory"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::SignalMsi, "signal MSI"),
        (Cap::ImmediateExit, "immediate exit"),
    ] {
        need(name, 1, kvm.check_extension_int(capability))?;
    }
    Ok(())
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, LaunchError> {
    const IOAPIC_PINS: u64 = 24;
    let vm = kvm.create_vm().map_err(kvm_step("create VM"))?;
    vm.set_identity_map_address(layout::IDENTITY_MAP).map_err(kvm_step("identity map"))?;
    vm.set_tss_address(layout::TSS).map_err(kvm_step("task segment"))?;
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    split.args = [IOAPIC_PINS, 0, 0, 0];
    vm.enable_cap(&split).map_err(kvm_step("split irqchip"))?;
    // Conversions come to us. Where KVM does not know them, the guest is told so by KVM.
    let mut exits = kvm_enable_cap { cap: KVM_CAP_EXIT_HYPERCALL, ..Default::default() };
    exits.args = [1 << convert::MAP_GPA_RANGE, 0, 0, 0];
    if kvm.check_extension_int(Cap::ExitHypercall) & (1 << convert::MAP_GPA_RANGE) != 0 {
        vm.enable_cap(&exits).map_err(kvm_step("conversion exits"))?;
    }
    Ok(vm)
}

fn load(spec: &VmSpec, memory: &Memory) -> Result<Entry, LaunchError> {
    let mut kernel = open("kernel", &spec.kernel)?;
    let mut initrd = spec.initrd.as_deref().map(|path| open("initrd", path)).transpose()?;
    Ok(boot::load(memory, spec.memory_bytes(), &mut kernel, initrd.as_mut(), &spec.cmdline)?)
}

fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    count: u8,
    entry: &Entry,
) -> Result<Vec<VcpuFd>, LaunchError> {
    let model = Model::new(kvm, count).map_err(kvm_step("supported CPUID"))?;
    let create = |id: u8| {
        let cpu = vm.create_vcpu(id.into()).map_err(kvm_step("create vCPU"))?;
        model.apply(&cpu, id, entry).map_err(kvm_step("vCPU state"))?;
        Ok(cpu)
    };
    (0..count).map(create).collect()
}

/// Where devices are put together.
pub(crate) struct Bench {
    vm: Arc<VmFd>,
    memory: Memory,
    windows: Windows,
    bus: Bus,
    poll: Arc<Poll>,
    devices: Vec<Attached>,
    assigned: usize,
}

impl Bench {
    fn new(vm: &Arc<VmFd>, memory: &Memory) -> Result<Self, LaunchError> {
        let poll = Arc::new(Poll::new().map_err(host_step("epoll"))?);
        let mut bus = Bus::default();
        bus.add(Arc::new(crate::pci::config::HostBridge::new()), &[]);
        let windows = Windows::new();
        Ok(Self {
            vm: Arc::clone(vm),
            memory: memory.clone(),
            windows,
            bus,
            poll,
            devices: Vec::new(),
            assigned: 0,
        })
    }

    /// Lets the next device to be attached register its host files.
    fn registrar(&self) -> Registrar {
        Registrar::new(
            Arc::clone(&self.poll),
            u32::try_from(self.devices.len()).unwrap_or(u32::MAX),
        )
    }

    /// Puts a virtio device on the bus, with an ioeventfd for each queue's doorbell.
    fn attach(&mut self, name: &'static str, device: Box<dyn Device>) -> Result<(), LaunchError> {
        let full = || LaunchError::Bus { device: name };
        let event = || EventFd::new(libc::EFD_NONBLOCK).map_err(host_step("eventfd"));
        let own = event()?;
        let window = self.windows.below_4g(0, BAR_LEN).ok_or_else(full)?;
        let messages = Arc::new(Lapics(Arc::clone(&self.vm)));
        let bell = own.try_clone().map_err(host_step("eventfd"))?;
        let device = Arc::new(VirtioPci::new(device, self.memory.clone(), &window, messages, bell));
        let mut doorbells = vec![own];
        for queue in 0..device.queues() {
            let at = window.base + NOTIFY + 4 * crate::bytes::wide(queue);
            let bell = event()?;
            self.vm
                .register_ioevent(&bell, &IoEventAddress::Mmio(at), NoDatamatch)
                .map_err(kvm_step("ioeventfd"))?;
            doorbells.push(bell);
        }
        let function: Arc<dyn Function> = device.clone();
        self.bus.add(function, &[window]).ok_or_else(full)?;
        self.devices.push(Attached { device, doorbells });
        Ok(())
    }
}

impl Bench {
    /// Gives devices of the host to the guest. Each is checked before the first is opened.
    fn assign(&mut self, spec: &VmSpec) -> Result<Option<DmaMap>, LaunchError> {
        let checked = spec.devices.iter().map(|device| vfio::check(&device.address));
        let paths = checked.collect::<Result<Vec<_>, _>>()?;
        let Some(first) = paths.first() else { return Ok(None) };
        let group = |step| {
            let address = first.display().to_string();
            move |source| VfioRefusal::Vfio { address, step, source }
        };
        crate::jail::allow_pinning(spec.memory_bytes())?;
        let container = vfio::container(&self.vm).map_err(group("container"))?;
        for path in &paths {
            self.assign_one(path, &container)?;
        }
        Ok(Some(vfio::map(&container, &self.memory).map_err(host_step("memory for devices"))?))
    }

    fn assign_one(
        &mut self,
        path: &Path,
        container: &Arc<VfioContainer>,
    ) -> Result<(), LaunchError> {
        let messages = Arc::new(Lapics(Arc::clone(&self.vm)));
        let event = || EventFd::new(libc::EFD_NONBLOCK);
        let mut events = |count| (0..count).map(|_| event()).collect();
        let (device, windows, vectors) =
            Assigned::open(path, container, &mut self.windows, messages, &mut events)?;
        let device = Arc::new(device);
        let function: Arc<dyn Function> = device.clone();
        let full = LaunchError::Bus { device: "an assigned device" };
        self.bus.add(function, &windows).ok_or(full)?;
        let mut doorbells = vec![event().map_err(host_step("eventfd"))?];
        doorbells.extend(vectors);
        self.devices.push(Attached { device, doorbells });
        self.assigned += 1;
        Ok(())
    }
}

/// Sends messages to the local APICs in KVM.
struct Lapics(Arc<VmFd>);

impl Messages for Lapics {
    fn send(&self, address: u64, data: u32) {
        let message = kvm_msi {
            address_lo: crate::bytes::low_u32(address),
            address_hi: crate::bytes::low_u32(address >> 32),
            data,
            ..Default::default()
        };
        // No CPU took it: the guest wrote an address of its own making.
        let _ = self.0.signal_msi(message);
    }
}

fn console(spec: &VmSpec, bench: &Bench) -> Result<(Console, Serial), LaunchError> {
    let limit = spec.console.bytes_max;
    let file = match &spec.console.path {
        Some(path) => {
            let file = File::options().create(true).append(true).open(path);
            file.map_err(open_step("console", path))?
        }
        None => {
            let own = std::io::stdout().as_fd().try_clone_to_owned();
            own.map_err(host_step("standard output"))?.into()
        }
    };
    let out = Out::new(file);
    let mut ports = Vec::new();
    for port in &spec.ports {
        ports.push(Port { name: port.name.clone(), listener: listen("port", &port.socket)? });
    }
    let console = Console::new(Box::new(out.clone()), limit, ports, bench.registrar())
        .map_err(host_step("console ports"))?;
    Ok((console, Serial::new(Box::new(out), limit)))
}

fn open(what: &'static str, path: &Path) -> Result<File, LaunchError> {
    File::open(path).map_err(open_step(what, path))
}

/// A listening socket. What a dead predecessor left at its path is removed.
fn listen(what: &'static str, path: &Path) -> Result<UnixListener, LaunchError> {
    use std::os::unix::fs::FileTypeExt;
    let stale = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if stale {
        std::fs::remove_file(path).map_err(open_step(what, path))?;
    }
    UnixListener::bind(path).map_err(open_step(what, path))
}

fn kvm_step(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> LaunchError {
    move |source| LaunchError::Kvm { step, source }
}

fn host_step(step: &'static str) -> impl Fn(std::io::Error) -> LaunchError {
    move |source| LaunchError::Host { step, source }
}

fn open_step(what: &'static str, path: &Path) -> impl Fn(std::io::Error) -> LaunchError {
    move |source| LaunchError::Open { what, path: path.display().to_string(), source }
}
