//! Secrets at rest: each sealed under the key file, bound to its own terms.
//!
//! Name, risk and lifetime are part of what is authenticated, so a change of
//! the database alone cannot make a high-risk secret a low-risk one.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use casemate_attestation::Risk;
use zeroize::Zeroizing;

/// The largest secret that is stored.
pub(crate) const MAX_SECRET_BYTES: usize = 64 * 1024;

/// The key under which secrets lie in the store.
#[derive(Debug)]
pub(crate) struct Vault(LessSafeKey);

/// A secret's terms: everything about it but its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The secret's name.
    pub name: String,
    /// The harm that its loss could do.
    pub risk: Risk,
    /// Seconds that a lease of it runs.
    pub ttl_seconds: u64,
}

/// The sealed secret does not open: another key file, or changed bytes or terms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("secret {name}: expected it sealed by this key file under these terms, got other bytes")]
pub(crate) struct VaultError {
    /// The secret's name.
    pub name: String,
}

impl Vault {
    /// The vault with `key`.
    pub(crate) fn new(key: &[u8; 32]) -> Result<Self, aws_lc_rs::error::Unspecified> {
        Ok(Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, key)?)))
    }

    /// Seals `value` under `terms`.
    pub(crate) fn seal(&self, terms: &Terms, value: &[u8]) -> Result<Vec<u8>, VaultError> {
        let refuse = |_| VaultError { name: terms.name.clone() };
        let mut random = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut random).map_err(refuse)?;
        let mut buffer = Zeroizing::new(Vec::with_capacity(value.len() + 16));
        buffer.extend_from_slice(value);
        let unique = Nonce::assume_unique_for_key(random);
        self.0
            .seal_in_place_append_tag(unique, Aad::from(terms.encode()), &mut *buffer)
            .map_err(refuse)?;
        Ok([&random[..], &buffer].concat())
    }

    /// Opens what [`Self::seal`] made under the same terms.
    pub(crate) fn open(
        &self,
        terms: &Terms,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let refuse = || VaultError { name: terms.name.clone() };
        let (random, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or_else(refuse)?;
        let unique = Nonce::try_assume_unique_for_key(random).map_err(|_| refuse())?;
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let length = self
            .0
            .open_in_place(unique, Aad::from(terms.encode()), &mut buffer)
            .map_err(|_| refuse())?
            .len();
        buffer.truncate(length);
        Ok(buffer)
    }
}

impl Terms {
    fn encode(&self) -> Vec<u8> {
        casemate_attestation::cbor::Map::new()
            .set(0, "casemate/vault/v1")
            .set(1, self.name.as_str())
            .set(2, self.risk.name())
            .set(3, self.ttl_seconds)
            .encode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_only_under_its_key_and_terms() {
        let vault = Vault::new(&[1; 32]).unwrap();
        let terms = Terms { name: "db".to_owned(), risk: Risk::High, ttl_seconds: 60 };
        let sealed = vault.seal(&terms, b"hunter2").unwrap();
        assert_eq!(**vault.open(&terms, &sealed).unwrap(), *b"hunter2");
        for other in [
            Terms { name: "db2".to_owned(), ..terms.clone() },
            Terms { risk: Risk::Low, ..terms.clone() },
            Terms { ttl_seconds: 61, ..terms.clone() },
        ] {
            assert!(vault.open(&other, &sealed).is_err());
        }
        assert!(Vault::new(&[2; 32]).unwrap().open(&terms, &sealed).is_err());
        assert!(vault.open(&terms, &sealed[..20]).is_err());
    }
}
