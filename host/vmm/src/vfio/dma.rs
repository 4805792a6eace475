//! What assigned devices may reach: all RAM that is not the guest's alone.

use std::collections::BTreeMap;
use std::io;

use crate::memory::{Memory, Slot};

/// An IOMMU that maps guest memory for devices. It can take back whole mappings only.
pub(crate) trait Iommu: Send {
    /// Lets devices reach a piece of RAM at its guest physical address.
    fn map(&self, piece: Slot) -> io::Result<()>;
    /// Takes a mapping back.
    fn unmap(&self, guest: u64, length: u64) -> io::Result<()>;
}

/// Most mappings: below what a kernel gives one container (vfio_iommu_type1, dma_entry_limit,
/// 65535), so that what was taken back to be cut can always be mapped again.
const STANDING_MAX: usize = 1 << 15;
/// RAM is mapped in pieces, so that a conversion takes back and pins again no more than one or
/// two of these beside its own pages; larger ones where memory would need too many.
const GRANULE_MIN: u64 = 16 << 20;
const GRANULES: u64 = 1 << 13;

/// The mappings that stand.
pub(crate) struct DmaMap {
    iommu: Box<dyn Iommu>,
    memory: Memory,
    /// From start to end.
    standing: BTreeMap<u64, u64>,
}

impl DmaMap {
    /// Maps every piece of RAM.
    pub(crate) fn new(iommu: Box<dyn Iommu>, memory: Memory) -> io::Result<Self> {
        let mut map = Self { iommu, memory, standing: BTreeMap::new() };
        for piece in map.memory.slots() {
            map.map(piece.guest, piece.guest + piece.length)?;
        }
        Ok(map)
    }

    /// Takes `start..end` away from devices. A mapping that reaches beyond is taken back whole, and
    /// its rest is mapped again: for a moment devices find nothing there. When a step fails, devices
    /// have less than before and never more.
    pub(crate) fn withdraw(&mut self, start: u64, end: u64) -> io::Result<()> {
        let before = self.standing.range(..end).rev();
        let touched: Vec<(u64, u64)> = before
            .map(|(&first, &last)| (first, last))
            .take_while(|&(_, last)| last > start)
            .collect();
        let rests =
            |&(first, last): &(u64, u64)| usize::from(first < start) + usize::from(end < last);
        let after = self.standing.len() - touched.len() + touched.iter().map(rests).sum::<usize>();
        if after > STANDING_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        for (first, last) in touched {
            self.iommu.unmap(first, last - first)?;
            self.standing.remove(&first);
            if first < start {
                self.map(first, start)?;
            }
            if end < last {
                self.map(end, last)?;
            }
        }
        Ok(())
    }

    /// Lets devices reach all of `start..end`. What they reach already stays as it is.
    pub(crate) fn offer(&mut self, start: u64, end: u64) -> io::Result<()> {
        let mut from = start;
        while from < end {
            let before = self.standing.range(..=from).next_back().map(|(_, &last)| last);
            if let Some(last) = before.filter(|last| *last > from) {
                from = last;
                continue;
            }
            let next = self.standing.range(from..end).next().map_or(end, |(&first, _)| first);
            self.map(from, next)?;
            from = next;
        }
        Ok(())
    }

    fn map(&mut self, start: u64, end: u64) -> io::Result<()> {
        let granule = granule(self.memory.size());
        let mut from = start;
        while from < end {
            let to = (from - from % granule).saturating_add(granule).min(end);
            for piece in self.memory.pieces(from, to) {
                if self.standing.len() >= STANDING_MAX {
                    return Err(io::ErrorKind::QuotaExceeded.into());
                }
                self.iommu.map(piece)?;
                self.standing.insert(piece.guest, piece.guest + piece.length);
            }
            from = to;
        }
        Ok(())
    }
}

/// A power of two.
fn granule(ram: u64) -> u64 {
    (ram / GRANULES).next_power_of_two().max(GRANULE_MIN)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::bytes::{narrow, wide};

    const PAGE: u64 = 4096;
    const PAGES: u64 = 64;

    /// Keeps whole mappings as a kernel does, and refuses what a kernel refuses.
    #[derive(Clone, Default)]
    pub(crate) struct Kernel(pub(crate) Arc<Mutex<BTreeMap<u64, u64>>>);

    impl Kernel {
        pub(crate) fn reaches(&self, page: u64) -> bool {
            let maps = self.0.lock().unwrap();
            maps.range(..=page).next_back().is_some_and(|(_, &end)| page + PAGE <= end)
        }
    }

    impl Iommu for Kernel {
        fn map(&self, piece: Slot) -> io::Result<()> {
            let mut maps = self.0.lock().unwrap();
            let end = piece.guest + piece.length;
            let before = maps.range(..end).next_back();
            if before.is_some_and(|(_, &last)| last > piece.guest) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            maps.insert(piece.guest, end);
            Ok(())
        }

        fn unmap(&self, guest: u64, length: u64) -> io::Result<()> {
            let gone = self.0.lock().unwrap().remove(&guest);
            (gone == Some(guest + length)).then_some(()).ok_or(io::ErrorKind::InvalidInput.into())
        }
    }

    proptest! {
        /// After any steps devices reach exactly what was not withdrawn.
        #[test]
        fn devices_reach_what_is_offered(
            steps in prop::collection::vec((0..PAGES, 1..PAGES, any::<bool>()), 1..40)
        ) {
            let kernel = Kernel::default();
            let memory = Memory::new(PAGES * PAGE).unwrap();
            let mut map = DmaMap::new(Box::new(kernel.clone()), memory).unwrap();
            let mut reach = vec![true; narrow(PAGES)];
            for (first, count, offer) in steps {
                let last = (first + count).min(PAGES);
                match offer {
                    true => map.offer(first * PAGE, last * PAGE).unwrap(),
                    false => map.withdraw(first * PAGE, last * PAGE).unwrap(),
                }
                reach[narrow(first)..narrow(last)].fill(offer);
                for (page, &reach) in (0..PAGES).zip(&reach) {
                    prop_assert_eq!(kernel.reaches(page * PAGE), reach, "page {}", page);
                }
            }
        }
    }

    /// A guest that shares page by page is refused before anything of others is taken back.
    #[test]
    fn mappings_are_bounded_and_a_refusal_takes_nothing() {
        let kernel = Kernel::default();
        let most = wide(STANDING_MAX);
        let memory = Memory::new((most + 64) * PAGE).unwrap();
        let mut map = DmaMap::new(Box::new(kernel.clone()), memory.clone()).unwrap();
        assert!(kernel.0.lock().unwrap().len() > 2, "RAM is one piece");
        map.withdraw(0, memory.size()).unwrap();
        map.offer(0, 3 * PAGE).unwrap();
        for page in 3..most + 2 {
            map.offer(page * PAGE, (page + 1) * PAGE).unwrap();
        }
        let before = kernel.0.lock().unwrap().clone();
        assert_eq!(before.len(), STANDING_MAX);
        // To cut the first mapping in its middle would make one more.
        assert!(map.withdraw(PAGE, 2 * PAGE).is_err());
        assert!(map.offer((most + 2) * PAGE, (most + 3) * PAGE).is_err());
        assert_eq!(*kernel.0.lock().unwrap(), before);
        map.withdraw(0, PAGE).unwrap();
        assert_eq!(granule(1 << 40), 1 << 27);
    }
}
