//! What a person said of a call that waits. Format: docs/formats/approval.md.

use casemate_attestation::UnixTime;
use casemate_attestation::cbor::{CborError, Fields, Map};

use crate::record::Record;
use crate::values;

/// A person's word on one call, signed by that person's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// SHA-256 of the decision that holds the call.
    pub hold: [u8; 32],
    /// Yes, or no.
    pub approve: bool,
    /// Who says so, by the name that the gateway's operator listed.
    pub approver: String,
    /// SHA-256 of what the person was shown.
    pub display: [u8; 32],
    /// Until when a yes may be used; at most [`MAX_APPROVAL_SECONDS`] ahead.
    pub expires: UnixTime,
    /// Why, in the person's words.
    pub reason: Option<String>,
}

/// The longest that an approval may be used, and that a call waits for one.
pub const MAX_APPROVAL_SECONDS: u64 = 15 * 60;

impl Record for Approval {
    const TYPE: &'static str = "application/casemate.approval+cose";
    const MAX_BYTES: usize = 4096;

    fn payload(&self) -> Vec<u8> {
        Map::new()
            .set(1, 1)
            .bytes(2, &self.hold)
            .set(3, self.approve)
            .set(4, self.approver.as_str())
            .bytes(5, &self.display)
            .set(6, self.expires.0)
            .optional(7, self.reason.as_deref())
            .encode()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode("approval", payload, Self::MAX_BYTES)?;
        fields.version(1, 1)?;
        let approval = Self {
            hold: fields.array(2)?,
            approve: fields.bool(3)?,
            approver: values::bounded_text(&mut fields, 4, 256)?,
            display: fields.array(5)?,
            expires: UnixTime(fields.uint(6)?),
            reason: values::optional_bounded_text(&mut fields, 7, 1024)?,
        };
        fields.end()?;
        Ok(approval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::survives;

    #[test]
    fn yes_and_no_survive() {
        for (approve, reason) in [(true, None), (false, Some("not this month".to_owned()))] {
            survives(Approval {
                hold: [1; 32],
                approve,
                approver: "alice".to_owned(),
                display: [2; 32],
                expires: UnixTime(1_790_000_000),
                reason,
            });
        }
    }
}
