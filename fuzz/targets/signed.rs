//! What is read only under a signature that holds: payloads of records, the
//! claims of an EAR, and an ID block. The key is the target's own.
#![no_main]

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
};
use casemate_attestation::break_list::{BREAK_LIST_TYPE, BreakList};
use casemate_attestation::cose;
use casemate_attestation::crypto::PublicKey;
use casemate_attestation::host_claim::HOST_CLAIM_TYPE;
use casemate_attestation::release::RELEASE_PROOF_TYPE;
use casemate_attestation::snp::{ID_BLOCK_BYTES, IdBlock, Report};
use casemate_attestation::{HostClaim, ReleaseProof, UnixTime, ear};
use libfuzzer_sys::fuzz_target;

struct Keys {
    records: Ed25519KeyPair,
    tokens: EcdsaKeyPair,
    token: PublicKey,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let tokens = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let token = PublicKey::p256(tokens.public_key().as_ref()).expect("a point");
    let records = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a key");
    Keys { records, tokens, token }
});

const REPORT_BYTES: usize = 1184;

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => records(rest),
        1 => token(rest),
        2 => id_block(rest),
        // As they come, without a signature that holds.
        _ => {
            let _ = BreakList::verify(rest, &[7; 32]);
            if let Ok(text) = std::str::from_utf8(rest) {
                let token = &KEYS.token;
                assert!(ear::verify(text, token, "i", "a", UnixTime(1)).is_err());
            }
        }
    }
});

fn records(payload: &[u8]) {
    let key: [u8; 32] = KEYS.records.public_key().as_ref().try_into().expect("32 bytes");
    let sign = |typ: &'static str| {
        cose::sign1(typ, &key, payload.to_vec(), |message| {
            KEYS.records.sign(message).as_ref().try_into().expect("64 bytes")
        })
    };
    if let Ok(list) = BreakList::verify(&sign(BREAK_LIST_TYPE), &key) {
        assert!(list.entries.len() <= 256);
        let again = list.sign(&key, |message| {
            KEYS.records.sign(message).as_ref().try_into().expect("64 bytes")
        });
        assert_eq!(again, sign(BREAK_LIST_TYPE), "a list has two encodings");
    }
    let _ = HostClaim::verify(&sign(HOST_CLAIM_TYPE), &key);
    let _ = ReleaseProof::verify(&sign(RELEASE_PROOF_TYPE), &key);
}

/// A token whose claims are the input.
fn token(claims: &[u8]) {
    let Ok(claims) = serde_json::from_slice(claims) else { return };
    let random = SystemRandom::new();
    let token = ear::sign(&claims, "k", |message| {
        let signature = KEYS.tokens.sign(&random, message).expect("a signature");
        signature.as_ref().try_into().expect("64 bytes")
    });
    if let Ok(read) = ear::verify(&token, &KEYS.token, "i", "a", UnixTime(1_790_000_000)) {
        assert_eq!(read, claims);
    }
}

/// A report, an ID block and its authentication, one after the other.
fn id_block(bytes: &[u8]) {
    let Some((report, rest)) = bytes.split_at_checked(REPORT_BYTES) else { return };
    let Some((block, auth)) = rest.split_at_checked(ID_BLOCK_BYTES) else { return };
    if let Ok(report) = Report::parse(report) {
        // Nobody signs what a fuzzer makes.
        assert!(IdBlock::verify(block, auth, &report).is_err());
    }
}
