//! The host's signed statement of the boundary that it really built.
//!
//! Format: docs/formats/host-claim.md. It is one operator's word: a relying
//! party believes it as far as it believes that operator, and it never says
//! anything about hardware. A claim of [`Boundary::Tee`] is refused: that
//! class is earned by evidence that the operator cannot make.

use ciborium::Value;

use crate::boundary::{Boundary, Properties, Property};
use crate::cbor::{CborError, Fields, Map};
use crate::cose::{self, CoseError};
use crate::time::UnixTime;

/// The record type in the COSE header.
pub const HOST_CLAIM_TYPE: &str = "application/casemate.host-claim+cose";
const MAX_BYTES: usize = 4096;
const WHAT: &str = "host claim";

/// SHA-256 of the three inputs of a direct kernel boot, as the host launched them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchDigests {
    /// Digest of the kernel file.
    #[serde(with = "crate::host_claim::hex32")]
    pub kernel: [u8; 32],
    /// Digest of the initramfs file.
    #[serde(with = "crate::host_claim::hex32")]
    pub initrd: [u8; 32],
    /// Digest of the command line, without a terminating NUL.
    #[serde(with = "crate::host_claim::hex32")]
    pub cmdline: [u8; 32],
}

/// What the host says of a machine it launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostClaim {
    /// The host's name, as enrolled at the verifier.
    pub host: String,
    /// The machine's id on that host.
    pub machine: [u8; 16],
    /// The boundary class that was built.
    pub boundary: Boundary,
    /// The properties of what was built.
    pub properties: Properties,
    /// The backend and its version, for people: `qemu-tcg 7.2.22`.
    pub backend: String,
    /// What was launched.
    pub launch: LaunchDigests,
    /// The guest's [`crate::Binding::report_data`], so that the claim belongs to one challenge.
    pub report_data: [u8; 64],
    /// When the host signed.
    pub issued_at: UnixTime,
}

/// Why a host's claim is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostClaimError {
    /// The COSE structure or the signature is wrong.
    #[error(transparent)]
    Cose(#[from] CoseError),
    /// The payload is not a claim.
    #[error(transparent)]
    Cbor(#[from] CborError),
    /// A host claims a class that only hardware evidence can earn.
    #[error(
        "host claim, boundary: expected a class below tee, got tee; a TEE is proved by its own evidence"
    )]
    ClaimsTee,
}

impl HostClaim {
    /// The claim signed by the host's key; `sign` is the private key's act.
    pub fn sign(&self, public_key: &[u8; 32], sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Vec<u8> {
        cose::sign1(HOST_CLAIM_TYPE, public_key, self.payload(), sign)
    }

    /// Reads a claim and checks that `public_key` signed it.
    pub fn verify(bytes: &[u8], public_key: &[u8; 32]) -> Result<Self, HostClaimError> {
        let record = cose::Unverified::parse(HOST_CLAIM_TYPE, bytes, MAX_BYTES)?;
        Self::from_payload(&record.verify(public_key)?)
    }

    /// Reads a claim that was verified before, by whoever says so: nothing here does.
    pub fn peek(bytes: &[u8]) -> Result<Self, HostClaimError> {
        let record = cose::Unverified::parse(HOST_CLAIM_TYPE, bytes, MAX_BYTES)?;
        Self::from_payload(record.unverified_payload())
    }

    fn payload(&self) -> Vec<u8> {
        let properties = self.properties.iter().map(|p| Value::from(p.name())).collect();
        let launch = Map::new()
            .bytes(1, &self.launch.kernel)
            .bytes(2, &self.launch.initrd)
            .bytes(3, &self.launch.cmdline);
        Map::new()
            .set(1, 1)
            .set(2, self.host.as_str())
            .bytes(3, &self.machine)
            .set(4, self.boundary.name())
            .set(5, Value::Array(properties))
            .set(6, self.backend.as_str())
            .set(7, launch.into_value())
            .bytes(8, &self.report_data)
            .set(9, self.issued_at.0)
            .encode()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, HostClaimError> {
        let mut fields = Fields::decode(WHAT, payload, MAX_BYTES)?;
        fields.version(1, 1)?;
        let host = fields.text(2)?;
        let machine = fields.array(3)?;
        let boundary: Boundary =
            fields.text(4)?.parse().map_err(|_| fields.wrong(4, "a boundary class"))?;
        let properties = fields
            .items(5)?
            .into_iter()
            .map(|value| value.as_text().and_then(|name| name.parse::<Property>().ok()))
            .collect::<Option<Properties>>()
            .ok_or_else(|| fields.wrong(5, "an array of known properties"))?;
        let backend = fields.text(6)?;
        let mut launch = fields.map(7)?;
        let claim = Self {
            host,
            machine,
            boundary,
            properties,
            backend,
            launch: LaunchDigests {
                kernel: launch.array(1)?,
                initrd: launch.array(2)?,
                cmdline: launch.array(3)?,
            },
            report_data: fields.array(8)?,
            issued_at: UnixTime(fields.uint(9)?),
        };
        launch.end()?;
        fields.end()?;
        if claim.boundary == Boundary::Tee {
            return Err(HostClaimError::ClaimsTee);
        }
        Ok(claim)
    }
}

/// 32 bytes as lower-case hex in the text formats.
pub mod hex32 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes 64 hex digits.
    pub fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&text)
    }

    /// Reads exactly 64 lower-case hex digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut out = [0; 32];
        let strict =
            text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !strict {
            return Err(D::Error::custom(format!(
                "expected 64 lower-case hex digits, got {text:?}"
            )));
        }
        for (byte, at) in out.iter_mut().zip((0..64).step_by(2)) {
            let digits = text.get(at..at + 2).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).map_err(D::Error::custom)?;
        }
        Ok(out)
    }
}
