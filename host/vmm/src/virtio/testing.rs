//! An honest driver, for tests of devices.

use super::Rings;
use super::queue::{Geometry, Queue};
use crate::bytes::{low_u32, narrow, wide};
use crate::memory::Memory;

/// Queues of 64 places, and buffers that are never reused.
pub(crate) struct Driver {
    pub(crate) memory: Memory,
    queues: Vec<Option<Queue>>,
    sides: Vec<Side>,
    next_buffer: u64,
}

#[derive(Default)]
struct Side {
    offered: u16,
    seen: u16,
    next_descriptor: u16,
    /// Writable parts of each chain, by its head.
    writable: std::collections::HashMap<u16, Vec<(u64, u32)>>,
}

const SIZE: u16 = 64;

impl Driver {
    pub(crate) fn new(queues: u64) -> Self {
        let memory = Memory::new(16 << 20).unwrap();
        let queue = |index| Some(Queue::new(shape(index), false, &memory).unwrap());
        Self {
            queues: (0..queues).map(queue).collect(),
            sides: (0..queues).map(|_| Side::default()).collect(),
            memory,
            next_buffer: 1 << 20,
        }
    }

    pub(crate) fn rings(&mut self) -> Rings<'_> {
        Rings::new(&self.memory, &mut self.queues)
    }

    /// Offers one chain: parts to read with these bytes, parts to write of these lengths.
    pub(crate) fn offer(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) {
        let shape = shape(wide(queue));
        let mut parts = Vec::new();
        for bytes in readable {
            self.memory.write(self.next_buffer, bytes).unwrap();
            parts.push((self.next_buffer, low_u32(wide(bytes.len())), 0));
            self.next_buffer += wide(bytes.len());
        }
        let mut places = Vec::new();
        for length in writable {
            parts.push((self.next_buffer, *length, 2));
            places.push((self.next_buffer, *length));
            self.next_buffer += u64::from(*length);
        }
        let side = &mut self.sides[queue];
        let head = side.next_descriptor;
        let count = parts.len();
        for (number, (address, length, flags)) in parts.into_iter().enumerate() {
            let next = (side.next_descriptor + 1) % SIZE;
            let mut raw = address.to_le_bytes().to_vec();
            raw.extend(length.to_le_bytes());
            raw.extend((flags | u16::from(number + 1 < count)).to_le_bytes());
            raw.extend(next.to_le_bytes());
            let at = shape.descriptors + 16 * u64::from(side.next_descriptor);
            self.memory.write(at, &raw).unwrap();
            side.next_descriptor = next;
        }
        side.writable.insert(head, places);
        let at = shape.available + 4 + 2 * u64::from(side.offered % SIZE);
        self.memory.write(at, &head.to_le_bytes()).unwrap();
        side.offered = side.offered.wrapping_add(1);
        self.memory.store_u16(shape.available + 2, side.offered).unwrap();
    }

    /// What the device has written into chains that it gave back since the last call.
    pub(crate) fn used(&mut self, queue: usize) -> Vec<Vec<u8>> {
        let shape = shape(wide(queue));
        let side = &mut self.sides[queue];
        let mut found = Vec::new();
        while side.seen != self.memory.load_u16(shape.used + 2).unwrap() {
            let at = shape.used + 4 + 8 * u64::from(side.seen % SIZE);
            let mut raw = [0; 8];
            self.memory.read(at, &mut raw).unwrap();
            let head = u16::from_le_bytes([raw[0], raw[1]]);
            let written = u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]);
            let mut bytes = Vec::new();
            for (address, length) in side.writable.remove(&head).unwrap() {
                let mut part = vec![0; narrow(length.into())];
                self.memory.read(address, &mut part).unwrap();
                bytes.extend(part);
            }
            // A block device writes its status last, wherever its data ended.
            if u64::from(written) > wide(bytes.len()) {
                panic!("{written} bytes written into {}", bytes.len());
            }
            found.push(bytes);
            side.seen = side.seen.wrapping_add(1);
        }
        found
    }
}

fn shape(index: u64) -> Geometry {
    let base = 0x1_0000 + index * 0x4000;
    Geometry { size: SIZE, descriptors: base, available: base + 0x1000, used: base + 0x2000 }
}
