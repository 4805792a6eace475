//! What a log and a witness say to each other: C2SP tlog-witness,
//! `add-checkpoint`. The judgement is here, pure; keeping the state is not.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::checkpoint::{Checkpoint, CheckpointError, MAX_NOTE_BYTES, VerifierKey};
use crate::merkle::{self, Hash};

/// A request to cosign a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddCheckpoint {
    /// The size that the log believes the witness saw last.
    pub old: u64,
    /// The proof that the checkpoint continues the tree of that size.
    pub proof: Vec<Hash>,
    /// The checkpoint, a signed note.
    pub note: String,
}

/// Why a witness does not cosign; [`Refusal::status`] is its HTTP status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request is not in its format.
    #[error("request: expected {expected}")]
    Malformed {
        /// What it had to be.
        expected: &'static str,
    },
    /// The checkpoint is of a log that this witness does not watch.
    #[error("origin: expected a log that this witness watches, got {origin:?}")]
    Origin {
        /// The checkpoint's origin.
        origin: String,
    },
    /// The log's key did not sign the checkpoint.
    #[error(transparent)]
    Signature(CheckpointError),
    /// The witness saw another size last.
    #[error("old size: expected {known}")]
    Size {
        /// The size that it saw.
        known: u64,
    },
    /// Two checkpoints of one size have two roots: the log has two heads.
    #[error("checkpoint: expected the root that was cosigned for size {known}, got another one")]
    Fork {
        /// That size.
        known: u64,
    },
    /// The proof does not lead from the old tree to the new one.
    #[error("consistency: {0}")]
    Proof(merkle::ProofError),
}

/// The most hashes of a consistency proof (tlog-witness).
pub const MAX_PROOF_HASHES: usize = 63;
/// The longest request.
pub const MAX_REQUEST_BYTES: usize = MAX_NOTE_BYTES + 64 * 46 + 32;

impl AddCheckpoint {
    /// The request's body.
    pub fn encode(&self) -> String {
        let proof: String = self.proof.iter().map(|hash| STANDARD.encode(hash) + "\n").collect();
        format!("old {}\n{proof}\n{}", self.old, self.note)
    }

    /// Reads a request's body.
    pub fn parse(body: &str) -> Result<Self, Refusal> {
        let malformed = |expected| Refusal::Malformed { expected };
        if body.len() > MAX_REQUEST_BYTES {
            return Err(malformed("a shorter body"));
        }
        let (head, note) =
            body.split_once("\n\n").ok_or(malformed("an empty line before the checkpoint"))?;
        let mut lines = head.split('\n');
        let old = lines.next().and_then(|line| line.strip_prefix("old "));
        let old = old.and_then(decimal).ok_or(malformed("a first line \"old <decimal size>\""))?;
        let proof = lines.map(hash_line).collect::<Option<Vec<_>>>();
        let proof = proof.ok_or(malformed("hashes of 32 bytes in base64, one a line"))?;
        if proof.len() > MAX_PROOF_HASHES {
            return Err(malformed("at most 63 hashes"));
        }
        Ok(Self { old, proof, note: note.to_owned() })
    }

    /// Whether a witness that saw `known` last cosigns: the checkpoint that it
    /// then knows. `key` is that of the log with this origin, if it watches it.
    pub fn judge(
        &self,
        key: Option<&VerifierKey>,
        known: Option<&Checkpoint>,
    ) -> Result<Checkpoint, Refusal> {
        let not_a_note = Refusal::Malformed { expected: "a checkpoint as a signed note" };
        let (claimed, _) = Checkpoint::read(&self.note).map_err(|_| not_a_note)?;
        let key = key.ok_or(Refusal::Origin { origin: claimed.origin })?;
        let head = Checkpoint::verify(&self.note, key).map_err(Refusal::Signature)?;
        if self.old > head.size {
            return Err(Refusal::Malformed { expected: "an old size up to the checkpoint's" });
        }
        let size = known.map_or(0, |known| known.size);
        if self.old != size {
            return Err(Refusal::Size { known: size });
        }
        let old_root = known.map_or_else(merkle::empty_root, |known| known.root);
        if size == head.size && size > 0 && old_root != head.root {
            return Err(Refusal::Fork { known: size });
        }
        merkle::verify_consistency(size, &old_root, head.size, &head.root, &self.proof)
            .map_err(Refusal::Proof)?;
        Ok(head)
    }
}

impl Refusal {
    /// The HTTP status that tlog-witness has for it.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed { .. } => 400,
            Self::Origin { .. } => 404,
            Self::Signature(_) => 403,
            Self::Size { .. } | Self::Fork { .. } => 409,
            Self::Proof(_) => 422,
        }
    }
}

/// A decimal number without leading zeros.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// A hash in base64.
pub(crate) fn hash_line(line: &str) -> Option<Hash> {
    STANDARD.decode(line).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::Frontier;
    use crate::record::testing::Key;

    /// Checkpoints of a log of one leaf and of two.
    fn heads() -> (VerifierKey, Vec<(Checkpoint, String)>, Vec<Hash>) {
        let key = Key::from_seed(1);
        let vkey = VerifierKey::new("log", key.public()).unwrap();
        let leaves = [merkle::leaf_hash(b"a"), merkle::leaf_hash(b"b")];
        let mut tree = Frontier::default();
        let heads = leaves.map(|leaf| {
            tree.push(leaf);
            let head =
                Checkpoint { origin: "log".to_owned(), size: tree.size(), root: tree.root() };
            let note = head.sign(&vkey, |message| key.sign(message));
            (head, note)
        });
        (vkey, heads.into(), vec![leaves[1]])
    }

    #[test]
    fn a_witness_goes_forward_only_along_proofs() {
        let (key, heads, proof) = heads();
        let ask = |old, proof: &[Hash], at: usize| AddCheckpoint {
            old,
            proof: proof.to_vec(),
            note: heads[at].1.clone(),
        };
        let known = Some(&heads[0].0);
        let key = Some(&key);
        assert_eq!(ask(0, &[], 0).judge(key, None).unwrap(), heads[0].0);
        assert_eq!(ask(1, &proof, 1).judge(key, known).unwrap(), heads[1].0);
        assert_eq!(ask(1, &[], 0).judge(key, known).unwrap(), heads[0].0, "the same again");
        let refused =
            |request: &AddCheckpoint, known| request.judge(key, known).unwrap_err().status();
        assert_eq!(refused(&ask(0, &[], 1), known), 409, "another size was seen");
        assert_eq!(refused(&ask(2, &[], 0), None), 400, "older than the old size");
        assert_eq!(refused(&ask(1, &[[0; 32]], 1), known), 422);
        assert_eq!(refused(&ask(0, &proof, 1), None), 422, "a proof from nothing");
        let fork = Checkpoint { root: [7; 32], ..heads[0].0.clone() };
        assert_eq!(refused(&ask(1, &[], 0), Some(&fork)), 409);
        assert_eq!(ask(0, &[], 0).judge(None, None).unwrap_err().status(), 404);
        let other = VerifierKey::new("log", [0; 32]).unwrap();
        assert_eq!(ask(0, &[], 0).judge(Some(&other), None).unwrap_err().status(), 403);
        let torn = AddCheckpoint { note: "x".to_owned(), ..ask(0, &[], 0) };
        assert_eq!(refused(&torn, None), 400);
    }

    #[test]
    fn requests_read_back_and_others_are_refused() {
        let (_, heads, proof) = heads();
        let request = AddCheckpoint { old: 1, proof, note: heads[1].1.clone() };
        assert_eq!(AddCheckpoint::parse(&request.encode()), Ok(request.clone()));
        let many = AddCheckpoint { proof: vec![[0; 32]; 64], ..request.clone() };
        for bad in [
            String::new(),
            "old 1\n".to_owned(),
            request.encode().replacen("old 1", "old 01", 1),
            request.encode().replacen("old 1", "old +1", 1),
            request.encode().replacen("old 1", "older", 1),
            format!("old 1\nAAAA\n\n{}", request.note),
            many.encode(),
            "x".repeat(MAX_REQUEST_BYTES + 1),
        ] {
            assert_eq!(AddCheckpoint::parse(&bad).unwrap_err().status(), 400, "{bad}");
        }
    }
}
