//! What else a gateway writes down. Format: docs/formats/event.md.

use casemate_attestation::cbor::{CborError, Fields, Map};
use ciborium::Value;

use crate::args::Commitment;
use crate::invocation::GrantRef;
use crate::record::Record;
use crate::values;

/// Something that happened beside the calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The sandbox it concerns, by URI.
    pub sandbox: Option<String>,
    /// That sandbox's boot incarnation.
    pub epoch: Option<u64>,
    /// That sandbox's identity key.
    pub key: Option<[u8; 32]>,
    /// The grant it concerns.
    pub grant: Option<GrantRef>,
    /// SHA-256 of what it concerns: a certificate, a set of tools.
    pub digest: Option<[u8; 32]>,
    /// A result that it concerns, committed to.
    pub result: Option<Commitment>,
    /// More words for people, never a ground for a decision.
    pub note: Option<String>,
    /// The gateway's clock in milliseconds since 1970.
    pub time_ms: u64,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// The gateway started; `digest` is that of its tools and issuers.
    GatewayStart,
    /// A sandbox said hello with this certificate (`digest`) and key.
    Identity,
    /// A grant was bound to the sandbox, epoch and key that used it first.
    Activation,
    /// A grant waits for its operator: its sandbox went round in circles.
    Suspended,
    /// The operator looked, and the grant goes on.
    Resumed,
    /// A sandbox's chain broke; its calls are refused from here on.
    Frozen,
    /// A tool's definition is no longer the one that was pinned.
    ToolDrift,
    /// The attempt of an allowed call was not answered, and is made again;
    /// `digest` is the decision's.
    Retried,
    /// An allowed call was answered after its outcome; nobody was given the
    /// `result`. `digest` is the decision's.
    LateResult,
    /// The key of a task's payloads was deleted; `digest` is that of the task's name.
    PayloadsShredded,
}

const WHAT: &str = "event";

impl EventKind {
    const ALL: [Self; 10] = [
        Self::GatewayStart,
        Self::Identity,
        Self::Activation,
        Self::Frozen,
        Self::ToolDrift,
        Self::PayloadsShredded,
        Self::Suspended,
        Self::Resumed,
        Self::Retried,
        Self::LateResult,
    ];

    /// The kind's name in the format.
    pub fn name(self) -> &'static str {
        match self {
            Self::GatewayStart => "gateway-start",
            Self::Identity => "identity",
            Self::Activation => "activation",
            Self::Suspended => "suspended",
            Self::Resumed => "resumed",
            Self::Frozen => "frozen",
            Self::ToolDrift => "tool-drift",
            Self::Retried => "retried",
            Self::LateResult => "late-result",
            Self::PayloadsShredded => "payloads-shredded",
        }
    }
}

impl Event {
    /// An event of `kind` at `time_ms` with nothing else said.
    pub fn new(kind: EventKind, time_ms: u64) -> Self {
        Self {
            kind,
            sandbox: None,
            epoch: None,
            key: None,
            grant: None,
            digest: None,
            result: None,
            note: None,
            time_ms,
        }
    }
}

impl Record for Event {
    const TYPE: &'static str = "application/casemate.event+cose";
    const MAX_BYTES: usize = 4096;

    fn payload(&self) -> Vec<u8> {
        Map::new()
            .set(1, 1)
            .set(2, self.kind.name())
            .optional(3, self.sandbox.as_deref())
            .optional(4, self.epoch)
            .optional(5, self.key.map(|key| Value::Bytes(key.to_vec())))
            .optional(6, self.grant.map(GrantRef::to_value))
            .optional(7, self.digest.map(|digest| Value::Bytes(digest.to_vec())))
            .optional(8, self.note.as_deref())
            .set(9, self.time_ms)
            .optional(10, self.result.as_ref().map(values::commitment))
            .encode()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode(WHAT, payload, Self::MAX_BYTES)?;
        fields.version(1, 1)?;
        let name = fields.text(2)?;
        let kind = EventKind::ALL.into_iter().find(|kind| kind.name() == name);
        let event = Self {
            kind: kind.ok_or_else(|| fields.wrong(2, "a known kind of event"))?,
            sandbox: values::optional_text(&mut fields, 3)?,
            epoch: values::optional_uint(&mut fields, 4)?,
            key: values::optional_array(&mut fields, 5)?,
            grant: GrantRef::read_optional(&mut fields, 6)?,
            digest: values::optional_array(&mut fields, 7)?,
            result: values::optional_commitment(&mut fields, 10)?,
            note: values::optional_text(&mut fields, 8)?,
            time_ms: fields.uint(9)?,
        };
        fields.end()?;
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::survives;

    #[test]
    fn every_kind_survives() {
        for kind in EventKind::ALL {
            survives(Event::new(kind, 7));
        }
        survives(Event {
            sandbox: Some("spiffe://casemate.internal/demo/sb/00".to_owned()),
            epoch: Some(1),
            key: Some([1; 32]),
            grant: Some(GrantRef { id: [2; 16], digest: [3; 32] }),
            digest: Some([4; 32]),
            result: Some(Commitment::to_result(&[5; 32], b"{}")),
            note: Some("first use".to_owned()),
            ..Event::new(EventKind::Activation, 7)
        });
    }
}
