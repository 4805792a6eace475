//! The log as others read it: the crates `tlog_tiles` and `signed_note`, which
//! are ports of Go's sumdb and share no code with this project, take our
//! checkpoint, tiles and proofs, we take theirs, and both refuse the same damage.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use casemate_ledger::checkpoint::{Checkpoint, VerifierKey};
use casemate_ledger::merkle::{self, Hash};
use casemate_ledger_store::{Log, Options, Published};
use signed_note::{Note, StandardVerifier, VerifierList};
use tlog_tiles as theirs;

const HEIGHT: u8 = 8;
/// Sizes on both sides of every border of a tile, up to three tile levels.
const SIZES: [u64; 12] = [1, 2, 3, 7, 255, 256, 257, 511, 600, 65_535, 65_536, 66_000];

fn vkey(seed: u8, name: &str) -> VerifierKey {
    let key = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    VerifierKey::new(name, key.public_key().as_ref().try_into().unwrap()).unwrap()
}

fn open(directory: &Path) -> Log {
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let options = Options {
        directory: directory.to_owned(),
        key: vkey(1, "example.org/tenant/log1"),
        sign: Box::new(move |message| key.sign(message).as_ref().try_into().unwrap()),
        checkpoint_interval: Duration::from_secs(3600),
        segment_bytes: 1 << 26,
    };
    Log::open(options, |_, _| Ok(())).unwrap()
}

fn leaf(at: u64) -> Vec<u8> {
    // Of many lengths, the empty one and those above 255 bytes too.
    format!("{at} ").into_bytes().repeat(usize::try_from(at % 97).unwrap())
}

fn grow(log: &Log, from: u64, to: u64) {
    for at in from..to - 1 {
        log.append(leaf(at), |result| result.unwrap()).unwrap();
    }
    log.append_and_wait(leaf(to - 1)).unwrap();
}

/// Our tiles for their reader: its paths have the tile's height, C2SP's do not.
struct Tiles<'a>(&'a Path);

impl theirs::TileReader for Tiles<'_> {
    fn height(&self) -> u8 {
        HEIGHT
    }

    fn read_tiles(&self, tiles: &[theirs::Tile]) -> Result<Vec<Vec<u8>>, theirs::Error> {
        let read = |tile: &theirs::Tile| {
            let path = tile.path().replacen("tile/8/", "tile/", 1);
            fs::read(self.0.join(path))
                .map_err(|error| theirs::Error::InvalidInput(error.to_string()))
        };
        tiles.iter().map(read).collect()
    }

    fn save_tiles(&self, _: &[theirs::Tile], _: &[Vec<u8>]) {}
}

/// Their reading of a note: the checkpoint, if `key` signed it.
fn their_checkpoint(note: &[u8], key: &VerifierKey) -> Option<theirs::Checkpoint> {
    let verifier = StandardVerifier::new(&key.to_string()).ok()?;
    let note = Note::from_bytes(note).ok()?;
    note.verify(&VerifierList::new(vec![Box::new(verifier)])).ok()?;
    theirs::Checkpoint::from_bytes(note.text()).ok()
}

fn to_theirs(hashes: &[Hash]) -> Vec<theirs::Hash> {
    hashes.iter().copied().map(theirs::Hash).collect()
}

fn ours(hashes: &[theirs::Hash]) -> Vec<Hash> {
    hashes.iter().map(|hash| hash.0).collect()
}

/// Both sides' verdict on an inclusion proof, which must be one.
fn included(leaf: &[u8], index: u64, head: &Checkpoint, proof: &[Hash]) -> bool {
    let root = theirs::Hash(head.root);
    let their_hash = theirs::record_hash(leaf);
    let theirs = theirs::check_record(&to_theirs(proof), head.size, root, index, their_hash);
    let hash = merkle::leaf_hash(leaf);
    let ours = merkle::verify_inclusion(&hash, index, head.size, proof, &head.root);
    assert_eq!(ours.is_ok(), theirs.is_ok(), "leaf {index} of {}", head.size);
    ours.is_ok()
}

/// Both sides' verdict on a consistency proof, which must be one.
fn continued(old: &Checkpoint, new: &Checkpoint, proof: &[Hash]) -> bool {
    let (old_root, new_root) = (theirs::Hash(old.root), theirs::Hash(new.root));
    let theirs = theirs::check_tree(&to_theirs(proof), new.size, new_root, old.size, old_root);
    let ours = merkle::verify_consistency(old.size, &old.root, new.size, &new.root, proof);
    assert_eq!(ours.is_ok(), theirs.is_ok(), "{} to {}", old.size, new.size);
    ours.is_ok()
}

/// Every published tile is the one that they make from hashes that they proved.
fn tiles_are_theirs(directory: &Path, head: &Checkpoint) -> usize {
    let tiles = Tiles(directory);
    let reader = theirs::TileHashReader::new(head.size, theirs::Hash(head.root), &tiles);
    let mut complete = theirs::Tile::new_tiles(HEIGHT, 0, head.size);
    // Reading all of level 0 of a large tree proves every tile above it too.
    complete.retain(|tile| head.size <= 1000 || tile.level() > 0 || tile.level_index() % 16 == 0);
    for tile in &complete {
        let path = tile.path().replacen("tile/8/", "tile/", 1);
        let bytes = fs::read(directory.join(&path)).unwrap();
        assert_eq!(tile.read_data(&reader).unwrap(), bytes, "{path}");
    }
    complete.len()
}

#[test]
fn their_verifier_accepts_our_log_and_ours_their_proofs() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    let key = vkey(1, "example.org/tenant/log1");
    let mut heads: Vec<Checkpoint> = Vec::new();
    let (mut inclusions, mut consistencies, mut tiles) = (0, 0, 0);
    for size in SIZES {
        grow(&log, heads.last().map_or(0, |head| head.size), size);
        let note = log.checkpoint().unwrap();
        let head = Checkpoint::verify(&note, &key).unwrap();
        let read = their_checkpoint(note.as_bytes(), &key).unwrap();
        assert_eq!((read.origin(), read.size(), read.hash().0), (key.name(), size, head.root));
        let reader = Tiles(directory.path());
        let nodes = theirs::TileHashReader::new(size, theirs::Hash(head.root), &reader);
        let places = [0, 1, 254, 255, 256, 511, size / 2, size.saturating_sub(2), size - 1];
        for index in places.into_iter().filter(|index| *index < size) {
            let (_, proofs) = log.prove(&[index]).unwrap();
            let proof = &proofs.first().unwrap();
            assert!(included(&leaf(index), index, &head, &proof.hashes));
            assert_eq!(ours(&theirs::prove_record(size, index, &nodes).unwrap()), proof.hashes);
            inclusions += 1;
        }
        for old in &heads {
            let proof = log.consistency(old.size, size).unwrap();
            assert!(continued(old, &head, &proof));
            assert_eq!(ours(&theirs::prove_tree(size, old.size, &nodes).unwrap()), proof);
            consistencies += 1;
        }
        tiles += tiles_are_theirs(directory.path(), &head);
        heads.push(head);
    }
    println!(
        "{} heads, {inclusions} inclusion and {consistencies} consistency proofs, {tiles} tiles: \
         accepted by both, and equal",
        SIZES.len()
    );
}

#[test]
fn damaged_proofs_and_heads_are_refused_by_both() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    let key = vkey(1, "example.org/tenant/log1");
    grow(&log, 0, 300);
    let old = Checkpoint::verify(&log.checkpoint().unwrap(), &key).unwrap();
    grow(&log, 300, 600);
    let note = log.checkpoint().unwrap();
    let head = Checkpoint::verify(&note, &key).unwrap();
    let mut refused = 0;
    for index in [0, 255, 256, 300, 511, 512, 598, 599] {
        let (_, proofs) = log.prove(&[index]).unwrap();
        let proof = proofs.first().unwrap().hashes.clone();
        for damaged in damage(&proof) {
            assert!(!included(&leaf(index), index, &head, &damaged), "leaf {index}");
            refused += 1;
        }
        for other in [0, 1, 254, 257, 599].into_iter().filter(|other| *other != index) {
            assert!(!included(&leaf(index), other, &head, &proof), "leaf {index} at {other}");
            assert!(!included(&leaf(other), index, &head, &proof), "leaf {other} for {index}");
            refused += 2;
        }
    }
    let proof = log.consistency(old.size, head.size).unwrap();
    for damaged in damage(&proof) {
        assert!(!continued(&old, &head, &damaged));
        refused += 1;
    }
    for size in [299, 301] {
        assert!(!continued(&Checkpoint { size, ..old.clone() }, &head, &proof), "old size {size}");
        refused += 1;
    }
    let notes = damaged_notes(&note, &key);
    println!("{refused} damaged proofs and {notes} damaged heads, refused by both");
}

/// `proof` with one bit of each byte flipped, cut at each place, and longer.
fn damage(proof: &[Hash]) -> Vec<Vec<Hash>> {
    let mut damaged: Vec<Vec<Hash>> = (0..proof.len()).map(|at| proof[..at].to_vec()).collect();
    damaged.push([proof, &[[0; 32]]].concat());
    for (at, hash) in proof.iter().enumerate() {
        for byte in 0..hash.len() {
            let mut changed = proof.to_vec();
            changed[at][byte] ^= 1 << (byte % 8);
            damaged.push(changed);
        }
    }
    damaged
}

/// Flips a bit of each byte of `note`, cuts it at each place, asks other keys: how many were refused.
fn damaged_notes(note: &str, key: &VerifierKey) -> usize {
    let both = |bytes: &[u8], key: &VerifierKey| {
        let text = std::str::from_utf8(bytes).ok();
        let ours = text.is_some_and(|text| Checkpoint::verify(text, key).is_ok());
        (ours, their_checkpoint(bytes, key).is_some())
    };
    assert_eq!(both(note.as_bytes(), key), (true, true));
    let mut refused = 0;
    for at in 0..note.len() {
        assert_eq!(both(&note.as_bytes()[..at], key), (false, false), "cut at {at}");
        let mut bytes = note.as_bytes().to_vec();
        bytes[at] ^= 1 << (at % 8);
        assert_eq!(both(&bytes, key), (false, false), "byte {at}");
        refused += 2;
    }
    for other in [vkey(2, key.name()), vkey(1, "example.org/tenant/log2")] {
        assert_eq!(both(note.as_bytes(), &other), (false, false), "{other}");
        refused += 1;
    }
    refused
}

#[test]
fn a_flipped_bit_in_a_tile_is_refused_by_both() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    let key = vkey(1, "example.org/tenant/log1");
    grow(&log, 0, 600);
    let head = Checkpoint::verify(&log.checkpoint().unwrap(), &key).unwrap();
    let published = Published::open(directory.path(), &key).unwrap();
    let reader = Tiles(directory.path());
    let root = theirs::Hash(head.root);
    let nodes = theirs::TileHashReader::new(head.size, root, &reader);
    let mut flips = 0;
    for (tile, first, step) in
        [("0/000", 0, 1), ("0/001", 256, 1), ("0/002.p/88", 512, 1), ("1/000.p/2", 0, 256)]
    {
        let path = directory.path().join("tile").join(tile);
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(13) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, bytes).unwrap();
            // The leaf whose proof needs the damaged hash: the neighbour. Their reader
            // leaves some tiles to be judged by the proofs that are made from them
            // (it counts subtrees where it means their tiles), so both have a say.
            let index = first + (u64::try_from(at / 32).unwrap() ^ 1) * step;
            let hash = theirs::record_hash(&leaf(index));
            let theirs = theirs::prove_record(head.size, index, &nodes)
                .and_then(|proof| theirs::check_record(&proof, head.size, root, index, hash));
            assert!(theirs.is_err(), "{tile} byte {at}");
            assert!(published.prove(index).is_err(), "{tile} byte {at}");
            flips += 1;
        }
        fs::write(&path, whole).unwrap();
        assert!(theirs::prove_record(head.size, first, &nodes).is_ok(), "{tile}");
    }
    println!("{flips} flipped bits in tiles, each refused by both");
}
