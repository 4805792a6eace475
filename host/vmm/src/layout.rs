//! The guest physical map: one for plain KVM, SEV-SNP and TDX.
//!
//! What a confidential guest will need (hash page, secrets page, mailbox, shim
//! window) has its place kept free here already.

/// The global descriptor table of the first CPU.
pub(crate) const GDT: u64 = 0x500;
/// `boot_params`, the "zero page" of the Linux boot protocol.
pub(crate) const BOOT_PARAMS: u64 = 0x7000;
/// Identity map of the low 4 GiB: PML4, then PDPT, then four page directories.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// First stack of the boot CPU, growing down towards the zero page.
pub(crate) const BOOT_STACK: u64 = 0x8ff0;
/// The command line, zero-terminated.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line, its zero included (x86 `COMMAND_LINE_SIZE`).
pub(crate) const COMMAND_LINE_MAX: usize = 2048;
/// End of the low memory that the kernel may use.
pub(crate) const LOW_RAM_END: u64 = 0x9_f000;
/// ACPI tables: RSDP first.
pub(crate) const ACPI: u64 = 0xe_0000;
/// End of the area reserved for ACPI tables.
pub(crate) const ACPI_END: u64 = 0xf_0000;
/// Memory above the legacy hole.
pub(crate) const HIGH_RAM: u64 = 0x10_0000;
/// RAM below 4 GiB ends here at the latest; the rest continues at [`FOUR_GIB`].
pub(crate) const LOW_RAM_MAX: u64 = 0xc000_0000;
/// PCI configuration space of bus 0 (ECAM).
pub(crate) const ECAM: u64 = 0xe000_0000;
/// One bus: 32 devices of 8 functions of 4 KiB.
pub(crate) const ECAM_LEN: u64 = 0x10_0000;
/// Window for 32-bit BARs.
pub(crate) const BAR32: u64 = 0xe010_0000;
/// Length of the window for 32-bit BARs: ends below the local APIC's pages.
pub(crate) const BAR32_LEN: u64 = 0xfe80_0000 - BAR32;
/// Intel without unrestricted guest needs a task segment here; harmless elsewhere.
pub(crate) const TSS: usize = 0xfffb_d000;
/// And an identity map page.
pub(crate) const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Where RAM continues.
pub(crate) const FOUR_GIB: u64 = 1 << 32;
/// Window for 64-bit BARs: above all RAM, below the smallest physical address
/// width that we meet (39 bits; SEV-SNP takes away one of 48 or more).
pub(crate) const BAR64: u64 = 0x40_0000_0000;
/// Length of the window for 64-bit BARs: 256 GiB, one large GPU.
pub(crate) const BAR64_LEN: u64 = 0x40_0000_0000;

/// Ranges of RAM, as (address, length), for this many bytes.
pub(crate) fn ram(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_RAM_MAX);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((FOUR_GIB, bytes - low));
    }
    ranges
}

const _: () = assert!(BAR32 == ECAM + ECAM_LEN);
const _: () = assert!(LOW_RAM_MAX <= ECAM);
const _: () = assert!(BAR64.is_multiple_of(BAR64_LEN));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_hole_below_four_gib() {
        assert_eq!(ram(128 << 20), [(0, 128 << 20)]);
        assert_eq!(ram(LOW_RAM_MAX + 4096), [(0, LOW_RAM_MAX), (FOUR_GIB, 4096)]);
    }
}
