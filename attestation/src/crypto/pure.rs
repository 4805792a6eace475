//! The backend in Rust alone (RustCrypto), for wasm32 and targets without an
//! operating system. Slower; never part of the normal build.

use p256::ecdsa::signature::Verifier as _;
use sha2::Digest as _;

use super::{KeyKind, Scheme};

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    sha2::Sha256::digest(bytes).into()
}

pub(super) fn sha384(bytes: &[u8]) -> [u8; 48] {
    sha2::Sha384::digest(bytes).into()
}

pub(super) fn sha512(bytes: &[u8]) -> [u8; 64] {
    sha2::Sha512::digest(bytes).into()
}

#[derive(Clone, Default)]
pub(super) struct Sha384(sha2::Sha384);

impl Sha384 {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> [u8; 48] {
        self.0.finalize().into()
    }
}

#[derive(Clone)]
pub(super) enum Prepared {
    Ed25519(ed25519_dalek::VerifyingKey),
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    Rsa(Box<rsa::RsaPublicKey>),
}

impl Prepared {
    pub(super) fn new(kind: KeyKind, bytes: &[u8]) -> Option<Self> {
        match kind {
            KeyKind::Ed25519 => {
                ed25519_dalek::VerifyingKey::try_from(bytes).ok().map(Self::Ed25519)
            }
            KeyKind::P256 => p256::ecdsa::VerifyingKey::from_sec1_bytes(bytes).ok().map(Self::P256),
            KeyKind::P384 => p384::ecdsa::VerifyingKey::from_sec1_bytes(bytes).ok().map(Self::P384),
            KeyKind::Rsa(_) => {
                let (modulus, exponent) = super::der::rsa_public_key(bytes)?;
                let modulus = rsa::BigUint::from_bytes_be(modulus);
                let exponent = rsa::BigUint::from_bytes_be(exponent);
                rsa::RsaPublicKey::new(modulus, exponent).ok().map(|key| Self::Rsa(Box::new(key)))
            }
        }
    }

    pub(super) fn verify(&self, scheme: Scheme, message: &[u8], signature: &[u8]) -> bool {
        self.try_verify(scheme, message, signature).is_some()
    }

    fn try_verify(&self, scheme: Scheme, message: &[u8], signature: &[u8]) -> Option<()> {
        match self {
            Self::Ed25519(key) => {
                let signature = ed25519_dalek::Signature::from_slice(signature).ok()?;
                key.verify(message, &signature).ok()
            }
            Self::P256(key) => {
                let signature = p256::ecdsa::Signature::from_slice(signature).ok()?;
                key.verify(message, &signature).ok()
            }
            Self::P384(key) => {
                let signature = p384::ecdsa::Signature::from_slice(signature).ok()?;
                key.verify(message, &signature).ok()
            }
            Self::Rsa(key) => match scheme {
                Scheme::RsaPssSha384 => key
                    .verify(
                        rsa::Pss::new_with_salt::<sha2::Sha384>(48),
                        &sha384(message),
                        signature,
                    )
                    .ok(),
                Scheme::RsaPkcs1Sha256 => key
                    .verify(rsa::Pkcs1v15Sign::new::<sha2::Sha256>(), &sha256(message), signature)
                    .ok(),
                Scheme::RsaPkcs1Sha384 => key
                    .verify(rsa::Pkcs1v15Sign::new::<sha2::Sha384>(), &sha384(message), signature)
                    .ok(),
                _ => None,
            },
        }
    }
}
