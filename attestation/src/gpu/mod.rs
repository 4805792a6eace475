//! NVIDIA GPU and NVSwitch evidence, verified offline.
//!
//! [`Verifier::device`] judges one device: its SPDM measurement report, its
//! certificate chain down from the pinned root key, its reference manifests
//! (SWID with an XML signature, in one strict profile) and its stapled OCSP
//! responses. Every fault is a [`Finding`] with a stable [`Code`]; nothing is
//! believed before its signature holds. Formats: docs/formats/gpu-binding.md.

mod binding;
mod canonical;
mod chain;
mod claims;
mod code;
mod compare;
mod der;
mod device;
mod facts;
#[cfg(fuzzing)]
pub mod fuzzing;
mod fwid;
mod memo;
pub mod ocsp;
mod opaque;
mod policy;
mod report;
mod revocation;
mod rim;
mod roots;
pub(crate) mod set;
mod signature;
mod topology;
mod xml;

pub(crate) use binding::digest;
pub use binding::{
    ConfidentialState, DeviceDigests, Function, Inventory, LIMITS, device_nonce, devices_digest,
};
pub use claims::device_claims;
pub use code::{Code, Finding, Source};
pub use compare::{Comparison, Mismatch};
pub use device::{DeviceEvidence, DeviceResult, Outcome, Used, Verifier};
pub use facts::{DeviceKind, Facts};
pub(crate) use memo::Memo;
pub use opaque::{Mode, Opaque, Pdi, field};
pub use policy::GpuPolicy;
pub use report::{MAX_REPORT_BYTES, Measurement, Report};
pub use revocation::Revocation;
pub use rim::{Checked, Manifest, Reference};
pub use topology::check_topology;
pub use xml::MAX_BYTES as MAX_MANIFEST_BYTES;
