//! The verifier as its guests, its operator and its attackers meet it: a real
//! service, real TLS over loopback, evidence signed by the model and test keys.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod attest;
mod figures;
mod full_disk;
mod harness;
mod hostile;
mod operator;
mod release;
