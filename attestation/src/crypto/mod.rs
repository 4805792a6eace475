//! The closed list of algorithms this library accepts, over one backend.
//!
//! This directory is the only place that names an algorithm. A backend is
//! chosen by a cargo feature; each accepts and refuses the same inputs:
//! encodings and key sizes are checked here, before any backend sees them.
//!
//! A [`PublicKey`] is parsed once and kept; a warm check costs the signature
//! alone. It is safe to share between threads.

pub(crate) mod der;

#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
#[path = "native.rs"]
mod backend;
#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
#[path = "pure.rs"]
mod backend;

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring", feature = "rustcrypto")))]
compile_error!("choose a cryptographic backend: aws-lc-rs (default), ring or rustcrypto");

use der::ecdsa_raw;

/// A signature scheme with all its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Ed25519 (RFC 8032).
    Ed25519,
    /// ECDSA on P-256 over SHA-256, `r | s` of 32 bytes each, big-endian.
    EcdsaP256Sha256Raw,
    /// ECDSA on P-256 over SHA-256, a DER SEQUENCE of r and s (RFC 3279).
    EcdsaP256Sha256Der,
    /// ECDSA on P-384 over SHA-384, `r | s` of 48 bytes each, big-endian.
    EcdsaP384Sha384Raw,
    /// ECDSA on P-384 over SHA-384, a DER SEQUENCE of r and s (RFC 3279).
    EcdsaP384Sha384Der,
    /// RSASSA-PSS, SHA-384, MGF1 with SHA-384, salt of 48 bytes (RFC 8017 8.1).
    RsaPssSha384,
    /// RSASSA-PKCS1-v1_5 over SHA-256 (RFC 8017 8.2).
    RsaPkcs1Sha256,
    /// RSASSA-PKCS1-v1_5 over SHA-384 (RFC 8017 8.2).
    RsaPkcs1Sha384,
}

/// What kind of key a [`PublicKey`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// Edwards curve 25519.
    Ed25519,
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// RSA with public exponent 65537 and a modulus of that many bits.
    Rsa(u16),
}

/// Bytes that are not a public key of the closed list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("public key: expected {expected}")]
pub struct KeyError {
    /// What would have been accepted.
    pub expected: &'static str,
}

/// A public key, parsed and ready to verify with.
#[derive(Clone)]
pub struct PublicKey {
    kind: KeyKind,
    bytes: Vec<u8>,
    prepared: backend::Prepared,
}

/// SHA-256 (FIPS 180-4).
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    backend::sha256(bytes)
}

/// SHA-384 (FIPS 180-4).
pub fn sha384(bytes: &[u8]) -> [u8; 48] {
    backend::sha384(bytes)
}

/// SHA-512 (FIPS 180-4).
pub fn sha512(bytes: &[u8]) -> [u8; 64] {
    backend::sha512(bytes)
}

/// SHA-384 over bytes that come in parts.
#[derive(Clone, Default)]
pub struct Sha384(backend::Sha384);

impl Sha384 {
    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything that was added.
    pub fn finish(self) -> [u8; 48] {
        self.0.finish()
    }
}

/// Whether `signature` is Ed25519 (RFC 8032) by `public_key` over `message`.
pub fn ed25519_verify(public_key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    PublicKey::ed25519(public_key).is_ok_and(|key| key.verify(Scheme::Ed25519, message, signature))
}

impl PublicKey {
    /// An Ed25519 key of 32 bytes.
    pub fn ed25519(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        Self::prepare(KeyKind::Ed25519, bytes, "an Ed25519 point")
    }

    /// A P-256 key: an uncompressed SEC1 point, 0x04 and two coordinates of 32 bytes.
    pub fn p256(point: &[u8]) -> Result<Self, KeyError> {
        const EXPECTED: &str = "an uncompressed point on P-256 (65 bytes)";
        Self::prepare(KeyKind::P256, uncompressed(point, 65, EXPECTED)?, EXPECTED)
    }

    /// A P-384 key: an uncompressed SEC1 point, 0x04 and two coordinates of 48 bytes.
    pub fn p384(point: &[u8]) -> Result<Self, KeyError> {
        const EXPECTED: &str = "an uncompressed point on P-384 (97 bytes)";
        Self::prepare(KeyKind::P384, uncompressed(point, 97, EXPECTED)?, EXPECTED)
    }

    /// An RSA key: a DER RSAPublicKey (RFC 8017 A.1.1) of 2048, 3072 or 4096 bits.
    pub fn rsa(der: &[u8]) -> Result<Self, KeyError> {
        const EXPECTED: &str = "an RSA key of 2048, 3072 or 4096 bits with exponent 65537";
        let (modulus, exponent) =
            der::rsa_public_key(der).ok_or(KeyError { expected: EXPECTED })?;
        let top_bit = modulus.first().is_some_and(|byte| byte & 0x80 != 0);
        let odd = modulus.last().is_some_and(|byte| byte & 1 == 1);
        let bits = match modulus.len() {
            256 => 2048,
            384 => 3072,
            512 => 4096,
            _ => 0,
        };
        if bits == 0 || !top_bit || !odd || exponent != [1, 0, 1] {
            return Err(KeyError { expected: EXPECTED });
        }
        Self::prepare(KeyKind::Rsa(bits), der, EXPECTED)
    }

    fn prepare(kind: KeyKind, bytes: &[u8], expected: &'static str) -> Result<Self, KeyError> {
        let prepared = backend::Prepared::new(kind, bytes).ok_or(KeyError { expected })?;
        Ok(Self { kind, bytes: bytes.to_vec(), prepared })
    }

    /// What kind of key this is.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The key's encoding, as it was given to its constructor.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether `signature` is this key's over `message` by `scheme`; a scheme
    /// of another kind of key never verifies.
    pub fn verify(&self, scheme: Scheme, message: &[u8], signature: &[u8]) -> bool {
        match (self.kind, scheme) {
            (KeyKind::Ed25519, Scheme::Ed25519) => {
                signature.len() == 64 && self.prepared.verify(scheme, message, signature)
            }
            (KeyKind::P256, Scheme::EcdsaP256Sha256Raw)
            | (KeyKind::P384, Scheme::EcdsaP384Sha384Raw) => {
                self.prepared.verify(scheme, message, signature)
            }
            (KeyKind::P256, Scheme::EcdsaP256Sha256Der) => ecdsa_raw::<32>(signature)
                .is_some_and(|raw| self.verify(Scheme::EcdsaP256Sha256Raw, message, &raw)),
            (KeyKind::P384, Scheme::EcdsaP384Sha384Der) => ecdsa_raw::<48>(signature)
                .is_some_and(|raw| self.verify(Scheme::EcdsaP384Sha384Raw, message, &raw)),
            (
                KeyKind::Rsa(bits),
                Scheme::RsaPssSha384 | Scheme::RsaPkcs1Sha256 | Scheme::RsaPkcs1Sha384,
            ) => {
                signature.len() == usize::from(bits / 8)
                    && self.prepared.verify(scheme, message, signature)
            }
            _ => false,
        }
    }
}

/// Keys are equal when their kind and encoding are.
impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.bytes == other.bytes
    }
}

impl Eq for PublicKey {}

impl core::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "PublicKey({:?}, {})", self.kind, crate::wire::hex(&sha256(&self.bytes)))
    }
}

fn uncompressed<'a>(
    point: &'a [u8],
    length: usize,
    expected: &'static str,
) -> Result<&'a [u8], KeyError> {
    if point.len() == length && point.first() == Some(&4) {
        Ok(point)
    } else {
        Err(KeyError { expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standard() {
        use crate::wire::hex;
        assert!(hex(&sha256(b"abc")).starts_with("ba7816bf8f01cfea"));
        assert!(hex(&sha384(b"abc")).starts_with("cb00753f45a35e8b"));
        assert!(hex(&sha512(b"abc")).starts_with("ddaf35a193617aba"));
        let mut parts = Sha384::default();
        parts.update(b"a");
        parts.update(b"bc");
        assert_eq!(parts.finish(), sha384(b"abc"));
    }

    #[test]
    fn ed25519_of_the_standard_verifies() {
        // RFC 8032 section 7.1, test 2.
        let key = crate::wire::unhex_array(
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        )
        .unwrap();
        let signature = crate::wire::unhex(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        )
        .unwrap();
        assert!(ed25519_verify(&key, &[0x72], &signature));
        assert!(!ed25519_verify(&key, &[0x73], &signature));
        assert!(!ed25519_verify(&key, &[0x72], &signature[..63]));
    }

    #[test]
    fn keys_outside_the_list_are_refused() {
        assert!(PublicKey::p256(&[4; 64]).is_err());
        assert!(PublicKey::p384(&[2; 49]).is_err());
        assert!(PublicKey::rsa(&[0x30, 0]).is_err());
    }
}
