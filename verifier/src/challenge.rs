//! Nonces that need no memory until they are used: the time and randomness,
//! sealed under the verifier's key and tied to one TLS connection.
//!
//! That a nonce is used once is the store's doing, in the transaction that
//! records the outcome.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use casemate_attestation::{UnixTime, crypto};

use crate::denial::{Code, Denial};

/// The bytes of a nonce: 12 random, 8 of sealed time, 16 of tag.
pub(crate) const NONCE_BYTES: usize = NONCE_LEN + 8 + 16;

/// Makes and opens nonces.
#[derive(Debug)]
pub(crate) struct Challenger {
    // AES-GCM-SIV (RFC 8452): a repeated random value reveals nothing and
    // forges nothing, which plain GCM cannot say.
    key: LessSafeKey,
    lifetime_seconds: u64,
}

/// A nonce that this verifier made for this connection and that is not too old.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fresh {
    /// The nonce itself, as it is bound into the evidence.
    pub nonce: Vec<u8>,
    /// When it is too old, and can be forgotten.
    pub expires_at: UnixTime,
}

impl Challenger {
    /// A challenger with `key`, whose nonces live `lifetime_seconds`.
    pub(crate) fn new(
        key: &[u8; 32],
        lifetime_seconds: u64,
    ) -> Result<Self, aws_lc_rs::error::Unspecified> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, key)?);
        Ok(Self { key, lifetime_seconds })
    }

    /// A new nonce for the connection whose exporter is `channel`.
    pub(crate) fn issue(&self, channel: &[u8; 32], now: UnixTime) -> Result<Fresh, Denial> {
        let internal = |_| Denial::new(Code::Internal, "challenge", "random bytes", "none");
        let mut random = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut random).map_err(internal)?;
        let mut sealed = now.0.to_be_bytes().to_vec();
        let unique = Nonce::assume_unique_for_key(random);
        self.key
            .seal_in_place_append_tag(unique, Aad::from(channel), &mut sealed)
            .map_err(internal)?;
        let nonce = [&random[..], &sealed].concat();
        Ok(Fresh { nonce, expires_at: now.plus_seconds(self.lifetime_seconds) })
    }

    /// Opens a nonce that came back on the connection `channel`.
    pub(crate) fn open(
        &self,
        nonce: &[u8],
        channel: &[u8; 32],
        now: UnixTime,
    ) -> Result<Fresh, Denial> {
        let foreign = |actual: &str| {
            let expected = "a nonce made by this verifier for this connection";
            Denial::new(Code::NonceForeign, "nonce", expected, actual)
        };
        let Some((random, sealed)) = nonce.split_at_checked(NONCE_LEN) else {
            return Err(foreign("too few bytes"));
        };
        let unique =
            Nonce::try_assume_unique_for_key(random).map_err(|_| foreign("too few bytes"))?;
        let mut sealed = sealed.to_vec();
        let time = self
            .key
            .open_in_place(unique, Aad::from(channel), &mut sealed)
            .ok()
            .and_then(|time| <[u8; 8]>::try_from(&*time).ok())
            .ok_or_else(|| foreign("another one"))?;
        let issued_at = UnixTime(u64::from_be_bytes(time));
        let expires_at = issued_at.plus_seconds(self.lifetime_seconds);
        if now > expires_at || now < issued_at {
            let expected = format!("used between {issued_at} and {expires_at}");
            return Err(Denial::new(Code::NonceExpired, "nonce", expected, format!("it is {now}")));
        }
        Ok(Fresh { nonce: nonce.to_vec(), expires_at })
    }
}

impl Fresh {
    /// What the store remembers of a used nonce.
    pub(crate) fn digest(&self) -> [u8; 32] {
        crypto::sha256(&self.nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNEL: [u8; 32] = [1; 32];
    const NOW: UnixTime = UnixTime(1_794_000_000);

    fn challenger() -> Challenger {
        Challenger::new(&[7; 32], 60).unwrap()
    }

    fn code(result: Result<Fresh, Denial>) -> String {
        result.unwrap_err().code.into_string()
    }

    #[test]
    fn a_nonce_opens_on_its_connection_within_its_time() {
        let fresh = challenger().issue(&CHANNEL, NOW).unwrap();
        assert_eq!(fresh.nonce.len(), NONCE_BYTES);
        for later in [0, 60] {
            let opened = challenger().open(&fresh.nonce, &CHANNEL, NOW.plus_seconds(later));
            assert_eq!(opened.as_ref(), Ok(&fresh));
        }
        let opened = challenger().open(&fresh.nonce, &CHANNEL, NOW.plus_seconds(61));
        assert_eq!(code(opened), "nonce-expired");
        let opened = challenger().open(&fresh.nonce, &CHANNEL, UnixTime(NOW.0 - 1));
        assert_eq!(code(opened), "nonce-expired");
    }

    #[test]
    fn other_connections_keys_and_bytes_are_foreign() {
        let fresh = challenger().issue(&CHANNEL, NOW).unwrap();
        assert_eq!(code(challenger().open(&fresh.nonce, &[2; 32], NOW)), "nonce-foreign");
        let other = Challenger::new(&[8; 32], 60).unwrap();
        assert_eq!(code(other.open(&fresh.nonce, &CHANNEL, NOW)), "nonce-foreign");
        for at in 0..fresh.nonce.len() {
            let mut nonce = fresh.nonce.clone();
            nonce[at] ^= 1;
            assert_eq!(code(challenger().open(&nonce, &CHANNEL, NOW)), "nonce-foreign");
            assert_eq!(code(challenger().open(&nonce[..at], &CHANNEL, NOW)), "nonce-foreign");
        }
    }
}
