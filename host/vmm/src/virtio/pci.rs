//! Virtio over PCI, modern only (virtio 1.2, 4.1).
//!
//! One 32 KiB BAR holds everything. CPU threads only change registers here; all
//! work on rings happens in the device thread, woken by the doorbell.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::queue::{Broken, Geometry, Queue};
use super::{Device, Event, F_ACCESS_PLATFORM, F_EVENT_IDX, F_VERSION_1, Rings};
use crate::bytes::{fill, low_u8, low_u16, low_u32, number, window};
use crate::devices::Service;
use crate::memory::Memory;
use crate::pci::config::{Config, Identity};
use crate::pci::msix::{Messages, Msix, NO_VECTOR};
use crate::pci::{Function, Window};

/// Length of the one BAR.
pub(crate) const BAR_LEN: u64 = 0x8000;
/// Where the notify register of queue 0 lies; each queue has its own four bytes.
pub(crate) const NOTIFY: u64 = 0x3000;
const COMMON: u64 = 0x0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x5000;
const REGION: u64 = 0x1000;

const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 0x40;

/// A virtio device on the bus.
pub(crate) struct VirtioPci {
    inner: Mutex<Inner>,
}

struct Inner {
    device: Box<dyn Device>,
    memory: Memory,
    config: Config,
    msix_at: usize,
    msix: Msix,
    registers: Registers,
    /// Queues in operation; `None` until the guest enables one.
    queues: Vec<Option<Queue>>,
    started: bool,
    /// Wakes the device thread for this device.
    doorbell: EventFd,
}

/// What the guest has written into the common configuration.
struct Registers {
    offered: u64,
    accepted: u64,
    device_select: u32,
    driver_select: u32,
    config_vector: u16,
    status: u8,
    isr: u8,
    selected: u16,
    setups: Vec<Setup>,
}

/// One queue before it is enabled.
#[derive(Debug, Clone, Copy)]
struct Setup {
    most: u16,
    shape: Geometry,
    vector: u16,
}

impl VirtioPci {
    /// Puts a device behind PCI registers. `doorbell` is written when the guest wants something.
    pub(crate) fn new(
        device: Box<dyn Device>,
        memory: Memory,
        bar: &Window,
        messages: Arc<dyn Messages>,
        doorbell: EventFd,
    ) -> Self {
        let registers = Registers::new(device.as_ref());
        let queues = registers.setups.len();
        let vectors = u16::try_from(queues + 1).unwrap_or(NO_VECTOR);
        let (config, msix_at) = configuration(device.as_ref(), bar, vectors);
        let inner = Inner {
            device,
            memory,
            config,
            msix_at,
            msix: Msix::new(vectors, messages),
            registers,
            queues: (0..queues).map(|_| None).collect(),
            started: false,
            doorbell,
        };
        Self { inner: Mutex::new(inner) }
    }

    /// How many queues there are.
    pub(crate) fn queues(&self) -> usize {
        self.lock().queues.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service for VirtioPci {
    fn service(&self, event: Event) -> bool {
        self.lock().service(event)
    }
}

impl Function for VirtioPci {
    fn read_config(&self, offset: usize, to: &mut [u8]) {
        self.lock().config.read(offset, to);
    }

    fn write_config(&self, offset: usize, from: &[u8]) {
        let mut inner = self.lock();
        inner.config.write(offset, from);
        let mut control = [0; 2];
        inner.config.read(inner.msix_at + 2, &mut control);
        inner.msix.set_control(u16::from_le_bytes(control));
    }

    fn read_bar(&self, _: usize, offset: u64, to: &mut [u8]) {
        let mut inner = self.lock();
        let at = offset % REGION;
        match offset - at {
            COMMON => fill(to, inner.registers.read(at, inner.msix.vectors())),
            ISR => fill(to, u64::from(std::mem::take(&mut inner.registers.isr))),
            DEVICE => window(&inner.device.config(), crate::bytes::narrow(at), to),
            MSIX_TABLE => inner.msix.read_table(at, to),
            MSIX_PENDING => inner.msix.read_pending(at, to),
            _ => to.fill(0),
        }
    }

    fn write_bar(&self, _: usize, offset: u64, from: &[u8]) {
        let mut inner = self.lock();
        let at = offset % REGION;
        match offset - at {
            COMMON => inner.write_common(at, number(from)),
            // Normally an ioeventfd takes these; a write of another width arrives here.
            NOTIFY => inner.ring(),
            MSIX_TABLE => inner.msix.write_table(at, from),
            _ => {}
        }
    }
}

impl Inner {
    fn service(&mut self, event: Event) -> bool {
        let running = self.registers.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK;
        if !running {
            return false;
        }
        let mut rings = Rings::new(&self.memory, &mut self.queues);
        let start = !std::mem::replace(&mut self.started, true);
        let mut done = Ok(());
        if start {
            done = self.device.process(Event::Start, &mut rings);
        }
        let done = done.and_then(|()| self.device.process(event, &mut rings));
        let more = rings.exhausted();
        match done.and_then(|()| self.interrupt()) {
            Ok(()) => more,
            Err(broken) => {
                self.break_down(&broken);
                false
            }
        }
    }

    /// Tells the guest about what was given back to it.
    fn interrupt(&mut self) -> Result<(), Broken> {
        for (queue, setup) in self.queues.iter_mut().zip(&self.registers.setups) {
            let Some(queue) = queue else { continue };
            if queue.wants_interrupt(&self.memory)? {
                self.registers.isr |= 1;
                self.msix.signal(setup.vector);
            }
        }
        Ok(())
    }

    /// The guest broke a rule: the device stops until it is reset (virtio 1.2, 2.1.2).
    fn break_down(&mut self, broken: &Broken) {
        crate::log(&format!("device {}: stopped: {broken}", self.device.id()));
        self.registers.status |= NEEDS_RESET;
        self.registers.isr |= 2;
        self.msix.signal(self.registers.config_vector);
        self.queues.fill_with(|| None);
        self.device.reset();
    }

    fn write_common(&mut self, at: u64, value: u64) {
        match at {
            0x14 => self.set_status(low_u8(value)),
            0x1c => self.enable_queue(value),
            _ => self.registers.write(at, value, self.msix.vectors()),
        }
    }

    fn set_status(&mut self, status: u8) {
        if status == 0 {
            return self.reset();
        }
        let registers = &mut self.registers;
        let mut next = status & !NEEDS_RESET | registers.status & NEEDS_RESET;
        if next & FEATURES_OK != 0 && !registers.features_fit() {
            next &= !FEATURES_OK;
        }
        if next & FEATURES_OK == 0 {
            next &= !DRIVER_OK;
        }
        registers.status = next;
        self.ring();
    }

    fn reset(&mut self) {
        self.registers = Registers::new(self.device.as_ref());
        self.queues.fill_with(|| None);
        self.msix.clear();
        self.started = false;
        self.device.reset();
    }

    fn enable_queue(&mut self, value: u64) {
        let selected = usize::from(self.registers.selected);
        let ready = self.registers.status & (FEATURES_OK | DRIVER_OK) == FEATURES_OK;
        let (Some(setup), Some(place)) =
            (self.registers.setups.get(selected), self.queues.get_mut(selected))
        else {
            return;
        };
        if value != 1 || !ready || place.is_some() {
            return;
        }
        let event_index = self.registers.accepted & F_EVENT_IDX != 0;
        match Queue::new(setup.shape, event_index, &self.memory) {
            Ok(queue) => *place = Some(queue),
            Err(broken) => self.break_down(&broken),
        }
    }

    fn ring(&self) {
        // The counter cannot overflow: the device thread empties it, and it holds 2^64 - 2.
        let _ = self.doorbell.write(1);
    }
}

impl Registers {
    fn new(device: &dyn Device) -> Self {
        let setup = |most| Setup {
            most,
            shape: Geometry { size: most, descriptors: 0, available: 0, used: 0 },
            vector: NO_VECTOR,
        };
        Self {
            offered: device.features() | F_VERSION_1 | F_ACCESS_PLATFORM,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            config_vector: NO_VECTOR,
            status: 0,
            isr: 0,
            selected: 0,
            setups: device.queue_sizes().into_iter().map(setup).collect(),
        }
    }

    fn features_fit(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & F_VERSION_1 != 0
    }

    /// Common configuration (virtio 1.2, 4.1.4.3).
    fn read(&self, at: u64, _: u16) -> u64 {
        let half = |features: u64, select: u32| match select {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        let setup = self.setups.get(usize::from(self.selected));
        let queue = |field: fn(&Setup) -> u64| setup.map(field).unwrap_or_default();
        match at {
            0x00 => u64::from(self.device_select),
            0x04 => half(self.offered, self.device_select),
            0x08 => u64::from(self.driver_select),
            0x0c => half(self.accepted, self.driver_select),
            0x10 => u64::from(self.config_vector),
            0x12 => crate::bytes::wide(self.setups.len()),
            0x14 => u64::from(self.status),
            0x16 => u64::from(self.selected),
            0x18 => queue(|queue| u64::from(queue.shape.size)),
            0x1a => queue(|queue| u64::from(queue.vector)),
            0x1e => u64::from(self.selected),
            0x20 => queue(|queue| queue.shape.descriptors),
            0x24 => queue(|queue| queue.shape.descriptors >> 32),
            0x28 => queue(|queue| queue.shape.available),
            0x2c => queue(|queue| queue.shape.available >> 32),
            0x30 => queue(|queue| queue.shape.used),
            0x34 => queue(|queue| queue.shape.used >> 32),
            _ => 0,
        }
    }

    fn write(&mut self, at: u64, value: u64, vectors: u16) {
        let vector = Some(low_u16(value)).filter(|vector| *vector < vectors).unwrap_or(NO_VECTOR);
        match at {
            0x00 => self.device_select = low_u32(value),
            0x08 => self.driver_select = low_u32(value),
            0x0c => self.accept(value),
            0x10 => self.config_vector = vector,
            0x16 => self.selected = low_u16(value),
            _ => self.write_queue(at, value, vector),
        }
    }

    fn accept(&mut self, value: u64) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let value = value & 0xffff_ffff;
        match self.driver_select {
            0 => self.accepted = self.accepted & !0xffff_ffff | value,
            1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    fn write_queue(&mut self, at: u64, value: u64, vector: u16) {
        let Some(setup) = self.setups.get_mut(usize::from(self.selected)) else {
            return;
        };
        let low = |old: u64| old & !0xffff_ffff | value & 0xffff_ffff;
        let high = |old: u64| old & 0xffff_ffff | value << 32;
        let shape = &mut setup.shape;
        match at {
            0x18 => shape.size = low_u16(value).min(setup.most),
            0x1a => setup.vector = vector,
            0x20 => shape.descriptors = low(shape.descriptors),
            0x24 => shape.descriptors = high(shape.descriptors),
            0x28 => shape.available = low(shape.available),
            0x2c => shape.available = high(shape.available),
            0x30 => shape.used = low(shape.used),
            0x34 => shape.used = high(shape.used),
            _ => {}
        }
    }
}

/// Configuration space with the virtio capabilities; says where the MSI-X one lies.
fn configuration(device: &dyn Device, bar: &Window, vectors: u16) -> (Config, usize) {
    const VENDOR_SPECIFIC: u8 = 0x09;
    const MSIX: u8 = 0x11;
    let mut config = Config::new(&Identity {
        vendor: 0x1af4,
        device: 0x1040 + device.id(),
        revision: 1,
        class: device.class(),
        subsystem: 0x1040 + device.id(),
    });
    config.add_bar(bar);
    for (kind, offset) in [(1, COMMON), (2, NOTIFY), (3, ISR), (4, DEVICE)] {
        let multiplier: &[u8] = if kind == 2 { &[4, 0, 0, 0] } else { &[] };
        let mut body = vec![u8::try_from(16 + multiplier.len()).unwrap_or(16), kind, 0, 0, 0, 0];
        body.extend(low_u32(offset).to_le_bytes());
        body.extend(low_u32(REGION).to_le_bytes());
        body.extend(multiplier);
        config.add_capability(VENDOR_SPECIFIC, &body, &[]);
    }
    let mut body = (vectors - 1).to_le_bytes().to_vec();
    body.extend(low_u32(MSIX_TABLE).to_le_bytes());
    body.extend(low_u32(MSIX_PENDING).to_le_bytes());
    let at = config.add_capability(MSIX, &body, &[0, 0xc0]);
    (config, at)
}

#[cfg(test)]
#[path = "pci_tests.rs"]
mod tests;
