//! The host's signing key and its enrolment: an operator's word needs a name.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

/// The Ed25519 key with which a host signs its claims.
pub struct HostKey {
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("host key {path}: {source}")]
    Io {
        /// The key's file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file holds no key.
    #[error("host key {path}: expected an Ed25519 key in PKCS #8")]
    Malformed {
        /// The key's file.
        path: PathBuf,
    },
    /// No key could be made.
    #[error("host key: the random source failed")]
    Random,
}

impl HostKey {
    /// The key in `folder`, made there with mode 0600 if there is none.
    pub fn open(folder: &Path) -> Result<Self, KeyError> {
        let path = folder.join(FILE);
        let io = |source| KeyError::Io { path: path.clone(), source };
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                fs::create_dir_all(folder).map_err(io)?;
                let document = Ed25519KeyPair::generate().map_err(|_| KeyError::Random)?;
                let document = document.to_pkcs8().map_err(|_| KeyError::Random)?;
                // `create_new`: two hosts that start at once do not share a half-written key.
                let mut options = OpenOptions::new();
                options.write(true).create_new(true).mode(0o600);
                let mut file = options.open(&path).map_err(io)?;
                file.write_all(document.as_ref()).and_then(|()| file.sync_all()).map_err(io)?;
                document.as_ref().to_vec()
            }
            read => read.map_err(io)?,
        };
        let malformed = || KeyError::Malformed { path: path.clone() };
        let pair = Ed25519KeyPair::from_pkcs8(&bytes).map_err(|_| malformed())?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| malformed())?;
        Ok(Self { pair, public })
    }

    /// The public half.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        // Ed25519 signatures are 64 bytes (RFC 8032 section 5.1.6).
        for (to, from) in out.iter_mut().zip(self.pair.sign(message).as_ref()) {
            *to = *from;
        }
        out
    }

    /// What a verifier's operator puts into its trust anchors to believe
    /// claims of this host under `name` (docs/formats/host-claim.md).
    pub fn enrolment(&self, name: &str) -> String {
        format!("[[host]]\nname = \"{name}\"\ned25519 = \"{}\"\n", hex::encode(self.public))
    }
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostKey({})", hex::encode(self.public))
    }
}

const FILE: &str = "host-key.pk8";

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_stays_the_same_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = HostKey::open(folder.path()).unwrap();
        let second = HostKey::open(folder.path()).unwrap();
        assert_eq!(first.public(), second.public());
        let mode = fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let signature = first.sign(b"x");
        let verify = casemate_attestation::crypto::ed25519_verify;
        assert!(verify(second.public(), b"x", &signature));
        fs::write(folder.path().join(FILE), b"no key").unwrap();
        assert!(matches!(HostKey::open(folder.path()), Err(KeyError::Malformed { .. })));
    }
}
