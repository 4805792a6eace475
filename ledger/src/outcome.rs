//! What became of an allowed call. Format: docs/formats/outcome.md.

use casemate_attestation::cbor::{CborError, Fields, Map};
use ciborium::Value;

use crate::args::Commitment;
use crate::record::Record;
use crate::values;

/// A call's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// SHA-256 of the decision record.
    pub decision: [u8; 32],
    /// What happened.
    pub status: Status,
    /// Why, when it did not end in a result: a stable word, no tool output.
    pub reason: Option<String>,
    /// The result that was sent to the sandbox, committed to.
    pub result: Option<Commitment>,
    /// The tool server, when one was asked.
    pub upstream: Option<Upstream>,
    /// When the call was sent, milliseconds since 1970; 0 when it was not or nobody knows.
    pub started_ms: u64,
    /// When it ended or was given up.
    pub ended_ms: u64,
    /// Bytes of canonical arguments sent to the tool.
    pub bytes_out: u64,
    /// Bytes of the result given to the sandbox.
    pub bytes_in: u64,
}

/// What happened to an allowed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The tool answered with a result.
    Executed,
    /// The tool answered that it failed.
    ToolError,
    /// The tool server broke the protocol, a limit, or the connection.
    UpstreamError,
    /// No answer came in time; the tool may have run.
    Timeout,
    /// The call was cancelled; the tool may have run.
    Cancelled,
    /// The tool never saw the call.
    NotDispatched,
    /// The gateway stopped between decision and outcome: nobody knows.
    Unknown,
}

/// The tool server that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// `mcp-stdio`.
    pub kind: String,
    /// Its name in the gateway's configuration.
    pub name: String,
    /// SHA-256 of its executable, for a child process.
    pub executable: Option<[u8; 32]>,
}

const WHAT: &str = "outcome";

impl Status {
    /// Every status.
    pub const ALL: [Self; 7] = [
        Self::Executed,
        Self::ToolError,
        Self::UpstreamError,
        Self::Timeout,
        Self::Cancelled,
        Self::NotDispatched,
        Self::Unknown,
    ];

    /// The status's name in the format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Executed => "executed",
            Self::ToolError => "tool_error",
            Self::UpstreamError => "upstream_error",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::NotDispatched => "not_dispatched",
            Self::Unknown => "unknown",
        }
    }
}

impl Record for Outcome {
    const TYPE: &'static str = "application/casemate.outcome+cose";
    const MAX_BYTES: usize = 4096;

    fn payload(&self) -> Vec<u8> {
        Map::new()
            .set(1, 1)
            .bytes(2, &self.decision)
            .set(3, self.status.name())
            .optional(4, self.result.as_ref().map(values::commitment))
            .optional(5, self.upstream.as_ref().map(Upstream::to_value))
            .set(6, self.started_ms)
            .set(7, self.ended_ms)
            .set(8, self.bytes_out)
            .set(9, self.bytes_in)
            .optional(10, self.reason.as_deref())
            .encode()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode(WHAT, payload, Self::MAX_BYTES)?;
        fields.version(1, 1)?;
        let name = fields.text(3)?;
        let status = Status::ALL.into_iter().find(|status| status.name() == name);
        let outcome = Self {
            decision: fields.array(2)?,
            status: status.ok_or_else(|| fields.wrong(3, "a known status"))?,
            reason: values::optional_text(&mut fields, 10)?,
            result: values::optional_commitment(&mut fields, 4)?,
            upstream: fields.optional(5).map(Upstream::from_value).transpose()?,
            started_ms: fields.uint(6)?,
            ended_ms: fields.uint(7)?,
            bytes_out: fields.uint(8)?,
            bytes_in: fields.uint(9)?,
        };
        fields.end()?;
        Ok(outcome)
    }
}

impl Upstream {
    fn to_value(&self) -> Value {
        Map::new()
            .set(1, self.kind.as_str())
            .set(2, self.name.as_str())
            .optional(3, self.executable.map(|digest| Value::Bytes(digest.to_vec())))
            .into_value()
    }

    fn from_value(value: Value) -> Result<Self, CborError> {
        let mut fields = Fields::of("upstream", value)?;
        let upstream = Self {
            kind: fields.text(1)?,
            name: fields.text(2)?,
            executable: values::optional_array(&mut fields, 3)?,
        };
        fields.end()?;
        Ok(upstream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::survives;

    #[test]
    fn every_status_survives() {
        for status in Status::ALL {
            survives(Outcome {
                decision: [1; 32],
                status,
                reason: None,
                result: Some(Commitment::to_result(&[2; 32], b"{}")),
                upstream: Some(Upstream {
                    kind: "mcp-stdio".to_owned(),
                    name: "time".to_owned(),
                    executable: Some([3; 32]),
                }),
                started_ms: 1,
                ended_ms: 2,
                bytes_out: 3,
                bytes_in: 4,
            });
        }
        survives(Outcome {
            decision: [1; 32],
            status: Status::Unknown,
            reason: Some("gateway_restart".to_owned()),
            result: None,
            upstream: None,
            started_ms: 0,
            ended_ms: 2,
            bytes_out: 0,
            bytes_in: 0,
        });
    }
}
