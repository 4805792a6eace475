//! A PCI device of the host, given to the guest.
//!
//! Groups now; iommufd fits behind the same `VfioOps` of the crate below. The
//! IOMMU maps guest RAM and nothing else. Configuration space is ours: the guest
//! sees identity, BARs and MSI-X, and of its writes only bus mastering reaches
//! the device. BARs are trapped, not mapped: right first, fast later.

mod capability;
pub(crate) mod dma;
pub mod handover;
mod sys;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};
use vmm_sys_util::eventfd::EventFd;

use crate::bytes::{array, low_u16, u16_at, u32_at, wide};
use crate::devices::Service;
use crate::memory::Memory;
use crate::pci::config::{Config, Identity};
use crate::pci::msix::{ENTRY, Messages, Msix};
use crate::pci::{Function, Window, Windows};
use crate::virtio::Event;
use capability::MsixPlace;
use dma::DmaMap;

/// Why a device cannot be given to a guest.
#[derive(Debug, thiserror::Error)]
pub enum VfioRefusal {
    /// The name is no PCI address, or there is no such device.
    #[error("{address}: {field} is {actual:?}, expected {expected}")]
    Device {
        /// The device.
        address: String,
        /// What was looked at.
        field: &'static str,
        /// What a device needs there.
        expected: &'static str,
        /// What was found.
        actual: String,
    },
    /// A neighbour in the same IOMMU group belongs to another driver: the IOMMU cannot
    /// keep the two apart.
    #[error(
        "{address}: {neighbour} in the same IOMMU group {group} is bound to {driver}, not to vfio-pci"
    )]
    Group {
        /// The device.
        address: String,
        /// Number of the group.
        group: String,
        /// The neighbour.
        neighbour: String,
        /// Its driver.
        driver: String,
    },
    /// A file of the kernel's that rules drivers cannot be written.
    #[error("{address}: {file}: {source}")]
    Sysfs {
        /// The device.
        address: String,
        /// The file.
        file: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// VFIO itself refused.
    #[error("{address}: {step}: {source}")]
    Vfio {
        /// The device.
        address: String,
        /// Which step.
        step: &'static str,
        /// What it said.
        source: VfioError,
    },
}

/// Index of configuration space among VFIO's regions, and of BAR 0 to 5.
const CONFIG: u32 = 7;
const BARS: usize = 6;
const BUS_MASTER: u8 = 4;
const MEMORY_SPACE: u8 = 2;
/// BARs above this length go above 4 GiB.
const BAR32_MAX: u64 = 64 << 20;

/// A device in a guest.
pub(crate) struct Assigned {
    device: VfioDevice,
    inner: Mutex<Inner>,
    place: Option<MsixPlace>,
}

struct Inner {
    config: Config,
    msix: Msix,
    msix_at: usize,
}

/// Opens a container whose devices may reach all of this guest's RAM, and nothing else.
pub(crate) fn container(vm: &VmFd) -> Result<Arc<VfioContainer>, VfioError> {
    Ok(Arc::new(VfioContainer::new(sys::kvm_device(vm))?))
}

/// Lets the container's devices reach guest RAM. Needs a device in it.
pub(crate) fn map(container: &Arc<VfioContainer>, memory: &Memory) -> std::io::Result<DmaMap> {
    let domain = sys::Domain { container: Arc::clone(container), _memory: memory.clone() };
    DmaMap::new(Box::new(domain), memory.clone())
}

/// Checks a device and its group before anything is opened.
pub(crate) fn check(address: &str) -> Result<PathBuf, VfioRefusal> {
    let path = Path::new("/sys/bus/pci/devices").join(address);
    let refuse = |field, expected, actual: String| VfioRefusal::Device {
        address: address.to_owned(),
        field,
        expected,
        actual,
    };
    let plain = address.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte));
    if !plain || !path.exists() {
        return Err(refuse("PCI address", "one below /sys/bus/pci/devices", address.to_owned()));
    }
    let driver = link(&path.join("driver"));
    if driver != "vfio-pci" {
        return Err(refuse("driver", "vfio-pci", driver));
    }
    let group = path.join("iommu_group");
    if !group.exists() {
        return Err(refuse("IOMMU group", "one: an IOMMU that is on", "none".to_owned()));
    }
    for entry in std::fs::read_dir(group.join("devices")).into_iter().flatten().flatten() {
        let (neighbour, driver) = (entry.file_name(), link(&entry.path().join("driver")));
        // Bridges move nothing by themselves; a device without a driver is not moved at all.
        if !["vfio-pci", "pcieport", ""].contains(&driver.as_str()) {
            return Err(VfioRefusal::Group {
                address: address.to_owned(),
                group: link(&group),
                neighbour: neighbour.to_string_lossy().into_owned(),
                driver,
            });
        }
    }
    Ok(path)
}

/// The last part of where a link leads; empty when there is no link.
fn link(path: &Path) -> String {
    let target = std::fs::read_link(path).unwrap_or_default();
    target.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Assigned {
    /// Opens and resets the device, and gives each of its vectors an event to ring.
    pub(crate) fn open(
        path: &Path,
        container: &Arc<VfioContainer>,
        windows: &mut Windows,
        messages: Arc<dyn Messages>,
        vectors: &mut dyn FnMut(u16) -> std::io::Result<Vec<EventFd>>,
    ) -> Result<(Self, Vec<Window>, Vec<EventFd>), VfioRefusal> {
        let address = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let step = |step| {
            let address = address.clone();
            move |source| VfioRefusal::Vfio { address, step, source }
        };
        let device = VfioDevice::new(path, container.clone(), true).map_err(step("open"))?;
        device.reset();
        let mut raw = [0; 256];
        device.region_read(CONFIG, &mut raw, 0);
        let place = capability::msix(&raw);
        let windows = assign_bars(&device, windows);
        let (config, msix_at) = configuration(&raw, &windows, place);
        let count = place.map_or(0, |place| place.vectors);
        let events = vectors(count).map_err(|error| VfioRefusal::Device {
            address: address.clone(),
            field: "interrupts",
            expected: "an eventfd for each vector",
            actual: error.to_string(),
        })?;
        if !events.is_empty() {
            device.enable_msix(events.iter().collect()).map_err(step("MSI-X"))?;
        }
        let inner = Inner { config, msix: Msix::new(count, messages), msix_at };
        let assigned = Self { device, inner: Mutex::new(inner), place };
        assigned.command(&raw, 0);
        Ok((assigned, windows, events))
    }

    /// Memory space stays on; bus mastering is the guest's to switch.
    fn command(&self, current: &[u8], master: u8) {
        let old = current.get(4).copied().unwrap_or_default();
        let new = old & !BUS_MASTER | MEMORY_SPACE | master;
        self.device.region_write(CONFIG, &[new], 4);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where an access lies in the MSI-X table or its pending bits, which are ours.
    fn msix_part(&self, bar: usize, offset: u64) -> Option<(bool, u64)> {
        let place = self.place?;
        let inside = |(at_bar, start): (usize, u64), length: u64| {
            let at = offset.checked_sub(start)?;
            (bar == at_bar && at < length).then_some(at)
        };
        let table = inside(place.table, u64::from(place.vectors) * ENTRY).map(|at| (true, at));
        table.or_else(|| inside(place.pending, 8).map(|at| (false, at)))
    }
}

impl Function for Assigned {
    fn read_config(&self, offset: usize, to: &mut [u8]) {
        self.lock().config.read(offset, to);
    }

    fn write_config(&self, offset: usize, from: &[u8]) {
        let mut inner = self.lock();
        inner.config.write(offset, from);
        let mut header = [0; 6];
        inner.config.read(0, &mut header);
        let [.., command, _] = header;
        self.command(&header, command & BUS_MASTER);
        let mut control = [0; 2];
        inner.config.read(inner.msix_at + 2, &mut control);
        if self.place.is_some() {
            inner.msix.set_control(u16::from_le_bytes(control));
        }
    }

    fn read_bar(&self, bar: usize, offset: u64, to: &mut [u8]) {
        to.fill(0xff);
        match self.msix_part(bar, offset) {
            Some((true, at)) => self.lock().msix.read_table(at, to),
            Some((false, at)) => self.lock().msix.read_pending(at, to),
            None => self.device.region_read(region(bar), to, offset),
        }
    }

    fn write_bar(&self, bar: usize, offset: u64, from: &[u8]) {
        match self.msix_part(bar, offset) {
            Some((true, at)) => self.lock().msix.write_table(at, from),
            Some((false, _)) => {}
            None => self.device.region_write(region(bar), from, offset),
        }
    }
}

impl Service for Assigned {
    /// A vector's event rang; numbers count from 1, as queues do.
    fn service(&self, event: Event) -> bool {
        if let Event::Queue(vector) = event {
            self.lock().msix.signal(low_u16(wide(vector)));
        }
        false
    }
}

fn region(bar: usize) -> u32 {
    u32::try_from(bar).unwrap_or(CONFIG)
}

/// A window for each memory BAR. What finds no room is not shown to the guest.
fn assign_bars(device: &VfioDevice, windows: &mut Windows) -> Vec<Window> {
    let mut raw = [0; 24];
    device.region_read(CONFIG, &mut raw, 0x10);
    let mut assigned = Vec::new();
    for bar in 0..BARS {
        let length = device.get_region_size(region(bar));
        let register = u32_at(&raw, bar * 4).unwrap_or_default();
        let is_port = register & 1 == 1;
        if length == 0 || is_port {
            continue;
        }
        // A large BAR of 32 bits has no second register: it gets a window below, or none.
        let is_wide = register & 0b110 == 0b100;
        let window = match is_wide && length > BAR32_MAX {
            true => windows.above_4g(bar, length),
            false => windows.below_4g(bar, length),
        };
        assigned.extend(window);
    }
    assigned
}

/// Configuration space for the guest, and where its MSI-X capability lies.
fn configuration(raw: &[u8], windows: &[Window], place: Option<MsixPlace>) -> (Config, usize) {
    let [revision, interface, subclass, class] = array(raw, 8).unwrap_or_default();
    let mut config = Config::new(&Identity {
        vendor: u16_at(raw, 0).unwrap_or_default(),
        device: u16_at(raw, 2).unwrap_or_default(),
        revision,
        class: [class, subclass, interface],
        subsystem: u16_at(raw, 0x2e).unwrap_or_default(),
    });
    windows.iter().for_each(|window| config.add_bar(window));
    let at = place.map_or(0, |place| config.add_capability(0x11, &place.body(), &[0, 0xc0]));
    (config, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_addresses_are_refused() {
        for name in ["../../../etc", "0000:ff:1f.7", "", "x"] {
            assert!(check(name).is_err(), "{name}");
        }
    }
}
