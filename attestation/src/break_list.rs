//! A signed list of hardware generations that are known broken.
//!
//! Format: docs/formats/break-list.md. A signature under a root whose chips
//! leak their keys still verifies; only such a list says that it means nothing.
//! A policy carries the list and the key that must have signed it, so that a
//! bundle appraises the same way years later.

use ciborium::Value;

use crate::cbor::{CborError, Fields, Map};
use crate::cose::{self, CoseError};
use crate::snp::{Product, Tcb};
use crate::time::UnixTime;

/// The record type in the COSE header.
pub const BREAK_LIST_TYPE: &str = "application/casemate.break-list+cose";
const MAX_BYTES: usize = 64 * 1024;
const MAX_ENTRIES: usize = 256;
const WHAT: &str = "break list";

/// A list whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakList {
    /// Rises with each list of one signer.
    pub sequence: u64,
    /// When the list was made.
    pub issued_at: UnixTime,
    /// What is known broken.
    pub entries: Vec<BrokenGeneration>,
}

/// One generation, or its older TCBs, that no longer proves anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenGeneration {
    /// A stable id, such as a CVE number.
    pub id: String,
    /// An SNP product line, or the twelve hex digits of a TDX platform's FMSPC.
    pub generation: String,
    /// The lowest TCB that is sound again (SNP); none: no TCB helps.
    pub fixed_in: Option<Tcb>,
    /// What is broken, for people.
    pub text: String,
}

/// Why a list is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BreakListError {
    /// The COSE structure or the signature is wrong.
    #[error(transparent)]
    Cose(#[from] CoseError),
    /// The payload is not a list.
    #[error(transparent)]
    Cbor(#[from] CborError),
}

impl BreakList {
    /// The list signed by the key that policies name; `sign` is its act.
    pub fn sign(&self, public_key: &[u8; 32], sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Vec<u8> {
        let entries = self.entries.iter().map(BrokenGeneration::to_value).collect();
        let payload = Map::new()
            .set(1, 1)
            .set(2, self.sequence)
            .set(3, self.issued_at.0)
            .set(4, Value::Array(entries))
            .encode();
        cose::sign1(BREAK_LIST_TYPE, public_key, payload, sign)
    }

    /// Reads a list and checks that `public_key` signed it.
    pub fn verify(bytes: &[u8], public_key: &[u8; 32]) -> Result<Self, BreakListError> {
        let record = cose::Unverified::parse(BREAK_LIST_TYPE, bytes, MAX_BYTES)?;
        let mut fields = Fields::decode(WHAT, &record.verify(public_key)?, MAX_BYTES)?;
        fields.version(1, 1)?;
        let sequence = fields.uint(2)?;
        let issued_at = UnixTime(fields.uint(3)?);
        let items = fields.items(4)?;
        if items.len() > MAX_ENTRIES {
            return Err(fields.wrong(4, "at most 256 entries").into());
        }
        fields.end()?;
        let entries =
            items.into_iter().map(BrokenGeneration::from_value).collect::<Result<_, _>>()?;
        Ok(Self { sequence, issued_at, entries })
    }

    /// The entries that an SNP report of `product` with `tcb` falls under.
    pub fn snp(&self, product: Product, tcb: Tcb) -> impl Iterator<Item = &BrokenGeneration> {
        self.entries.iter().filter(move |entry| {
            entry.generation == product.name()
                && entry.fixed_in.is_none_or(|fixed| !tcb.at_least(&fixed))
        })
    }

    /// The entries that a TDX platform of this FMSPC falls under.
    pub fn tdx(&self, fmspc: [u8; 6]) -> impl Iterator<Item = &BrokenGeneration> {
        let fmspc = crate::wire::hex(&fmspc);
        self.entries.iter().filter(move |entry| entry.generation.eq_ignore_ascii_case(&fmspc))
    }
}

impl BrokenGeneration {
    fn to_value(&self) -> Value {
        let fixed = self.fixed_in.map(|Tcb { fmc, bootloader, tee, snp, microcode }| {
            Value::Bytes(vec![fmc, bootloader, tee, snp, microcode])
        });
        Map::new()
            .set(1, self.id.as_str())
            .set(2, self.generation.as_str())
            .optional(3, fixed)
            .set(4, self.text.as_str())
            .into_value()
    }

    fn from_value(value: Value) -> Result<Self, CborError> {
        let mut fields = Fields::of(WHAT, value)?;
        let (id, generation) = (fields.text(1)?, fields.text(2)?);
        let fixed_in = match fields.optional(3) {
            None => None,
            Some(value) => {
                let parts: Option<[u8; 5]> =
                    value.into_bytes().ok().and_then(|bytes| bytes.try_into().ok());
                let [fmc, bootloader, tee, snp, microcode] =
                    parts.ok_or_else(|| fields.wrong(3, "five bytes"))?;
                Some(Tcb { fmc, bootloader, tee, snp, microcode })
            }
        };
        let entry = Self { id, generation, fixed_in, text: fields.text(4)? };
        fields.end()?;
        Ok(entry)
    }
}
