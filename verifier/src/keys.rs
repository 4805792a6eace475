//! The service's own keys: made at first start, kept in files of mode 0600.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system refused to read or write a file.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than the owner may read a key file.
    #[error("{path}: expected mode 0600, got {mode:04o}; others may have read this key")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key file does not hold a key.
    #[error("{path}: expected {expected}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// A key or certificate could not be made.
    #[error("making {what}: {source}")]
    Make {
        /// What was being made.
        what: &'static str,
        /// Why it failed.
        source: rcgen::Error,
    },
}

/// A directory that only its owner may enter.
#[derive(Debug, Clone)]
pub(crate) struct KeyDir(PathBuf);

impl KeyDir {
    /// Opens `path`, making it with mode 0700 if it is not there.
    pub(crate) fn open(path: &Path) -> Result<Self, KeyError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| KeyError::File { path: path.to_owned(), source })?;
        Ok(Self(path.to_owned()))
    }

    /// The path of `name` in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The 32 random bytes in `name`, made if they are not there.
    pub(crate) fn symmetric(&self, name: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        let make = || {
            let mut key = Zeroizing::new(vec![0; 32]);
            aws_lc_rs::rand::fill(&mut key).map_err(|_| KeyError::Content {
                path: self.path(name),
                expected: "random bytes from the system",
            })?;
            Ok(key)
        };
        let bytes = self.read_or_make(name, make)?;
        let key = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| KeyError::Content {
            path: self.path(name),
            expected: "exactly 32 bytes",
        })?;
        Ok(Zeroizing::new(key))
    }

    /// The secret file `name`, or what `make` makes for it.
    pub(crate) fn read_or_make(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, KeyError>,
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let path = self.path(name);
        if !path.exists() {
            self.write_new(&path, &make()?)?;
        }
        read_private(&path)
    }

    /// Writes the public file `name` anew.
    pub(crate) fn publish(&self, name: &str, content: &[u8]) -> Result<PathBuf, KeyError> {
        let path = self.path(name);
        fs::write(&path, content).map_err(file_error(&path))?;
        Ok(path)
    }

    /// Writes a secret file whole or not at all; one that is there already stays.
    fn write_new(&self, path: &Path, content: &[u8]) -> Result<(), KeyError> {
        let part = path.with_extension(format!("part-{}", std::process::id()));
        let written =
            write_synced(&part, content).and_then(|()| match fs::hard_link(&part, path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => fs::File::open(&self.0)?.sync_all(),
            });
        let removed = fs::remove_file(&part);
        written.and(removed).map_err(file_error(path))
    }
}

/// The private key in the PEM `text` of the file `path`.
pub(crate) fn private_key(path: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, KeyError> {
    PrivateKeyDer::from_pem_slice(text)
        .map_err(|_| KeyError::Content { path: path.to_owned(), expected: "a private key in PEM" })
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mode = fs::metadata(path).map_err(file_error(path))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Open { path: path.to_owned(), mode });
    }
    fs::read(path).map(Zeroizing::new).map_err(file_error(path))
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> KeyError {
    let path = path.to_owned();
    move |source| KeyError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let keys = KeyDir::open(&dir.path().join("state")).unwrap();
        let first = keys.symmetric("nonce.key").unwrap();
        assert_eq!(*first, *keys.symmetric("nonce.key").unwrap());
        assert_eq!(fs::read_dir(dir.path().join("state")).unwrap().count(), 1);
    }

    #[test]
    fn an_open_or_short_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let keys = KeyDir::open(dir.path()).unwrap();
        keys.symmetric("a").unwrap();
        fs::set_permissions(keys.path("a"), fs::Permissions::from_mode(0o640)).unwrap();
        let error = keys.symmetric("a").unwrap_err();
        assert!(error.to_string().contains("expected mode 0600, got 0640"), "{error}");
        fs::set_permissions(keys.path("a"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(keys.path("a"), b"short").unwrap();
        assert!(matches!(keys.symmetric("a"), Err(KeyError::Content { .. })));
    }
}
