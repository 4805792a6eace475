//! What the evidence's 64 bytes of report data stand for.
//!
//! Format: docs/formats/report-data.md. Never a bare nonce or key: a domain
//! tag keeps evidence made for one purpose from serving another.

use ciborium::Value;

use crate::cbor;
use crate::crypto;

/// Everything an instance binds into its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The verifier's challenge.
    pub nonce: Vec<u8>,
    /// The Ed25519 key that will sign tool calls, made in the guest.
    pub identity_key: [u8; 32],
    /// The X25519 key to which secrets are sealed, made in the guest.
    pub sealing_key: [u8; 32],
    /// The TLS exporter of the session that carries the evidence
    /// (RFC 8446 7.5, label [`EXPORTER_LABEL`], no context).
    pub channel: [u8; 32],
    /// The boot incarnation of the sandbox.
    pub epoch: u64,
    /// SHA-256 of the device evidence that travels with the report, or none.
    pub devices: Option<[u8; 32]>,
}

/// The TLS exporter label whose 32 bytes are [`Binding::channel`].
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-casemate-attest-v1";

impl Binding {
    /// The 64 bytes for REPORT_DATA (SNP), REPORTDATA (TDX) and the host's claim.
    pub fn report_data(&self) -> [u8; 64] {
        crypto::sha512(&self.preimage())
    }

    /// The bytes that are hashed: a deterministic CBOR array.
    pub fn preimage(&self) -> Vec<u8> {
        cbor::encode(&Value::Array(vec![
            Value::from("casemate/report-data/v1"),
            Value::Bytes(self.nonce.clone()),
            Value::Bytes(self.identity_key.to_vec()),
            Value::Bytes(self.sealing_key.to_vec()),
            Value::Bytes(self.channel.to_vec()),
            Value::from(self.epoch),
            self.devices.map_or(Value::Null, |digest| Value::Bytes(digest.to_vec())),
        ]))
    }

    /// Reads a preimage back, for an auditor who has only the bundle.
    pub fn from_preimage(bytes: &[u8]) -> Result<Self, cbor::CborError> {
        const WHAT: &str = "report data preimage";
        let wrong = |key, expected| cbor::CborError::WrongType { what: WHAT, key, expected };
        let items =
            cbor::decode(WHAT, bytes, 1024)?.into_array().map_err(|_| wrong(0, "an array"))?;
        let [tag, nonce, identity, sealing, channel, epoch, devices]: [Value; 7] =
            items.try_into().map_err(|_| wrong(0, "seven items"))?;
        if tag.as_text() != Some("casemate/report-data/v1") {
            return Err(wrong(1, "the tag casemate/report-data/v1"));
        }
        let fixed = |key, value: Value| -> Result<[u8; 32], cbor::CborError> {
            let bytes = value.into_bytes().map_err(|_| wrong(key, "a byte string"))?;
            bytes.try_into().map_err(|_| wrong(key, "32 bytes"))
        };
        Ok(Self {
            nonce: nonce.into_bytes().map_err(|_| wrong(2, "a byte string"))?,
            identity_key: fixed(3, identity)?,
            sealing_key: fixed(4, sealing)?,
            channel: fixed(5, channel)?,
            epoch: epoch
                .as_integer()
                .and_then(|epoch| u64::try_from(epoch).ok())
                .ok_or(wrong(6, "an unsigned integer"))?,
            devices: match devices {
                Value::Null => None,
                value => Some(fixed(7, value)?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding() -> Binding {
        Binding {
            nonce: vec![1; 32],
            identity_key: [2; 32],
            sealing_key: [3; 32],
            channel: [4; 32],
            epoch: 5,
            devices: None,
        }
    }

    #[test]
    fn preimage_reads_back() {
        for devices in [None, Some([6; 32])] {
            let binding = Binding { devices, ..binding() };
            assert_eq!(Binding::from_preimage(&binding.preimage()), Ok(binding));
        }
    }

    #[test]
    fn every_field_changes_the_report_data() {
        let base = binding();
        let others = [
            Binding { nonce: vec![9; 32], ..binding() },
            Binding { identity_key: [9; 32], ..binding() },
            Binding { sealing_key: [9; 32], ..binding() },
            Binding { channel: [9; 32], ..binding() },
            Binding { epoch: 9, ..binding() },
            Binding { devices: Some([9; 32]), ..binding() },
        ];
        for other in others {
            assert_ne!(base.report_data(), other.report_data(), "{other:?}");
        }
    }
}
