//! The Merkle tree of RFC 6962 section 2.1 (RFC 9162 section 2.1).
//!
//! The arithmetic only. Hashes of complete subtrees come from a [`NodeReader`]
//! that the caller backs with tiles; verifying needs nothing but the proof.

use casemate_attestation::crypto::sha256;

/// A SHA-256 of the tree.
pub type Hash = [u8; 32];

/// Why a proof does not prove what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The index or the old size is outside the tree.
    #[error("proof: expected a position within the tree of {size} leaves, got {position}")]
    OutOfRange {
        /// The tree's size.
        size: u64,
        /// The index or old size asked for.
        position: u64,
    },
    /// The proof has another length than the position asks for.
    #[error("proof: expected another number of hashes, got {actual}")]
    Length {
        /// The hashes there were.
        actual: usize,
    },
    /// The hashes lead to another root.
    #[error("proof: expected the root of the checkpoint, got another one")]
    Root,
}

/// Where hashes of complete, aligned subtrees come from.
pub trait NodeReader {
    /// What reading may fail with.
    type Error;
    /// The root of the leaves `index << level .. (index + 1) << level`.
    fn node(&self, level: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// SHA-256(0x00 || leaf).
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    sha256(&[&[0], leaf].concat())
}

/// SHA-256(0x01 || left || right).
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut bytes = [1; 65];
    let (_, rest) = bytes.split_at_mut(1);
    let (first, second) = rest.split_at_mut(32);
    first.copy_from_slice(left);
    second.copy_from_slice(right);
    sha256(&bytes)
}

/// The root of the empty tree: the hash of nothing.
pub fn empty_root() -> Hash {
    sha256(&[])
}

/// A growing tree reduced to the roots of its complete subtrees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    // The roots of the complete subtrees, largest first: one a set bit of `size`.
    roots: Vec<Hash>,
}

impl Frontier {
    /// Adds a leaf by its hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.roots.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.roots.push(node);
        self.size += 1;
    }

    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root of all leaves.
    pub fn root(&self) -> Hash {
        let mut roots = self.roots.iter().rev();
        let Some(last) = roots.next() else { return empty_root() };
        roots.fold(*last, |right, left| node_hash(left, &right))
    }
}

/// The root of the first `size` leaves, from nodes.
pub fn root<R: NodeReader>(nodes: &R, size: u64) -> Result<Hash, R::Error> {
    if size == 0 { Ok(empty_root()) } else { range_root(nodes, 0, size) }
}

/// The hashes that prove leaf `index` in the tree of `size` leaves
/// (RFC 9162 section 2.1.3.1), or nothing if `index` is outside.
pub fn inclusion_proof<R: NodeReader>(
    nodes: &R,
    index: u64,
    size: u64,
) -> Result<Vec<Hash>, R::Error> {
    let mut proof = Vec::new();
    if index >= size {
        return Ok(proof);
    }
    let (mut low, mut high) = (0, size);
    while high - low > 1 {
        let middle = low + split(high - low);
        if index < middle {
            proof.push(range_root(nodes, middle, high)?);
            high = middle;
        } else {
            proof.push(range_root(nodes, low, middle)?);
            low = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// The hashes that prove that the tree of `old` leaves is a prefix of the tree
/// of `new` leaves (RFC 9162 section 2.1.4.1).
pub fn consistency_proof<R: NodeReader>(
    nodes: &R,
    old: u64,
    new: u64,
) -> Result<Vec<Hash>, R::Error> {
    let mut proof = Vec::new();
    if old == 0 || old >= new {
        return Ok(proof);
    }
    let (mut low, mut high) = (0, new);
    // Whether the old tree's part of the range starts at the very beginning.
    let mut whole = true;
    while old != high {
        let middle = low + split(high - low);
        if old <= middle {
            proof.push(range_root(nodes, middle, high)?);
            high = middle;
        } else {
            proof.push(range_root(nodes, low, middle)?);
            low = middle;
            whole = false;
        }
    }
    if !whole {
        proof.push(range_root(nodes, low, high)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Checks that the leaf with hash `leaf` is at `index` in the tree of `size`
/// leaves with `root` (RFC 9162 section 2.1.3.2).
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), ProofError> {
    let found = root_from_inclusion(leaf, index, size, proof)?;
    if found == *root { Ok(()) } else { Err(ProofError::Root) }
}

/// The root that `proof` leads to from the leaf with hash `leaf` at `index`.
pub fn root_from_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
) -> Result<Hash, ProofError> {
    if index >= size {
        return Err(ProofError::OutOfRange { size, position: index });
    }
    let length = ProofError::Length { actual: proof.len() };
    let (mut place, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(length);
        }
        if place % 2 == 1 || place == last {
            hash = node_hash(sibling, &hash);
            // On the right border, levels without a left sibling are skipped.
            let skip = place.trailing_zeros();
            if place % 2 == 0 {
                place >>= skip;
                last >>= skip;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        place >>= 1;
        last >>= 1;
    }
    if last == 0 { Ok(hash) } else { Err(length) }
}

/// Checks that the tree of `new` leaves with `new_root` continues the tree of
/// `old` leaves with `old_root` (RFC 9162 section 2.1.4.2).
pub fn verify_consistency(
    old: u64,
    old_root: &Hash,
    new: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    let length = ProofError::Length { actual: proof.len() };
    match (old, new) {
        _ if old > new => return Err(ProofError::OutOfRange { size: new, position: old }),
        _ if old == new || old == 0 => {
            let same = if old == 0 { *old_root == empty_root() } else { old_root == new_root };
            return match (proof.is_empty(), same) {
                (false, _) => Err(length),
                (true, false) => Err(ProofError::Root),
                (true, true) => Ok(()),
            };
        }
        _ => {}
    }
    let mut path = proof.iter();
    // A complete old tree is its own first hash.
    let first = if old.is_power_of_two() { old_root } else { path.next().ok_or(length)? };
    let (mut place, mut last) = (old - 1, new - 1);
    let skip = place.trailing_ones();
    (place, last) = (place >> skip, last >> skip);
    let (mut old_hash, mut new_hash) = (*first, *first);
    for sibling in path {
        if last == 0 {
            return Err(length);
        }
        if place % 2 == 1 || place == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            if place % 2 == 0 {
                let skip = if place == 0 { u32::MAX } else { place.trailing_zeros() };
                place = place.checked_shr(skip).unwrap_or(0);
                last = last.checked_shr(skip).unwrap_or(0);
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        place >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(length);
    }
    if old_hash == *old_root && new_hash == *new_root { Ok(()) } else { Err(ProofError::Root) }
}

/// The largest power of two below `count`, which is at least 2.
fn split(count: u64) -> u64 {
    (count.next_power_of_two()) >> 1
}

/// The root of the leaves `low..high`, where `low` is aligned as RFC 6962's
/// recursion keeps it.
fn range_root<R: NodeReader>(nodes: &R, low: u64, high: u64) -> Result<Hash, R::Error> {
    let count = high - low;
    if count.is_power_of_two() {
        let level = count.trailing_zeros();
        return nodes.node(level, low >> level);
    }
    let middle = low + split(count);
    let left = range_root(nodes, low, middle)?;
    Ok(node_hash(&left, &range_root(nodes, middle, high)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::convert::Infallible;
    use ct_merkle::mem_backed_tree::MemoryBackedTree;
    use sha2_oracle::Sha256;

    struct Memory(Vec<Hash>);

    impl NodeReader for Memory {
        type Error = Infallible;
        fn node(&self, level: u32, index: u64) -> Result<Hash, Infallible> {
            if level == 0 {
                return Ok(self.0[usize::try_from(index).unwrap()]);
            }
            let left = self.node(level - 1, 2 * index)?;
            Ok(node_hash(&left, &self.node(level - 1, 2 * index + 1)?))
        }
    }

    fn leaf(at: u64) -> Vec<u8> {
        format!("leaf {at}").into_bytes()
    }

    fn memory(size: u64) -> Memory {
        Memory((0..size).map(|at| leaf_hash(&leaf(at))).collect())
    }

    #[test]
    fn roots_and_proofs_are_those_of_an_independent_implementation() {
        let mut oracle = MemoryBackedTree::<Sha256, Vec<u8>>::new();
        let mut frontier = Frontier::default();
        let nodes = memory(70);
        for size in 1..=70u64 {
            oracle.push(leaf(size - 1));
            frontier.push(leaf_hash(&leaf(size - 1)));
            let expected: Hash = (*oracle.root().as_bytes()).into();
            assert_eq!(frontier.root(), expected, "size {size}");
            assert_eq!(root(&nodes, size).unwrap(), expected, "size {size}");
            for index in 0..size {
                let proof = inclusion_proof(&nodes, index, size).unwrap();
                let theirs = oracle.prove_inclusion(usize::try_from(index).unwrap());
                assert_eq!(proof.concat(), theirs.as_bytes(), "index {index} of {size}");
                let hash = leaf_hash(&leaf(index));
                assert_eq!(verify_inclusion(&hash, index, size, &proof, &expected), Ok(()));
            }
            for old in 1..size {
                let proof = consistency_proof(&nodes, old, size).unwrap();
                let theirs = oracle.prove_consistency(usize::try_from(size - old).unwrap());
                assert_eq!(proof.concat(), theirs.as_bytes(), "{old} to {size}");
                let old_root = root(&nodes, old).unwrap();
                assert_eq!(verify_consistency(old, &old_root, size, &expected, &proof), Ok(()));
            }
        }
    }

    #[test]
    fn nothing_else_is_proved() {
        let nodes = memory(20);
        for size in 1..=20u64 {
            let root_hash = root(&nodes, size).unwrap();
            for index in 0..size {
                let proof = inclusion_proof(&nodes, index, size).unwrap();
                let hash = leaf_hash(&leaf(index));
                for other in (0..size + 2).filter(|other| *other != index) {
                    assert!(verify_inclusion(&hash, other, size, &proof, &root_hash).is_err());
                }
                let mut longer = proof.clone();
                longer.push([0; 32]);
                assert!(verify_inclusion(&hash, index, size, &longer, &root_hash).is_err());
                for at in 0..proof.len() {
                    let mut changed = proof.clone();
                    changed[at][0] ^= 1;
                    let result = verify_inclusion(&hash, index, size, &changed, &root_hash);
                    assert_eq!(result, Err(ProofError::Root));
                }
            }
            for old in 1..size {
                let old_root = root(&nodes, old).unwrap();
                let proof = consistency_proof(&nodes, old, size).unwrap();
                for other in (0..=size).filter(|other| *other != old) {
                    let result = verify_consistency(other, &old_root, size, &root_hash, &proof);
                    assert!(result.is_err(), "{other} for {old} to {size}");
                }
                for at in 0..proof.len() {
                    let mut changed = proof.clone();
                    changed[at][0] ^= 1;
                    assert!(
                        verify_consistency(old, &old_root, size, &root_hash, &changed).is_err()
                    );
                }
            }
        }
    }

    #[test]
    fn the_empty_tree_is_a_prefix_of_all() {
        let new = root(&memory(3), 3).unwrap();
        assert_eq!(verify_consistency(0, &empty_root(), 3, &new, &[]), Ok(()));
        assert_eq!(verify_consistency(0, &new, 3, &new, &[]), Err(ProofError::Root));
        let error = verify_consistency(4, &new, 3, &new, &[]).unwrap_err();
        assert_eq!(error, ProofError::OutOfRange { size: 3, position: 4 });
    }
}
