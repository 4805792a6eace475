//! The key of attestation results: signs EARs (docs/formats/ear.md) and
//! publishes its public half as a JWK set.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use casemate_attestation::ear::{self, Dialect, EarContext};
use casemate_attestation::{Appraisal, Risk, UnixTime, crypto};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::admitted::Admitted;
use crate::body::encode;
use crate::config::Config;
use crate::denial::Denial;
use crate::keys::{KeyDir, KeyError};

/// The issuer of attestation results.
#[derive(Debug)]
pub(crate) struct TokenIssuer {
    key: EcdsaKeyPair,
    jwk: Value,
    key_id: String,
    issuer: String,
    audience: String,
    lifetime_seconds: u64,
}

const KEY_FILE: &str = "token.key";

impl TokenIssuer {
    /// Opens the key in `keys`, making it if it is not there.
    pub(crate) fn open(keys: &KeyDir, config: &Config) -> Result<Self, KeyError> {
        let wrong =
            || KeyError::Content { path: keys.path(KEY_FILE), expected: "a P-256 key in PKCS #8" };
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let make = || {
            EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new())
                .map(|key| Zeroizing::new(key.as_ref().to_vec()))
                .map_err(|_| wrong())
        };
        let key = keys.read_or_make(KEY_FILE, make)?;
        let key = EcdsaKeyPair::from_pkcs8(algorithm, &key).map_err(|_| wrong())?;
        let (x, y) = coordinates(&key).ok_or_else(wrong)?;
        // RFC 7638 3.2: the members in this order, without white space.
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let key_id = encode(&crypto::sha256(canonical.as_bytes()));
        Ok(Self {
            jwk: json!({
                "kty": "EC", "crv": "P-256", "x": x, "y": y,
                "kid": key_id, "alg": "ES256", "use": "sig",
            }),
            key,
            key_id,
            issuer: format!("https://{}", config.server_name),
            audience: config.audience.clone(),
            lifetime_seconds: config.lifetimes.result_seconds,
        })
    }

    /// The attestation result of `admitted`, whose evidence answered `nonce`.
    pub(crate) fn issue(
        &self,
        admitted: &Admitted,
        nonce: &[u8],
        risk: Risk,
        now: UnixTime,
    ) -> Result<String, Denial> {
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id).map_err(Denial::internal)?;
        let appraisal: &Appraisal = &admitted.appraisal;
        let claims = ear::claims(
            appraisal,
            &EarContext {
                issuer: &self.issuer,
                subject: &admitted.sandbox,
                audience: &self.audience,
                token_id: &encode(&id),
                issued_at: now,
                lifetime_seconds: self.lifetime_seconds,
                nonce,
                identity_key: &admitted.identity_key,
                risk,
                bundle: admitted.bundle,
                task: &admitted.task,
                dialect: Dialect::Both,
            },
        );
        let mut refused = false;
        let token = ear::sign(&claims, &self.key_id, |message| {
            let signature = self.key.sign(&SystemRandom::new(), message).ok();
            let bytes = signature.and_then(|bytes| bytes.as_ref().try_into().ok());
            refused = bytes.is_none();
            bytes.unwrap_or([0; 64])
        });
        if refused { Err(Denial::internal("the token key does not sign")) } else { Ok(token) }
    }

    /// The public key as a JWK set (RFC 7517 section 5).
    pub(crate) fn jwks(&self) -> Value {
        json!({"keys": [self.jwk]})
    }
}

/// The two halves of the uncompressed point, base64url.
fn coordinates(key: &EcdsaKeyPair) -> Option<(String, String)> {
    let point = key.public_key().as_ref();
    let (x, y) = point.strip_prefix(&[4])?.split_at_checked(32)?;
    (y.len() == 32).then(|| (encode(x), encode(y)))
}
