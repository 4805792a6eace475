//! Port I/O: a serial port, reset, and sleep. Everything else reads as absent.

use crate::serial::Serial;

/// First port of the serial console.
pub(crate) const SERIAL: u16 = 0x3f8;
/// Reset, by ACPI and by the keyboard controller's old way.
pub(crate) const RESET_PORT: u16 = 0x64;
/// The byte that resets.
pub(crate) const RESET_VALUE: u8 = 0xfe;
/// ACPI SLEEP_CONTROL_REG.
pub(crate) const SLEEP_CONTROL: u16 = 0x600;
/// ACPI SLEEP_STATUS_REG.
pub(crate) const SLEEP_STATUS: u16 = 0x601;
/// SLP_EN with the type that the DSDT gives for S5.
const POWER_OFF: u8 = 1 << 5 | 5 << 2;

/// What the guest asked for by a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// To continue.
    Nothing,
    /// To be reset.
    Reset,
    /// To be powered off.
    PowerOff,
}

/// The guest writes to a port.
pub(crate) fn write(serial: &mut Serial, port: u16, bytes: &[u8]) -> Wish {
    for byte in bytes {
        match port {
            SERIAL..0x400 => serial.write(port - SERIAL, *byte),
            RESET_PORT if *byte == RESET_VALUE => return Wish::Reset,
            SLEEP_CONTROL if *byte == POWER_OFF => return Wish::PowerOff,
            _ => {}
        }
    }
    Wish::Nothing
}

/// The guest reads from a port. Absent devices read as all ones, except where Linux would
/// wait for a bit to clear (clock, keyboard controller).
pub(crate) fn read(serial: &Serial, port: u16, to: &mut [u8]) {
    let value = match port {
        SERIAL..0x400 => serial.read(port - SERIAL),
        0x61 => 0x20,
        RESET_PORT | 0x70 | 0x71 | SLEEP_CONTROL | SLEEP_STATUS => 0,
        _ => 0xff,
    };
    to.fill(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_bytes_end_a_machine() {
        let mut serial = Serial::new(Box::new(std::io::sink()), 0);
        let mut ends = Vec::new();
        for port in 0..=u16::MAX {
            for byte in [0, 1, POWER_OFF, RESET_VALUE, 0xff] {
                if write(&mut serial, port, &[byte]) != Wish::Nothing {
                    ends.push((port, byte));
                }
            }
        }
        assert_eq!(ends, [(RESET_PORT, RESET_VALUE), (SLEEP_CONTROL, POWER_OFF)]);
    }
}
