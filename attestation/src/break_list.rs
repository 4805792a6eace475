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
use crate::tdx::PckTcb;
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
    /// The lowest TCB that is sound again; none: no TCB helps.
    pub fixed_in: Option<FixedIn>,
    /// What is broken, for people.
    pub text: String,
}

/// The lowest TCB that is sound again, in every component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FixedIn {
    /// Of an SNP product line.
    Snp(Tcb),
    /// Of a TDX platform: the SGX components that its PCK is for, and PCESVN.
    Tdx {
        /// The components, each at least this.
        components: [u8; 16],
        /// The provisioning enclave's version, at least this.
        pcesvn: u16,
    },
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
                && match &entry.fixed_in {
                    Some(FixedIn::Snp(fixed)) => !tcb.at_least(fixed),
                    Some(FixedIn::Tdx { .. }) | None => true,
                }
        })
    }

    /// The entries that a TDX platform of this FMSPC with `tcb` falls under.
    pub fn tdx(&self, fmspc: [u8; 6], tcb: &PckTcb) -> impl Iterator<Item = &BrokenGeneration> {
        let (fmspc, tcb) = (crate::wire::hex(&fmspc), *tcb);
        self.entries.iter().filter(move |entry| {
            entry.generation.eq_ignore_ascii_case(&fmspc)
                && match &entry.fixed_in {
                    Some(FixedIn::Tdx { components, pcesvn }) => {
                        let sound = |(actual, fixed): (&u8, &u8)| actual >= fixed;
                        !(tcb.components.iter().zip(components).all(sound) && tcb.pcesvn >= *pcesvn)
                    }
                    Some(FixedIn::Snp(_)) | None => true,
                }
        })
    }
}

impl FixedIn {
    fn read(bytes: &[u8]) -> Option<Self> {
        if let Ok([fmc, bootloader, tee, snp, microcode]) = <[u8; 5]>::try_from(bytes) {
            return Some(Self::Snp(Tcb { fmc, bootloader, tee, snp, microcode }));
        }
        let (components, pcesvn) = bytes.split_first_chunk::<16>()?;
        let pcesvn = u16::from_be_bytes(pcesvn.try_into().ok()?);
        Some(Self::Tdx { components: *components, pcesvn })
    }
}

impl BrokenGeneration {
    fn to_value(&self) -> Value {
        let fixed = self.fixed_in.map(|fixed| {
            Value::Bytes(match fixed {
                FixedIn::Snp(Tcb { fmc, bootloader, tee, snp, microcode }) => {
                    vec![fmc, bootloader, tee, snp, microcode]
                }
                FixedIn::Tdx { components, pcesvn } => {
                    [&components[..], &pcesvn.to_be_bytes()].concat()
                }
            })
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
                let fixed = value.into_bytes().ok().and_then(|bytes| FixedIn::read(&bytes));
                Some(fixed.ok_or_else(|| fields.wrong(3, "5 bytes (SNP) or 18 (TDX)"))?)
            }
        };
        let entry = Self { id, generation, fixed_in, text: fields.text(4)? };
        fields.end()?;
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tdx_entry_names_a_tcb_that_is_sound_again() {
        let components = [5, 5, 2, 2, 3, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0];
        let entry = |fixed_in| BrokenGeneration {
            id: "X".to_owned(),
            generation: "50806F000000".to_owned(),
            fixed_in,
            text: "keys can be read out".to_owned(),
        };
        let fmspc = [0x50, 0x80, 0x6f, 0, 0, 0];
        let listed = |fixed_in, tcb: &PckTcb| {
            let entries = vec![entry(fixed_in)];
            let list = BreakList { sequence: 1, issued_at: UnixTime(1), entries };
            assert_eq!(list.tdx([9; 6], tcb).count(), 0);
            list.tdx(fmspc, tcb).count() == 1
        };
        let tcb = PckTcb { components, pcesvn: 13 };
        let fixed = FixedIn::Tdx { components, pcesvn: 13 };
        assert!(!listed(Some(fixed), &tcb));
        assert!(listed(Some(fixed), &PckTcb { pcesvn: 12, ..tcb }));
        let mut older = tcb;
        older.components[7] -= 1;
        assert!(listed(Some(fixed), &older) && listed(None, &tcb));
        // A floor of another TEE helps nobody.
        assert!(listed(Some(FixedIn::Snp(Tcb::default())), &tcb));
        for fixed_in in [None, Some(fixed), Some(FixedIn::Snp(Tcb { snp: 7, ..Tcb::default() }))] {
            let value = entry(fixed_in).to_value();
            assert_eq!(BrokenGeneration::from_value(value), Ok(entry(fixed_in)));
        }
        assert_eq!(FixedIn::read(&[0; 17]), None);
    }
}
