//! The backends written in C and assembly: aws-lc-rs, or ring by feature.

#[cfg(feature = "aws-lc-rs")]
use aws_lc_rs as lib;
#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
use ring as lib;

use lib::{digest, signature};

use super::{KeyKind, Scheme};

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    fixed(digest::digest(&digest::SHA256, bytes).as_ref())
}

pub(super) fn sha384(bytes: &[u8]) -> [u8; 48] {
    fixed(digest::digest(&digest::SHA384, bytes).as_ref())
}

pub(super) fn sha512(bytes: &[u8]) -> [u8; 64] {
    fixed(digest::digest(&digest::SHA512, bytes).as_ref())
}

#[derive(Clone)]
pub(super) struct Sha384(digest::Context);

impl Default for Sha384 {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA384))
    }
}

impl Sha384 {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> [u8; 48] {
        fixed(self.0.finish().as_ref())
    }
}

/// A digest's output copied into an array of its own length.
fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

fn algorithm(scheme: Scheme) -> &'static dyn signature::VerificationAlgorithm {
    match scheme {
        Scheme::Ed25519 => &signature::ED25519,
        Scheme::EcdsaP256Sha256Raw | Scheme::EcdsaP256Sha256Der => {
            &signature::ECDSA_P256_SHA256_FIXED
        }
        Scheme::EcdsaP384Sha384Raw | Scheme::EcdsaP384Sha384Der => {
            &signature::ECDSA_P384_SHA384_FIXED
        }
        Scheme::RsaPssSha384 => &signature::RSA_PSS_2048_8192_SHA384,
        Scheme::RsaPkcs1Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Scheme::RsaPkcs1Sha384 => &signature::RSA_PKCS1_2048_8192_SHA384,
    }
}

#[cfg(feature = "aws-lc-rs")]
mod prepared {
    use std::sync::{Arc, OnceLock};

    use super::{KeyKind, Scheme, algorithm, signature::ParsedPublicKey};

    /// The library's own key objects. An RSA key has one for each scheme, made
    /// when it is first needed.
    #[derive(Clone)]
    pub(in super::super) enum Prepared {
        One(ParsedPublicKey),
        Rsa(Arc<RsaKeys>),
    }

    pub(in super::super) struct RsaKeys {
        der: Vec<u8>,
        pss384: OnceLock<Option<ParsedPublicKey>>,
        pkcs256: OnceLock<Option<ParsedPublicKey>>,
        pkcs384: OnceLock<Option<ParsedPublicKey>>,
    }

    impl Prepared {
        pub(in super::super) fn new(kind: KeyKind, bytes: &[u8]) -> Option<Self> {
            let scheme = match kind {
                KeyKind::Ed25519 => Scheme::Ed25519,
                KeyKind::P256 => Scheme::EcdsaP256Sha256Raw,
                KeyKind::P384 => Scheme::EcdsaP384Sha384Raw,
                KeyKind::Rsa(_) => {
                    return Some(Self::Rsa(Arc::new(RsaKeys {
                        der: bytes.to_vec(),
                        pss384: OnceLock::new(),
                        pkcs256: OnceLock::new(),
                        pkcs384: OnceLock::new(),
                    })));
                }
            };
            ParsedPublicKey::new(algorithm(scheme), bytes).ok().map(Self::One)
        }

        pub(in super::super) fn verify(
            &self,
            scheme: Scheme,
            message: &[u8],
            signature: &[u8],
        ) -> bool {
            match self {
                Self::One(key) => key.verify_sig(message, signature).is_ok(),
                Self::Rsa(keys) => {
                    keys.key(scheme).is_some_and(|key| key.verify_sig(message, signature).is_ok())
                }
            }
        }
    }

    impl RsaKeys {
        fn key(&self, scheme: Scheme) -> Option<&ParsedPublicKey> {
            let slot = match scheme {
                Scheme::RsaPssSha384 => &self.pss384,
                Scheme::RsaPkcs1Sha256 => &self.pkcs256,
                Scheme::RsaPkcs1Sha384 => &self.pkcs384,
                _ => return None,
            };
            slot.get_or_init(|| ParsedPublicKey::new(algorithm(scheme), &self.der).ok()).as_ref()
        }
    }
}

#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
mod prepared {
    use super::{KeyKind, Scheme, algorithm, signature::UnparsedPublicKey};

    /// ring has no parsed form: the key is read at each use, and a key that is
    /// no key never verifies.
    #[derive(Clone)]
    pub(in super::super) struct Prepared(Vec<u8>);

    impl Prepared {
        pub(in super::super) fn new(_kind: KeyKind, bytes: &[u8]) -> Option<Self> {
            Some(Self(bytes.to_vec()))
        }

        pub(in super::super) fn verify(
            &self,
            scheme: Scheme,
            message: &[u8],
            signature: &[u8],
        ) -> bool {
            UnparsedPublicKey::new(algorithm(scheme), &self.0).verify(message, signature).is_ok()
        }
    }
}

pub(super) use prepared::Prepared;
