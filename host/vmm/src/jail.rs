//! The jail (in the making).

/// Why the jail could not be closed as asked.
#[derive(Debug, thiserror::Error)]
pub enum JailError {}
