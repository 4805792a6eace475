//! Durable storage of the log: write-ahead log, tiles, checkpoints.
//!
//! A leaf is in the log once its record in the write-ahead log is on disk
//! (one `fdatasync` for all leaves that wait). Tiles are derived from it and
//! made again when they are missing. A checkpoint is signed over durable
//! leaves only, by one process, after looking at the last one signed: a log
//! never has two heads. An error of the disk stops the log for good; nothing
//! is taken that could be lost.
//!
//! Payloads are kept beside the log, under keys that can be deleted.
//!
//! Read [`Log`] first, then `wal.rs` for what survives a crash.

#![forbid(unsafe_code)]

/// A named step, at which a test may end the process (feature `failpoints`).
#[macro_export]
macro_rules! step {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::reached($name);
    };
}

mod crc;
mod error;
mod export;
#[cfg(feature = "failpoints")]
pub mod failpoint;
mod files;
mod log;
mod payloads;
mod publish;
mod published;
mod tree;
mod wal;
mod witness;

pub use error::StoreError;
pub use export::Export;
pub use log::{Log, Options, Proof};
pub use payloads::{Payload, PayloadKind, Payloads, read_payloads};
pub use published::Published;
pub use witness::{Witness, WitnessError};
