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
    absent: usize,
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
    /// What the image has for it; the rest of the memory is zero, but for an
    /// unmeasured section before an image of the code alone.
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
        let entries: Vec<_> =
            (0..count).map(|_| Entry::read(&mut reader)).collect::<Result<_, _>>()?;
        let absent = absent_before(&entries, image.len()).unwrap_or(0);
        let sections: Vec<_> =
            entries.iter().map(|entry| entry.section(image, absent)).collect::<Result<_, _>>()?;
        let added = sections.iter().filter(|section| section.added).map(|section| section.size);
        let total = added.fold(0_u64, u64::saturating_add);
        if total > MAX_ADDED_BYTES {
            let expected = format!("at most {MAX_ADDED_BYTES} bytes");
            return Err(MeasureError::new("TDX metadata, memory added", expected, total));
        }
        Ok(Self { sections, absent })
    }

    /// The sections in the order of the metadata.
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// How many bytes of the flash before the image are not in it: the variable
    /// store, where the image is the code alone.
    pub fn absent_bytes(&self) -> usize {
        self.absent
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

/// One section as the metadata lists it. Offsets count from the start of the
/// flash, of which the image may be the end.
struct Entry {
    offset: usize,
    raw_size: usize,
    gpa: u64,
    size: u64,
    kind: u32,
    attributes: u32,
}

impl Entry {
    fn read(reader: &mut Reader<'_>) -> Result<Self, MeasureError> {
        Ok(Self {
            offset: reader.length_le("TDX metadata, data offset")?,
            raw_size: reader.length_le("TDX metadata, raw data size")?,
            gpa: reader.u64_le("TDX metadata, memory address")?,
            size: reader.u64_le("TDX metadata, memory size")?,
            kind: reader.u32_le("TDX metadata, section type")?,
            attributes: reader.u32_le("TDX metadata, attributes")?,
        })
    }

    fn measured(&self) -> bool {
        self.attributes & MR_EXTEND != 0
    }

    /// Where the data end, counted from the start of the flash.
    fn end(&self) -> Option<usize> {
        self.offset.checked_add(self.raw_size)
    }

    /// The section with its contents in an `image` before which `absent` bytes
    /// of the flash are missing. Nothing that is measured may be missing.
    fn section<'a>(&self, image: &'a [u8], absent: usize) -> Result<Section<'a>, MeasureError> {
        let Self { offset, raw_size, gpa, size, kind, .. } = *self;
        let missing = absent > 0 && !self.measured() && offset < absent;
        let within = || {
            let (start, end) = (offset.checked_sub(absent)?, self.end()?.checked_sub(absent)?);
            image.get(start..end)
        };
        let contents = if missing { Some(&[][..]) } else { within() };
        let contents = contents.ok_or_else(|| {
            let actual = format!("{raw_size} bytes at {offset}");
            MeasureError::new("TDX metadata, data", "inside the image", actual)
        })?;
        let whole = gpa.is_multiple_of(PAGE) && size.is_multiple_of(PAGE);
        let fits = u64::try_from(raw_size).is_ok_and(|raw_size| raw_size <= size);
        if !whole || !fits || gpa.checked_add(size).is_none() {
            let actual = format!("{raw_size} of {size:#x} bytes at {gpa:#x}");
            return Err(MeasureError::new("TDX metadata, section", "whole pages", actual));
        }
        let measured = self.measured();
        let host_made = !matches!(kind, BFV | CFV | PAYLOAD);
        if measured && host_made {
            let actual = format!("a section of type {kind}");
            let expected = "contents that are in the image";
            return Err(MeasureError::new("TDX metadata, measured section", expected, actual));
        }
        let added = self.attributes & PAGE_AUG == 0;
        Ok(Section { kind, gpa, size, contents, added, measured })
    }
}

/// How many bytes of the flash come before an image of `length` bytes, where
/// the addresses of its volumes prove that it is the end of a larger flash:
/// every volume lies at one distance from its offset, and the flash that they
/// span ends at 4 GiB, where the reset vector is.
fn absent_before(entries: &[Entry], length: usize) -> Option<usize> {
    let volumes = || entries.iter().filter(|entry| matches!(entry.kind, BFV | CFV));
    let flash = volumes().map(Entry::end).try_fold(0, |most: usize, end| Some(most.max(end?)))?;
    let absent = flash.checked_sub(length)?;
    let start = FOUR_GIB.checked_sub(u64::try_from(flash).ok()?)?;
    let lies_in_it = |entry: &Entry| {
        let offset = u64::try_from(entry.offset).ok();
        offset.and_then(|offset| start.checked_add(offset)) == Some(entry.gpa)
    };
    let others = entries.iter().filter(|entry| !matches!(entry.kind, BFV | CFV));
    let no_data = others.into_iter().all(|entry| entry.raw_size == 0);
    (volumes().all(lies_in_it) && no_data && absent.is_multiple_of(4096)).then_some(absent)
}

impl Section<'_> {
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
const FOUR_GIB: u64 = 1 << 32;
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

    /// Code of 8 KiB at the end of a flash of 16 KiB that ends at 4 GiB.
    const CODE: [u32; 8] = [8192, 8192, 0xffff_e000, 0, 8192, 0, 0, 1];
    const VARS: [u32; 8] = [0, 8192, 0xffff_c000, 0, 8192, 0, 1, 0];

    #[test]
    fn code_alone_is_measured_where_the_addresses_prove_that_it_is() {
        let code = image(&[CODE, VARS]);
        let tdvf = Tdvf::parse(&code).unwrap();
        assert_eq!(tdvf.absent_bytes(), 8192);
        // The same image behind any variable store, whose bytes do not count.
        let mut whole = [vec![0x77; 8192], code.clone()].concat();
        let at = whole.len() - 32;
        let mut code = code;
        code[8160..8164].copy_from_slice(&(8192_u32 - 64).to_le_bytes());
        whole[at..at + 4].copy_from_slice(&(8192_u32 - 64).to_le_bytes());
        let (code, whole) = (Tdvf::parse(&code).unwrap(), Tdvf::parse(&whole).unwrap());
        assert_eq!((code.absent_bytes(), whole.absent_bytes()), (8192, 0));
        for order in PageOrder::ALL {
            assert_eq!(code.mrtd(order), whole.mrtd(order));
        }
        // A measured store, another address, data elsewhere: nothing is guessed.
        let with = |section: [u32; 8], index: usize, value: u32, other: [u32; 8]| {
            let mut section = section;
            section[index] = value;
            Tdvf::parse(&image(&[section, other])).map(|_| ())
        };
        assert!(with(VARS, 7, 1, CODE).is_err(), "the store is measured");
        assert!(with(CODE, 2, 0xfffe_e000, VARS).is_err(), "the code lies elsewhere");
        assert!(with(VARS, 2, 0xfffe_c000, CODE).is_err(), "the store lies elsewhere");
        assert!(with(VARS, 6, 5, CODE).is_err(), "a payload that is not there");
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
