//! The tree over the durable leaves, kept as tiles.
//!
//! In memory are the tiles that are not full and the full ones that are not
//! yet on disk; the rest is read back when a proof needs it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use casemate_ledger::merkle::{self, Frontier, Hash, NodeReader};
use casemate_ledger::tile;

use crate::error::StoreError;
use crate::files;

/// The tree and the tiles that are not on disk yet.
pub(crate) struct Tree {
    directory: PathBuf,
    frontier: Frontier,
    // The tile at the right border of each level, always less than full.
    border: Vec<Vec<Hash>>,
    entries: Vec<Vec<u8>>,
    full: BTreeMap<String, Vec<u8>>,
    // Full tiles that are other bytes on disk, at start.
    damaged: BTreeMap<String, Vec<u8>>,
}

/// A tile's path below the log's directory, and its bytes.
pub(crate) type TileFile = (String, Vec<u8>);

const WIDTH: usize = 256;
const _: () = assert!(WIDTH == 1 << tile::TILE_HEIGHT);

impl Tree {
    /// An empty tree whose tiles are under `directory`.
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            frontier: Frontier::default(),
            border: Vec::new(),
            entries: Vec::new(),
            full: BTreeMap::new(),
            damaged: BTreeMap::new(),
        }
    }

    /// The number of leaves.
    pub(crate) fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// The root of all leaves.
    pub(crate) fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// Adds a leaf.
    pub(crate) fn push(&mut self, leaf: &[u8]) {
        let hash = merkle::leaf_hash(leaf);
        let index = self.frontier.size();
        self.frontier.push(hash);
        self.entries.push(leaf.to_vec());
        if self.entries.len() == WIDTH {
            let path = tile::entries_path(index / tile::TILE_WIDTH, tile::TILE_WIDTH);
            let bundle = bundle(&self.entries);
            self.full.insert(path, bundle);
            self.entries.clear();
        }
        self.push_hash(hash, index);
    }

    /// Adds a hash at level 0 and each tile root that it completes above.
    fn push_hash(&mut self, hash: Hash, index: u64) {
        let (mut hash, mut place) = (hash, index);
        for level in 0.. {
            let at = usize::try_from(level).unwrap_or(usize::MAX);
            if self.border.len() == at {
                self.border.push(Vec::new());
            }
            let Some(row) = self.border.get_mut(at) else { return };
            row.push(hash);
            if row.len() < WIDTH {
                return;
            }
            place /= tile::TILE_WIDTH;
            let path = tile::hash_path(level, place, tile::TILE_WIDTH);
            self.full.insert(path, row.concat());
            hash = fold(row);
            row.clear();
        }
    }

    /// The tiles that must be on disk before a checkpoint of the present size:
    /// the full ones that are not, and the partial ones.
    pub(crate) fn unwritten(&self) -> (Vec<TileFile>, Vec<TileFile>) {
        let full = self.full.iter().map(|(path, bytes)| (path.clone(), bytes.clone())).collect();
        let size = self.size();
        let mut partial = Vec::new();
        if !self.entries.is_empty() {
            let width = size % tile::TILE_WIDTH;
            let path = tile::entries_path(size / tile::TILE_WIDTH, width);
            partial.push((path, bundle(&self.entries)));
        }
        let mut count = size;
        for (level, row) in (0..).zip(&self.border) {
            let width = count % tile::TILE_WIDTH;
            count /= tile::TILE_WIDTH;
            if width > 0 {
                partial.push((tile::hash_path(level, count, width), row.concat()));
            }
        }
        (full, partial)
    }

    /// Forgets full tiles that are on disk now.
    pub(crate) fn written<'a>(&mut self, paths: impl IntoIterator<Item = &'a String>) {
        for path in paths {
            self.full.remove(path);
        }
    }

    /// At start: compares the full tiles that were made again with those on
    /// disk, and writes the missing ones. One that differs waits for [`Self::mend`]:
    /// nothing is written over before the head has said which of the two is right.
    pub(crate) fn settle(&mut self) -> Result<(), StoreError> {
        for (path, bytes) in std::mem::take(&mut self.full) {
            match files::read_if_there(&self.directory.join(&path))? {
                Some(found) if found == bytes => {}
                Some(_) => self.damaged.extend([(path, bytes)]),
                None => self.write(&path, &bytes)?,
            }
        }
        Ok(())
    }

    /// Writes the tiles that differed, once the head covers this tree; their paths.
    pub(crate) fn mend(&mut self) -> Result<Vec<PathBuf>, StoreError> {
        let damaged = std::mem::take(&mut self.damaged);
        damaged.iter().try_for_each(|(path, bytes)| self.write(path, bytes))?;
        Ok(damaged.into_keys().map(|path| self.directory.join(path)).collect())
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.directory.join(path);
        files::write_whole(&path, bytes)?;
        files::sync_directory(&files::parent(&path))
    }

    /// The leaf at `index`, checked against its hash.
    pub(crate) fn leaf(&self, index: u64) -> Result<Vec<u8>, StoreError> {
        let size = self.size();
        if index >= size {
            return Err(StoreError::NoSuchLeaf { size, index });
        }
        let place = usize::try_from(index % tile::TILE_WIDTH).unwrap_or(0);
        if index / tile::TILE_WIDTH == size / tile::TILE_WIDTH {
            return Ok(self.entries.get(place).cloned().unwrap_or_default());
        }
        let path = tile::entries_path(index / tile::TILE_WIDTH, tile::TILE_WIDTH);
        let bytes = self.tile(&path)?;
        let leaf = tile::unbundle(&bytes).and_then(|leaves| leaves.get(place).map(|l| l.to_vec()));
        let expected = self.node(0, index)?;
        leaf.filter(|leaf| merkle::leaf_hash(leaf) == expected).ok_or_else(|| {
            let path = self.directory.join(&path);
            StoreError::corrupt(&path, format!("leaf {index} with its hash"), "other bytes")
        })
    }

    /// The bytes of a full tile, from memory or disk.
    fn tile(&self, path: &str) -> Result<Vec<u8>, StoreError> {
        if let Some(bytes) = self.full.get(path) {
            return Ok(bytes.clone());
        }
        let file = self.directory.join(path);
        files::read_if_there(&file)?
            .ok_or_else(|| StoreError::corrupt(&file, "a full tile", "no such file"))
    }
}

impl NodeReader for Tree {
    type Error = StoreError;

    fn node(&self, level: u32, index: u64) -> Result<Hash, StoreError> {
        let (tile_level, rest) = (level / tile::TILE_HEIGHT, level % tile::TILE_HEIGHT);
        let first = index << rest;
        let start = usize::try_from(first % tile::TILE_WIDTH).unwrap_or(0);
        let range = start..start + (1 << rest);
        let count = self.size() >> (tile::TILE_HEIGHT * tile_level);
        let place = first / tile::TILE_WIDTH;
        if place == count / tile::TILE_WIDTH {
            let row = usize::try_from(tile_level).ok().and_then(|at| self.border.get(at));
            let hashes = row.and_then(|row| row.get(range));
            return hashes
                .map(fold)
                .ok_or(StoreError::NoSuchLeaf { size: self.size(), index: first });
        }
        let path = tile::hash_path(tile_level, place, tile::TILE_WIDTH);
        let bytes = self.tile(&path)?;
        let (hashes, rest) = bytes.as_chunks::<32>();
        match hashes.get(range) {
            Some(part) if hashes.len() == WIDTH && rest.is_empty() => Ok(fold(part)),
            _ => Err(StoreError::corrupt(
                &self.directory.join(&path),
                "256 hashes",
                format!("{} bytes", bytes.len()),
            )),
        }
    }
}

/// The root over a power of two of hashes.
pub(crate) fn fold(row: &[Hash]) -> Hash {
    let mut level = row.to_vec();
    while level.len() > 1 {
        level = level
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[left, right]| merkle::node_hash(left, right))
            .collect();
    }
    level.first().copied().unwrap_or_else(merkle::empty_root)
}

fn bundle(leaves: &[Vec<u8>]) -> Vec<u8> {
    // Leaves were measured when they were appended.
    tile::bundle(leaves.iter().map(Vec::as_slice)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_from_tiles_verify_across_tile_borders() {
        let directory = tempfile::tempdir().unwrap();
        let mut tree = Tree::new(directory.path());
        for at in 0..70_000u32 {
            tree.push(&at.to_be_bytes());
            // Most full tiles go to disk, as publishing does.
            if at % 10_000 == 0 {
                for (path, bytes) in tree.unwritten().0 {
                    files::write_whole(&directory.path().join(&path), &bytes).unwrap();
                    tree.written([&path]);
                }
            }
        }
        for size in [1, 2, 255, 256, 257, 511, 65_535, 65_536, 65_537, 70_000u64] {
            let root = merkle::root(&tree, size).unwrap();
            for index in [0, 1, 255, 256, 65_535, 65_536, size - 1] {
                if index < size {
                    let proof = merkle::inclusion_proof(&tree, index, size).unwrap();
                    let hash = merkle::leaf_hash(&tree.leaf(index).unwrap());
                    assert_eq!(merkle::verify_inclusion(&hash, index, size, &proof, &root), Ok(()));
                }
            }
            let proof = merkle::consistency_proof(&tree, size, 70_000).unwrap();
            let checked = merkle::verify_consistency(size, &root, 70_000, &tree.root(), &proof);
            assert_eq!(checked, Ok(()), "from {size}");
        }
        assert!(matches!(tree.leaf(70_000), Err(StoreError::NoSuchLeaf { .. })));
    }
}
