//! The vendor's fields in the report's opaque data.
//!
//! Layout: type u16, length u16, value, little-endian, one after another
//! (NVIDIA nvtrust, local_gpu_verifier, `spdm_msrt_resp_msg.py`, and
//! attestation-sdk, `spdm_opaque_data_parser`). Unknown types are kept as bytes: a new
//! firmware must not stop every verifier.

use core::fmt;

use crate::wire::Reader;

use super::code::{Code, Finding};

/// Types of fields that are read here.
pub mod field {
    #![expect(missing_docs, reason = "the names are NVIDIA's; docs/formats lists the contents")]
    pub const DRIVER_VERSION: u16 = 3;
    pub const VBIOS_VERSION: u16 = 6;
    pub const NVDEC0_STATUS: u16 = 11;
    pub const CHIP_SKU: u16 = 15;
    pub const PROJECT: u16 = 17;
    pub const PROJECT_SKU: u16 = 18;
    pub const FWID: u16 = 20;
    pub const PROTECTED_PCIE_STATUS: u16 = 21;
    pub const SWITCH_PDI: u16 = 22;
    pub const LOCK_SWITCH_STATUS: u16 = 25;
    pub const SWITCH_GPU_PDIS: u16 = 26;
    pub const OPAQUE_DATA_VERSION: u16 = 34;
    pub const CHIP_INFO: u16 = 35;
    pub const FEATURE_FLAG: u16 = 36;
}

/// The most opaque fields that are read; those seen have up to 24.
const MAX_FIELDS: usize = 128;
/// NVIDIA's verifiers know the versions 0 (no such field) and 1.
const MAX_VERSION: u16 = 1;
const ON: u8 = 0xaa;
const OFF: u8 = 0x55;
/// The GPUs that one switch names (SWITCH_GPU_PDIS).
const GPUS_OF_SWITCH: usize = 8;

/// The fields as they came, each type once, sorted by type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opaque<'a> {
    fields: Vec<(u16, &'a [u8])>,
    version: u16,
}

/// A device's 64-bit identity; the low half of its boot ROM certificate's serial.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pdi(pub [u8; 8]);

/// How the machine's GPUs are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// One GPU passed through alone.
    Spt,
    /// Several GPUs with encrypted NVLink (Blackwell).
    Mpt,
    /// Several GPUs and their switches, PCIe encrypted, NVLink not (Hopper).
    Ppcie,
    /// A mode that no known document names.
    Unknown(u16),
}

impl<'a> Opaque<'a> {
    /// Splits the opaque data into its fields.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Finding> {
        let mut reader = Reader::new(bytes);
        let mut fields = Vec::new();
        while !reader.is_empty() {
            fields.push(next(&mut reader)?);
            if fields.len() > MAX_FIELDS {
                let actual = "more";
                return Err(Finding::new(Code::OpaqueData, "opaque data", "128 fields", actual));
            }
        }
        fields.sort_by_key(|(kind, _)| *kind);
        if let Some(kind) = duplicate(&fields) {
            let field = format!("opaque field {kind}");
            return Err(Finding::new(Code::DuplicateOpaqueField, field, "once", "twice"));
        }
        let mut opaque = Self { fields, version: 0 };
        opaque.version = opaque.number(field::OPAQUE_DATA_VERSION)?.unwrap_or(0);
        if opaque.version > MAX_VERSION {
            let actual = opaque.version.to_string();
            return Err(Finding::new(Code::OpaqueVersion, "opaque data version", "0 or 1", actual));
        }
        Ok(opaque)
    }

    /// The version of the opaque data; 0 where the field is absent.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Every field, by rising type.
    pub fn fields(&self) -> impl Iterator<Item = (u16, &'a [u8])> + '_ {
        self.fields.iter().copied()
    }

    /// The bytes of the field of type `kind`.
    pub fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        let at = self.fields.binary_search_by_key(&kind, |(kind, _)| *kind).ok()?;
        self.fields.get(at).map(|(_, bytes)| *bytes)
    }

    /// The two bytes of a field as a number.
    pub fn number(&self, kind: u16) -> Result<Option<u16>, Finding> {
        Ok(self.sized::<2>(kind)?.map(u16::from_le_bytes))
    }

    /// A field as a word of plain ASCII, without the NUL bytes at its end.
    pub fn text(&self, kind: u16) -> Result<Option<String>, Finding> {
        let Some(bytes) = self.bytes(kind) else { return Ok(None) };
        let end =
            bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
        let word = bytes.get(..end).unwrap_or_default();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._- ".contains(byte);
        match core::str::from_utf8(word) {
            Ok(text) if word.iter().all(plain) => Ok(Some(text.to_owned())),
            _ => Err(wrong(kind, "a word of ASCII letters and digits", bytes)),
        }
    }

    /// The GPU's firmware version as manifests print it (`96.00.9F.00.01`), or
    /// the switch's, which comes as text.
    pub fn firmware_version(&self) -> Result<Option<String>, Finding> {
        match self.bytes(field::VBIOS_VERSION) {
            None => Ok(None),
            Some([b0, b1, b2, b3, b4, _, _, _]) => {
                Ok(Some(format!("{b3:02X}.{b2:02X}.{b1:02X}.{b0:02X}.{b4:02X}")))
            }
            Some(_) => self.text(field::VBIOS_VERSION),
        }
    }

    /// Whether the video decoder 0 is on; index 35 is not measured when it is off.
    pub fn nvdec0(&self) -> Result<Option<bool>, Finding> {
        self.switch_state(field::NVDEC0_STATUS)
    }

    /// The firmware's digest as the certificate should name it.
    pub fn fwid(&self) -> Result<Option<[u8; 48]>, Finding> {
        self.sized(field::FWID)
    }

    /// The mode as the report states it, from opaque data version 1 on.
    pub fn stated_mode(&self) -> Result<Option<Mode>, Finding> {
        if self.version == 0 {
            return Ok(None);
        }
        Ok(self.number(field::FEATURE_FLAG)?.map(|flag| match flag {
            0 => Mode::Spt,
            1 => Mode::Mpt,
            2 => Mode::Ppcie,
            flag => Mode::Unknown(flag),
        }))
    }

    /// The mode: as stated, or from the protected-PCIe field of older firmware.
    pub fn mode(&self) -> Result<Mode, Finding> {
        if let Some(mode) = self.stated_mode()? {
            return Ok(mode);
        }
        let ppcie = self.switch_state(field::PROTECTED_PCIE_STATUS)?.unwrap_or(false);
        Ok(if ppcie { Mode::Ppcie } else { Mode::Spt })
    }

    /// The switches that a GPU says it is connected to, sorted, each once.
    pub fn switches_of_gpu(&self) -> Result<Vec<Pdi>, Finding> {
        let bytes = self.bytes(field::SWITCH_PDI).unwrap_or_default();
        let reversed = |mut pdi: [u8; 8]| {
            pdi.reverse();
            pdi
        };
        pdis(field::SWITCH_PDI, bytes, reversed)
    }

    /// A switch's own identity.
    pub fn pdi_of_switch(&self) -> Result<Option<Pdi>, Finding> {
        Ok(self.sized(field::SWITCH_PDI)?.map(Pdi))
    }

    /// The GPUs that a switch says are connected to it, sorted, each once.
    pub fn gpus_of_switch(&self) -> Result<Vec<Pdi>, Finding> {
        let Some(bytes) = self.bytes(field::SWITCH_GPU_PDIS) else { return Ok(Vec::new()) };
        match bytes.get(..GPUS_OF_SWITCH.saturating_mul(8)) {
            Some(named) => pdis(field::SWITCH_GPU_PDIS, named, |pdi| pdi),
            None => Err(wrong(field::SWITCH_GPU_PDIS, "at least 64 bytes", bytes)),
        }
    }

    /// Whether a switch's configuration is locked.
    pub fn switch_locked(&self) -> Result<Option<bool>, Finding> {
        Ok(self.number(field::LOCK_SWITCH_STATUS)?.map(|status| status == 1))
    }

    fn switch_state(&self, kind: u16) -> Result<Option<bool>, Finding> {
        match self.sized::<1>(kind)? {
            None => Ok(None),
            Some([ON]) => Ok(Some(true)),
            Some([OFF]) => Ok(Some(false)),
            Some(other) => Err(wrong(kind, "0xaa (on) or 0x55 (off)", &other)),
        }
    }

    fn sized<const N: usize>(&self, kind: u16) -> Result<Option<[u8; N]>, Finding> {
        let Some(bytes) = self.bytes(kind) else { return Ok(None) };
        match bytes.try_into() {
            Ok(array) => Ok(Some(array)),
            Err(_) => Err(wrong(kind, format!("{N} bytes"), bytes)),
        }
    }
}

impl Mode {
    /// The name in NVIDIA's claims and in policies.
    pub fn name(self) -> String {
        match self {
            Self::Spt => "spt".into(),
            Self::Mpt => "mpt".into(),
            Self::Ppcie => "ppcie".into(),
            Self::Unknown(flag) => format!("unknown-{flag}"),
        }
    }
}

impl fmt::Display for Pdi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::wire::hex(&self.0))
    }
}

impl fmt::Debug for Pdi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn next<'a>(reader: &mut Reader<'a>) -> Result<(u16, &'a [u8]), Finding> {
    let malformed = |error: crate::wire::ParseError| {
        Finding::new(Code::OpaqueData, error.field, error.expected, error.actual)
    };
    let kind = reader.u16_le("opaque field type").map_err(malformed)?;
    let length = reader.u16_le("opaque field length").map_err(malformed)?;
    let bytes = reader.slice("opaque field value", usize::from(length)).map_err(malformed)?;
    Ok((kind, bytes))
}

fn duplicate(sorted: &[(u16, &[u8])]) -> Option<u16> {
    sorted.windows(2).find_map(|pair| match pair {
        [(a, _), (b, _)] if a == b => Some(*a),
        _ => None,
    })
}

/// Splits `bytes` into identities of eight bytes; zero means none.
fn pdis(kind: u16, bytes: &[u8], order: fn([u8; 8]) -> [u8; 8]) -> Result<Vec<Pdi>, Finding> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(wrong(kind, "a multiple of 8 bytes", bytes));
    }
    let mut found: Vec<_> =
        chunks.iter().filter(|pdi| **pdi != [0; 8]).map(|pdi| Pdi(order(*pdi))).collect();
    found.sort();
    found.dedup();
    Ok(found)
}

fn wrong(kind: u16, expected: impl Into<String>, bytes: &[u8]) -> Finding {
    let shown = bytes.get(..bytes.len().min(16)).unwrap_or_default();
    let actual = format!("{} bytes, {}", bytes.len(), crate::wire::hex(shown));
    Finding::new(Code::OpaqueData, format!("opaque field {kind}"), expected, actual)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(fields: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, value) in fields {
            out.extend(kind.to_le_bytes());
            out.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
            out.extend(*value);
        }
        out
    }

    #[test]
    fn fields_are_interpreted() {
        let bytes = blob(&[
            (field::DRIVER_VERSION, b"550.90.07\0"),
            (field::VBIOS_VERSION, &[0, 0x9f, 0, 0x96, 1, 0, 0, 0]),
            (field::NVDEC0_STATUS, &[0x55]),
            (field::SWITCH_PDI, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]),
            (200, b"new"),
        ]);
        let opaque = Opaque::parse(&bytes).unwrap();
        assert_eq!(opaque.text(field::DRIVER_VERSION).unwrap().unwrap(), "550.90.07");
        assert_eq!(opaque.firmware_version().unwrap().unwrap(), "96.00.9F.00.01");
        assert_eq!(opaque.nvdec0(), Ok(Some(false)));
        assert_eq!(opaque.switches_of_gpu().unwrap(), [Pdi([8, 7, 6, 5, 4, 3, 2, 1])]);
        assert_eq!(opaque.mode(), Ok(Mode::Spt));
        assert_eq!((opaque.bytes(200), opaque.stated_mode()), (Some(b"new".as_slice()), Ok(None)));
    }

    #[test]
    fn mode_is_stated_or_concluded() {
        let old = blob(&[(field::PROTECTED_PCIE_STATUS, &[0xaa])]);
        assert_eq!(Opaque::parse(&old).unwrap().mode(), Ok(Mode::Ppcie));
        let new = blob(&[(field::OPAQUE_DATA_VERSION, &[1, 0]), (field::FEATURE_FLAG, &[9, 0])]);
        assert_eq!(Opaque::parse(&new).unwrap().mode(), Ok(Mode::Unknown(9)));
    }

    #[test]
    fn wrong_data_is_refused() {
        let code = |bytes: &[u8]| Opaque::parse(bytes).unwrap_err().code;
        assert_eq!(code(&[1]), Code::OpaqueData);
        assert_eq!(code(&[1, 0, 2, 0, 9]), Code::OpaqueData);
        assert_eq!(code(&blob(&[(3, b"1"), (3, b"1")])), Code::DuplicateOpaqueField);
        assert_eq!(code(&blob(&[(34, &[2, 0])])), Code::OpaqueVersion);
        assert_eq!(code(&blob(&[(34, &[1])])), Code::OpaqueData);
        let many: Vec<_> = (100..300).map(|kind| (kind, b"".as_slice())).collect();
        assert_eq!(code(&blob(&many)), Code::OpaqueData);
    }
}
