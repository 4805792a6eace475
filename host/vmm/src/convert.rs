//! The guest's hypercall that makes pages private or shared again.
//!
//! Source: Linux, Documentation/virt/kvm/x86/hypercalls.rst, KVM_HC_MAP_GPA_RANGE, and
//! api.rst, KVM_CAP_EXIT_HYPERCALL. SNP's page state changes and TDX's MapGPA arrive as the
//! same exit.

use std::sync::{Mutex, PoisonError};

use crate::memory::{Memory, TooMany};
use crate::vfio::dma::DmaMap;

/// KVM_HC_MAP_GPA_RANGE.
pub(crate) const MAP_GPA_RANGE: u64 = 12;
/// Bits 3:0 are the page size, which is advice; bit 4 says private.
const SIZE: u64 = 0xf;
const TO_PRIVATE: u64 = 1 << 4;
const PAGE: u64 = 4096;

/// What the guest is told instead of zero: the negative of these, of which hypercalls.rst
/// names the last three KVM_E2BIG, KVM_EINVAL and KVM_ENOSYS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Errno(u64);

const IO: Errno = Errno(5);
const TOO_BIG: Errno = Errno(7);
const INVALID: Errno = Errno(22);
const NO_SUCH_CALL: Errno = Errno(1000);

/// Carries out conversions, one at a time.
pub(crate) struct Converter {
    memory: Memory,
    /// The devices' view, where there are assigned devices.
    dma: Mutex<Option<DmaMap>>,
}

impl Converter {
    pub(crate) fn new(memory: Memory, dma: Option<DmaMap>) -> Self {
        Self { memory, dma: Mutex::new(dma) }
    }

    /// Answers a hypercall; the value goes back in RAX.
    pub(crate) fn hypercall(&self, number: u64, arguments: &[u64; 6]) -> u64 {
        let done = match number {
            MAP_GPA_RANGE => self.map_gpa_range(arguments),
            _ => Err(NO_SUCH_CALL),
        };
        match done {
            Ok(()) => 0,
            Err(Errno(number)) => 0u64.wrapping_sub(number),
        }
    }

    fn map_gpa_range(&self, [start, pages, attributes, ..]: &[u64; 6]) -> Result<(), Errno> {
        let length = pages.checked_mul(PAGE).filter(|length| *length != 0);
        let length = length.ok_or(INVALID)?;
        let known = attributes & !(SIZE | TO_PRIVATE) == 0;
        if !known || !start.is_multiple_of(PAGE) || !self.memory.is_ram(*start, length) {
            return Err(INVALID);
        }
        let end = start + length;
        // Held throughout: two CPUs that convert one page leave map and set the same.
        let mut dma = self.dma.lock().unwrap_or_else(PoisonError::into_inner);
        if attributes & TO_PRIVATE != 0 {
            // Devices first: a page is private only when none of them reaches it.
            if let Some(dma) = dma.as_mut() {
                dma.withdraw(*start, end).map_err(failed)?;
            }
            let made = self.memory.make_private(*start, end);
            if let (Err(_), Some(dma)) = (&made, dma.as_mut()) {
                dma.offer(*start, end).map_err(failed)?;
            }
            return made.map_err(too_many);
        }
        self.memory.make_shared(*start, end).map_err(too_many)?;
        if let Some(Err(error)) = dma.as_mut().map(|dma| dma.offer(*start, end)) {
            // As it was, so that the guest can believe the refusal. Where even that is too much,
            // the page is out of the assigned devices' reach all the same.
            let _ = self.memory.make_private(*start, end);
            let _ = dma.as_mut().map(|dma| dma.withdraw(*start, end));
            return Err(failed(error));
        }
        Ok(())
    }
}

fn failed(error: std::io::Error) -> Errno {
    if error.kind() == std::io::ErrorKind::QuotaExceeded {
        return TOO_BIG;
    }
    crate::log(&format!("conversion of guest memory: {error}"));
    IO
}

fn too_many(_: TooMany) -> Errno {
    TOO_BIG
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::wide;
    use crate::vfio::dma::tests::Kernel;

    const MIB: u64 = 1 << 20;

    fn call(converter: &Converter, start: u64, pages: u64, attributes: u64) -> i64 {
        let arguments = [start, pages, attributes, 0, 0, 0];
        converter.hypercall(MAP_GPA_RANGE, &arguments).cast_signed()
    }

    #[test]
    fn private_pages_are_out_of_devices_reach_until_they_are_shared() {
        let memory = Memory::new(MIB).unwrap();
        let converter = Converter::new(memory.clone(), None);
        memory.write(0x3000, &[7; 16]).unwrap();
        assert_eq!(call(&converter, 0x2000, 3, TO_PRIVATE), 0);
        assert_eq!(memory.private_bytes(), 3 * PAGE);
        for (address, length) in [(0x2000, 1), (0x1fff, 2), (0x4fff, 1), (0x1000, 0x8000)] {
            let mut to = vec![0; length];
            assert!(memory.read(address, &mut to).is_err(), "{address:#x}");
            assert!(memory.write(address, &to).is_err(), "{address:#x}");
            assert!(!memory.contains(address, wide(length)), "{address:#x}");
        }
        assert!(memory.load_u16(0x3000).is_err() && memory.store_u16(0x3000, 1).is_err());
        assert!(memory.read(0x5000, &mut [0]).is_ok() && memory.read(0x1fff, &mut [0]).is_ok());
        assert_eq!(call(&converter, 0x3000, 1, 0), 0);
        let mut kept = [0; 16];
        memory.read(0x3000, &mut kept).unwrap();
        assert_eq!(kept, [7; 16]);
        assert!(memory.read(0x2000, &mut [0]).is_err());
    }

    #[test]
    fn what_is_not_ram_or_not_a_known_wish_is_refused() {
        let memory = Memory::new(MIB).unwrap();
        let converter = Converter::new(memory.clone(), None);
        for (start, pages, attributes) in [
            (0x1001, 1, TO_PRIVATE),
            (0x1000, 0, TO_PRIVATE),
            (0x1000, 1, 1 << 5),
            (MIB, 1, TO_PRIVATE),
            (MIB - PAGE, 2, TO_PRIVATE),
            (u64::MAX - PAGE + 1, 1, TO_PRIVATE),
            (0, u64::MAX, TO_PRIVATE),
            (0, 1 << 52, TO_PRIVATE),
        ] {
            assert_eq!(call(&converter, start, pages, attributes), -22, "{start:#x} {pages}");
        }
        assert_eq!(converter.hypercall(11, &[0; 6]).cast_signed(), -1000);
        assert_eq!(memory.private_bytes(), 0);
    }

    /// An assigned device loses the page before the guest hears that it is private, gets it back
    /// when it is shared, and keeps it when the guest is refused.
    #[test]
    fn assigned_devices_follow() {
        let (memory, kernel) = (Memory::new(8 * MIB).unwrap(), Kernel::default());
        let dma = DmaMap::new(Box::new(kernel.clone()), memory.clone()).unwrap();
        let converter = Converter::new(memory.clone(), Some(dma));
        assert_eq!(call(&converter, 0x2000, 1, TO_PRIVATE), 0);
        assert!(!kernel.reaches(0x2000) && kernel.reaches(0x1000) && kernel.reaches(0x3000));
        assert_eq!(call(&converter, 0x2000, 1, 0), 0);
        assert!(kernel.reaches(0x2000));
        for n in 0..MIB / PAGE {
            assert_eq!(call(&converter, 2 * n * PAGE, 1, TO_PRIVATE), 0);
        }
        for page in 0..8 * MIB / PAGE {
            let private = memory.read(page * PAGE, &mut [0]).is_err();
            assert_eq!(kernel.reaches(page * PAGE), !private, "page {page}");
        }
    }
}
