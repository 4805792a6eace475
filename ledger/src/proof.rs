//! One leaf's proof in the forms that other software reads: a C2SP tlog-proof,
//! and a COSE receipt (RFC 9942) over the same tree.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ciborium::Value;
use coset::{CoseSign1, CoseSign1Builder, HeaderBuilder, Label, TaggedCborSerializable};

use casemate_attestation::crypto;

use crate::checkpoint::{Checkpoint, CheckpointError, MAX_NOTE_BYTES, VerifierKey};
use crate::merkle::{self, Hash, ProofError};
use crate::witness::{decimal, hash_line};

/// A leaf's place under a checkpoint, without the leaf: `c2sp.org/tlog-proof@v1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlogProof {
    /// More for the application; nobody vouches for it.
    pub extra: Option<Vec<u8>>,
    /// The leaf's index.
    pub index: u64,
    /// The hashes from the leaf to the root.
    pub hashes: Vec<Hash>,
    /// The checkpoint, with whatever cosignatures it has.
    pub note: String,
}

/// Why a proof does not show that a leaf is in a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// The bytes are not in their format.
    #[error("{what}: expected {expected}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// What it had to be.
        expected: &'static str,
    },
    /// The checkpoint is not the log's.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The hashes do not lead to its root.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The receipt's signature does not verify over the root that the proof gives.
    #[error("receipt: expected a signature by {name} over the root of its proof")]
    Signature {
        /// The log's name.
        name: String,
    },
}

const TLOG_PROOF: &str = "c2sp.org/tlog-proof@v1";
/// The longest proof or receipt that is read.
pub const MAX_PROOF_BYTES: usize = MAX_NOTE_BYTES + 128 * 1024;
const MAX_HASHES: usize = 64;
/// COSE header parameters `vds` and `vdp`, and their values (RFC 9942 section 2 and 5.2).
const VDS: i64 = 395;
const VDP: i64 = 396;
const RFC9162_SHA256: i64 = 1;
const INCLUSION: i64 = -1;

impl TlogProof {
    /// The proof's text.
    pub fn encode(&self) -> String {
        let extra = self.extra.as_ref().map(|extra| format!("extra {}\n", STANDARD.encode(extra)));
        let hashes: String = self.hashes.iter().map(|hash| STANDARD.encode(hash) + "\n").collect();
        let extra = extra.unwrap_or_default();
        format!("{TLOG_PROOF}\n{extra}index {}\n{hashes}\n{}", self.index, self.note)
    }

    /// Reads a proof; nothing in it is believed yet.
    pub fn parse(text: &str) -> Result<Self, EvidenceError> {
        let malformed = |expected| EvidenceError::Malformed { what: "tlog-proof", expected };
        if text.len() > MAX_PROOF_BYTES {
            return Err(malformed("fewer bytes"));
        }
        let (head, note) =
            text.split_once("\n\n").ok_or(malformed("an empty line before the checkpoint"))?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(TLOG_PROOF) {
            return Err(malformed("the first line c2sp.org/tlog-proof@v1"));
        }
        let extra = lines
            .next_if(|line| line.starts_with("extra "))
            .map(|line| line.strip_prefix("extra ").and_then(|extra| STANDARD.decode(extra).ok()));
        let extra =
            extra.map(|extra| extra.ok_or(malformed("extra data in base64"))).transpose()?;
        let index = lines.next().and_then(|line| line.strip_prefix("index ")).and_then(decimal);
        let index = index.ok_or(malformed("a line \"index <decimal>\""))?;
        let hashes: Option<Vec<Hash>> = lines.map(hash_line).collect();
        let hashes = hashes.filter(|hashes| hashes.len() <= MAX_HASHES);
        let hashes = hashes.ok_or(malformed("at most 64 hashes in base64, one a line"))?;
        Ok(Self { extra, index, hashes, note: note.to_owned() })
    }

    /// Checks that `leaf` is in the log whose key is `key`; the head it is under.
    pub fn verify(&self, leaf: &[u8], key: &VerifierKey) -> Result<Checkpoint, EvidenceError> {
        let head = Checkpoint::verify(&self.note, key)?;
        let hash = merkle::leaf_hash(leaf);
        merkle::verify_inclusion(&hash, self.index, head.size, &self.hashes, &head.root)?;
        Ok(head)
    }
}

/// A COSE receipt of inclusion, signed by the log's key over the detached root.
/// Sign only roots of heads that were published.
pub fn cose_receipt(
    head: &Checkpoint,
    index: u64,
    hashes: &[Hash],
    key: &VerifierKey,
    sign: impl FnOnce(&[u8]) -> [u8; 64],
) -> Option<Vec<u8>> {
    let path = hashes.iter().map(|hash| Value::Bytes(hash.to_vec())).collect();
    let proof = Value::Array(vec![head.size.into(), index.into(), Value::Array(path)]);
    let mut bytes = Vec::new();
    ciborium::into_writer(&proof, &mut bytes).ok()?;
    let proofs = vec![(INCLUSION.into(), Value::Array(vec![Value::Bytes(bytes)]))];
    let protected = HeaderBuilder::new()
        .algorithm(coset::iana::Algorithm::Ed25519)
        .key_id(casemate_attestation::cose::KeyId::of(key.key()).0.to_vec())
        .value(VDS, RFC9162_SHA256.into())
        .build();
    let unprotected = HeaderBuilder::new().value(VDP, Value::Map(proofs)).build();
    let sign1 = CoseSign1Builder::new()
        .protected(protected)
        .unprotected(unprotected)
        .create_detached_signature(&head.root, &[], |message| sign(message).to_vec())
        .build();
    // RFC 9942 shows receipts with the tag of COSE_Sign1, 18.
    sign1.to_tagged_vec().ok()
}

/// Checks that the COSE receipt `bytes` shows `leaf` in the log whose key is
/// `key`. It shows no more: RFC 9942 signs the root, not the size, so that some
/// neighbouring sizes and places lead to the same root. Where the place counts,
/// use a [`TlogProof`], whose checkpoint names the size.
pub fn verify_cose_receipt(
    bytes: &[u8],
    leaf: &[u8],
    key: &VerifierKey,
) -> Result<(), EvidenceError> {
    let malformed = |expected| EvidenceError::Malformed { what: "COSE receipt", expected };
    if bytes.len() > MAX_PROOF_BYTES {
        return Err(malformed("fewer bytes"));
    }
    let sign1 = CoseSign1::from_tagged_slice(bytes)
        .ok()
        .filter(|sign1| sign1.clone().to_tagged_vec().is_ok_and(|again| again == bytes))
        .ok_or(malformed("a tagged, deterministic COSE_Sign1"))?;
    let header = &sign1.protected.header;
    let structure = find(&header.rest, VDS).and_then(Value::as_integer);
    if structure != Some(RFC9162_SHA256.into()) {
        return Err(malformed("vds (395) with RFC9162_SHA256 (1)"));
    }
    let ed25519 = coset::Algorithm::Assigned(coset::iana::Algorithm::Ed25519);
    if header.alg != Some(ed25519) || !header.crit.is_empty() {
        return Err(malformed("the algorithm Ed25519 (-19) and no critical headers"));
    }
    if sign1.payload.is_some() {
        return Err(malformed("a detached payload"));
    }
    let proof = find(&sign1.unprotected.rest, VDP).and_then(only_inclusion);
    let (size, index, hashes) =
        proof.ok_or(malformed("vdp (396) with one inclusion proof (-1)"))?;
    let root = merkle::root_from_inclusion(&merkle::leaf_hash(leaf), index, size, &hashes)?;
    let message = sign1.tbs_detached_data(&root, &[]);
    if !crypto::ed25519_verify(key.key(), &message, &sign1.signature) {
        return Err(EvidenceError::Signature { name: key.name().to_owned() });
    }
    Ok(())
}

fn find(rest: &[(Label, Value)], label: i64) -> Option<&Value> {
    rest.iter().find(|(known, _)| *known == Label::Int(label)).map(|(_, value)| value)
}

/// Size, index and path of the one inclusion proof of a vdp map.
fn only_inclusion(proofs: &Value) -> Option<(u64, u64, Vec<Hash>)> {
    let [(label, list)] = proofs.as_map()?.as_slice() else { return None };
    let [proof] = list.as_array()?.as_slice() else { return None };
    if label.as_integer() != Some(INCLUSION.into()) {
        return None;
    }
    let mut bytes = proof.as_bytes()?.as_slice();
    let proof: Value = ciborium::from_reader(&mut bytes).ok()?;
    let [size, index, path] = proof.as_array()?.as_slice() else { return None };
    let number = |value: &Value| value.as_integer().and_then(|number| u64::try_from(number).ok());
    let hash = |value: &Value| value.as_bytes().and_then(|hash| hash.as_slice().try_into().ok());
    let path = path.as_array().filter(|path| bytes.is_empty() && path.len() <= MAX_HASHES)?;
    Some((number(size)?, number(index)?, path.iter().map(hash).collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::NodeReader;
    use crate::record::testing::Key;

    struct Leaves(Vec<Vec<u8>>);

    impl NodeReader for Leaves {
        type Error = core::convert::Infallible;
        fn node(&self, level: u32, index: u64) -> Result<Hash, Self::Error> {
            if level == 0 {
                return Ok(merkle::leaf_hash(&self.0[usize::try_from(index).unwrap()]));
            }
            let left = self.node(level - 1, 2 * index)?;
            Ok(merkle::node_hash(&left, &self.node(level - 1, 2 * index + 1)?))
        }
    }

    fn log(size: u64) -> (Leaves, Checkpoint, VerifierKey, Key) {
        let leaves = Leaves((0..size).map(|at| at.to_be_bytes().to_vec()).collect());
        let key = Key::from_seed(4);
        let vkey = VerifierKey::new("log", key.public()).unwrap();
        let root = merkle::root(&leaves, size).unwrap();
        (leaves, Checkpoint { origin: "log".to_owned(), size, root }, vkey, key)
    }

    #[test]
    fn both_forms_prove_every_leaf_and_no_other() {
        for size in [1, 2, 7, 8, 13] {
            let (leaves, head, vkey, key) = log(size);
            let note = head.sign(&vkey, |message| key.sign(message));
            for index in 0..size {
                let leaf = index.to_be_bytes();
                let hashes = merkle::inclusion_proof(&leaves, index, size).unwrap();
                let receipt = cose_receipt(&head, index, &hashes, &vkey, |m| key.sign(m)).unwrap();
                assert_eq!(verify_cose_receipt(&receipt, &leaf, &vkey), Ok(()));
                assert!(verify_cose_receipt(&receipt, b"other", &vkey).is_err());
                let extra = (index == 1).then(|| b"more".to_vec());
                let proof = TlogProof { extra, index, hashes, note: note.clone() };
                let text = proof.encode();
                assert_eq!(TlogProof::parse(&text), Ok(proof.clone()));
                assert_eq!(proof.verify(&leaf, &vkey).as_ref(), Ok(&head));
                assert!(proof.verify(b"other", &vkey).is_err());
            }
        }
    }

    #[test]
    fn a_changed_byte_shows() {
        let (leaves, head, vkey, key) = log(7);
        let leaf = 3u64.to_be_bytes();
        let hashes = merkle::inclusion_proof(&leaves, 3, 7).unwrap();
        let receipt = cose_receipt(&head, 3, &hashes, &vkey, |m| key.sign(m)).unwrap();
        let mut unsigned = Vec::new();
        for at in 1..receipt.len() {
            let mut bytes = receipt.clone();
            bytes[at] ^= 1;
            if verify_cose_receipt(&bytes, &leaf, &vkey).is_ok() {
                unsigned.push((bytes[at], receipt[at]));
            }
            assert!(verify_cose_receipt(&bytes, b"other", &vkey).is_err(), "byte {at}");
        }
        // The size alone is not signed: 6 in place of 7 leads leaf 3 to the same root.
        assert_eq!(unsigned, [(6, 7)]);
        let note = head.sign(&vkey, |message| key.sign(message));
        let text = TlogProof { extra: None, index: 3, hashes, note }.encode();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            let read = TlogProof::parse(&changed).and_then(|proof| proof.verify(&leaf, &vkey));
            assert!(read.is_err(), "byte {at}: {changed}");
        }
    }
}
