//! The service a tenant runs: challenge, appraise, release.
//!
//! A thin shell: every judgement is made by `casemate_attestation` with inputs
//! that this service stores with the result, so that a result can be checked
//! again offline. Nonces are used once and expire; secrets leave sealed to the
//! attested key; what was decided is on the disk before the answer leaves.
//! Nothing in the configuration weakens a check.
//!
//! Start reading at `routes.rs`, then `attest.rs` and `release.rs`.

mod admin;
mod admitted;
mod attest;
mod body;
mod challenge;
mod clock;
mod config;
mod denial;
mod identity;
mod judge;
mod keys;
mod pki;
mod release;
pub mod routes;
mod server;
mod service;
mod store;
mod tls;
mod token;
mod vault;
mod verifier;

pub use admin::{AdminError, Command, Reply, SecretTerms, Status, call};
pub use attest::Given;
pub use clock::Clock;
pub use config::{Config, ConfigError, Lifetimes, Limits, Listen, Task};
pub use denial::{Check, Code, Denial};
pub use identity::IdentityCa;
pub use judge::DocumentError;
pub use keys::KeyError;
pub use service::{Error, Service, run};
pub use store::{AuditRow, Lease, Store, StoreError};
pub use tls::Channel;
pub use verifier::{PublicFiles, Verifier, init};
