//! A polled 16550 that only writes: the guest's early console.
//!
//! Registers as in the National Semiconductor PC16550D data sheet (1995),
//! section 8. There is no interrupt line and no input; the transmitter is always
//! empty, and says so to a driver that polls for the reason of an interrupt. Output stops at a limit, so that a guest cannot fill the host's disk.

use std::io::Write;

/// The register file, and where bytes go.
pub(crate) struct Serial {
    out: Box<dyn Write + Send>,
    left: u64,
    interrupts: u8,
    line: u8,
    modem: u8,
    scratch: u8,
    divisor: [u8; 2],
    fifo: bool,
}

const DLAB: u8 = 0x80;
const LOOP: u8 = 0x10;
const TRANSMITTER_EMPTY: u8 = 0x60;
/// Interrupt enable: tell when the transmitter is empty.
const WANTS_EMPTY: u8 = 2;
const EMPTY: u8 = 2;
const NO_REASON: u8 = 1;

impl Serial {
    /// A port that passes on at most `limit` bytes.
    pub(crate) fn new(out: Box<dyn Write + Send>, limit: u64) -> Self {
        let (line, divisor) = (3, [12, 0]);
        let (interrupts, modem, scratch, fifo) = (0, 0, 0, false);
        Self { out, left: limit, interrupts, line, modem, scratch, divisor, fifo }
    }

    /// The guest reads register `register` (0 to 7).
    pub(crate) fn read(&self, register: u16) -> u8 {
        let [low, high] = self.divisor;
        match (register, self.line & DLAB != 0) {
            (0, true) => low,
            (1, true) => high,
            (1, false) => self.interrupts,
            (2, _) => self.reason() | if self.fifo { 0xc0 } else { 0 },
            (3, _) => self.line,
            (4, _) => self.modem,
            (5, _) => TRANSMITTER_EMPTY,
            (6, _) => self.modem_status(),
            (7, _) => self.scratch,
            _ => 0,
        }
    }

    /// The guest writes register `register` (0 to 7).
    pub(crate) fn write(&mut self, register: u16, value: u8) {
        let [low, high] = &mut self.divisor;
        match (register, self.line & DLAB != 0) {
            (0, true) => *low = value,
            (1, true) => *high = value,
            (0, false) => self.transmit(value),
            (1, false) => self.interrupts = value & 0xf,
            (2, _) => self.fifo = value & 1 == 1,
            (3, _) => self.line = value,
            (4, _) => self.modem = value & 0x1f,
            (7, _) => self.scratch = value,
            _ => {}
        }
    }

    /// Interrupt identification: Linux polls it from a timer, and sends 16 bytes each time that
    /// it reads "transmitter empty". A port that never says so swallows what programs print.
    fn reason(&self) -> u8 {
        if self.interrupts & WANTS_EMPTY == 0 { NO_REASON } else { EMPTY }
    }

    fn transmit(&mut self, byte: u8) {
        if self.modem & LOOP != 0 || self.left == 0 {
            return;
        }
        self.left -= 1;
        // A console that cannot be written to is no reason to stop a machine.
        let _ = self.out.write(&[byte]);
        if byte == b'\n' || self.left == 0 {
            let _ = self.out.flush();
        }
    }

    /// Carrier, ready and clear to send; in loop mode the outputs read back as inputs.
    fn modem_status(&self) -> u8 {
        if self.modem & LOOP == 0 {
            return 0xb0;
        }
        let bit = |from: u8, to: u8| if self.modem & from == 0 { 0 } else { to };
        bit(1, 0x20) | bit(2, 0x10) | bit(4, 0x40) | bit(8, 0x80)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_stops_at_the_limit() {
        let kept = Kept::default();
        let mut serial = Serial::new(Box::new(kept.clone()), 3);
        b"hello".iter().for_each(|byte| serial.write(0, *byte));
        assert_eq!(kept.0.lock().unwrap().as_slice(), b"hel");
    }

    #[test]
    fn a_driver_that_polls_hears_that_it_may_send() {
        let mut serial = Serial::new(Box::new(std::io::sink()), 0);
        assert_eq!(serial.read(2), NO_REASON);
        serial.write(1, WANTS_EMPTY);
        assert_eq!(serial.read(2), EMPTY);
        serial.write(1, 0);
        assert_eq!(serial.read(2), NO_REASON);
    }

    #[test]
    fn linux_finds_a_16550a() {
        let mut serial = Serial::new(Box::new(std::io::sink()), 0);
        serial.write(4, LOOP | 0x0a);
        assert_eq!(serial.read(6) & 0xf0, 0x90);
        serial.write(2, 1);
        assert_eq!(serial.read(2) >> 6, 3);
        serial.write(1, 0xff);
        assert_eq!(serial.read(1), 0x0f);
        assert_eq!(serial.read(5), TRANSMITTER_EMPTY);
    }
}
