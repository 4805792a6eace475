//! One PCI bus: configuration space by ECAM, memory BARs at fixed places.
//!
//! The guest may size a BAR but never move it. So the map of windows is made
//! once, before the guest runs, and is read without a lock afterwards.

pub(crate) mod config;
pub(crate) mod msix;

use std::sync::Arc;

use crate::bytes::{narrow, wide};
use crate::layout;
use crate::status::PciFunction;

/// One PCI function. It locks itself: several CPUs may call at once.
pub(crate) trait Function: Send + Sync {
    /// The guest reads configuration space.
    fn read_config(&self, offset: usize, to: &mut [u8]);
    /// The guest writes configuration space.
    fn write_config(&self, offset: usize, from: &[u8]);
    /// The guest reads from a BAR.
    fn read_bar(&self, bar: usize, offset: u64, to: &mut [u8]);
    /// The guest writes to a BAR.
    fn write_bar(&self, bar: usize, offset: u64, from: &[u8]);
}

/// A BAR and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) bar: usize,
    pub(crate) base: u64,
    pub(crate) length: u64,
}

/// Hands out BAR addresses, each aligned to its length.
#[derive(Debug)]
pub(crate) struct Windows {
    next32: u64,
    next64: u64,
}

impl Windows {
    pub(crate) fn new() -> Self {
        Self { next32: layout::BAR32, next64: layout::BAR64 }
    }

    /// A window below 4 GiB; `None` when they are used up or the length is no power of two.
    pub(crate) fn below_4g(&mut self, bar: usize, length: u64) -> Option<Window> {
        take(&mut self.next32, layout::BAR32 + layout::BAR32_LEN, bar, length)
    }

    /// A window above all RAM.
    pub(crate) fn above_4g(&mut self, bar: usize, length: u64) -> Option<Window> {
        take(&mut self.next64, layout::BAR64 + layout::BAR64_LEN, bar, length)
    }
}

fn take(next: &mut u64, end: u64, bar: usize, length: u64) -> Option<Window> {
    if !length.is_power_of_two() {
        return None;
    }
    let length = length.max(0x1000);
    let base = next.checked_next_multiple_of(length)?;
    let after = base.checked_add(length)?;
    if after > end {
        return None;
    }
    *next = after;
    Some(Window { bar, base, length })
}

/// The bus: at most 32 single-function devices.
#[derive(Default)]
pub(crate) struct Bus {
    functions: Vec<Arc<dyn Function>>,
    /// Which function answers where, sorted by address.
    windows: Vec<(Window, usize)>,
}

/// Devices on one bus.
const SLOTS: usize = 32;

impl Bus {
    /// Adds a function in the next slot; `None` when the bus is full.
    pub(crate) fn add(&mut self, function: Arc<dyn Function>, windows: &[Window]) -> Option<usize> {
        let slot = self.functions.len();
        if slot >= SLOTS {
            return None;
        }
        self.functions.push(function);
        self.windows.extend(windows.iter().map(|window| (*window, slot)));
        self.windows.sort_by_key(|(window, _)| window.base);
        Some(slot)
    }

    /// Every function as the guest reads it (PCI Local Bus 3.0, 6.1): ids and class.
    pub(crate) fn functions(&self) -> Vec<PciFunction> {
        let read = |function: &Arc<dyn Function>| {
            let (mut ids, mut class) = ([0; 4], [0; 4]);
            function.read_config(0, &mut ids);
            function.read_config(8, &mut class);
            let [v0, v1, d0, d1] = ids;
            let (vendor, device) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1]));
            PciFunction {
                id: format!("{vendor:04x}:{device:04x}"),
                class: format!("{:06x}", u32::from_le_bytes(class) >> 8),
            }
        };
        self.functions.iter().map(read).collect()
    }

    /// The guest reads memory that is not RAM. Nobody there reads as all ones.
    pub(crate) fn read(&self, address: u64, to: &mut [u8]) {
        to.fill(0xff);
        if let Some((function, offset)) = self.config_at(address, to.len()) {
            function.read_config(offset, to);
        } else if let Some((function, bar, offset)) = self.window_at(address, to.len()) {
            function.read_bar(bar, offset, to);
        }
    }

    /// The guest writes memory that is not RAM.
    pub(crate) fn write(&self, address: u64, from: &[u8]) {
        if let Some((function, offset)) = self.config_at(address, from.len()) {
            function.write_config(offset, from);
        } else if let Some((function, bar, offset)) = self.window_at(address, from.len()) {
            function.write_bar(bar, offset, from);
        }
    }

    /// ECAM (PCI Express Base 5.0, 7.2.2): bus, device, function, offset. Only function 0 exists.
    fn config_at(&self, address: u64, length: usize) -> Option<(&dyn Function, usize)> {
        let at = address.checked_sub(layout::ECAM).filter(|at| *at < layout::ECAM_LEN)?;
        let offset = narrow(at & 0xfff);
        let fits = offset + length <= 0x1000 && at >> 12 & 7 == 0;
        let function = self.functions.get(narrow(at >> 15))?;
        fits.then_some((function.as_ref(), offset))
    }

    fn window_at(&self, address: u64, length: usize) -> Option<(&dyn Function, usize, u64)> {
        let after = self.windows.partition_point(|(window, _)| window.base <= address);
        let (window, slot) = self.windows.get(after.checked_sub(1)?)?;
        let offset = address - window.base;
        let fits = offset.checked_add(wide(length))? <= window.length;
        let function = self.functions.get(*slot)?;
        fits.then_some((function.as_ref(), window.bar, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Seen(Mutex<Vec<(usize, u64, usize)>>);

    impl Function for Seen {
        fn read_config(&self, offset: usize, to: &mut [u8]) {
            to.fill(u8::try_from(offset & 0xff).unwrap());
        }
        fn write_config(&self, _: usize, _: &[u8]) {}
        fn read_bar(&self, bar: usize, offset: u64, to: &mut [u8]) {
            self.0.lock().unwrap().push((bar, offset, to.len()));
        }
        fn write_bar(&self, _: usize, _: u64, _: &[u8]) {}
    }

    #[test]
    fn accesses_reach_the_function_they_name_and_no_other() {
        let seen = Arc::new(Seen::default());
        let mut windows = Windows::new();
        let window = windows.below_4g(2, 0x1000).unwrap();
        let mut bus = Bus::default();
        bus.add(seen.clone(), &[window]);
        let mut four = [0; 4];
        bus.read(layout::ECAM + 0x10, &mut four);
        assert_eq!(four, [0x10; 4]);
        bus.read(layout::ECAM + 0x8000, &mut four); // slot 1: nobody
        assert_eq!(four, [0xff; 4]);
        bus.read(layout::ECAM + 0x1000, &mut four); // function 1: nobody
        assert_eq!(four, [0xff; 4]);
        bus.read(window.base + 8, &mut four);
        bus.read(window.base + 0xffe, &mut four); // crosses the end
        bus.read(window.base - 1, &mut four);
        assert_eq!(seen.0.lock().unwrap().as_slice(), [(2, 8, 4)]);
        let found = bus.functions();
        assert_eq!((found[0].id.as_str(), found[0].class.as_str()), ("0000:0000", "080808"));
    }

    #[test]
    fn windows_are_aligned_disjoint_and_run_out() {
        let mut windows = Windows::new();
        let mut end = 0;
        for shift in [12, 20, 14, 26, 12] {
            let window = windows.below_4g(0, 1 << shift).unwrap();
            assert!(window.base >= end && window.base.is_multiple_of(window.length));
            end = window.base + window.length;
        }
        assert_eq!(windows.below_4g(0, 1 << 30), None);
        assert_eq!(windows.below_4g(0, 3), None);
        assert!(windows.above_4g(0, 1 << 37).is_some());
    }
}
