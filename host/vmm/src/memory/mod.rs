//! Guest memory. Every access copies; nobody gets a reference into it.
//!
//! The guest writes to this memory while we read it. A field is therefore read
//! once, into memory of ours, and checked there.
//!
//! Pages that the guest made private are not there for devices. Who maps memory for
//! others, the IOMMU in particular, follows the same set (`convert`).

mod private;

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress,
};

use crate::bytes::{narrow, wide};
use crate::layout;
use private::PrivateSet;
pub(crate) use private::TooMany;

/// All RAM of one machine. Cloning it clones the handle, not the memory.
#[derive(Clone)]
pub struct Memory {
    map: Arc<GuestMemoryMmap>,
    /// What the guest withdrew. Read while a copy lasts: who withdraws waits for it.
    private: Arc<RwLock<PrivateSet>>,
}

/// The guest, or our own arithmetic, named memory that is not there, or is the guest's alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest memory: {length} bytes at {address:#x} are not RAM that devices may use")]
pub struct OutOfRange {
    /// Guest physical address of the access.
    pub address: u64,
    /// Length of the access in bytes.
    pub length: u64,
}

/// One piece of RAM, as KVM takes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) guest: u64,
    pub(crate) length: u64,
    pub(crate) host: u64,
}

impl Memory {
    /// Reserves `bytes` of zeroed RAM; pages cost nothing until they are touched.
    pub fn new(bytes: u64) -> std::io::Result<Self> {
        let ranges: Vec<_> = layout::ram(bytes)
            .into_iter()
            .map(|(start, length)| (GuestAddress(start), narrow(length)))
            .collect();
        let map = GuestMemoryMmap::from_ranges(&ranges).map_err(std::io::Error::other)?;
        Ok(Self { map: Arc::new(map), private: Arc::default() })
    }

    /// Bytes of RAM.
    pub(crate) fn size(&self) -> u64 {
        self.map.iter().map(|region| region.len()).sum()
    }

    /// Copies out of guest memory.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<(), OutOfRange> {
        let length = wide(to.len());
        let _held = self.usable(address, length)?;
        self.map.read_slice(to, GuestAddress(address)).map_err(|_| OutOfRange { address, length })
    }

    /// Copies into guest memory.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), OutOfRange> {
        let length = wide(from.len());
        let _held = self.usable(address, length)?;
        self.map
            .write_slice(from, GuestAddress(address))
            .map_err(|_| OutOfRange { address, length })
    }

    /// Reads `length` bytes of a file into guest memory.
    pub(crate) fn load(&self, address: u64, from: &mut File, length: u64) -> std::io::Result<()> {
        self.map
            .read_exact_volatile_from(GuestAddress(address), from, narrow(length))
            .map_err(std::io::Error::other)
    }

    /// Reads a ring index that the guest publishes: what it wrote before is visible after.
    pub(crate) fn load_u16(&self, address: u64) -> Result<u16, OutOfRange> {
        let _held = self.usable(address, 2)?;
        self.map
            .load::<u16>(GuestAddress(address), Ordering::Acquire)
            .map(u16::from_le)
            .map_err(|_| OutOfRange { address, length: 2 })
    }

    /// Publishes a ring index: what we wrote before is visible to who reads it.
    pub(crate) fn store_u16(&self, address: u64, value: u16) -> Result<(), OutOfRange> {
        let _held = self.usable(address, 2)?;
        self.map
            .store(value.to_le(), GuestAddress(address), Ordering::Release)
            .map_err(|_| OutOfRange { address, length: 2 })
    }

    /// Whether the whole range is RAM that devices may use.
    pub(crate) fn contains(&self, address: u64, length: u64) -> bool {
        self.is_ram(address, length) && self.usable(address, length).is_ok()
    }

    /// Whether the whole range is RAM.
    pub(crate) fn is_ram(&self, address: u64, length: u64) -> bool {
        self.map.check_range(GuestAddress(address), narrow(length))
    }

    /// Takes `start..end` away from devices. No copy of theirs is under way when this returns.
    pub(crate) fn make_private(&self, start: u64, end: u64) -> Result<(), TooMany> {
        self.private.write().unwrap_or_else(PoisonError::into_inner).add(start, end)
    }

    /// Gives `start..end` back to devices.
    pub(crate) fn make_shared(&self, start: u64, end: u64) -> Result<(), TooMany> {
        self.private.write().unwrap_or_else(PoisonError::into_inner).remove(start, end)
    }

    /// Bytes that devices may not use.
    pub(crate) fn private_bytes(&self) -> u64 {
        self.private.read().unwrap_or_else(PoisonError::into_inner).bytes()
    }

    /// No byte of the range is private as long as the result is held.
    fn usable(
        &self,
        address: u64,
        length: u64,
    ) -> Result<RwLockReadGuard<'_, PrivateSet>, OutOfRange> {
        let set = self.private.read().unwrap_or_else(PoisonError::into_inner);
        match set.meets(address, address.saturating_add(length)) {
            true => Err(OutOfRange { address, length }),
            false => Ok(set),
        }
    }

    /// The pieces to register with KVM.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        self.map
            .iter()
            .map(|region| Slot {
                guest: region.start_addr().0,
                length: region.len(),
                host: host_address(region),
            })
            .collect()
    }
}

impl Memory {
    /// The parts of `start..end` that are RAM, each within one piece.
    pub(crate) fn pieces(&self, start: u64, end: u64) -> Vec<Slot> {
        let cut = |slot: Slot| {
            let (from, to) = (start.max(slot.guest), end.min(slot.guest + slot.length));
            (from < to).then(|| Slot {
                guest: from,
                length: to - from,
                host: slot.host + (from - slot.guest),
            })
        };
        self.slots().into_iter().filter_map(cut).collect()
    }
}

/// Where a region lies in our own address space, as a number.
fn host_address(region: &impl GuestMemoryRegion) -> u64 {
    region
        .get_host_address(MemoryRegionAddress(0))
        .map(|pointer| wide(pointer.addr()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_outside_ram_is_an_error() {
        let memory = Memory::new(1 << 20).unwrap();
        memory.write(0xf_fffc, &[1, 2, 3, 4]).unwrap();
        assert!(memory.write(0xf_fffd, &[1, 2, 3, 4]).is_err());
        assert!(memory.read(u64::MAX, &mut [0; 4]).is_err());
        assert!(memory.contains(0, 1 << 20) && !memory.contains(1, 1 << 20));
        assert!(!memory.contains(u64::MAX, 2));
    }

    #[test]
    fn ring_indices_are_little_endian() {
        let memory = Memory::new(1 << 20).unwrap();
        memory.store_u16(0x1000, 0x1234).unwrap();
        let mut raw = [0; 2];
        memory.read(0x1000, &mut raw).unwrap();
        assert_eq!(raw, [0x34, 0x12]);
        assert_eq!(memory.load_u16(0x1000), Ok(0x1234));
    }
}
