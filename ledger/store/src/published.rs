//! A log as it was published: checkpoint and tiles in a directory, read without
//! its lock, its key or its write-ahead log. What auditors and servers see.

use std::path::{Path, PathBuf};

use casemate_ledger::checkpoint::{Checkpoint, VerifierKey};
use casemate_ledger::leaf::MAX_LEAF_BYTES;
use casemate_ledger::merkle::{self, Hash, NodeReader};
use casemate_ledger::tile;

use crate::error::StoreError;
use crate::files;
use crate::log::Proof;
use crate::publish::{WITNESSED, read_checkpoint, read_note};
use crate::tree::fold;

/// A published log; its checkpoint was signed by the key that was asked for.
pub struct Published {
    directory: PathBuf,
    head: Checkpoint,
    note: String,
}

const MAX_BUNDLE_BYTES: u64 = tile::TILE_WIDTH * (65_535 + 2);
const _: () = assert!(MAX_LEAF_BYTES <= 65_535);

impl Published {
    /// Reads the checkpoint in `directory`, which `key` must have signed.
    pub fn open(directory: &Path, key: &VerifierKey) -> Result<Self, StoreError> {
        let (head, note) = read_checkpoint(directory, key)?.ok_or_else(|| {
            StoreError::corrupt(&directory.join("checkpoint"), "a checkpoint", "no such file")
        })?;
        Ok(Self { directory: directory.to_owned(), head, note })
    }

    /// The same log under the head that witnesses cosigned last, if one was kept.
    pub fn open_witnessed(directory: &Path, key: &VerifierKey) -> Result<Option<Self>, StoreError> {
        let found = read_note(&directory.join(WITNESSED), key)?;
        Ok(found.map(|(head, note)| Self { directory: directory.to_owned(), head, note }))
    }

    /// The head.
    pub fn head(&self) -> &Checkpoint {
        &self.head
    }

    /// The head as a signed note, with whatever cosignatures it has.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// The leaves of the entry bundle that starts at leaf `bundle * 256`. They
    /// are what the file says; compare their hashes with the tree's.
    pub fn bundle(&self, bundle: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let width = self.width(0, bundle);
        let path = self.directory.join(tile::entries_path(bundle, width));
        let bytes = read_bounded(&path, MAX_BUNDLE_BYTES)?;
        let leaves = tile::unbundle(&bytes)
            .map(|leaves| leaves.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>());
        let expected = usize::try_from(width).unwrap_or(usize::MAX);
        leaves.filter(|leaves| leaves.len() == expected).ok_or_else(|| {
            StoreError::corrupt(&path, format!("a bundle of {width} leaves"), "other bytes")
        })
    }

    /// The leaf at `index` with the proof that it is under the head.
    pub fn prove(&self, index: u64) -> Result<Proof, StoreError> {
        let size = self.head.size;
        let outside = StoreError::NoSuchLeaf { size, index };
        if index >= size {
            return Err(outside);
        }
        let place = usize::try_from(index % tile::TILE_WIDTH).unwrap_or(usize::MAX);
        let leaves = self.bundle(index / tile::TILE_WIDTH)?;
        let leaf = leaves.into_iter().nth(place).ok_or(outside)?;
        let hashes = merkle::inclusion_proof(self, index, size)?;
        let hash = merkle::leaf_hash(&leaf);
        merkle::verify_inclusion(&hash, index, size, &hashes, &self.head.root).map_err(
            |error| {
                let expected = format!("hashes that prove leaf {index}");
                StoreError::corrupt(&self.directory.join("tile"), expected, error.to_string())
            },
        )?;
        Ok(Proof { index, leaf, hashes })
    }

    /// How many entries the tile `index` of tile level `level` has.
    fn width(&self, level: u32, index: u64) -> u64 {
        let count = self.head.size >> (tile::TILE_HEIGHT * level);
        count.saturating_sub(index.saturating_mul(tile::TILE_WIDTH)).min(tile::TILE_WIDTH)
    }
}

impl NodeReader for Published {
    type Error = StoreError;

    fn node(&self, level: u32, index: u64) -> Result<Hash, StoreError> {
        let (tile_level, rest) = (level / tile::TILE_HEIGHT, level % tile::TILE_HEIGHT);
        let first = index << rest;
        let place = first / tile::TILE_WIDTH;
        let width = self.width(tile_level, place);
        let path = self.directory.join(tile::hash_path(tile_level, place, width));
        let bytes = read_bounded(&path, tile::TILE_WIDTH * 32)?;
        let (row, odd) = bytes.as_chunks::<32>();
        let start = usize::try_from(first % tile::TILE_WIDTH).unwrap_or(usize::MAX);
        let whole = odd.is_empty() && u64::try_from(row.len()) == Ok(width);
        let range = start..start.saturating_add(1 << rest);
        row.get(range).filter(|_| whole).map(fold).ok_or_else(|| {
            let actual = format!("{} bytes", bytes.len());
            StoreError::corrupt(&path, format!("{width} hashes with number {first}"), actual)
        })
    }
}

fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, StoreError> {
    let size = std::fs::metadata(path).map_err(|error| StoreError::io("reading", path, error))?;
    if size.len() > most {
        let actual = format!("{} bytes", size.len());
        return Err(StoreError::corrupt(path, format!("at most {most} bytes"), actual));
    }
    files::read_if_there(path)?
        .ok_or_else(|| StoreError::corrupt(path, "a file of the log", "no such file"))
}
