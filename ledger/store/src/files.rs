//! Files that are whole or not there: written beside, synced, renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::StoreError;

/// Replaces `path` by `bytes`; the name is durable after [`sync_directory`].
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let directory = parent(path);
    fs::create_dir_all(&directory)
        .map_err(|error| StoreError::io("creating", &directory, error))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = directory.join(name);
    let written = may("create", &temporary).and_then(|()| {
        let mut file = File::create(&temporary)?;
        may("write", &temporary)?;
        file.write_all(bytes)?;
        may("sync", &temporary)?;
        file.sync_all()
    });
    written.map_err(|error| StoreError::io("writing", &temporary, error))?;
    crate::step!("file.before-rename");
    may("rename", path)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|error| StoreError::io("renaming to", path, error))
}

/// Makes the names in `directory` durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    may("sync", directory)
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(|error| StoreError::io("syncing", directory, error))
}

/// The whole of `path`, or nothing if there is no such file.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("reading", path, error)),
    }
}

/// Where a test makes `operation` on `path` fail (feature `failpoints`).
#[cfg(feature = "failpoints")]
pub(crate) fn may(operation: &str, path: &Path) -> io::Result<()> {
    crate::failpoint::may(operation, path)
}

/// The disk itself says what may be done.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn may(_: &str, _: &Path) -> io::Result<()> {
    Ok(())
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}
