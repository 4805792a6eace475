//! What an identity certificate says of the sandbox beside its name and key.
//!
//! Format: docs/formats/identity-certificate.md. The certificate is a short-lived
//! X.509-SVID; this is the content of its one private extension.

use ciborium::Value;

use crate::boundary::{Boundary, Properties, Property};
use crate::cbor::{CborError, Fields, Map};

/// The extension's object identifier, provisional until an arc is assigned.
pub const IDENTITY_EXTENSION_OID: [u64; 9] = [1, 3, 6, 1, 4, 1, 59999, 1, 1];

/// The attested facts that travel in an identity certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityClaims {
    /// The boot incarnation of the sandbox.
    pub epoch: u64,
    /// The boundary class that the evidence earned.
    pub boundary: Boundary,
    /// The properties that the evidence earned.
    pub properties: Properties,
    /// SHA-256 of the attestation bundle that proves all this again.
    pub bundle: [u8; 32],
    /// The measurement that was appraised: 48 bytes on SEV-SNP and TDX.
    pub measurement: Vec<u8>,
    /// The task for which the sandbox was admitted.
    pub task: String,
    /// The label of the trust anchor under which the evidence verified.
    pub anchor: String,
    /// What stands behind the evidence: `genuine`, `model` or `none`.
    pub hardware: String,
}

const MAX_BYTES: usize = 4096;
const WHAT: &str = "identity extension";

impl IdentityClaims {
    /// The extension's content: one deterministic CBOR map.
    pub fn encode(&self) -> Vec<u8> {
        let properties = self.properties.iter().map(|p| Value::from(p.name())).collect();
        Map::new()
            .set(1, 1)
            .set(2, self.epoch)
            .set(3, self.boundary.name())
            .set(4, Value::Array(properties))
            .bytes(5, &self.bundle)
            .bytes(6, &self.measurement)
            .set(7, self.task.as_str())
            .set(8, self.anchor.as_str())
            .set(9, self.hardware.as_str())
            .encode()
    }

    /// Reads the extension's content.
    pub fn decode(bytes: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode(WHAT, bytes, MAX_BYTES)?;
        fields.version(1, 1)?;
        let claims = Self {
            epoch: fields.uint(2)?,
            boundary: fields.text(3)?.parse().map_err(|_| fields.wrong(3, "a boundary class"))?,
            properties: fields
                .items(4)?
                .into_iter()
                .map(|value| value.as_text().and_then(|name| name.parse::<Property>().ok()))
                .collect::<Option<Properties>>()
                .ok_or_else(|| fields.wrong(4, "an array of known properties"))?,
            bundle: fields.array(5)?,
            measurement: fields.bytes(6)?,
            task: fields.text(7)?,
            anchor: fields.text(8)?,
            hardware: fields.text(9)?,
        };
        fields.end()?;
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_read_back() {
        let claims = IdentityClaims {
            epoch: 3,
            boundary: Boundary::MicroVm,
            properties: [Property::OwnKernel, Property::Mediated].into_iter().collect(),
            bundle: [1; 32],
            measurement: vec![2; 48],
            task: "demo".to_owned(),
            anchor: "local-model".to_owned(),
            hardware: "model".to_owned(),
        };
        assert_eq!(IdentityClaims::decode(&claims.encode()), Ok(claims));
    }
}
