//! Puts a stock bzImage into guest memory, ready for its 64-bit entry.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst` (6.12).
//! Offsets of the setup header are the same in the file and in the zero page.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use crate::bytes::{low_u32, put, u16_at, u32_at, u64_at, wide};
use crate::layout;
use crate::memory::{Memory, OutOfRange};

/// Why a kernel cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file could not be read, or does not fit where it must go.
    #[error("{file}: {source}")]
    File {
        /// Which of the two files: kernel or initrd.
        file: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A field of the kernel's header is not what a bootable kernel has.
    #[error("kernel: {field} is {actual:#x}, expected {expected}")]
    Header {
        /// Name of the field in boot.rst.
        field: &'static str,
        /// What a kernel that we can boot has there.
        expected: &'static str,
        /// What this file has there.
        actual: u64,
    },
    /// Kernel, initrd and their working space do not fit into the machine.
    #[error("memory: {what} needs {needed} bytes, the machine has {present}")]
    TooSmall {
        /// What does not fit.
        what: &'static str,
        /// How much memory would do.
        needed: u64,
        /// How much memory the machine has there.
        present: u64,
    },
    /// The command line is too long or has a zero inside.
    #[error("cmdline: {actual} bytes or a zero byte inside, at most {expected} bytes")]
    CommandLine {
        /// Longest command line.
        expected: usize,
        /// Length of this one.
        actual: usize,
    },
    /// Our own layout left RAM: cannot happen with a checked memory size.
    #[error(transparent)]
    Memory(#[from] OutOfRange),
}

/// Where the first CPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The 64-bit entry of the kernel.
    pub(crate) rip: u64,
    /// The zero page, handed over in RSI.
    pub(crate) boot_params: u64,
}

/// The setup header, with what we need of it taken out.
struct Header {
    raw: Vec<u8>,
    payload: u64,
    load: u64,
    init_size: u64,
    initrd_max: u64,
}

/// Loads kernel, initrd, command line and zero page.
pub(crate) fn load(
    memory: &Memory,
    bytes: u64,
    kernel: &mut File,
    initrd: Option<&mut File>,
    command_line: &str,
) -> Result<Entry, BootError> {
    let low = bytes.min(layout::LOW_RAM_MAX);
    let header = read_header(kernel)?;
    load_kernel(memory, &header, kernel, low)?;
    let mut zero_page = zero_page(&header, bytes);
    if let Some(initrd) = initrd {
        let (address, length) = load_initrd(memory, &header, initrd, low)?;
        put(&mut zero_page, 0x218, &low_u32(address).to_le_bytes());
        put(&mut zero_page, 0x21c, &low_u32(length).to_le_bytes());
    }
    write_command_line(memory, command_line)?;
    memory.write(layout::BOOT_PARAMS, &zero_page)?;
    write_tables(memory)?;
    Ok(Entry { rip: header.load + 0x200, boot_params: layout::BOOT_PARAMS })
}

fn read_header(kernel: &mut File) -> Result<Header, BootError> {
    let mut first = vec![0; 0x290];
    kernel
        .seek(SeekFrom::Start(0))
        .and_then(|_| kernel.read_exact(&mut first))
        .map_err(|source| BootError::File { file: "kernel", source })?;
    parse_header(&first)
}

/// Reads the setup header out of the first bytes of a kernel file.
fn parse_header(first: &[u8]) -> Result<Header, BootError> {
    let u16_of = |at| u64::from(u16_at(first, at).unwrap_or_default());
    let u32_of = |at| u64::from(u32_at(first, at).unwrap_or_default());
    let check = |good: bool, field, expected, actual| {
        good.then_some(()).ok_or(BootError::Header { field, expected, actual })
    };
    let (magic, version, xload) = (u32_of(0x202), u16_of(0x206), u16_of(0x236));
    check(magic == 0x5372_6448, "header", "\"HdrS\"", magic)?;
    check(version >= 0x020c, "version", "0x20c or later", version)?;
    check(xload & 1 == 1, "xloadflags", "bit 0 set (64-bit entry)", xload)?;
    let load = u64_at(first, 0x258).unwrap_or_default();
    let aligned =
        (layout::HIGH_RAM..layout::LOW_RAM_MAX).contains(&load) && load.is_multiple_of(0x1000);
    check(aligned, "pref_address", "a page between 1 MiB and 3 GiB", load)?;
    let sectors = match first.get(0x1f1).copied().unwrap_or_default() {
        0 => 4,
        some => u64::from(some),
    };
    // The header's own length: the jump's displacement at 0x201, counted from 0x202.
    let end = 0x202 + usize::from(first.get(0x201).copied().unwrap_or_default());
    let raw = first.get(0x1f1..end.min(0x290)).unwrap_or_default().to_vec();
    let (init_size, initrd_max) = (u32_of(0x260), u32_of(0x22c));
    Ok(Header { raw, payload: (sectors + 1) * 512, load, init_size, initrd_max })
}

fn load_kernel(
    memory: &Memory,
    header: &Header,
    kernel: &mut File,
    low: u64,
) -> Result<(), BootError> {
    let file = |source| BootError::File { file: "kernel", source };
    let whole = kernel.seek(SeekFrom::End(0)).map_err(file)?;
    let length = whole.saturating_sub(header.payload);
    let needed = header.load.saturating_add(header.init_size.max(length));
    if needed > low {
        return Err(BootError::TooSmall { what: "the kernel", needed, present: low });
    }
    kernel.seek(SeekFrom::Start(header.payload)).map_err(file)?;
    memory.load(header.load, kernel, length).map_err(file)
}

/// The initrd goes to the highest page where it fits, above the kernel's working space.
fn load_initrd(
    memory: &Memory,
    header: &Header,
    initrd: &mut File,
    low: u64,
) -> Result<(u64, u64), BootError> {
    let file = |source| BootError::File { file: "initrd", source };
    let length = initrd.seek(SeekFrom::End(0)).map_err(file)?;
    let top = low.min(header.initrd_max.saturating_add(1));
    let floor = header.load.saturating_add(header.init_size);
    let address = top.saturating_sub(length) & !0xfff;
    if address < floor {
        let needed = floor.saturating_add(length);
        return Err(BootError::TooSmall { what: "kernel and initrd", needed, present: top });
    }
    initrd.seek(SeekFrom::Start(0)).map_err(file)?;
    memory.load(address, initrd, length).map_err(file)?;
    Ok((address, length))
}

fn write_command_line(memory: &Memory, text: &str) -> Result<(), BootError> {
    let mut raw = text.as_bytes().to_vec();
    if raw.len() >= layout::COMMAND_LINE_MAX || raw.contains(&0) {
        let expected = layout::COMMAND_LINE_MAX - 1;
        return Err(BootError::CommandLine { expected, actual: raw.len() });
    }
    raw.push(0);
    Ok(memory.write(layout::COMMAND_LINE, &raw)?)
}

/// The zero page: the kernel's own header, our answers, and the memory map.
fn zero_page(header: &Header, bytes: u64) -> Vec<u8> {
    let mut page = vec![0; 0x1000];
    put(&mut page, 0x1f1, &header.raw);
    put(&mut page, 0x070, &layout::ACPI.to_le_bytes()); // acpi_rsdp_addr
    put(&mut page, 0x210, &[0xff]); // type_of_loader: undefined
    put(&mut page, 0x228, &low_u32(layout::COMMAND_LINE).to_le_bytes());
    let map = e820(bytes);
    put(&mut page, 0x1e8, &[u8::try_from(map.len()).unwrap_or(u8::MAX)]);
    for (index, (start, length, kind)) in map.into_iter().enumerate() {
        let at = 0x2d0 + index * 20;
        put(&mut page, at, &start.to_le_bytes());
        put(&mut page, at + 8, &length.to_le_bytes());
        put(&mut page, at + 16, &kind.to_le_bytes());
    }
    page
}

/// The memory map: 1 is RAM, 2 is reserved.
fn e820(bytes: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::LOW_RAM_END, 1),
        (0xa_0000, 0x6_0000, 2),
        (layout::ECAM, layout::ECAM_LEN, 2),
    ];
    for (start, length) in layout::ram(bytes) {
        let start = start.max(layout::HIGH_RAM);
        let end = if start < layout::FOUR_GIB { length } else { start + length };
        map.push((start, end.saturating_sub(start), 1));
    }
    map
}

/// Descriptor table and identity map of the low 4 GiB with 2 MiB pages.
fn write_tables(memory: &Memory) -> Result<(), BootError> {
    let gdt: Vec<u8> = GDT_ENTRIES.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory.write(layout::GDT, &gdt)?;
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let pointers = |first: u64, count: u64| -> Vec<u8> {
        (0..count).flat_map(|n| ((first + n * 0x1000) | PRESENT_WRITABLE).to_le_bytes()).collect()
    };
    memory.write(layout::PAGE_TABLES, &pointers(layout::PAGE_TABLES + 0x1000, 1))?;
    memory.write(layout::PAGE_TABLES + 0x1000, &pointers(layout::PAGE_TABLES + 0x2000, 4))?;
    let pages: Vec<u8> =
        (0..2048u64).flat_map(|n| (n << 21 | LARGE | PRESENT_WRITABLE).to_le_bytes()).collect();
    Ok(memory.write(layout::PAGE_TABLES + 0x2000, &pages)?)
}

/// Null, null, 64-bit code, data, task: Linux replaces them at once.
pub(crate) const GDT_ENTRIES: [u64; 5] =
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];

/// A table of our own is as long as we say.
pub(crate) fn gdt_limit() -> u16 {
    u16::try_from(wide(size_of_val(&GDT_ENTRIES)) - 1).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file that has the header of a kernel, and a payload of 0x5a.
    fn kernel() -> Vec<u8> {
        let mut file = vec![0; 0x400 + 4096];
        put(&mut file, 0x1f1, &[1]);
        put(&mut file, 0x201, &[0x6a]);
        put(&mut file, 0x202, b"HdrS");
        put(&mut file, 0x206, &0x020f_u16.to_le_bytes());
        put(&mut file, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
        put(&mut file, 0x236, &0x7f_u16.to_le_bytes());
        put(&mut file, 0x258, &0x100_0000_u64.to_le_bytes());
        put(&mut file, 0x260, &0x10_0000_u32.to_le_bytes());
        put(&mut file, 0x400, &[0x5a; 4096]);
        file
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_kernel_lies_where_it_wants_and_the_initrd_at_the_top() {
        let memory = Memory::new(32 << 20).unwrap();
        let mut initrd = file(&[7; 5000]);
        let entry =
            load(&memory, 32 << 20, &mut file(&kernel()), Some(&mut initrd), "quiet").unwrap();
        assert_eq!(entry.rip, 0x100_0200);
        let mut page = [0; 0x1000];
        memory.read(layout::BOOT_PARAMS, &mut page).unwrap();
        assert_eq!(u32_at(&page, 0x218), Some((32 << 20) - 0x2000));
        assert_eq!(u32_at(&page, 0x21c), Some(5000));
        assert_eq!(&page[0x202..0x206], b"HdrS");
        let mut text = [1; 6];
        memory.read(layout::COMMAND_LINE, &mut text).unwrap();
        assert_eq!(&text, b"quiet\0");
    }

    #[test]
    fn what_cannot_boot_is_refused_with_the_field() {
        for (at, byte, field) in [
            (0x202, 0, "header"),
            (0x207, 0, "version"),
            (0x236, 0, "xloadflags"),
            (0x258, 1, "pref_address"),
        ] {
            let mut bytes = kernel();
            bytes[at] = byte;
            match parse_header(&bytes) {
                Err(BootError::Header { field: found, .. }) => assert_eq!(found, field),
                _ => panic!("{field} was taken"),
            }
        }
    }

    #[test]
    fn too_little_memory_is_refused_before_anything_runs() {
        let memory = Memory::new(17 << 20).unwrap();
        let mut big = file(&[1; 1 << 20]);
        let refused = load(&memory, 17 << 20, &mut file(&kernel()), Some(&mut big), "");
        assert!(matches!(refused, Err(BootError::TooSmall { .. })));
        let refused = load(&memory, 16 << 20, &mut file(&kernel()), None, "");
        assert!(matches!(refused, Err(BootError::TooSmall { .. })));
    }

    #[test]
    fn the_memory_map_never_overlaps() {
        for bytes in [32 << 20, 3 << 30, 8 << 30] {
            let mut map = e820(bytes);
            map.sort_unstable();
            let ends = map.iter().map(|(start, length, _)| start + length);
            let starts = map.iter().skip(1).map(|(start, ..)| *start);
            assert!(ends.zip(starts).all(|(end, start)| end <= start), "{map:x?}");
        }
    }
}
