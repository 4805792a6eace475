//! Where a device keeps its MSI-X table (PCI Local Bus 3.0, 6.7 and 6.8.2).

use crate::bytes::{u16_at, u32_at};
use crate::pci::msix::VECTORS_MAX;

/// Table and pending bits: BAR and offset in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MsixPlace {
    pub(super) vectors: u16,
    pub(super) table: (usize, u64),
    pub(super) pending: (usize, u64),
    words: [u32; 2],
}

impl MsixPlace {
    /// The capability as the guest reads it, after id and next pointer.
    pub(super) fn body(&self) -> Vec<u8> {
        let mut body = (self.vectors - 1).to_le_bytes().to_vec();
        body.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        body
    }
}

/// Finds the capability. The list is the device's, so it may be wrong or endless.
pub(super) fn msix(raw: &[u8]) -> Option<MsixPlace> {
    const MSIX: u8 = 0x11;
    let mut at = usize::from(raw.get(0x34).copied()?) & !3;
    for _ in 0..48 {
        if at < 0x40 {
            return None;
        }
        if raw.get(at) == Some(&MSIX) {
            return read(raw, at);
        }
        at = usize::from(raw.get(at + 1).copied()?) & !3;
    }
    None
}

fn read(raw: &[u8], at: usize) -> Option<MsixPlace> {
    let vectors = (u16_at(raw, at + 2)? & 0x7ff) + 1;
    let words = [u32_at(raw, at + 4)?, u32_at(raw, at + 8)?];
    let place = |word: u32| Some((usize::try_from(word & 7).ok()?, u64::from(word & !7)));
    let [table, pending] = words;
    Some(MsixPlace {
        vectors: vectors.min(VECTORS_MAX),
        table: place(table)?,
        pending: place(pending)?,
        words,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_table_is_found_behind_other_capabilities() {
        let mut raw = [0; 256];
        raw[0x34] = 0x40;
        raw[0x40..0x42].copy_from_slice(&[1, 0x60]);
        raw[0x60..0x6c].copy_from_slice(&[0x11, 0, 64, 0x80, 0, 0x20, 0, 0, 4, 0x30, 0, 0]);
        let place = msix(&raw).unwrap();
        assert_eq!((place.vectors, place.table, place.pending), (64, (0, 0x2000), (4, 0x3000)));
        assert_eq!(place.body(), [63, 0, 0, 0x20, 0, 0, 4, 0x30, 0, 0]);
    }

    proptest! {
        #[test]
        fn any_list_ends(raw in proptest::collection::vec(any::<u8>(), 256)) {
            let _ = msix(&raw);
        }
    }
}
