//! A leaf of the log: 0x01, the kind in one byte, the record's signed bytes.

use crate::record::{self, Record};
use crate::text::hex;
use crate::{
    Approval, Decision, Event, Grant, Invocation, Outcome, Revocation, RevocationTarget, Stop,
    Verdict,
};

/// One leaf, its record still bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// What the record is.
    pub kind: LeafKind,
    /// The record: a COSE_Sign1.
    pub record: Vec<u8>,
}

/// What a leaf's record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeafKind {
    /// A grant, signed by its issuer.
    Grant,
    /// A revocation, signed by the gateway.
    Revocation,
    /// A decision, signed by the gateway.
    Decision,
    /// An outcome, signed by the gateway.
    Outcome,
    /// An event, signed by the gateway.
    Event,
    /// A person's word on a call that waits, signed by that person.
    Approval,
    /// The operator stops sandboxes or lets them go on, signed by the gateway.
    Stop,
}

/// Why bytes are not a leaf.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("leaf, {field}: expected {expected}, got {actual}")]
pub struct LeafError {
    /// The field at fault.
    pub field: &'static str,
    /// What it had to be.
    pub expected: &'static str,
    /// What it was.
    pub actual: String,
}

/// The longest leaf: entry bundles prefix each with 16 bits (C2SP tlog-tiles).
pub const MAX_LEAF_BYTES: usize = 65_535;
const VERSION: u8 = 1;

impl LeafKind {
    const CODES: [(u8, Self); 7] = [
        (1, Self::Grant),
        (2, Self::Revocation),
        (3, Self::Decision),
        (4, Self::Outcome),
        (5, Self::Event),
        (6, Self::Approval),
        (7, Self::Stop),
    ];

    fn code(self) -> u8 {
        Self::CODES.iter().find(|(_, kind)| *kind == self).map_or(0, |(code, _)| *code)
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::CODES.iter().find(|(known, _)| *known == code).map(|(_, kind)| *kind)
    }
}

impl Leaf {
    /// A leaf of `record`.
    pub fn new(kind: LeafKind, record: &[u8]) -> Self {
        Self { kind, record: record.to_vec() }
    }

    /// The leaf's bytes, as they are hashed.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.record.len() + 2);
        bytes.extend([VERSION, self.kind.code()]);
        bytes.extend_from_slice(&self.record);
        bytes
    }

    /// Reads a leaf; its record stays bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, LeafError> {
        let error = |field, expected, actual| LeafError { field, expected, actual };
        if bytes.len() > MAX_LEAF_BYTES {
            return Err(error("length", "at most 65535 bytes", bytes.len().to_string()));
        }
        let [version, code, record @ ..] = bytes else {
            return Err(error("length", "at least 2 bytes", bytes.len().to_string()));
        };
        if *version != VERSION {
            return Err(error("version", "1", version.to_string()));
        }
        let kind = LeafKind::from_code(*code)
            .ok_or_else(|| error("kind", "a known kind (1 to 7)", code.to_string()))?;
        Ok(Self { kind, record: record.to_vec() })
    }
}

impl Leaf {
    /// The record in one line for people. Signatures are not checked.
    pub fn describe(&self) -> String {
        let described = match self.kind {
            LeafKind::Grant => peek::<Grant>(&self.record).map(|grant| {
                format!("{} for task {} by {}", hex(&grant.id), grant.task, grant.issuer)
            }),
            LeafKind::Revocation => peek::<Revocation>(&self.record).map(|revocation| {
                let target = match &revocation.target {
                    RevocationTarget::Grant(id) => format!("grant {}", hex(id)),
                    RevocationTarget::Identity(key) => format!("identity {key}"),
                    RevocationTarget::Sandbox(uri) => format!("sandbox {uri}"),
                };
                format!("{target} by {}: {}", revocation.by, revocation.reason)
            }),
            LeafKind::Decision => peek::<Decision>(&self.record).map(|d| describe_decision(&d)),
            LeafKind::Outcome => peek::<Outcome>(&self.record).map(|outcome| {
                let reason = outcome.reason.map(|reason| format!(" ({reason})"));
                let took = outcome.ended_ms.saturating_sub(outcome.started_ms.max(1));
                let took = if outcome.started_ms == 0 { 0 } else { took };
                let reason = reason.unwrap_or_default();
                format!("{}{reason}, {took} ms", outcome.status.name())
            }),
            LeafKind::Approval => peek::<Approval>(&self.record).map(|approval| {
                let word = if approval.approve { "yes" } else { "no" };
                format!("{word} by {} to {}", approval.approver, hex(&approval.hold))
            }),
            LeafKind::Stop => peek::<Stop>(&self.record).map(|stop| {
                let word = stop.level.map_or("lift", crate::StopLevel::name);
                format!("{word} {} by {}: {}", stop.scope, stop.by, stop.reason)
            }),
            LeafKind::Event => peek::<Event>(&self.record).map(|event| {
                let sandbox = event.sandbox.map(|sandbox| format!(" {sandbox}"));
                let note = event.note.map(|note| format!(": {note}"));
                let parts = [Some(event.kind.name().to_owned()), sandbox, note];
                parts.into_iter().flatten().collect()
            }),
        };
        described.unwrap_or_else(|| "a record that does not read".to_owned())
    }
}

fn describe_decision(decision: &Decision) -> String {
    let call = peek::<Invocation>(&decision.invocation);
    let call = call.map_or_else(String::new, |call| format!("{} #{}", call.tool, call.sequence));
    let verdict = match decision.verdict {
        Verdict::Allow => "allow".to_owned(),
        Verdict::Deny(code) => format!("deny {}", code.name()),
        Verdict::Hold(_) => "hold".to_owned(),
    };
    format!("{verdict} {call} by {}", decision.rules.join(", "))
}

fn peek<T: Record>(bytes: &[u8]) -> Option<T> {
    record::peek(bytes).map(|(_, record)| record).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_read_back_and_unknown_ones_are_refused() {
        for (_, kind) in LeafKind::CODES {
            let leaf = Leaf::new(kind, b"record");
            assert_eq!(Leaf::decode(&leaf.encode()), Ok(leaf));
        }
        for (bad, field) in [(&[][..], "length"), (&[2, 1], "version"), (&[1, 9], "kind")] {
            assert_eq!(Leaf::decode(bad).unwrap_err().field, field);
        }
        assert_eq!(Leaf::decode(&[1; 65_536]).unwrap_err().field, "length");
    }
}
