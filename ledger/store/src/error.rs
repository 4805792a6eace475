//! What can go wrong with a log on disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why the log cannot be opened, written or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("log, {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// A file does not hold what was written to it. Nothing is repaired.
    #[error("log, {}: expected {expected}, got {actual}", path.display())]
    Corrupt {
        /// The file at fault.
        path: PathBuf,
        /// What it had to hold.
        expected: String,
        /// What it holds.
        actual: String,
    },
    /// Another process has the log open.
    #[error("log, {}: expected to be the only process, another one holds the lock", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The log stopped after an error of the disk and takes nothing more.
    #[error("log stopped: {cause}")]
    Stopped {
        /// The first error.
        cause: Arc<StoreError>,
    },
    /// The log was closed.
    #[error("log closed")]
    Closed,
    /// The leaf does not fit the format.
    #[error("leaf: expected at most {limit} bytes, got {actual}")]
    LeafTooLong {
        /// The most bytes.
        limit: usize,
        /// The bytes there were.
        actual: usize,
    },
    /// There is no such leaf.
    #[error("leaf: expected an index below {size}, got {index}")]
    NoSuchLeaf {
        /// The size of the log.
        size: u64,
        /// The index asked for.
        index: u64,
    },
    /// The caller refused a leaf while the log was being read at start.
    #[error("leaf {index}: {reason}")]
    Refused {
        /// The leaf's index.
        index: u64,
        /// The caller's words.
        reason: String,
    },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }

    pub(crate) fn corrupt(
        path: &Path,
        expected: impl Into<String>,
        actual: impl Into<String>,
    ) -> Self {
        Self::Corrupt { path: path.to_owned(), expected: expected.into(), actual: actual.into() }
    }

    pub(crate) fn stopped(&self) -> Self {
        match self {
            Self::Stopped { .. } => self.clone(),
            cause => Self::Stopped { cause: Arc::new(cause.clone()) },
        }
    }
}
