//! Formats for what an attested agent does: calls, grants, decisions,
//! outcomes, receipts, and the Merkle log that keeps them.
//!
//! Every record has one encoding; equality of meaning is equality of bytes.
//! Each format has a page in docs/formats. [`Authentic`] proves a signature by
//! the key that was asked for. A [`Grant`] carries limits, never counters.
//! Leaves of the log are hashed and proved by [`merkle`]; checkpoints are C2SP
//! signed notes, so third-party witnesses and monitors work unchanged; [`witness`],
//! [`cosignature`] and [`quorum`] are what others' word for them takes.
//!
//! No I/O, no clock, no private keys: a signature is made by a closure.
//! Not here: deciding and storing (gateway, `casemate-ledger-store`).

#![forbid(unsafe_code)]

mod approval;
pub mod args;
mod attenuate;
pub mod audit;
pub mod budget;
pub mod cgp;
pub mod checkpoint;
mod clause;
pub mod constraint;
pub mod cosignature;
mod decimal;
mod decision;
mod event;
mod grant;
pub mod identity;
mod invocation;
pub mod json;
mod label;
pub mod leaf;
pub mod merkle;
mod outcome;
pub mod pattern;
pub mod policy;
pub mod proof;
pub mod quorum;
pub mod receipt;
pub mod record;
mod revocation;
mod stop;
pub mod text;
pub mod tile;
pub mod tool;
mod values;
pub mod witness;

pub use approval::{Approval, MAX_APPROVAL_SECONDS};
pub use attenuate::AttenuationError;
pub use clause::{Clause, MAX_AMOUNTS, Rate, Sum, Threshold};
pub use constraint::Constraint;
pub use decimal::{Decimal, DecimalError};
pub use decision::{BoundaryCheck, BudgetUse, Decision, Hold, RaisedRisk, Verdict};
pub use event::{Event, EventKind};
pub use grant::{Budgets, Grant, MAX_CLAUSES, MAX_GRANTS_ABOVE, MAX_LIFETIME_SECONDS};
pub use identity::{Identity, IdentityError};
pub use invocation::{
    BoundaryStatement, GrantRef, Invocation, Lease, MAX_SANDBOX_BYTES, MAX_TOOL_BYTES, TimeSource,
};
pub use label::{Approvals, Effect, Label, Window};
pub use leaf::{Leaf, LeafKind};
pub use outcome::{Outcome, Status, Upstream};
pub use pattern::Pattern;
pub use record::{Authentic, Record, RecordError};
pub use revocation::{Revocation, RevocationTarget};
pub use stop::{Scope, Stop, StopError, StopLevel};

/// SHA-256 of `bytes`: the one hash of this crate's formats.
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    casemate_attestation::crypto::sha256(bytes)
}
