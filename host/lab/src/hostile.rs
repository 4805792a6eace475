//! A hostile driver: takes a virtio device from the kernel, and feeds it broken
//! registers and rings. What it proves is said by the monitor that stays.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Context;

use crate::sys::Words;

/// One device of the bus, without its driver.
struct Victim {
    bar: Words,
    rings: Words,
    pages: Vec<u64>,
    dice: u64,
}

const BAR: usize = 0x8000;
const NOTIFY: usize = 0x3000;
const MSIX: usize = 0x4000;
const PAGES: usize = 16;

/// Attacks each device that carries no line of the lab's own; says how often.
pub(crate) fn attack(rounds: u32) -> anyhow::Result<String> {
    let mut attacked = 0;
    let mut broken = 0;
    for entry in std::fs::read_dir("/sys/bus/pci/devices")?.flatten() {
        let kind = std::fs::read_to_string(entry.path().join("device")).unwrap_or_default();
        // Entropy, block and socket devices: the console is how we talk.
        if ["0x1044", "0x1042", "0x1053"].contains(&kind.trim()) {
            attacked += 1;
            broken += Victim::take(&entry.path())?.torment(rounds);
        }
    }
    Ok(format!("attacked {attacked} devices, {broken} times they asked for a reset"))
}

impl Victim {
    fn take(device: &std::path::Path) -> anyhow::Result<Self> {
        let name = device.file_name().context("device name")?;
        let unbind: PathBuf = device.join("driver/unbind");
        if unbind.exists() {
            std::fs::write(unbind, name.as_encoded_bytes())?;
        }
        std::fs::write(device.join("enable"), "1")?;
        let file = File::options().read(true).write(true).open(device.join("resource0"))?;
        let rings = Words::locked(PAGES * 4096)?;
        let pages = rings.pages()?;
        Ok(Self { bar: Words::map(&file, BAR)?, rings, pages, dice: 0x9e37_79b9_7f4a_7c15 })
    }

    fn torment(&mut self, rounds: u32) -> u32 {
        let mut broken = 0;
        for round in 0..rounds {
            self.negotiate();
            self.queues(round);
            self.scribble(round);
            self.bar.set(0x14, 15_u8);
            for _ in 0..8 {
                let queue = self.below(4);
                self.bar.set(NOTIFY + 4 * queue, 0_u16);
                self.scribble(round);
            }
            if self.bar.get(0x14) & 0x40 != 0 {
                broken += 1;
            }
            for _ in 0..16 {
                let (at, value) = (self.below(0x40), self.roll());
                self.bar.set(at & !3, low(value));
                self.bar.set(MSIX + at * 4, low(self.dice >> 7));
            }
        }
        self.bar.set(0x14, 0_u8);
        broken
    }

    /// An honest start, so that the attack reaches the rings.
    fn negotiate(&self) {
        self.bar.set(0x14, 0_u8);
        self.bar.set(0x14, 3_u8);
        self.bar.set(0x08, 1_u32);
        self.bar.set(0x0c, 1_u32);
        self.bar.set(0x14, 11_u8);
    }

    /// Queues in our pages, now and then somewhere else.
    fn queues(&mut self, round: u32) {
        for queue in 0..4_u16 {
            self.bar.set(0x16, queue);
            self.bar.set(0x18, 16_u16);
            for (register, page) in [(0x20, 0), (0x28, 1), (0x30, 2)] {
                let mut address = self.pages.get(page).copied().unwrap_or_default();
                if round % 7 == 6 {
                    address = self.roll() & 0x0000_00ff_ffff_fff0;
                }
                self.bar.set(register, low(address));
                self.bar.set(register + 4, low(address >> 32));
            }
            self.bar.set(0x1c, 1_u16);
        }
    }

    /// Descriptors that loop, point nowhere, overlap, or are nearly right.
    fn scribble(&mut self, round: u32) {
        for index in 0..16 {
            let page = self.below(PAGES);
            let mut address = self.pages.get(page).copied().unwrap_or_default();
            if self.below(8) == 0 {
                address = self.roll();
            }
            let length = if self.below(4) == 0 { low(self.roll()) } else { 64 };
            let flags = low(self.roll()) & if round % 5 == 4 { 7 } else { 3 };
            let next = low(self.roll()) & if round % 3 == 2 { 0x1f } else { 0xf };
            self.rings.set(index * 16, low(address));
            self.rings.set(index * 16 + 4, low(address >> 32));
            self.rings.set(index * 16 + 8, length);
            self.rings.set(index * 16 + 12, flags | next << 16);
            let head = u16::try_from(self.below(16)).unwrap_or(0);
            self.rings.set(4096 + 4 + index * 2, head);
        }
        let ahead = low(self.roll()) & 0x1f;
        self.rings.set(4096, ahead << 16);
        // Something that looks like a request or a packet, sometimes.
        for word in 0..11 {
            let value = low(self.roll()) & 7;
            self.rings.set(3 * 4096 + word * 4, value);
        }
    }

    fn roll(&mut self) -> u64 {
        // xorshift64: the same attack every time.
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.roll() >> 33).unwrap_or(0) % limit
    }
}

/// The low half.
fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
