//! Files of a stored model.

use std::io::Write as _;
use std::path::Path;

use crate::ModelError;

/// Reads a file whole.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|error| io(path, error))
}

/// Writes a file that only its owner can read, whole or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let part = path.with_extension("part");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&part).map_err(|error| io(&part, error))?;
    file.write_all(bytes).map_err(|error| io(&part, error))?;
    file.sync_all().map_err(|error| io(&part, error))?;
    std::fs::rename(&part, path).map_err(|error| io(path, error))
}

pub(crate) fn io(path: &Path, error: std::io::Error) -> ModelError {
    ModelError::Io { path: path.to_owned(), error }
}
