//! What is asked about generations of hardware that are known broken.

use base64::Engine as _;
use serde::Deserialize;

use super::{AdvisoryGrace, HexBytes, PolicyError};
use crate::break_list::BreakList;

/// The signed list of broken generations, and what to accept in spite of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerationPolicy {
    /// The signed list in base64 (docs/formats/break-list.md). Default none.
    pub list: Option<String>,
    /// The Ed25519 key that must have signed it; needed with a list.
    pub key: Option<HexBytes<32>>,
    /// The lowest sequence number of a list, against older ones. Default 0.
    pub min_sequence: u64,
    /// Entries of the list to accept all the same, each until a date.
    pub accept: Vec<AdvisoryGrace>,
}

impl GenerationPolicy {
    /// The list, its signature checked.
    pub(super) fn read(&self) -> Result<Option<BreakList>, PolicyError> {
        let wrong = |message: String| PolicyError::Generations { message };
        let (list, key) = match (&self.list, &self.key) {
            (None, _) => return Ok(None),
            (Some(_), None) => {
                return Err(wrong("key: expected the list's signing key, got none".to_owned()));
            }
            (Some(list), Some(key)) => (list, key),
        };
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(list)
            .map_err(|error| wrong(format!("list: expected base64, {error}")))?;
        let list = BreakList::verify(&bytes, &key.0).map_err(|error| wrong(error.to_string()))?;
        if list.sequence < self.min_sequence {
            let (floor, actual) = (self.min_sequence, list.sequence);
            return Err(wrong(format!("list: expected sequence {floor} or later, got {actual}")));
        }
        Ok(Some(list))
    }
}
