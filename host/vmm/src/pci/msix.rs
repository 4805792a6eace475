//! MSI-X: the table of messages that a function may send.
//!
//! Source: PCI Local Bus 3.0, 6.8.2. While a vector is masked its message
//! waits in the pending bits and is sent when the mask falls.

use std::sync::Arc;

use crate::bytes::{fill, low_u32, number};

/// Sends an interrupt message into the guest.
pub(crate) trait Messages: Send + Sync {
    /// Delivers `data` to `address`. A message that no CPU takes is the guest's own mistake.
    fn send(&self, address: u64, data: u32);
}

/// Table, pending bits and control of one function.
pub(crate) struct Msix {
    entries: Vec<Entry>,
    pending: u64,
    enabled: bool,
    masked: bool,
    messages: Arc<dyn Messages>,
}

/// One table entry: address, data, mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) address: u64,
    pub(crate) data: u32,
    pub(crate) masked: bool,
}

/// A vector number that means none (virtio 1.2, 4.1.4.3).
pub(crate) const NO_VECTOR: u16 = 0xffff;
/// The pending bits are one word.
pub(crate) const VECTORS_MAX: u16 = 64;
/// Bytes of one table entry.
pub(crate) const ENTRY: u64 = 16;

impl Msix {
    pub(crate) fn new(vectors: u16, messages: Arc<dyn Messages>) -> Self {
        let empty = Entry { address: 0, data: 0, masked: true };
        let entries = vec![empty; usize::from(vectors.min(VECTORS_MAX))];
        Self { entries, pending: 0, enabled: false, masked: false, messages }
    }

    /// How many vectors there are.
    pub(crate) fn vectors(&self) -> u16 {
        u16::try_from(self.entries.len()).unwrap_or(VECTORS_MAX)
    }

    /// What the message control register says: enable is bit 15, mask all is bit 14.
    pub(crate) fn set_control(&mut self, control: u16) {
        self.enabled = control & 0x8000 != 0;
        self.masked = control & 0x4000 != 0;
        self.deliver();
    }

    /// Sends the message of `vector`, or keeps it pending. No vector, no message.
    pub(crate) fn signal(&mut self, vector: u16) {
        if self.enabled && vector < self.vectors() {
            self.pending |= 1 << vector;
            self.deliver();
        }
    }

    /// Forgets pending messages, as a reset of the function does.
    pub(crate) fn clear(&mut self) {
        self.pending = 0;
    }

    fn deliver(&mut self) {
        if !self.enabled || self.masked {
            return;
        }
        for (vector, entry) in self.entries.iter().enumerate() {
            if self.pending >> vector & 1 == 1 && !entry.masked {
                self.pending &= !(1 << vector);
                self.messages.send(entry.address, entry.data);
            }
        }
    }

    /// The guest reads the table; accesses are aligned words of 4 or 8 bytes.
    pub(crate) fn read_table(&self, offset: u64, to: &mut [u8]) {
        let word = |offset| self.read_word(offset);
        let value = word(offset) | if to.len() > 4 { word(offset + 4) << 32 } else { 0 };
        fill(to, value);
    }

    fn read_word(&self, offset: u64) -> u64 {
        let Some(entry) = self.entries.get(crate::bytes::narrow(offset / ENTRY)) else {
            return 0;
        };
        match offset % ENTRY {
            0 => entry.address & 0xffff_ffff,
            4 => entry.address >> 32,
            8 => u64::from(entry.data),
            12 => u64::from(entry.masked),
            _ => 0,
        }
    }

    /// The guest writes the table.
    pub(crate) fn write_table(&mut self, offset: u64, from: &[u8]) {
        if from.len() != 4 && from.len() != 8 {
            return;
        }
        for (at, word) in (offset..).step_by(4).zip(from.chunks(4)) {
            self.write_word(at, number(word));
        }
        self.deliver();
    }

    fn write_word(&mut self, offset: u64, value: u64) {
        let Some(entry) = self.entries.get_mut(crate::bytes::narrow(offset / ENTRY)) else {
            return;
        };
        match offset % ENTRY {
            0 => entry.address = entry.address & !0xffff_ffff | value & !3 & 0xffff_ffff,
            4 => entry.address = entry.address & 0xffff_ffff | value << 32,
            8 => entry.data = low_u32(value),
            12 => entry.masked = value & 1 == 1,
            _ => {}
        }
    }

    /// The guest reads the pending bits.
    pub(crate) fn read_pending(&self, offset: u64, to: &mut [u8]) {
        let shift = u32::try_from(offset * 8).unwrap_or(u32::MAX);
        fill(to, self.pending.checked_shr(shift).unwrap_or(0));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Keeps what was sent.
    #[derive(Default)]
    pub(crate) struct Sent(pub(crate) Mutex<Vec<(u64, u32)>>);

    impl Messages for Sent {
        fn send(&self, address: u64, data: u32) {
            self.0.lock().unwrap().push((address, data));
        }
    }

    #[test]
    fn a_masked_message_waits_and_is_sent_once() {
        let sent = Arc::new(Sent::default());
        let mut msix = Msix::new(2, sent.clone());
        msix.write_table(16, &0xfee0_0000_u64.to_le_bytes());
        msix.write_table(24, &0x41_u32.to_le_bytes());
        msix.signal(1); // not enabled: lost, as the specification says
        msix.set_control(0x8000);
        msix.signal(1);
        let mut pending = [0; 8];
        msix.read_pending(0, &mut pending);
        assert_eq!(pending, [2, 0, 0, 0, 0, 0, 0, 0]);
        msix.write_table(28, &[0; 4]);
        msix.write_table(28, &[0; 4]);
        assert_eq!(sent.0.lock().unwrap().as_slice(), [(0xfee0_0000, 0x41)]);
        msix.signal(NO_VECTOR);
        msix.signal(2);
        assert_eq!(sent.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn the_table_reads_back_and_ends() {
        let mut msix = Msix::new(1, Arc::new(Sent::default()));
        msix.write_table(0, &0x1_fee0_1003_u64.to_le_bytes());
        let mut eight = [0; 8];
        msix.read_table(0, &mut eight);
        assert_eq!(u64::from_le_bytes(eight), 0x1_fee0_1000);
        msix.write_table(16, &[0xff; 8]);
        msix.read_table(16, &mut eight);
        assert_eq!(eight, [0; 8]);
    }
}
