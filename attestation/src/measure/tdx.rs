//! MRTD predicted from a firmware image, and RTMRs from what is measured.
//!
//! Sources: Intel TDX Module 1.5 Base Specification, "TD Measurement" (the
//! records of TDH.MEM.PAGE.ADD and TDH.MR.EXTEND); Intel TDX Virtual Firmware
//! Design Guide, section 11 (metadata).

use super::MeasureError;
use super::ovmf::{MAX_FIRMWARE_BYTES, Ovmf};
use crate::crypto::Sha384;
use crate::eventlog;
use crate::wire::{Reader, hex};

/// In which order a host stack adds and measures the pages of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageOrder {
    /// Each page is added and then measured (KVM, QEMU).
    PerPage,
    /// All pages are added, then all are measured.
    TwoPass,
}

/// A firmware image with the sections that its TDX metadata lists.
#[derive(Debug, Clone)]
pub struct Tdvf<'a> {
    sections: Vec<Section<'a>>,
}

/// One section of the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a> {
    /// What it is: 0 BFV, 1 CFV, 2 TD HOB, 3 temporary memory, 4 permanent
    /// memory, 5 payload, 6 payload parameters.
    pub kind: u32,
    /// Guest physical address.
    pub gpa: u64,
    /// Size in memory.
    pub size: u64,
    /// What the image has for it; the rest of the memory is zero.
    pub contents: &'a [u8],
    /// The pages are added before the TD runs.
    pub added: bool,
    /// The contents are measured.
    pub measured: bool,
}

impl PageOrder {
    /// Both orders.
    pub const ALL: [Self; 2] = [Self::PerPage, Self::TwoPass];

    /// The order's name on command lines and in vectors.
    pub fn name(self) -> &'static str {
        match self {
            Self::PerPage => "per-page",
            Self::TwoPass => "two-pass",
        }
    }
}

impl<'a> Tdvf<'a> {
    /// Finds the TDX metadata of `image`.
    pub fn parse(image: &'a [u8]) -> Result<Self, MeasureError> {
        if image.len() > MAX_FIRMWARE_BYTES {
            let expected = format!("at most {MAX_FIRMWARE_BYTES} bytes");
            return Err(MeasureError::new("firmware image", expected, image.len()));
        }
        let metadata = metadata(image)?;
        let mut reader = Reader::new(metadata);
        reader.slice("TDX metadata, signature", 4)?;
        let length = reader.u32_le("TDX metadata, length")?;
        let version = reader.u32_le("TDX metadata, version")?;
        if version != 1 {
            return Err(MeasureError::new("TDX metadata, version", "1", version));
        }
        let count = reader.u32_le("TDX metadata, count")?;
        let needed = count.checked_mul(SECTION_BYTES).and_then(|n| n.checked_add(HEADER_BYTES));
        if count > MAX_SECTIONS || needed.is_none_or(|needed| needed > length) {
            let expected = format!("at most {MAX_SECTIONS} sections, inside the length {length}");
            return Err(MeasureError::new("TDX metadata, count", expected, count));
        }
        let sections: Vec<_> =
            (0..count).map(|_| Section::read(&mut reader, image)).collect::<Result<_, _>>()?;
        let added = sections.iter().filter(|section| section.added).map(|section| section.size);
        let total = added.fold(0_u64, u64::saturating_add);
        if total > MAX_ADDED_BYTES {
            let expected = format!("at most {MAX_ADDED_BYTES} bytes");
            return Err(MeasureError::new("TDX metadata, memory added", expected, total));
        }
        Ok(Self { sections })
    }

    /// The sections in the order of the metadata.
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// The MRTD of a TD that a host stack builds in `order`.
    pub fn mrtd(&self, order: PageOrder) -> [u8; 48] {
        let mut mrtd = Mrtd(Sha384::default());
        for section in self.sections.iter().filter(|section| section.added) {
            match order {
                PageOrder::PerPage => section.pages().for_each(|(gpa, page)| {
                    mrtd.add(gpa);
                    if section.measured {
                        mrtd.extend(gpa, &page);
                    }
                }),
                PageOrder::TwoPass => {
                    section.pages().for_each(|(gpa, _)| mrtd.add(gpa));
                    if section.measured {
                        section.pages().for_each(|(gpa, page)| mrtd.extend(gpa, &page));
                    }
                }
            }
        }
        mrtd.0.finish()
    }

    /// In which order a host stack must have worked for `observed` to come out.
    pub fn explain(&self, observed: &[u8; 48]) -> Option<PageOrder> {
        PageOrder::ALL.into_iter().find(|order| self.mrtd(*order) == *observed)
    }
}

/// The run-time register after `digests` were extended in order.
pub fn rtmr(digests: &[[u8; 48]]) -> [u8; 48] {
    digests.iter().fold([0; 48], |register, digest| eventlog::extend(&register, digest))
}

impl<'a> Section<'a> {
    fn read(reader: &mut Reader<'_>, image: &'a [u8]) -> Result<Self, MeasureError> {
        let offset = reader.length_le("TDX metadata, data offset")?;
        let raw_size = reader.length_le("TDX metadata, raw data size")?;
        let gpa = reader.u64_le("TDX metadata, memory address")?;
        let size = reader.u64_le("TDX metadata, memory size")?;
        let kind = reader.u32_le("TDX metadata, section type")?;
        let attributes = reader.u32_le("TDX metadata, attributes")?;
        let end = offset.checked_add(raw_size);
        let contents = end.and_then(|end| image.get(offset..end)).ok_or_else(|| {
            let actual = format!("{raw_size} bytes at {offset}");
            MeasureError::new("TDX metadata, data", "inside the image", actual)
        })?;
        let whole = gpa.is_multiple_of(PAGE) && size.is_multiple_of(PAGE);
        let fits = u64::try_from(raw_size).is_ok_and(|raw_size| raw_size <= size);
        if !whole || !fits || gpa.checked_add(size).is_none() {
            let actual = format!("{raw_size} of {size:#x} bytes at {gpa:#x}");
            return Err(MeasureError::new("TDX metadata, section", "whole pages", actual));
        }
        let measured = attributes & MR_EXTEND != 0;
        let host_made = !matches!(kind, BFV | CFV | PAYLOAD);
        if measured && host_made {
            let actual = format!("a section of type {kind}");
            let expected = "contents that are in the image";
            return Err(MeasureError::new("TDX metadata, measured section", expected, actual));
        }
        Ok(Self { kind, gpa, size, contents, added: attributes & PAGE_AUG == 0, measured })
    }

    /// Each page's address and contents, filled up with zeros.
    fn pages(&self) -> impl Iterator<Item = (u64, [u8; 4096])> {
        let count = self.size / PAGE;
        let mut chunks = self.contents.chunks(4096);
        (0..count).map(move |index| {
            let mut page = [0; 4096];
            let chunk = chunks.next().unwrap_or_default();
            page.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            (self.gpa.saturating_add(index.saturating_mul(PAGE)), page)
        })
    }
}

/// The running measurement of a TD under construction.
struct Mrtd(Sha384);

impl Mrtd {
    fn add(&mut self, gpa: u64) {
        self.0.update(&record(b"MEM.PAGE.ADD\0\0\0\0", gpa));
    }

    fn extend(&mut self, gpa: u64, page: &[u8; 4096]) {
        for (index, chunk) in (0..).zip(page.chunks_exact(256)) {
            self.0.update(&record(b"MR.EXTEND\0\0\0\0\0\0\0", gpa.saturating_add(index * 256)));
            self.0.update(chunk);
        }
    }
}

/// A record of 128 bytes: operation, address, zeros.
fn record(operation: &[u8; 16], gpa: u64) -> [u8; 128] {
    let mut record = [0; 128];
    let (head, rest) = record.split_at_mut(16);
    head.copy_from_slice(operation);
    rest.split_at_mut(8).0.copy_from_slice(&gpa.to_le_bytes());
    record
}

/// The metadata by OVMF's table or, in images without one, by the word 32
/// bytes before the end: an offset from the start (td-shim) or the end.
fn metadata(image: &[u8]) -> Result<&[u8], MeasureError> {
    let listed = Ovmf::parse(image).and_then(|ovmf| ovmf.tdx_metadata_offset());
    let candidates = match listed {
        Ok(Some(offset)) => vec![offset],
        _ => {
            let word = image.len().checked_sub(32).and_then(|start| image.get(start..));
            let word = word.map(|word| Reader::new(word).length_le("TDX metadata, offset"));
            let word = word.transpose()?.unwrap_or(usize::MAX);
            [Some(word), image.len().checked_sub(word)].into_iter().flatten().collect()
        }
    };
    let found = candidates.iter().filter_map(|offset| image.get(*offset..));
    let mut signed = found.clone().filter(|bytes| bytes.starts_with(b"TDVF"));
    signed.next().ok_or_else(|| {
        let actual = found.map(|bytes| hex(bytes.get(..4).unwrap_or_default()));
        let actual = actual.collect::<Vec<_>>().join(" or ");
        MeasureError::new("TDX metadata", "the signature TDVF", format!("{actual:?}"))
    })
}

const PAGE: u64 = 4096;
const HEADER_BYTES: u32 = 16;
const SECTION_BYTES: u32 = 32;
const MAX_SECTIONS: u32 = 64;
const MAX_ADDED_BYTES: u64 = 256 * 1024 * 1024;
/// Attribute MR.EXTEND.
const MR_EXTEND: u32 = 1;
/// Attribute PAGE.AUG: the guest accepts the pages itself.
const PAGE_AUG: u32 = 2;
const BFV: u32 = 0;
const CFV: u32 = 1;
const PAYLOAD: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    /// An image of two pages: metadata in the first, its offset at the end.
    fn image(sections: &[[u32; 8]]) -> Vec<u8> {
        let mut image = vec![0xa5; 8192];
        let mut words = vec![0x4656_4454, 0, 1, u32::try_from(sections.len()).unwrap()];
        words.extend(sections.iter().flatten());
        words[1] = u32::try_from(words.len() * 4).unwrap();
        let metadata: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        image[64..64 + metadata.len()].copy_from_slice(&metadata);
        image[8160..8164].copy_from_slice(&64_u32.to_le_bytes());
        image
    }

    const FIRMWARE: [u32; 8] = [0, 8192, 0xff_0000, 0, 8192, 0, 0, 1];
    const STACK: [u32; 8] = [0, 0, 0x1000, 0, 0x2000, 0, 3, 0];

    #[test]
    fn orders_differ_and_are_told_apart() {
        let image = image(&[FIRMWARE, STACK]);
        let tdvf = Tdvf::parse(&image).unwrap();
        assert_eq!(tdvf.sections().len(), 2);
        for order in PageOrder::ALL {
            assert_eq!(tdvf.explain(&tdvf.mrtd(order)), Some(order));
        }
        assert_eq!(tdvf.explain(&[0; 48]), None);
    }

    #[test]
    fn measured_contents_count_and_others_do_not() {
        let mut image = image(&[FIRMWARE, STACK]);
        let before = Tdvf::parse(&image).unwrap().mrtd(PageOrder::PerPage);
        image[5000] ^= 1;
        assert_ne!(Tdvf::parse(&image).unwrap().mrtd(PageOrder::PerPage), before);
        let mut accepted_by_guest = STACK;
        accepted_by_guest[7] = 2;
        let image = self::image(&[FIRMWARE, accepted_by_guest]);
        assert!(!Tdvf::parse(&image).unwrap().sections()[1].added);
    }

    #[test]
    fn hostile_metadata_is_refused() {
        let with = |index: usize, value: u32| {
            let mut section = FIRMWARE;
            section[index] = value;
            Tdvf::parse(&image(&[section])).map(|_| ())
        };
        assert!(with(0, 1).is_err(), "data beyond the image");
        assert!(with(1, u32::MAX).is_err(), "raw size beyond the image");
        assert!(with(2, 1).is_err(), "address off a page");
        assert!(with(4, 4096).is_err(), "memory smaller than the data");
        assert!(with(5, u32::MAX).is_err(), "memory larger than the limit");
        assert!(with(6, 2).is_err(), "a measured section whose contents the host makes");
        assert!(Tdvf::parse(&[0; 8192]).is_err());
        assert!(Tdvf::parse(&[]).is_err());
        let mut many = image(&[]);
        many[76..80].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Tdvf::parse(&many).is_err());
    }
}
