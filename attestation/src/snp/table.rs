//! The certificate table of an extended report (GHCB 2.03, section 4.1.8.1;
//! configfs-tsm passes it on as `auxblob`).

use crate::error::{Reason, VerifyError};
use crate::wire::{Reader, hex};
use crate::x509::{Certificate, Crl, PemLimits, der_or_pem};

/// The largest table that is read.
pub const MAX_TABLE_BYTES: usize = 320 * 1024;
const MAX_ENTRIES: usize = 32;
const ENTRY_BYTES: usize = 24;

/// What a table holds. All of it is a hint: trust comes from the anchors.
#[derive(Debug, Clone, Default)]
pub struct CertTable {
    /// Certificates of every kind, as their entries come.
    pub certificates: Vec<Certificate>,
    /// Revocation lists.
    pub crls: Vec<Crl>,
}

/// What one entry of a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableEntry {
    /// The chip's certificate.
    Vcek,
    /// The provider's certificate.
    Vlek,
    /// The signing CA: ASK, or ASVK for a VLEK.
    Ask,
    /// The root.
    Ark,
    /// A revocation list.
    Crl,
}

impl TableEntry {
    const GUIDS: [(Self, [u8; 16]); 5] = [
        (Self::Vcek, guid(0x63da_758d_e664_4564_adc5_f4b9_3be8_accd)),
        (Self::Vlek, guid(0xa807_4bc2_a25a_483e_aae6_39c0_45a0_b8a1)),
        (Self::Ask, guid(0x4ab7_b379_bbac_4fe4_a02f_05ae_f327_c782)),
        (Self::Ark, guid(0xc0b4_06a4_a803_4952_9743_3fb6_014c_d0ae)),
        (Self::Crl, guid(0x92f8_1bc3_5811_4d3d_97ff_d19f_88dc_67ea)),
    ];

    /// The entry's GUID in the byte order of RFC 4122, as tables have it.
    pub fn guid(self) -> [u8; 16] {
        Self::GUIDS.iter().find(|(kind, _)| *kind == self).map_or([0; 16], |(_, guid)| *guid)
    }
}

const fn guid(value: u128) -> [u8; 16] {
    value.to_be_bytes()
}

impl CertTable {
    /// Reads a table. Entries of unknown kinds are skipped; an entry that
    /// leaves the table, overlaps another or comes twice is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, VerifyError> {
        let mut table = Self::default();
        for (kind, content) in entries(bytes)? {
            match kind {
                TableEntry::Crl => table.crls.push(Crl::parse(content)?),
                _ => {
                    let limits = PemLimits { blocks: 1, ..PemLimits::CHAIN };
                    table.certificates.extend(der_or_pem(content, limits)?);
                }
            }
        }
        Ok(table)
    }
}

/// The known entries of a table, in order, their content not read.
pub fn entries(bytes: &[u8]) -> Result<Vec<(TableEntry, &[u8])>, VerifyError> {
    if bytes.len() > MAX_TABLE_BYTES {
        return Err(wrong("size", format!("at most {MAX_TABLE_BYTES} bytes"), bytes.len()));
    }
    let headers = headers(bytes)?;
    let data_start = headers.len().saturating_add(1).saturating_mul(ENTRY_BYTES);
    let mut guids: Vec<_> = headers.iter().map(|(guid, ..)| guid).collect();
    guids.sort_unstable();
    if let Some([twice, _]) = guids.windows(2).find(|pair| pair.first() == pair.last()) {
        return Err(wrong("entry", "each kind once", format!("{} twice", hex(*twice))));
    }
    let mut spans = Vec::new();
    let mut out: Vec<(TableEntry, &[u8])> = Vec::new();
    for (guid, offset, length) in headers {
        let end = offset.checked_add(length).filter(|end| *end <= bytes.len());
        let content = end.and_then(|end| bytes.get(offset..end));
        let Some(content) = content.filter(|_| offset >= data_start && length > 0) else {
            let place = format!("offset {offset}, length {length}");
            return Err(wrong("entry", "content behind the header and inside the table", place));
        };
        spans.push((offset, offset.saturating_add(length)));
        let known = TableEntry::GUIDS.iter().find(|(_, known)| *known == guid);
        if let Some((kind, _)) = known {
            out.push((*kind, content));
        }
    }
    spans.sort_unstable();
    if spans.windows(2).any(|pair| matches!(pair, [(_, end), (start, _)] if start < end)) {
        return Err(wrong("entries", "content that does not overlap", "an overlap"));
    }
    Ok(out)
}

/// GUID, offset and length of each entry, up to the all-zero one.
fn headers(bytes: &[u8]) -> Result<Vec<([u8; 16], usize, usize)>, VerifyError> {
    let mut reader = Reader::new(bytes);
    let mut out = Vec::new();
    loop {
        let mut entry = reader
            .sub("certificate table, header", ENTRY_BYTES)
            .map_err(|error| error.because(Reason::CertTable))?;
        if entry.peek().iter().all(|byte| *byte == 0) {
            return Ok(out);
        }
        if out.len() == MAX_ENTRIES {
            return Err(wrong("header", format!("at most {MAX_ENTRIES} entries"), "more"));
        }
        let because = |error: crate::wire::ParseError| error.because(Reason::CertTable);
        let guid = entry.array("certificate table, GUID").map_err(because)?;
        let offset = entry.length_le("certificate table, offset").map_err(because)?;
        let length = entry.length_le("certificate table, length").map_err(because)?;
        out.push((guid, offset, length));
    }
}

/// A table with these entries, as a host or a model builds it.
pub fn build(entries: &[(TableEntry, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut offset = entries.len().saturating_add(1).saturating_mul(ENTRY_BYTES);
    for (kind, content) in entries {
        out.extend(kind.guid());
        out.extend(u32::try_from(offset).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes());
        offset = offset.saturating_add(content.len());
    }
    out.extend([0; ENTRY_BYTES]);
    for (_, content) in entries {
        out.extend(*content);
    }
    out
}

fn wrong(field: &str, expected: impl Into<String>, actual: impl core::fmt::Display) -> VerifyError {
    VerifyError::new(Reason::CertTable, format!("certificate table, {field}"), expected, actual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_tables_read_back() {
        let table = build(&[(TableEntry::Vcek, b"abc"), (TableEntry::Ark, b"de")]);
        let read = entries(&table).unwrap();
        assert_eq!(read, [(TableEntry::Vcek, &b"abc"[..]), (TableEntry::Ark, &b"de"[..])]);
        assert_eq!(crate::wire::hex(&TableEntry::Vcek.guid()), "63da758de6644564adc5f4b93be8accd");
    }

    #[test]
    fn hostile_tables_are_refused() {
        let twice = build(&[(TableEntry::Ark, b"abc"), (TableEntry::Ark, b"de")]);
        // A kind that nobody knows comes once too.
        let mut unknown = build(&[(TableEntry::Vcek, b"abc"), (TableEntry::Ark, b"de")]);
        unknown[..16].fill(7);
        unknown[24..40].fill(7);
        let mut overlap = build(&[(TableEntry::Vcek, b"abc"), (TableEntry::Ark, b"de")]);
        overlap[40] -= 1;
        let mut outside = build(&[(TableEntry::Vcek, b"abc")]);
        outside[20] = 9;
        let mut inside_header = build(&[(TableEntry::Vcek, b"abc")]);
        inside_header[16] = 0;
        let no_end = [1; 24];
        for bad in [&twice[..], &unknown, &overlap, &outside, &inside_header, &no_end, &[]] {
            assert_eq!(entries(bad).unwrap_err().reason, Reason::CertTable);
        }
    }
}
