//! ACPI tables of the one machine model: hardware-reduced, no legacy devices.
//!
//! Source: ACPI 6.5, chapter 5. Everything but the MADT is constant, so that a
//! confidential image can carry and measure the same bytes.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name, ONE, Package,
    ResourceTemplate, ZERO,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::bytes::{low_u32, wide};
use crate::layout;
use crate::memory::{Memory, OutOfRange};
use crate::ports::{RESET_PORT, RESET_VALUE, SERIAL, SLEEP_CONTROL, SLEEP_STATUS};

/// Writes all tables; the RSDP lies at [`layout::ACPI`].
pub(crate) fn write(memory: &Memory, vcpus: u8) -> Result<(), OutOfRange> {
    let mut place = Place { memory, next: layout::ACPI + 0x40 };
    let dsdt = place.put(dsdt().as_slice())?;
    let fadt = place.put(fadt(dsdt).as_slice())?;
    let madt = place.put(madt(vcpus).as_slice())?;
    let mcfg = place.put(mcfg().as_slice())?;
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = place.put(&bytes_of(&xsdt))?;
    memory.write(layout::ACPI, &bytes_of(&Rsdp::new(OEM, xsdt)))
}

/// Where the next table goes.
struct Place<'a> {
    memory: &'a Memory,
    next: u64,
}

impl Place<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, OutOfRange> {
        let at = self.next;
        self.next = (at + wide(table.len())).next_multiple_of(16);
        if self.next > layout::ACPI_END {
            return Err(OutOfRange { address: at, length: wide(table.len()) });
        }
        self.memory.write(at, table)?;
        Ok(at)
    }
}

/// Fixed description, revision 6.5: hardware-reduced, reset and sleep by port.
fn fadt(dsdt: u64) -> Sdt {
    const NO_RTC_NO_VGA: u16 = 1 << 5 | 1 << 2; // and bit 1 clear: no 8042
    const HW_REDUCED_WITH_RESET: u32 = 1 << 20 | 1 << 10;
    let mut table = Sdt::new(*b"FACP", 276, 6, OEM, TABLE, 1);
    table.write_u16(109, NO_RTC_NO_VGA);
    table.write_u32(112, HW_REDUCED_WITH_RESET);
    table.write_bytes(116, &port_register(RESET_PORT));
    table.write_u8(128, RESET_VALUE);
    table.write_u8(131, 5);
    table.write_u64(140, dsdt);
    table.write_bytes(244, &port_register(SLEEP_CONTROL));
    table.write_bytes(256, &port_register(SLEEP_STATUS));
    table.update_checksum();
    table
}

/// A generic address (ACPI 6.5, 5.2.3.2): one byte-wide port.
fn port_register(port: u16) -> [u8; 12] {
    let [low, high] = port.to_le_bytes();
    [1, 8, 0, 1, low, high, 0, 0, 0, 0, 0, 0]
}

/// One local APIC per CPU, no IOAPIC.
fn madt(vcpus: u8) -> Sdt {
    let mut table = Sdt::new(*b"APIC", 44, 5, OEM, TABLE, 1);
    table.write_u32(36, 0xfee0_0000);
    for id in 0..vcpus {
        table.append_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    table
}

/// PCI configuration space of segment 0, bus 0 (PCI Firmware 3.3, 4.1.2).
fn mcfg() -> Sdt {
    let mut table = Sdt::new(*b"MCFG", 44, 1, OEM, TABLE, 1);
    table.append_slice(&layout::ECAM.to_le_bytes());
    table.append_slice(&[0; 8]);
    table
}

/// Serial port, PCI host bridge, the ECAM reservation that Linux asks for, and S5.
fn dsdt() -> Sdt {
    let mut code = Vec::new();
    serial(&mut code);
    host_bridge(&mut code);
    ecam_reservation(&mut code);
    let (s5, zero) = (5u8, 0u8);
    Name::new("_S5_".into(), &Package::new(vec![&s5, &zero, &zero, &zero])).to_aml_bytes(&mut code);
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, 1);
    table.append_slice(&code);
    table
}

/// No interrupt: without an IOAPIC a claimed IRQ makes the console fail to open.
fn serial(code: &mut Vec<u8>) {
    let range = IO::new(SERIAL, SERIAL, 0, 8);
    let ports = ResourceTemplate::new(vec![&range]);
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ports),
        ],
    )
    .to_aml_bytes(code);
}

fn host_bridge(code: &mut Vec<u8>) {
    let buses = AddressSpace::new_bus_number(0u16, 0);
    let low = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        low_u32(layout::BAR32),
        low_u32(layout::BAR32 + layout::BAR32_LEN - 1),
        None,
    );
    let high = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        layout::BAR64,
        layout::BAR64 + layout::BAR64_LEN - 1,
        None,
    );
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CCA".into(), &ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&buses, &low, &high])),
        ],
    )
    .to_aml_bytes(code);
}

/// Linux uses ECAM only where a motherboard resource or the memory map reserves it.
fn ecam_reservation(code: &mut Vec<u8>) {
    let ecam = Memory32Fixed::new(true, low_u32(layout::ECAM), low_u32(layout::ECAM_LEN));
    Device::new(
        "_SB_.ECAM".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam])),
        ],
    )
    .to_aml_bytes(code);
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

const OEM: [u8; 6] = *b"CASEM8";
const TABLE: [u8; 8] = *b"CASEMATE";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{u32_at, u64_at};

    fn table(memory: &Memory, at: u64) -> Vec<u8> {
        let mut head = [0; 8];
        memory.read(at, &mut head).unwrap();
        let mut whole = vec![0; crate::bytes::narrow(u32_at(&head, 4).unwrap().into())];
        memory.read(at, &mut whole).unwrap();
        whole
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let memory = Memory::new(2 << 20).unwrap();
        write(&memory, 4).unwrap();
        let mut rsdp = [0; 36];
        memory.read(layout::ACPI, &mut rsdp).unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = table(&memory, u64_at(&rsdp, 24).unwrap());
        let mut names = Vec::new();
        for at in (36..xsdt.len()).step_by(8) {
            let each = table(&memory, u64_at(&xsdt, at).unwrap());
            assert_eq!(each.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            names.push(String::from_utf8_lossy(&each[..4]).into_owned());
        }
        assert_eq!(names, ["FACP", "APIC", "MCFG"]);
    }
}
