//! The service a tenant runs: challenge, appraise, release.
//!
//! A thin shell: every judgement is made by `casemate_attestation` with inputs
//! that this service stores with the result, so that a result can be checked
//! again offline. Nonces are used once and expire; secrets leave sealed to the
//! attested key; what was decided is on the disk before the answer leaves.
//! Nothing in the configuration weakens a check.
//!
//! Start reading at [`routes`], then `release`.

mod admin;
pub mod body;
pub mod challenge;
mod clock;
mod config;
mod denial;
pub mod identity;
mod keys;
mod pki;
pub mod routes;
mod server;
mod service;
pub mod store;
mod tls;
pub mod vault;
mod verifier;

pub use admin::{AdminError, Command, Reply, SecretTerms, Status, call};
pub use clock::Clock;
pub use config::{Config, ConfigError, Lifetimes, Limits, Listen, Task};
pub use denial::{Check, Code, Denial};
pub use keys::KeyError;
pub use service::{Error, Service, run};
pub use store::{AuditRow, Lease, Store, StoreError};
pub use tls::Channel;
pub use verifier::{PublicFiles, Verifier, init};
