//! What all signed records share: one COSE_Sign1 shape, checked before use.

use casemate_attestation::cbor::CborError;
use casemate_attestation::cose::{self, CoseError, KeyId};

/// Why bytes are not the record that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The COSE structure, its header or its signature is wrong.
    #[error(transparent)]
    Cose(#[from] CoseError),
    /// The payload is not this record's.
    #[error(transparent)]
    Cbor(#[from] CborError),
}

/// A record that is signed as a COSE_Sign1 of its own type.
pub trait Record: Sized {
    /// The record type in the COSE header: the domain separator.
    const TYPE: &'static str;
    /// The largest record that is read.
    const MAX_BYTES: usize;

    /// The payload's one encoding.
    fn payload(&self) -> Vec<u8>;

    /// Reads a payload; anything but the one encoding is refused.
    fn from_payload(payload: &[u8]) -> Result<Self, CborError>;

    /// The record signed by the key of `public_key`; `sign` is the private key's act.
    fn sign(self, public_key: &[u8; 32], sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Authentic<Self> {
        let bytes = cose::sign1(Self::TYPE, public_key, self.payload(), sign);
        Authentic { record: self, signer: KeyId::of(public_key), bytes }
    }

    /// Reads a record and checks that `public_key` signed it.
    fn verify(bytes: &[u8], public_key: &[u8; 32]) -> Result<Authentic<Self>, RecordError> {
        let parsed = cose::Unverified::parse(Self::TYPE, bytes, Self::MAX_BYTES)?;
        let payload = parsed.verify(public_key)?;
        Ok(Authentic {
            record: Self::from_payload(&payload)?,
            signer: KeyId::of(public_key),
            bytes: bytes.to_vec(),
        })
    }
}

/// A record whose signature by a known key was made or checked here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentic<T> {
    record: T,
    signer: KeyId,
    bytes: Vec<u8>,
}

impl<T> Authentic<T> {
    /// The signed bytes as they were made or received.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of [`Self::bytes`]: how other records refer to this one.
    pub fn digest(&self) -> [u8; 32] {
        crate::digest(&self.bytes)
    }

    /// The key that signed.
    pub fn signer(&self) -> KeyId {
        self.signer
    }
}

impl<T> core::ops::Deref for Authentic<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.record
    }
}

/// Reads a record of type `T` without checking who signed it, to learn which
/// key it claims or to print it. Never a ground to believe it.
pub fn peek<T: Record>(bytes: &[u8]) -> Result<(KeyId, T), RecordError> {
    let parsed = cose::Unverified::parse(T::TYPE, bytes, T::MAX_BYTES)?;
    Ok((parsed.claimed_key_id(), T::from_payload(parsed.unverified_payload())?))
}

#[cfg(test)]
pub(crate) mod testing {
    //! A real key pair for the tests of the record types.

    use super::*;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    pub(crate) struct Key(Ed25519KeyPair);

    impl Key {
        pub(crate) fn from_seed(seed: u8) -> Self {
            Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
        }

        pub(crate) fn public(&self) -> [u8; 32] {
            self.0.public_key().as_ref().try_into().unwrap()
        }

        pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
            self.0.sign(message).as_ref().try_into().unwrap()
        }
    }

    /// Signs `record`, reads it back, and checks that no byte of it can change.
    pub(crate) fn survives<T: Record + Clone + PartialEq + core::fmt::Debug>(record: T) {
        let key = Key::from_seed(1);
        let signed = record.clone().sign(&key.public(), |message| key.sign(message));
        let read = T::verify(signed.bytes(), &key.public()).unwrap();
        assert_eq!(*read, record);
        assert_eq!(read.digest(), signed.digest());
        for at in 0..signed.bytes().len() {
            let mut bytes = signed.bytes().to_vec();
            bytes[at] ^= 1;
            assert!(T::verify(&bytes, &key.public()).is_err(), "byte {at} changed unseen");
        }
        assert!(T::verify(signed.bytes(), &Key::from_seed(2).public()).is_err());
    }
}
