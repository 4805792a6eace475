//! The keys of this machine: made in its memory, never written, gone with it.

use std::sync::Arc;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, alg_id};
use rustls::sign::{CertifiedKey, Signer, SigningKey, public_key_to_spki};
use rustls::{SignatureAlgorithm, SignatureScheme};
use zeroize::Zeroizing;

/// Why there is no key, or why it does not serve.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The kernel or the library gave no key.
    #[error("{key}: not made")]
    Make {
        /// Which key.
        key: &'static str,
    },
    /// A sealed secret does not open with this key, name and sandbox.
    #[error("sealed secret: it does not open with this machine's sealing key")]
    Open,
}

/// The identity (Ed25519) and sealing (X25519) keys of one boot.
pub struct Identity {
    signing: Arc<Ed25519KeyPair>,
    public: [u8; 32],
    sealing: HpkePrivateKey,
    sealing_public: [u8; 32],
    /// The boot incarnation.
    pub epoch: u64,
}

impl Identity {
    /// New keys from the kernel's randomness.
    pub fn generate(epoch: u64) -> Result<Self, IdentityError> {
        let make = |key| IdentityError::Make { key };
        let signing = Ed25519KeyPair::generate().map_err(|_| make("identity key"))?;
        let public = signing.public_key().as_ref();
        let public = public.try_into().map_err(|_| make("identity key"))?;
        let (sealing_public, sealing) =
            SUITE.generate_key_pair().map_err(|_| make("sealing key"))?;
        let sealing_public =
            sealing_public.0.as_slice().try_into().map_err(|_| make("sealing key"))?;
        Ok(Self { signing: Arc::new(signing), public, sealing, sealing_public, epoch })
    }

    /// The identity's public key.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public
    }

    /// The public key to which secrets are sealed.
    pub fn sealing_key(&self) -> &[u8; 32] {
        &self.sealing_public
    }

    /// The identity's signature over `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        sign(&self.signing, message)
    }

    /// Opens what was sealed to [`Self::sealing_key`] (RFC 9180, base mode).
    pub fn open(
        &self,
        encapsulated: Vec<u8>,
        info: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
        SUITE
            .open(&EncapsulatedSecret(encapsulated), info, aad, ciphertext, &self.sealing)
            .map(Zeroizing::new)
            .map_err(|_| IdentityError::Open)
    }

    /// The identity as a TLS client certificate; the private key stays where it is.
    pub fn certified(&self, chain: Vec<CertificateDer<'static>>) -> CertifiedKey {
        CertifiedKey::new(chain, Arc::new(TlsKey(Arc::clone(&self.signing))))
    }
}

static SUITE: &dyn Hpke = DH_KEM_X25519_HKDF_SHA256_AES_256;

fn sign(key: &Ed25519KeyPair, message: &[u8]) -> [u8; 64] {
    let mut out = [0; 64];
    let signature = key.sign(message);
    // An Ed25519 signature is 64 bytes (RFC 8032); zeros verify under no key.
    if let Some(bytes) = signature.as_ref().first_chunk() {
        out = *bytes;
    }
    out
}

impl core::fmt::Debug for Identity {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Identity {{ public: {}, epoch: {} }}", hex::encode(self.public), self.epoch)
    }
}

/// The identity key as rustls asks for it.
#[derive(Debug, Clone)]
struct TlsKey(Arc<Ed25519KeyPair>);

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let key: Box<dyn Signer> = Box::new(self.clone());
        offered.contains(&SignatureScheme::ED25519).then_some(key)
    }

    // What makes `CertifiedKey::keys_match` able to tell our key from another.
    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(public_key_to_spki(&alg_id::ED25519, self.0.public_key()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        Ok(sign(&self.0, message).to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::hpke::HpkePublicKey;

    #[test]
    fn keys_sign_open_and_stay_out_of_debug() {
        let identity = Identity::generate(4).unwrap();
        let signature = identity.sign(b"message");
        let public = identity.public_key();
        assert!(casemate_attestation::crypto::ed25519_verify(public, b"message", &signature));

        let sealing = HpkePublicKey(identity.sealing_key().to_vec());
        let (encapsulated, sealed) = SUITE.seal(b"info", b"aad", b"secret", &sealing).unwrap();
        let opened = identity.open(encapsulated.0.clone(), b"info", b"aad", &sealed).unwrap();
        assert_eq!(opened.as_slice(), b"secret");
        assert!(identity.open(encapsulated.0, b"info", b"other", &sealed).is_err());

        assert!(!format!("{identity:?}").contains("sealing"));
        assert_ne!(Identity::generate(4).unwrap().public_key(), public);
    }
}
