//! Configuration space of an emulated function: a table of bytes and a table of
//! which bits the guest may change.
//!
//! Source: PCI Local Bus 3.0, 6.1 (header) and 6.7 (capabilities).

use crate::bytes::{low_u8, low_u32, put, u32_at};

use super::Window;

/// Header type 0 and capabilities, without the extended space.
pub(crate) struct Config {
    bytes: [u8; 256],
    writable: [u8; 256],
    bars: Vec<Bar>,
    /// Where the next capability goes, and where its predecessor points from.
    next: usize,
    link: usize,
}

/// One BAR register: what it reads normally, and while the guest asks for its size.
struct Bar {
    register: usize,
    value: u32,
    size: u32,
    sizing: bool,
}

/// What a function is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) revision: u8,
    /// Class, subclass, programming interface.
    pub(crate) class: [u8; 3],
    pub(crate) subsystem: u16,
}

const COMMAND: usize = 0x04;
const STATUS_CAPABILITIES: u8 = 0x10;
const FIRST_BAR: usize = 0x10;
const CAPABILITIES: usize = 0x34;

impl Config {
    pub(crate) fn new(identity: &Identity) -> Self {
        let mut config = Self {
            bytes: [0; 256],
            writable: [0; 256],
            bars: Vec::new(),
            next: 0x40,
            link: CAPABILITIES,
        };
        let [class, subclass, interface] = identity.class;
        put(&mut config.bytes, 0, &identity.vendor.to_le_bytes());
        put(&mut config.bytes, 2, &identity.device.to_le_bytes());
        put(&mut config.bytes, 8, &[identity.revision, interface, subclass, class]);
        put(&mut config.bytes, 0x2c, &identity.vendor.to_le_bytes());
        put(&mut config.bytes, 0x2e, &identity.subsystem.to_le_bytes());
        // Memory space, bus master, and INTx disable: remembered, nothing depends on them.
        put(&mut config.writable, COMMAND, &[0x06, 0x04]);
        config
    }

    /// Adds a memory BAR. One that lies above 4 GiB takes two registers.
    pub(crate) fn add_bar(&mut self, window: &Window) {
        let register = FIRST_BAR + window.bar * 4;
        let size = !(window.length - 1);
        let wide_bar = window.base >> 32 != 0;
        let flags = if wide_bar { 0b1100 } else { 0 };
        let (value, low_size) = (low_u32(window.base) | flags, low_u32(size) | flags);
        self.bars.push(Bar { register, value, size: low_size, sizing: false });
        if wide_bar {
            let (value, size) = (low_u32(window.base >> 32), low_u32(size >> 32));
            self.bars.push(Bar { register: register + 4, value, size, sizing: false });
        }
    }

    /// Adds a capability; `body` follows its id and next pointer. Says where it lies.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next;
        put(&mut self.bytes, self.link, &[low_u8(crate::bytes::wide(at))]);
        put(&mut self.bytes, at, &[id, 0]);
        put(&mut self.bytes, at + 2, body);
        put(&mut self.writable, at + 2, writable);
        put(&mut self.bytes, 6, &[STATUS_CAPABILITIES]);
        self.link = at + 1;
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// The guest reads; beyond 256 bytes there is nothing.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) {
        crate::bytes::window(&self.bytes, offset, to);
        for bar in &self.bars {
            let register = if bar.sizing { bar.size } else { bar.value };
            for (at, byte) in (bar.register..).zip(register.to_le_bytes()) {
                if let Some(place) = at.checked_sub(offset).and_then(|at| to.get_mut(at)) {
                    *place = byte;
                }
            }
        }
    }

    /// The guest writes; bits that it may not change stay.
    pub(crate) fn write(&mut self, offset: usize, from: &[u8]) {
        for bar in &mut self.bars {
            if bar.register == offset && from.len() == 4 {
                bar.sizing = u32_at(from, 0) == Some(u32::MAX);
            }
        }
        let places = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, mask), new) in places.zip(from) {
            *byte = *byte & !mask | new & mask;
        }
    }
}

/// Slot 0: says that there is a bus, and does nothing.
pub(crate) struct HostBridge(Config);

impl HostBridge {
    pub(crate) fn new() -> Self {
        // QEMU's generic PCIe host bridge: known to every kernel as one without quirks.
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: [6, 0, 0],
            subsystem: 0,
        };
        Self(Config::new(&identity))
    }
}

impl super::Function for HostBridge {
    fn read_config(&self, offset: usize, to: &mut [u8]) {
        self.0.read(offset, to);
    }
    fn write_config(&self, _: usize, _: &[u8]) {}
    fn read_bar(&self, _: usize, _: u64, _: &mut [u8]) {}
    fn write_bar(&self, _: usize, _: u64, _: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::new(&Identity {
            vendor: 0x1af4,
            device: 0x1044,
            revision: 1,
            class: [0xff, 0, 0],
            subsystem: 0x40,
        });
        config.add_bar(&Window { bar: 0, base: 0xe010_0000, length: 0x8000 });
        config.add_bar(&Window { bar: 2, base: 0x40_0000_0000, length: 0x1_0000_0000 });
        config
    }

    fn read(config: &Config, at: usize) -> u32 {
        let mut word = [0; 4];
        config.read(at, &mut word);
        u32::from_le_bytes(word)
    }

    #[test]
    fn a_bar_can_be_sized_but_not_moved() {
        let mut config = config();
        config.write(0x10, &[0xff; 4]);
        assert_eq!(read(&config, 0x10), 0xffff_8000);
        config.write(0x10, &[0, 0, 0, 0x10]);
        assert_eq!(read(&config, 0x10), 0xe010_0000);
        for at in [0x18, 0x1c] {
            config.write(at, &[0xff; 4]);
        }
        assert_eq!((read(&config, 0x18), read(&config, 0x1c)), (0b1100, 0xffff_ffff));
    }

    #[test]
    fn only_writable_bits_change() {
        let mut config = config();
        let at = config.add_capability(0x11, &[1, 0, 0, 0], &[0, 0xc0]);
        let before = read(&config, 0);
        for offset in 0..256 {
            config.write(offset, &[0xff]);
        }
        assert_eq!(read(&config, 0), before);
        assert_eq!(read(&config, 4), 0x0010_0406);
        assert_eq!(read(&config, at) >> 16, 0xc001);
        assert_eq!(read(&config, CAPABILITIES), 0x40);
    }
}
