//! What ties device evidence to the CPU's (docs/formats/gpu-binding.md).
//!
//! The devices answer nonces that are derived from the verifier's challenge
//! and the guest's keys, and the digest of all their evidence stands in the
//! CPU's report data, as [`Binding::devices`].

use ciborium::Value;

use crate::binding::Binding;
use crate::cbor::{self, CborError, Fields, Map};
use crate::crypto::{sha256, sha384};
use crate::evidence::{Evidence, EvidenceKind};

use super::facts::DeviceKind;

/// What no binding of today's devices can exclude.
pub const LIMITS: &str = "the evidence does not say which machine, slot or host a device is in: \
    a relay to a genuine device in confidential mode elsewhere cannot be excluded before TDISP; \
    that data goes to an attested device alone rests on the measured guest's driver";

/// The largest inventory that is read.
const MAX_INVENTORY_BYTES: usize = 4096;
const MAX_FUNCTIONS: usize = 64;
const WHAT: &str = "device inventory";

/// What the measured guest says of one NVIDIA function on its bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// The PCI address: `0000:01:00.0`.
    pub address: String,
    /// GPU or switch.
    pub kind: DeviceKind,
    /// Its confidential-computing state.
    pub state: ConfidentialState,
}

/// A device's confidential-computing state, as the guest's driver reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConfidentialState {
    /// Not in confidential mode.
    Off,
    /// In confidential mode.
    On,
    /// In confidential mode with developer tools: open to debugging.
    DevTools,
}

/// All NVIDIA functions that the guest sees, with evidence or without.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The functions.
    pub functions: Vec<Function>,
}

/// The digests of one device's evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceDigests {
    /// SHA-384 of the report.
    pub report: [u8; 48],
    /// SHA-384 of the certificate chain in PEM, as it was sent.
    pub chain: [u8; 48],
}

/// The nonce that every device of `kind` must answer. The field `devices` of
/// `binding` does not enter: it is known only afterwards.
pub fn device_nonce(binding: &Binding, kind: DeviceKind) -> [u8; 32] {
    let base = Binding { devices: None, ..binding.clone() };
    sha256(&cbor::encode(&Value::Array(vec![
        Value::from("casemate/device-nonce/v1"),
        Value::from(kind.name()),
        Value::Bytes(base.preimage()),
    ])))
}

/// The digest of the device evidence in `evidence` for [`Binding::devices`];
/// none if there is no device evidence.
pub fn devices_digest(evidence: &Evidence) -> Option<[u8; 32]> {
    let of_kind = |kind| evidence.items.iter().filter(move |item| item.kind == kind);
    let inventory = of_kind(EvidenceKind::DeviceInventory).next();
    let devices: Vec<_> = of_kind(EvidenceKind::GpuReport)
        .map(|item| DeviceDigests::new(&item.evidence, super::set::chain_of(item)))
        .collect();
    digest(inventory.map(|item| item.evidence.as_slice()), &devices)
}

/// The same from an inventory's bytes and the digests of every device.
pub(crate) fn digest(inventory: Option<&[u8]>, devices: &[DeviceDigests]) -> Option<[u8; 32]> {
    if inventory.is_none() && devices.is_empty() {
        return None;
    }
    let pair = |one: &DeviceDigests| {
        Value::Array(vec![Value::Bytes(one.report.to_vec()), Value::Bytes(one.chain.to_vec())])
    };
    Some(sha256(&cbor::encode(&Value::Array(vec![
        Value::from("casemate/devices/v1"),
        inventory.map_or(Value::Null, |bytes| Value::Bytes(bytes.to_vec())),
        Value::Array(devices.iter().map(pair).collect()),
    ]))))
}

impl DeviceDigests {
    pub(crate) fn new(report: &[u8], chain: &[u8]) -> Self {
        Self { report: sha384(report), chain: sha384(chain) }
    }
}

impl Inventory {
    /// The inventory's one encoding.
    pub fn encode(&self) -> Vec<u8> {
        let functions = self.functions.iter().map(Function::to_value).collect();
        Map::new().set(1, 1).set(2, Value::Array(functions)).encode()
    }

    /// Reads an inventory.
    pub fn decode(bytes: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode(WHAT, bytes, MAX_INVENTORY_BYTES)?;
        fields.version(1, 1)?;
        let items = fields.items(2)?;
        if items.len() > MAX_FUNCTIONS {
            return Err(fields.wrong(2, "at most 64 functions"));
        }
        fields.end()?;
        let functions = items.into_iter().map(Function::from_value).collect::<Result<_, _>>()?;
        Ok(Self { functions })
    }

    /// How many functions of `kind` there are.
    pub fn count(&self, kind: DeviceKind) -> usize {
        self.functions.iter().filter(|one| one.kind == kind).count()
    }
}

impl Function {
    fn to_value(&self) -> Value {
        Map::new()
            .set(1, self.address.as_str())
            .set(2, self.kind.name())
            .set(3, self.state.name())
            .into_value()
    }

    fn from_value(value: Value) -> Result<Self, CborError> {
        let mut fields = Fields::of(WHAT, value)?;
        let address = fields.text(1)?;
        let plain = |byte: u8| byte.is_ascii_hexdigit() || b":.".contains(&byte);
        if address.len() > 16 || !address.bytes().all(plain) {
            return Err(fields.wrong(1, "a PCI address"));
        }
        let kind = fields.text(2)?;
        let kind = [DeviceKind::Gpu, DeviceKind::Switch]
            .into_iter()
            .find(|one| one.name() == kind)
            .ok_or_else(|| fields.wrong(2, "gpu or nvswitch"))?;
        let state = fields.text(3)?;
        let state = ConfidentialState::ALL
            .into_iter()
            .find(|one| one.name() == state)
            .ok_or_else(|| fields.wrong(3, "off, on or devtools"))?;
        fields.end()?;
        Ok(Self { address, kind, state })
    }
}

impl ConfidentialState {
    const ALL: [Self; 3] = [Self::Off, Self::On, Self::DevTools];

    /// The name in inventories.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::DevTools => "devtools",
        }
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
    fn the_nonce_depends_on_everything_but_the_devices() {
        let nonce = device_nonce(&binding(), DeviceKind::Gpu);
        assert_eq!(
            nonce,
            device_nonce(&Binding { devices: Some([9; 32]), ..binding() }, DeviceKind::Gpu)
        );
        assert_ne!(nonce, device_nonce(&binding(), DeviceKind::Switch));
        assert_ne!(nonce, device_nonce(&Binding { epoch: 6, ..binding() }, DeviceKind::Gpu));
        assert_ne!(
            nonce,
            device_nonce(&Binding { nonce: vec![0; 32], ..binding() }, DeviceKind::Gpu)
        );
    }

    #[test]
    fn an_inventory_reads_back() {
        let inventory = Inventory {
            functions: vec![Function {
                address: "0000:01:00.0".into(),
                kind: DeviceKind::Gpu,
                state: ConfidentialState::DevTools,
            }],
        };
        assert_eq!(Inventory::decode(&inventory.encode()), Ok(inventory));
        assert!(Inventory::decode(&[0xa0]).is_err());
    }

    #[test]
    fn the_digest_covers_order_inventory_and_every_device() {
        let [a, b] = [DeviceDigests::new(b"a", b"c"), DeviceDigests::new(b"b", b"c")];
        assert_eq!(digest(None, &[]), None);
        assert_ne!(digest(None, &[a, b]), digest(None, &[b, a]));
        assert_ne!(digest(None, &[a]), digest(None, &[a, a]));
        assert_ne!(digest(Some(b""), &[a]), digest(None, &[a]));
    }
}
