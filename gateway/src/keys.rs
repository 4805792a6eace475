//! The gateway's own keys: made at first start, kept in files of mode 0600.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::AsBigEndian;
use aws_lc_rs::encoding::Curve25519SeedBin;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use zeroize::Zeroizing;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system refused to read or write a file.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than the owner may read a key file.
    #[error("{}: expected mode 0600, got {mode:04o}; others may have read this key", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key file does not hold a key.
    #[error("{}: expected {expected}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
}

/// An Ed25519 key that signs records, checkpoints or grants.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

impl SigningKey {
    /// The key in the file at `path` (64 hex digits of seed), made if it is not there.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let text = read_or_make(path, || {
            let seed = Zeroizing::new(random::<32>()?);
            Some(Zeroizing::new(format!("{}\n", casemate_ledger::text::hex(&*seed)).into_bytes()))
        })?;
        Self::from_text(&text).ok_or(KeyError::Content {
            path: path.to_owned(),
            expected: "an Ed25519 seed in 64 hex digits",
        })
    }

    /// The public key.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(self.pair.sign(message).as_ref());
        out
    }

    fn from_text(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?.trim_end();
        let seed = Zeroizing::new(casemate_ledger::text::from_hex(text)?);
        Self::from_seed(&seed)
    }

    fn from_seed(seed: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
        let public = pair.public_key().as_ref().try_into().ok()?;
        Some(Self { pair, public })
    }

    /// A new key that is in no file.
    pub fn generate() -> Option<Self> {
        let pair = Ed25519KeyPair::generate().ok()?;
        let seed: Curve25519SeedBin<'_> = pair.seed().ok()?.as_be_bytes().ok()?;
        Self::from_seed(seed.as_ref())
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", casemate_ledger::text::hex(&self.public))
    }
}

/// Makes digests that only this gateway can make, now and after a restart:
/// arguments are often easy to guess, so that a plain digest would tell them.
pub(crate) struct Fingerprints(aws_lc_rs::hmac::Key);

impl Fingerprints {
    /// Under a key that only the holder of `key` can derive: a signature over
    /// a text that no record's signed structure can be.
    pub(crate) fn new(key: &SigningKey) -> Self {
        let secret = casemate_ledger::digest(&key.sign(b"casemate fingerprints 1"));
        Self(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &secret))
    }

    /// The digest of `parts`, each told apart from the next.
    pub(crate) fn of(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = aws_lc_rs::hmac::Context::with_key(&self.0);
        for part in parts {
            let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
            context.update(&length.to_be_bytes());
            context.update(part);
        }
        let mut out = [0; 32];
        out.copy_from_slice(context.sign().as_ref());
        out
    }
}

/// Random bytes from the system, or nothing if it has none.
pub(crate) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(bytes)
}

/// Makes the directory `path` with mode 0700 if it is not there.
pub(crate) fn private_directory(path: &Path) -> Result<(), KeyError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| KeyError::File { path: path.to_owned(), source })
}

/// The secret file at `path`, or what `make` makes for it.
pub(crate) fn read_or_make(
    path: &Path,
    make: impl FnOnce() -> Option<Zeroizing<Vec<u8>>>,
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let file = |source| KeyError::File { path: path.to_owned(), source };
    if !path.exists() {
        let content = make().ok_or(KeyError::Content {
            path: path.to_owned(),
            expected: "random bytes from the system",
        })?;
        write_private(path, &content).map_err(file)?;
    }
    let mode = fs::metadata(path).map_err(file)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Open { path: path.to_owned(), mode });
    }
    fs::read(path).map(Zeroizing::new).map_err(file)
}

/// Writes a secret file whole or not at all.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let part = path.with_extension(format!("part-{}", std::process::id()));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_open_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.key");
        let key = SigningKey::open(&path).unwrap();
        assert_eq!(key.public(), SigningKey::open(&path).unwrap().public());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(SigningKey::open(&path), Err(KeyError::Open { mode: 0o644, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "short").unwrap();
        assert!(matches!(SigningKey::open(&path), Err(KeyError::Content { .. })));
    }
}
