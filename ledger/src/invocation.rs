//! A tool call as the sandbox signs it. Format: docs/formats/invocation.md.
//!
//! The signature says that this call left this sandbox in this order. It does
//! not say that the model meant it. Each field that the sandbox asserts is
//! compared by the gateway with something that the sandbox does not control.

use casemate_attestation::Boundary;
use casemate_attestation::cbor::{CborError, Fields, Map};
use ciborium::Value;

use crate::args::Commitment;
use crate::record::Record;
use crate::values;

/// A signed tool call's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// A random id of this call.
    pub id: [u8; 16],
    /// The sandbox's URI, as in its identity certificate.
    pub sandbox: String,
    /// The boot incarnation, as in its identity certificate.
    pub epoch: u64,
    /// The position of this call in the sandbox's sequence, from 1.
    pub sequence: u64,
    /// SHA-256 of the previous invocation's signed bytes, zeros for the first.
    pub previous: [u8; 32],
    /// The lease under which the call is made: what makes it fresh.
    pub lease: Lease,
    /// The grant that the call relies on; none when the port knows of none.
    pub grant: Option<GrantRef>,
    /// The request's method: `tools/call`.
    pub method: String,
    /// The tool's name as `tools/list` gave it.
    pub tool: String,
    /// The digest of the tool's definition as `tools/list` gave it; none when
    /// the port was never shown that tool.
    pub tool_digest: Option<[u8; 32]>,
    /// The arguments, committed to.
    pub arguments: Commitment,
    /// What the sandbox says of its boundary, as in its identity certificate.
    pub boundary: BoundaryStatement,
    /// The guest's clock in milliseconds since 1970; logged, never relied on.
    pub time_ms: u64,
    /// Where that clock comes from.
    pub time_source: TimeSource,
}

/// A gateway's lease as the sandbox echoes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The lease's id.
    pub id: [u8; 16],
    /// Its current or immediately previous nonce.
    pub nonce: [u8; 16],
}

/// A grant by id and digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GrantRef {
    /// The grant's id.
    pub id: [u8; 16],
    /// SHA-256 of the signed grant.
    pub digest: [u8; 32],
}

/// The boundary facts that an invocation repeats from the certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundaryStatement {
    /// The class.
    pub class: Boundary,
    /// SHA-256 of the attestation bundle.
    pub bundle: [u8; 32],
    /// The measurement that was appraised.
    pub measurement: Vec<u8>,
}

/// Where a guest's clock comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeSource {
    /// The host's word.
    Host,
    /// SEV-SNP Secure TSC.
    SecureTsc,
    /// The TDX module's TSC.
    TdxTsc,
    /// There is no clock; `time_ms` is 0.
    None,
}

/// The longest sandbox URI (SPIFFE allows 2048 bytes; ours are short).
pub const MAX_SANDBOX_BYTES: usize = 512;
/// The longest tool name (MCP 2025-11-25, tools, "Tool Names").
pub const MAX_TOOL_BYTES: usize = 128;
const WHAT: &str = "invocation";

impl Record for Invocation {
    const TYPE: &'static str = "application/casemate.invocation+cose";
    const MAX_BYTES: usize = 4096;

    fn payload(&self) -> Vec<u8> {
        let lease = Map::new().bytes(1, &self.lease.id).bytes(2, &self.lease.nonce);
        let boundary = Map::new()
            .set(1, self.boundary.class.name())
            .bytes(2, &self.boundary.bundle)
            .bytes(3, &self.boundary.measurement);
        let time = Map::new().set(1, self.time_ms).set(2, self.time_source.code());
        Map::new()
            .set(1, 1)
            .bytes(2, &self.id)
            .set(3, self.sandbox.as_str())
            .set(4, self.epoch)
            .set(5, self.sequence)
            .bytes(6, &self.previous)
            .set(7, lease.into_value())
            .optional(8, self.grant.map(GrantRef::to_value))
            .set(9, self.method.as_str())
            .set(10, self.tool.as_str())
            .optional(11, self.tool_digest.map(|digest| Value::Bytes(digest.to_vec())))
            .set(12, values::commitment(&self.arguments))
            .set(14, boundary.into_value())
            .set(15, time.into_value())
            .encode()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode(WHAT, payload, Self::MAX_BYTES)?;
        fields.version(1, 1)?;
        let (time_ms, time_source) = read_time(&mut fields)?;
        let invocation = Self {
            id: fields.array(2)?,
            sandbox: values::bounded_text(&mut fields, 3, MAX_SANDBOX_BYTES)?,
            epoch: fields.uint(4)?,
            sequence: fields.uint(5)?,
            previous: fields.array(6)?,
            lease: Lease::read(&mut fields)?,
            grant: GrantRef::read_optional(&mut fields, 8)?,
            method: values::bounded_text(&mut fields, 9, 64)?,
            tool: values::bounded_text(&mut fields, 10, MAX_TOOL_BYTES)?,
            tool_digest: values::optional_array(&mut fields, 11)?,
            arguments: values::optional_commitment(&mut fields, 12)?
                .ok_or(CborError::Missing { what: WHAT, key: 12 })?,
            boundary: BoundaryStatement::read(&mut fields)?,
            time_ms,
            time_source,
        };
        if invocation.sequence == 0 {
            return Err(fields.wrong(5, "a sequence number from 1"));
        }
        fields.end()?;
        Ok(invocation)
    }
}

fn read_time(fields: &mut Fields) -> Result<(u64, TimeSource), CborError> {
    let mut time = fields.map(15)?;
    let time_ms = time.uint(1)?;
    let code = time.uint(2)?;
    let source = TimeSource::ALL
        .into_iter()
        .find(|source| source.code() == code)
        .ok_or_else(|| time.wrong(2, "a known time source (0 to 3)"))?;
    time.end()?;
    Ok((time_ms, source))
}

impl Lease {
    fn read(fields: &mut Fields) -> Result<Self, CborError> {
        let mut inner = fields.map(7)?;
        let lease = Self { id: inner.array(1)?, nonce: inner.array(2)? };
        inner.end()?;
        Ok(lease)
    }
}

impl GrantRef {
    pub(crate) fn to_value(self) -> Value {
        Map::new().bytes(1, &self.id).bytes(2, &self.digest).into_value()
    }

    pub(crate) fn read_optional(fields: &mut Fields, key: u64) -> Result<Option<Self>, CborError> {
        let Some(value) = fields.optional(key) else { return Ok(None) };
        let mut inner = Fields::of("grant reference", value)?;
        let grant = Self { id: inner.array(1)?, digest: inner.array(2)? };
        inner.end()?;
        Ok(Some(grant))
    }
}

impl BoundaryStatement {
    fn read(fields: &mut Fields) -> Result<Self, CborError> {
        let mut inner = fields.map(14)?;
        let statement = Self {
            class: inner.text(1)?.parse().map_err(|_| inner.wrong(1, "a boundary class"))?,
            bundle: inner.array(2)?,
            measurement: inner.bytes(3)?,
        };
        inner.end()?;
        Ok(statement)
    }
}

impl TimeSource {
    const ALL: [Self; 4] = [Self::Host, Self::SecureTsc, Self::TdxTsc, Self::None];

    fn code(self) -> u64 {
        match self {
            Self::Host => 0,
            Self::SecureTsc => 1,
            Self::TdxTsc => 2,
            Self::None => 3,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::record::testing::survives;

    pub(crate) fn invocation() -> Invocation {
        Invocation {
            id: [1; 16],
            sandbox: "spiffe://casemate.internal/demo/sb/00".to_owned(),
            epoch: 1,
            sequence: 1,
            previous: [0; 32],
            lease: Lease { id: [2; 16], nonce: [3; 16] },
            grant: Some(GrantRef { id: [4; 16], digest: [5; 32] }),
            method: "tools/call".to_owned(),
            tool: "time.get_current_time".to_owned(),
            tool_digest: Some([6; 32]),
            arguments: Commitment::to_args(&[7; 32], b"{}"),
            boundary: BoundaryStatement {
                class: Boundary::MicroVm,
                bundle: [8; 32],
                measurement: vec![9; 48],
            },
            time_ms: 1_790_000_000_000,
            time_source: TimeSource::Host,
        }
    }

    #[test]
    fn invocation_survives() {
        survives(invocation());
        survives(Invocation { grant: None, tool_digest: None, ..invocation() });
    }

    #[test]
    fn limits_are_named() {
        let cases = [
            (Invocation { sequence: 0, ..invocation() }, "key 5"),
            (Invocation { tool: String::new(), ..invocation() }, "key 10"),
            (Invocation { tool: "x".repeat(129), ..invocation() }, "key 10"),
            (Invocation { sandbox: "x".repeat(513), ..invocation() }, "key 3"),
        ];
        for (bad, field) in cases {
            let error = Invocation::from_payload(&bad.payload()).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
