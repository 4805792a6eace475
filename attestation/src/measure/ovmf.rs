//! The table at the end of an OVMF image, and the SEV metadata it points to
//! (edk2, OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm and X64/OvmfSevMetadata.asm).

use super::MeasureError;
use crate::wire::Reader;

/// The largest firmware image that is read.
pub const MAX_FIRMWARE_BYTES: usize = 64 * 1024 * 1024;
const PAGE: u32 = 4096;
const MAX_SECTIONS: u32 = 64;

/// A firmware image with the entries of its footer table found.
#[derive(Debug, Clone, Copy)]
pub struct Ovmf<'a> {
    image: &'a [u8],
    table: &'a [u8],
}

/// One section of the SEV metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// Guest physical address.
    pub gpa: u32,
    /// Size in bytes.
    pub size: u32,
    /// What it is.
    pub kind: SectionKind,
}

/// What a section of the SEV metadata is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionKind {
    /// Memory to accept before the firmware runs.
    SecMem,
    /// The secrets page.
    Secrets,
    /// The CPUID page.
    Cpuid,
    /// The SVSM's calling area.
    SvsmCaa,
    /// The page for the kernel hashes.
    KernelHashes,
}

/// Where the firmware wants the kernel hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashTableArea {
    /// Guest physical address.
    pub base: u32,
    /// Size in bytes.
    pub size: u32,
}

/// GUIDs as they lie in the table: the first three groups little-endian.
const FOOTER: [u8; 16] = guid(0x96b5_82de_1fb2_45f7_baea_a366_c55a_082d);
const RESET_BLOCK: [u8; 16] = guid(0x00f7_71de_1a7e_4fcb_890e_68c7_7e2f_b44e);
const HASH_TABLE: [u8; 16] = guid(0x7255_371f_3a3b_4b04_927b_1da6_efa8_d454);
const SEV_METADATA: [u8; 16] = guid(0xdc88_6566_984a_4798_a75e_5585_a7bf_67cc);
const TDX_METADATA: [u8; 16] = guid(0xe47a_6535_984a_4798_865e_4685_a7bf_8ec2);
const SVSM_INFO: [u8; 16] = guid(0xa789_a612_0597_4c4b_a49f_cbb1_fe9d_1ddd);
/// Size and GUID behind each entry's data.
const TRAILER: usize = 18;
/// The table ends this far before the end of the image.
const AFTER_TABLE: usize = 32;

/// A GUID in the mixed byte order of UEFI.
pub(crate) const fn guid(value: u128) -> [u8; 16] {
    let b = value.to_be_bytes();
    [
        b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13],
        b[14], b[15],
    ]
}

impl<'a> Ovmf<'a> {
    /// Finds the footer table of `image`.
    pub fn parse(image: &'a [u8]) -> Result<Self, MeasureError> {
        let length = image.len();
        if length > MAX_FIRMWARE_BYTES || length == 0 || !length.is_multiple_of(4096) {
            return Err(MeasureError::new(
                "firmware image",
                "whole pages, at most 64 MiB",
                format!("{length} bytes"),
            ));
        }
        let no_table = || MeasureError::new("firmware footer", "OVMF's GUID table", "none");
        let before = image.get(..length.saturating_sub(AFTER_TABLE)).ok_or_else(no_table)?;
        let (rest, size, guid) = trailer(before).ok_or_else(no_table)?;
        if guid != FOOTER {
            return Err(no_table());
        }
        // The footer's size counts the whole table, its own trailer included.
        let entries = size.checked_sub(TRAILER).and_then(|n| rest.len().checked_sub(n));
        let table = entries.and_then(|start| rest.get(start..)).ok_or_else(|| {
            MeasureError::new("firmware footer, size", "a table inside the image", size)
        })?;
        Ok(Self { image, table })
    }

    /// The image's bytes.
    pub fn image(&self) -> &'a [u8] {
        self.image
    }

    /// The guest physical address that the image ends below 4 GiB at.
    pub fn gpa(&self) -> u64 {
        let length = u64::try_from(self.image.len()).unwrap_or(u64::MAX);
        0x1_0000_0000_u64.saturating_sub(length)
    }

    /// The entry point of the application processors.
    pub fn reset_eip(&self) -> Result<u32, MeasureError> {
        let data = self.required("SEV-ES reset block", &RESET_BLOCK)?;
        Ok(Reader::new(data).u32_le("SEV-ES reset block")?)
    }

    /// Where the kernel hashes go, if the firmware checks any.
    pub fn hash_table(&self) -> Result<Option<HashTableArea>, MeasureError> {
        let Some(data) = self.entry(&HASH_TABLE)? else { return Ok(None) };
        let mut reader = Reader::new(data);
        let base = reader.u32_le("hash table area, base")?;
        let size = reader.u32_le("hash table area, size")?;
        Ok(Some(HashTableArea { base, size }))
    }

    /// The offset of the TDX metadata from the image's start, if there is any.
    pub fn tdx_metadata_offset(&self) -> Result<Option<usize>, MeasureError> {
        let Some(data) = self.entry(&TDX_METADATA)? else { return Ok(None) };
        let from_end = Reader::new(data).length_le("TDX metadata, offset")?;
        let start = self.image.len().checked_sub(from_end).ok_or_else(|| {
            MeasureError::new("TDX metadata, offset", "inside the image", from_end)
        })?;
        Ok(Some(start))
    }

    /// The launch offset of an SVSM image.
    pub fn svsm_entry_offset(&self) -> Result<u32, MeasureError> {
        let data = self.required("SVSM info", &SVSM_INFO)?;
        Ok(Reader::new(data).u32_le("SVSM info")?)
    }

    /// The SEV metadata, in the order of the table.
    pub fn sections(&self) -> Result<Vec<Section>, MeasureError> {
        let data = self.required("SEV metadata", &SEV_METADATA)?;
        let from_end = Reader::new(data).length_le("SEV metadata, offset")?;
        let start = self.image.len().checked_sub(from_end);
        let bytes = start.and_then(|start| self.image.get(start..)).ok_or_else(|| {
            MeasureError::new("SEV metadata, offset", "inside the image", from_end)
        })?;
        read_sections(bytes)
    }

    fn required(&self, what: &str, guid: &[u8; 16]) -> Result<&'a [u8], MeasureError> {
        self.entry(guid)?.ok_or_else(|| {
            MeasureError::new("firmware footer", format!("an entry {what}"), "no such entry")
        })
    }

    /// The data of the entry `wanted`; the table is walked from its end.
    fn entry(&self, wanted: &[u8; 16]) -> Result<Option<&'a [u8]>, MeasureError> {
        let mut rest = self.table;
        while !rest.is_empty() {
            let wrong =
                |actual: usize| MeasureError::new("firmware footer, entry", "a sound size", actual);
            let (before, size, guid) = trailer(rest).ok_or_else(|| wrong(rest.len()))?;
            let data_length = size.checked_sub(TRAILER).ok_or_else(|| wrong(size))?;
            let start = before.len().checked_sub(data_length).ok_or_else(|| wrong(size))?;
            let (head, data) = before.split_at_checked(start).ok_or_else(|| wrong(size))?;
            if guid == *wanted {
                return Ok(Some(data));
            }
            rest = head;
        }
        Ok(None)
    }
}

/// Splits the size and the GUID off the end of `bytes`.
fn trailer(bytes: &[u8]) -> Option<(&[u8], usize, [u8; 16])> {
    let (rest, guid) = bytes.split_last_chunk::<16>()?;
    let (rest, size) = rest.split_last_chunk::<2>()?;
    Some((rest, usize::from(u16::from_le_bytes(*size)), *guid))
}

fn read_sections(bytes: &[u8]) -> Result<Vec<Section>, MeasureError> {
    let mut reader = Reader::new(bytes);
    let signature: [u8; 4] = reader.array("SEV metadata, signature")?;
    if &signature != b"ASEV" {
        return Err(MeasureError::new(
            "SEV metadata, signature",
            "ASEV",
            crate::wire::hex(&signature),
        ));
    }
    let size = reader.u32_le("SEV metadata, size")?;
    let version = reader.u32_le("SEV metadata, version")?;
    if version != 1 {
        return Err(MeasureError::new("SEV metadata, version", "1", version));
    }
    let count = reader.u32_le("SEV metadata, count")?;
    let needed = count.checked_mul(12).and_then(|n| n.checked_add(16));
    if count > MAX_SECTIONS || needed.is_none_or(|needed| needed > size) {
        return Err(MeasureError::new(
            "SEV metadata, count",
            format!("at most {MAX_SECTIONS} sections, inside the size {size}"),
            count,
        ));
    }
    (0..count).map(|_| section(&mut reader)).collect()
}

fn section(reader: &mut Reader<'_>) -> Result<Section, MeasureError> {
    let gpa = reader.u32_le("SEV metadata, section address")?;
    let size = reader.u32_le("SEV metadata, section size")?;
    let kind = match reader.u32_le("SEV metadata, section type")? {
        1 => SectionKind::SecMem,
        2 => SectionKind::Secrets,
        3 => SectionKind::Cpuid,
        4 => SectionKind::SvsmCaa,
        0x10 => SectionKind::KernelHashes,
        other => {
            return Err(MeasureError::new("SEV metadata, section type", "1 to 4, or 16", other));
        }
    };
    if !gpa.is_multiple_of(PAGE) || !size.is_multiple_of(PAGE) || gpa.checked_add(size).is_none() {
        return Err(MeasureError::new(
            "SEV metadata, section",
            "whole pages below 4 GiB",
            format!("address {gpa:#x}, size {size:#x}"),
        ));
    }
    Ok(Section { gpa, size, kind })
}
