//! The ID block that a guest was launched with (AMD 56860, SNP_LAUNCH_FINISH): its
//! owner's key, and the author's key where one vouches for it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use aws_lc_rs::digest::{SHA384, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use casemate_attestation::UnixTime;
use casemate_attestation::snp::{IdBlock, Report};
use casemate_model::{PspConfig, PspModel};

fn key() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()
}

/// 48 big-endian bytes in 72 little-endian ones.
fn coordinate(bytes: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = bytes.iter().rev().copied().collect();
    out.resize(72, 0);
    out
}

fn padded(parts: &[Vec<u8>], length: usize) -> Vec<u8> {
    let mut out = parts.concat();
    out.resize(length, 0);
    out
}

fn public(key: &EcdsaKeyPair) -> Vec<u8> {
    let (x, y) = key.public_key().as_ref().get(1..).unwrap().split_at(48);
    padded(&[vec![2, 0, 0, 0], coordinate(x), coordinate(y)], 0x404)
}

fn signed(key: &EcdsaKeyPair, message: &[u8]) -> Vec<u8> {
    let signature = key.sign(&SystemRandom::new(), message).unwrap();
    let (r, s) = signature.as_ref().split_at(48);
    padded(&[coordinate(r), coordinate(s)], 512)
}

fn sha384(bytes: &[u8]) -> [u8; 48] {
    digest(&SHA384, bytes).as_ref().try_into().unwrap()
}

/// The page, with `algorithm`, `signature` and `author` in the author's places.
fn page(
    block: &[u8],
    id: &EcdsaKeyPair,
    algorithm: u8,
    signature: &[u8],
    author: &[u8],
) -> Vec<u8> {
    let head = padded(&[vec![1, 0, 0, 0, algorithm]], 64);
    let owner = padded(&[signed(id, block), public(id)], 512 + 0x404 + 60);
    padded(&[head, owner, signature.to_vec(), author.to_vec()], 4096)
}

fn block(report: &Report) -> Vec<u8> {
    [
        &report.measurement[..],
        &report.family_id,
        &report.image_id,
        &1_u32.to_le_bytes(),
        &report.guest_svn.to_le_bytes(),
        &report.guest_policy.0.to_le_bytes(),
    ]
    .concat()
}

#[test]
fn an_author_counts_where_the_report_has_one() {
    let model = PspModel::generate(PspConfig::milan(UnixTime(1_790_000_000))).unwrap();
    let mut report = Report::parse(&model.report(&[1; 64], &[2; 48]).unwrap()).unwrap();
    let (id, author) = (key(), key());
    report.id_key_digest = sha384(&public(&id));
    let block = block(&report);
    let verify = |page: &[u8], report: &Report| IdBlock::verify(&block, page, report);
    // Without one the firmware does not look at its places; builders leave zeros.
    let none = page(&block, &id, 0, &[0; 512], &[0; 0x404]);
    let other = page(&block, &id, 7, &[9; 512], &[9; 0x404]);
    for page in [&none, &other] {
        assert_eq!(verify(page, &report).unwrap().author_key_digest, None);
    }
    assert!(verify(&page(&block, &key(), 0, &[0; 512], &[0; 0x404]), &report).is_err());
    report.key_info.author_key = true;
    report.author_key_digest = sha384(&public(&author));
    let both = page(&block, &id, 1, &signed(&author, &public(&id)), &public(&author));
    let digest = verify(&both, &report).unwrap().author_key_digest;
    assert_eq!(digest, Some(report.author_key_digest));
    let unvouched = page(&block, &id, 1, &signed(&id, &public(&id)), &public(&author));
    let without = page(&block, &id, 0, &signed(&author, &public(&id)), &public(&author));
    for page in [none, other, unvouched, without] {
        assert!(verify(&page, &report).is_err());
    }
}
