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
        for piece in self.memory.pieces(start, end) {
            self.iommu.map(piece)?;
            self.standing.insert(piece.guest, piece.guest + piece.length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::bytes::narrow;

    const PAGE: u64 = 4096;
    const PAGES: u64 = 64;

    /// Keeps whole mappings as a kernel does, and refuses what a kernel refuses.
    #[derive(Clone, Default)]
    struct Kernel(Arc<Mutex<BTreeMap<u64, u64>>>);

    impl Iommu for Kernel {
        fn map(&self, piece: Slot) -> io::Result<()> {
            let mut maps = self.0.lock().unwrap();
            let end = piece.guest + piece.length;
            let overlaps = maps.iter().any(|(&start, &last)| start < end && last > piece.guest);
            if overlaps {
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
                let maps = kernel.0.lock().unwrap().clone();
                for (page, &reach) in (0..PAGES).zip(&reach) {
                    let at = page * PAGE;
                    let found = maps.iter().any(|(&start, &end)| start <= at && at + PAGE <= end);
                    prop_assert_eq!(found, reach, "page {}", page);
                }
            }
        }
    }
}
