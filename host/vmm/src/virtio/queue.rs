//! A split virtqueue whose other end is hostile.
//!
//! Source: virtio 1.2, 2.7. The guest writes the rings while we read them, so
//! every field is copied once and judged there. A walk ends after at most as
//! many steps as the queue has descriptors; descriptors must lie in RAM; what
//! breaks the rules breaks the queue, and the device asks for a reset.

use std::sync::atomic::{Ordering, fence};

use crate::bytes::{u16_at, u32_at, u64_at, wide};
use crate::memory::{Memory, OutOfRange};

/// The guest broke a rule of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// More entries than the queue has places.
    #[error("available index {available} is more than {size} ahead of {next}")]
    Index {
        /// What the guest wrote.
        available: u16,
        /// What we had taken.
        next: u16,
        /// Places in the queue.
        size: u16,
    },
    /// A descriptor number beyond the table.
    #[error("descriptor {index} of a table of {size}")]
    Descriptor {
        /// What the guest named.
        index: u16,
        /// Places in the queue.
        size: u16,
    },
    /// A chain longer than the table: a loop.
    #[error("a chain of more than {size} descriptors")]
    Loop {
        /// Places in the queue.
        size: u16,
    },
    /// A chain that names more bytes than any driver of ours asks for at once.
    #[error("a chain of more than {most} bytes")]
    Bytes {
        /// Most bytes of one chain.
        most: u64,
    },
    /// A descriptor flag that was not negotiated, or readable after writable.
    #[error("descriptor flags {flags:#x} in this place")]
    Flags {
        /// What the guest wrote.
        flags: u16,
    },
    /// Rings or buffers outside RAM.
    #[error(transparent)]
    Memory(#[from] OutOfRange),
    /// Queue addresses or sizes that no queue can have.
    #[error("queue geometry: size {size}, addresses {addresses:x?}")]
    Geometry {
        /// What the guest wrote.
        size: u16,
        /// Descriptor, driver and device area.
        addresses: [u64; 3],
    },
    /// A message of the device's own protocol that no honest driver sends.
    #[error("{field}: {actual}")]
    Protocol {
        /// Which field.
        field: &'static str,
        /// What the guest wrote.
        actual: u64,
    },
}

/// What the guest sets up before it enables a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Descriptor area.
    pub descriptors: u64,
    /// Driver area: the available ring.
    pub available: u64,
    /// Device area: the used ring.
    pub used: u64,
}

/// One queue in operation.
#[derive(Debug)]
pub struct Queue {
    shape: Geometry,
    /// Number of the next available entry that we take.
    next_available: u16,
    /// Number of the next used entry that we write.
    next_used: u16,
    /// Used entries up to here have been considered for an interrupt.
    signalled: u16,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    event_index: bool,
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const KNOWN: u16 = NEXT | WRITE;
const DESCRIPTOR: u64 = 16;
/// Many descriptors may name the same memory: their sum bounds the work, not RAM. Linux asks a
/// disk for 1.25 MiB at once, the other devices for less.
const CHAIN_BYTES: u64 = 16 << 20;

impl Queue {
    /// A queue of this shape, if a queue can have it.
    pub fn new(shape: Geometry, event_index: bool, memory: &Memory) -> Result<Self, Broken> {
        let addresses = [shape.descriptors, shape.available, shape.used];
        let size = u64::from(shape.size);
        let lengths = [size * DESCRIPTOR, 6 + size * 2, 6 + size * 8];
        let aligned = addresses.iter().zip([16, 2, 4]).all(|(at, to)| at.is_multiple_of(to));
        let present =
            addresses.iter().zip(lengths).all(|(at, length)| memory.contains(*at, length));
        if !shape.size.is_power_of_two() || !aligned || !present {
            return Err(Broken::Geometry { size: shape.size, addresses });
        }
        Ok(Self { shape, next_available: 0, next_used: 0, signalled: 0, event_index })
    }

    /// Takes the next chain that the guest offers.
    pub fn pop(&mut self, memory: &Memory) -> Result<Option<Chain>, Broken> {
        if self.waiting(memory)? == 0 {
            self.ask_for_notice(memory)?;
            // The guest may have offered one before it saw that we want to be told.
            fence(Ordering::SeqCst);
            if self.waiting(memory)? == 0 {
                return Ok(None);
            }
        }
        let at =
            self.shape.available + 4 + 2 * u64::from(slot(self.next_available, self.shape.size));
        let mut head = [0; 2];
        memory.read(at, &mut head)?;
        let chain = self.walk(memory, u16::from_le_bytes(head))?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Puts the last chain back: it will be taken again.
    pub fn undo_pop(&mut self) {
        self.next_available = self.next_available.wrapping_sub(1);
    }

    fn waiting(&self, memory: &Memory) -> Result<u16, Broken> {
        let available = memory.load_u16(self.shape.available + 2)?;
        let (next, size) = (self.next_available, self.shape.size);
        waiting(available, next, size).ok_or(Broken::Index { available, next, size })
    }

    /// With event index: notify us when the entry that we wait for is there (2.7.10).
    fn ask_for_notice(&self, memory: &Memory) -> Result<(), Broken> {
        if self.event_index {
            let at = self.shape.used + 4 + 8 * u64::from(self.shape.size);
            memory.store_u16(at, self.next_available)?;
        }
        Ok(())
    }

    fn walk(&self, memory: &Memory, head: u16) -> Result<Chain, Broken> {
        let size = self.shape.size;
        let mut chain = Chain { head, readable: Parts::default(), writable: Parts::default() };
        let (mut index, mut bytes) = (head, 0);
        for _ in 0..size {
            let step = self.descriptor(memory, index)?;
            let part = Part { address: step.address, length: u64::from(step.length) };
            if !memory.contains(part.address, part.length.max(1)) {
                return Err(OutOfRange { address: part.address, length: part.length }.into());
            }
            let writes = step.flags & WRITE != 0;
            let out_of_order = !writes && !chain.writable.0.is_empty();
            if step.flags & !KNOWN != 0 || out_of_order {
                return Err(Broken::Flags { flags: step.flags });
            }
            let side = if writes { &mut chain.writable } else { &mut chain.readable };
            side.0.push_back(part);
            bytes += part.length;
            if bytes > CHAIN_BYTES {
                return Err(Broken::Bytes { most: CHAIN_BYTES });
            }
            if step.flags & NEXT == 0 {
                return Ok(chain);
            }
            index = step.next;
        }
        Err(Broken::Loop { size })
    }

    fn descriptor(&self, memory: &Memory, index: u16) -> Result<Descriptor, Broken> {
        let size = self.shape.size;
        if index >= size {
            return Err(Broken::Descriptor { index, size });
        }
        let at = self.shape.descriptors + DESCRIPTOR * u64::from(index);
        let mut raw = [0; 16];
        memory.read(at, &mut raw)?;
        let read = || {
            Some(Descriptor {
                address: u64_at(&raw, 0)?,
                length: u32_at(&raw, 8)?,
                flags: u16_at(&raw, 12)?,
                next: u16_at(&raw, 14)?,
            })
        };
        read().ok_or(Broken::Memory(OutOfRange { address: at, length: DESCRIPTOR }))
    }

    /// Gives a chain back, with how many bytes were written into it.
    pub fn push(&mut self, memory: &Memory, chain: &Chain, written: u32) -> Result<(), Broken> {
        let at = self.shape.used + 4 + 8 * u64::from(slot(self.next_used, self.shape.size));
        let [a, b, c, d] = u32::from(chain.head).to_le_bytes();
        let [e, f, g, h] = written.to_le_bytes();
        memory.write(at, &[a, b, c, d, e, f, g, h])?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(memory.store_u16(self.shape.used + 2, self.next_used)?)
    }

    /// Whether the guest wants an interrupt for what was given back since the last call.
    pub fn wants_interrupt(&mut self, memory: &Memory) -> Result<bool, Broken> {
        let (new, old) = (self.next_used, self.signalled);
        if new == old {
            return Ok(false);
        }
        self.signalled = new;
        // The used index must be visible before we read what the guest wants.
        fence(Ordering::SeqCst);
        if self.event_index {
            let at = self.shape.available + 4 + 2 * u64::from(self.shape.size);
            return Ok(crossed(memory.load_u16(at)?, new, old));
        }
        Ok(memory.load_u16(self.shape.available)? & 1 == 0)
    }
}

struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

/// One request of the guest: parts to read, then parts to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    readable: Parts,
    writable: Parts,
}

impl Chain {
    /// Bytes that can still be read.
    #[must_use]
    pub fn readable(&self) -> u64 {
        self.readable.length()
    }

    /// Bytes that can still be written.
    #[must_use]
    pub fn writable(&self) -> u64 {
        self.writable.length()
    }

    /// Copies the next bytes out; says how many there were.
    pub fn read(&mut self, memory: &Memory, to: &mut [u8]) -> Result<usize, Broken> {
        let mut done = 0;
        while let Some(part) = self.readable.take(wide(to.len() - done)) {
            let end = done + crate::bytes::narrow(part.length);
            if let Some(piece) = to.get_mut(done..end) {
                memory.read(part.address, piece)?;
            }
            done = end;
        }
        Ok(done)
    }

    /// Leaves the next writable bytes as they are.
    pub fn skip_writable(&mut self, mut length: u64) {
        while length > 0 {
            let Some(part) = self.writable.take(length) else { return };
            length -= part.length;
        }
    }

    /// Copies bytes in; says how many had a place.
    pub fn write(&mut self, memory: &Memory, from: &[u8]) -> Result<usize, Broken> {
        let mut done = 0;
        while let Some(part) = self.writable.take(wide(from.len() - done)) {
            let end = done + crate::bytes::narrow(part.length);
            if let Some(piece) = from.get(done..end) {
                memory.write(part.address, piece)?;
            }
            done = end;
        }
        Ok(done)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    address: u64,
    length: u64,
}

/// Parts in order; taking from the front.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Parts(std::collections::VecDeque<Part>);

impl Parts {
    fn length(&self) -> u64 {
        self.0.iter().map(|part| part.length).sum()
    }

    /// Takes at most `most` bytes of one part.
    fn take(&mut self, most: u64) -> Option<Part> {
        loop {
            let front = self.0.front_mut()?;
            let length = front.length.min(most);
            if front.length == 0 {
                self.0.pop_front();
                continue;
            }
            let taken = Part { address: front.address, length };
            front.address += length;
            front.length -= length;
            return (length > 0).then_some(taken);
        }
    }
}

/// The place of a running number in a ring: sizes are powers of two, so numbers may wrap.
fn slot(number: u16, size: u16) -> u16 {
    number & size.wrapping_sub(1)
}

/// How many entries wait; `None` when the guest claims more than there are places.
fn waiting(available: u16, next: u16, size: u16) -> Option<u16> {
    Some(available.wrapping_sub(next)).filter(|count| *count <= size)
}

/// Whether going from `old` to `new` crossed `event` (virtio 1.2, 2.7.10.1).
fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
