//! Virtio devices, and what a device may do with its queues.

pub(crate) mod block;
pub(crate) mod console;
#[cfg(fuzzing)]
pub mod fuzzing;
pub(crate) mod pci;
pub mod queue;
pub(crate) mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod vsock;

use crate::memory::Memory;
use queue::{Broken, Chain, Queue};

/// The feature that every device of ours requires (virtio 1.2, 6.3).
pub(crate) const F_VERSION_1: u64 = 1 << 32;
/// DMA goes through the guest's platform rules: required by confidential guests.
pub(crate) const F_ACCESS_PLATFORM: u64 = 1 << 33;
/// Notices by index instead of by flag.
pub(crate) const F_EVENT_IDX: u64 = 1 << 29;

/// What wakes a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The guest's driver is ready; also repeated before the first other event.
    Start,
    /// The guest put something into this queue.
    Queue(usize),
    /// A file of the host is ready; the number is the device's own.
    Host(u32),
}

/// The part of a device that the transport does not do.
pub(crate) trait Device: Send {
    /// Virtio device id (virtio 1.2, 5).
    fn id(&self) -> u16;
    /// PCI class, subclass, interface.
    fn class(&self) -> [u8; 3];
    /// Features of this kind of device.
    fn features(&self) -> u64;
    /// Largest size of each queue.
    fn queue_sizes(&self) -> Vec<u16>;
    /// The device configuration, constant while the machine lives.
    fn config(&self) -> Vec<u8>;
    /// Works until there is nothing to do. An error breaks the device until the guest resets it.
    fn process(&mut self, event: Event, rings: &mut Rings<'_>) -> Result<(), Broken>;
    /// Forgets the guest.
    fn reset(&mut self);
}

/// Queues and memory, lent to a device for one event.
pub(crate) struct Rings<'a> {
    memory: &'a Memory,
    queues: &'a mut [Option<Queue>],
    left: u32,
    bytes_left: u64,
}

/// Chains that one event may take: a guest that refills as fast as we empty must not
/// keep us from its other devices. Work that is left continues with the next event.
const CHAINS_PER_EVENT: u32 = 512;
/// And the bytes of these chains, for the same reason.
const BYTES_PER_EVENT: u64 = 32 << 20;

impl<'a> Rings<'a> {
    pub(crate) fn new(memory: &'a Memory, queues: &'a mut [Option<Queue>]) -> Self {
        Self { memory, queues, left: CHAINS_PER_EVENT, bytes_left: BYTES_PER_EVENT }
    }

    /// Guest memory, for the bytes of chains.
    pub(crate) fn memory(&self) -> &'a Memory {
        self.memory
    }

    /// The next chain of a queue, while this event may take more. A queue that the guest
    /// has not enabled is empty.
    pub(crate) fn pop(&mut self, queue: usize) -> Result<Option<Chain>, Broken> {
        if self.exhausted() {
            return Ok(None);
        }
        let Some(Some(ring)) = self.queues.get_mut(queue) else {
            return Ok(None);
        };
        let chain = ring.pop(self.memory)?;
        if let Some(chain) = &chain {
            self.left -= 1;
            let bytes = chain.readable().saturating_add(chain.writable());
            self.bytes_left = self.bytes_left.saturating_sub(bytes);
        }
        Ok(chain)
    }

    /// Gives a chain back.
    pub(crate) fn push(&mut self, queue: usize, chain: &Chain, written: u32) -> Result<(), Broken> {
        match self.queues.get_mut(queue) {
            Some(Some(ring)) => ring.push(self.memory, chain, written),
            _ => Ok(()),
        }
    }

    /// Leaves the last chain of a queue for later.
    pub(crate) fn undo_pop(&mut self, queue: usize) {
        if let Some(Some(ring)) = self.queues.get_mut(queue) {
            ring.undo_pop();
        }
    }

    /// Whether this event ran out of turns.
    pub(crate) fn exhausted(&self) -> bool {
        self.left == 0 || self.bytes_left == 0
    }
}
