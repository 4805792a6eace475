//! Turns attestation evidence into an attestation result, in RFC 9334 terms.
//!
//! The crate does no I/O, reads no clock and logs nothing: the caller passes
//! bytes, endorsements, trust anchors and the time.

#![forbid(unsafe_code)]

pub mod anchors;
pub mod appraise;
pub mod azure;
pub mod binding;
pub mod boundary;
pub mod break_list;
pub mod bundle;
pub mod cbor;
pub mod cose;
pub mod crypto;
pub mod ear;
pub mod error;
pub mod eventlog;
pub mod evidence;
pub mod gpu;
pub mod host_claim;
pub mod identity;
pub mod measure;
pub mod policy;
pub mod reference;
pub mod release;
pub mod seen;
pub mod snp;
pub mod tdx;
mod time;
pub mod verify;
pub mod wire;
pub mod x509;

pub use anchors::{Anchor, AnchorKind, TrustAnchors};
pub use appraise::{Affirmed, Appraisal, Check, Denial, Expected, Hardware, Outcome, appraise};
pub use binding::Binding;
pub use boundary::{Boundary, Properties, Property, Risk};
pub use bundle::{Bundle, BundleError};
pub use error::{Reason, VerifyError};
pub use evidence::{EndorsementKind, Evidence, EvidenceItem, EvidenceKind};
pub use host_claim::{HostClaim, LaunchDigests};
pub use identity::IdentityClaims;
pub use policy::{Policy, PolicyError};
pub use reference::{ImageReference, ReferenceValues};
pub use release::ReleaseProof;
pub use seen::{Mark, Seen};
pub use time::UnixTime;
pub use verify::{Claims, Endorsements, HostClaims, ItemClaims, Verified, verify};
