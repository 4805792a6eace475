//! A disk that fails at every kind of write, and one that changes bits. The
//! faults are injected (feature `failpoints`); `log.rs` has a disk that is full.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use casemate_ledger::checkpoint::{Checkpoint, VerifierKey};
use casemate_ledger::merkle::{Frontier, leaf_hash};
use casemate_ledger_store::failpoint::{Fault, set_fault};
use casemate_ledger_store::{Log, Options, Published, StoreError};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const EDQUOT: i32 = 122;

/// Every kind of write of a log: operation, place, error.
const WRITES: [(&str, &str, i32); 21] = [
    ("write", "/wal/", ENOSPC),
    ("write", "/wal/", EDQUOT),
    ("write the rest of", "/wal/", ENOSPC),
    ("sync", "/wal/", EIO),
    // The next segment.
    ("create", "/wal/", ENOSPC),
    ("write", ".wal.tmp", ENOSPC),
    ("sync", ".wal.tmp", EIO),
    ("rename", "/wal/", ENOSPC),
    ("sync", "/wal$", EIO),
    ("create", "/tile/entries/", ENOSPC),
    ("write", "/tile/entries/", ENOSPC),
    ("sync", "/tile/entries/", EIO),
    ("rename", "/tile/entries/", ENOSPC),
    ("write", "/tile/0/", ENOSPC),
    ("rename", "/tile/0/", EIO),
    ("sync", "/tile$", EIO),
    ("create", "/checkpoint", ENOSPC),
    ("write", "/checkpoint", ENOSPC),
    ("sync", "/checkpoint", EIO),
    ("rename", "/checkpoint", ENOSPC),
    ("sync", "/log$", EIO),
];

/// The disk of this process fails for one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static DISK: Mutex<()> = Mutex::new(());
    DISK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn vkey() -> VerifierKey {
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    VerifierKey::new("test/log1", key.public_key().as_ref().try_into().unwrap()).unwrap()
}

fn open(directory: &Path) -> Opened {
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let options = Options {
        directory: directory.to_owned(),
        key: vkey(),
        sign: Box::new(move |message| key.sign(message).as_ref().try_into().unwrap()),
        checkpoint_interval: Duration::from_secs(3600),
        segment_bytes: 1 << 13,
    };
    let mut leaves = Vec::new();
    let log = Log::open(options, |_, leaf| {
        leaves.push(leaf.to_vec());
        Ok(())
    })?;
    Ok((log, leaves))
}

fn leaf(at: usize) -> Vec<u8> {
    format!("leaf {at} {}", "x".repeat(100)).into_bytes()
}

fn fill(log: &Log, from: usize, to: usize) {
    for at in from..to - 1 {
        log.append(leaf(at), |result| result.unwrap()).unwrap();
    }
    log.append_and_wait(leaf(to - 1)).unwrap();
}

/// `heads` are all of one tree, whose first leaves are `leaves`.
fn one_history(heads: &[String], leaves: &[Vec<u8>]) {
    for note in heads {
        let head = Checkpoint::verify(note, &vkey()).unwrap();
        let mut tree = Frontier::default();
        let count = usize::try_from(head.size).unwrap();
        leaves[..count].iter().for_each(|leaf| tree.push(leaf_hash(leaf)));
        assert_eq!(tree.root(), head.root, "a second head of {count} leaves");
    }
}

/// Appends and publishes until the disk fails: the leaves that were said to be
/// durable, the heads that were given out, and the error.
fn until_it_fails(log: &Log, from: usize) -> (usize, Vec<String>, StoreError) {
    let mut heads = Vec::new();
    for at in from.. {
        assert!(at < from + 500, "the disk never failed");
        if let Err(error) = log.append_and_wait(leaf(at)) {
            return (at, heads, error);
        }
        if at % 9 == 0 {
            match log.checkpoint() {
                Ok(note) => heads.push(note),
                Err(error) => return (at + 1, heads, error),
            }
        }
    }
    unreachable!()
}

#[test]
fn a_disk_that_fails_at_any_write_loses_nothing_and_makes_no_second_head() {
    let _alone = alone();
    let (mut cases, mut shut) = (0, 0);
    for (operation, place, errno) in WRITES {
        for after in [0, 3] {
            let directory = tempfile::tempdir().unwrap();
            let directory = directory.path().join("log");
            let (log, _) = open(&directory).unwrap();
            fill(&log, 0, 250);
            let first = log.checkpoint().unwrap();
            set_fault(Some(Fault { operation, place, after, errno }));
            let (durable, mut heads, error) = until_it_fails(&log, 250);
            let reason = std::io::Error::from_raw_os_error(errno).to_string();
            let told = error.to_string();
            let name = format!("{operation} {place} after {after}");
            assert!(told.contains(&reason) && told.contains("/log"), "{name}: {told}");
            // It takes nothing more, also when the disk works again: what the
            // system still holds in memory is not known.
            set_fault(None);
            assert!(matches!(log.append_and_wait(leaf(0)), Err(StoreError::Stopped { .. })));
            assert!(log.checkpoint().is_err_and(|error| error.to_string().contains(&reason)));
            drop(log);
            heads.push(first);
            heads.push(fs::read_to_string(directory.join("checkpoint")).unwrap());
            // A start on a disk that still fails says so, or does no harm.
            set_fault(Some(Fault { operation, place, after: 0, errno }));
            if let Err(error) = open(&directory) {
                assert!(error.to_string().contains(&reason), "{name}: {error}");
                shut += 1;
            }
            set_fault(None);
            let (log, leaves) = open(&directory).unwrap();
            assert!(leaves.len() >= durable, "{name}: {} of {durable}", leaves.len());
            assert!(leaves.iter().enumerate().all(|(at, found)| *found == leaf(at)), "{name}");
            fill(&log, leaves.len(), leaves.len() + 20);
            heads.push(log.checkpoint().unwrap());
            let all: Vec<_> = (0..leaves.len() + 20).map(leaf).collect();
            one_history(&heads, &all);
            cases += 1;
        }
    }
    println!(
        "{cases} failed writes of {} kinds: 0 durable leaves lost, 0 second heads, each named; \
         {shut} starts on the failing disk refused, all others and every later start sound",
        WRITES.len()
    );
}

/// A log that was opened, or why not.
type Opened = Result<(Log, Vec<Vec<u8>>), StoreError>;

/// A log under its head, and the same log's files with leaves past the head.
struct Damage {
    directory: tempfile::TempDir,
    head: String,
}

impl Damage {
    fn new(under: usize, past: usize) -> Self {
        let original = tempfile::tempdir().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (log, _) = open(original.path()).unwrap();
        fill(&log, 0, under);
        let head = log.checkpoint().unwrap();
        // One at a time: a batch for each leaf.
        for at in under..under + past {
            log.append_and_wait(leaf(at)).unwrap();
        }
        copy(original.path(), directory.path());
        Self { directory, head }
    }

    fn files(&self, below: &str) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut open = vec![self.directory.path().join(below)];
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                files.push(path);
            }
        }
        files.sort();
        files
    }

    /// Opens a copy with `bytes` at `path`, closes it, and says what there is then.
    fn open(&self, path: &Path, bytes: &[u8]) -> (Opened, PathBuf, tempfile::TempDir) {
        let copied = tempfile::tempdir().unwrap();
        copy(self.directory.path(), copied.path());
        let path = copied.path().join(path.strip_prefix(self.directory.path()).unwrap());
        fs::write(&path, bytes).unwrap();
        (open(copied.path()), path, copied)
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copied = to.join(path.file_name().unwrap());
        if path.is_dir() {
            fs::create_dir_all(&copied).unwrap();
            copy(&path, &copied);
        } else {
            fs::copy(&path, &copied).unwrap();
        }
    }
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1 << (at % 8);
    bytes
}

#[test]
fn a_flipped_bit_under_the_head_is_refused_by_name_and_left_as_it_is() {
    let _alone = alone();
    let damage = Damage::new(300, 0);
    let (mut flips, mut cuts) = (0, 0);
    for path in damage.files("wal").into_iter().chain(damage.files("checkpoint")) {
        let whole = fs::read(&path).unwrap();
        let step = if path.ends_with("checkpoint") { 7 } else { 257 };
        for at in (0..whole.len()).step_by(step) {
            for bytes in [flipped(&whole, at), whole[..at].to_vec()] {
                flips += u32::from(bytes.len() == whole.len());
                cuts += u32::from(bytes.len() != whole.len());
                let (opened, path, _copied) = damage.open(&path, &bytes);
                let Err(StoreError::Corrupt { path: named, expected, .. }) = opened else {
                    panic!("{} byte {at} was not refused as damage", path.display())
                };
                assert!(path.starts_with(&named), "{} for {}", named.display(), path.display());
                assert!(
                    ["leaf", "leaves", "segment", "checkpoint"]
                        .iter()
                        .any(|word| expected.contains(word)),
                    "{expected}"
                );
                assert_eq!(fs::read(&path).unwrap(), bytes, "the damage was written over");
            }
        }
    }
    println!("{flips} flipped bits and {cuts} cuts in WAL and checkpoint: all refused by name");
}

#[test]
fn past_the_head_a_flipped_bit_is_refused_or_cut_and_never_another_leaf() {
    let _alone = alone();
    let damage = Damage::new(40, 9);
    let path = damage.files("wal").pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let (mut refused, mut shorter) = (0, 0);
    for at in (0..whole.len()).step_by(13) {
        let (opened, _, _copied) = damage.open(&path, &flipped(&whole, at));
        match opened {
            Err(StoreError::Corrupt { path, expected, .. }) => {
                assert!(path.extension().is_some_and(|kind| kind == "wal"), "{expected}");
                refused += 1;
            }
            Err(error) => panic!("byte {at}: {error}"),
            Ok((log, leaves)) => {
                // Only what nothing durable was written behind.
                assert!((48..49).contains(&leaves.len()), "byte {at}: {} leaves", leaves.len());
                one_history(&[damage.head.clone(), log.checkpoint().unwrap()], &leaves);
                assert!(leaves.iter().enumerate().all(|(at, found)| *found == leaf(at)));
                shorter += 1;
            }
        }
    }
    println!("{refused} refused; {shorter} in the last batch, which no head covers, cut as torn");
}

#[test]
fn a_flipped_bit_in_a_tile_is_named_by_readers_and_mended_from_the_leaves() {
    let _alone = alone();
    let damage = Damage::new(600, 0);
    let mut flips = 0;
    for path in damage.files("tile") {
        let whole = fs::read(&path).unwrap();
        let is_full = !path.parent().unwrap().to_string_lossy().ends_with(".p");
        for at in (0..whole.len()).step_by(whole.len().div_ceil(10)) {
            let copied = tempfile::tempdir().unwrap();
            copy(damage.directory.path(), copied.path());
            let place = copied.path().join(path.strip_prefix(damage.directory.path()).unwrap());
            fs::write(&place, flipped(&whole, at)).unwrap();
            let published = Published::open(copied.path(), &vkey()).unwrap();
            let error = (0..600).find_map(|index| published.prove(index).err());
            assert!(error.is_some(), "{} byte {at}", place.display());
            let (log, leaves) = open(copied.path()).unwrap();
            let mended: Vec<_> = is_full.then_some(&place).into_iter().cloned().collect();
            assert_eq!(log.mended(), mended, "byte {at}");
            assert_eq!(log.checkpoint().unwrap(), damage.head, "the head is another one");
            assert_eq!(leaves.len(), 600);
            assert!(log.prove(&[0, 255, 256, 511, 512, 599]).is_ok());
            if is_full {
                assert_eq!(fs::read(&place).unwrap(), whole, "{}", place.display());
            }
            flips += 1;
        }
    }
    println!("{flips} flipped bits in tiles: seen by every reader, full tiles named and mended");
}

#[test]
fn leaves_that_are_not_the_heads_write_over_no_tile() {
    let _alone = alone();
    let damage = Damage::new(600, 0);
    // Another log of the same key, whole in itself: its WAL in place of ours.
    let other = tempfile::tempdir().unwrap();
    let (log, _) = open(other.path()).unwrap();
    for at in 1..601 {
        log.append(leaf(at), |result| result.unwrap()).unwrap();
    }
    drop(log);
    fs::remove_dir_all(damage.directory.path().join("wal")).unwrap();
    fs::create_dir(damage.directory.path().join("wal")).unwrap();
    copy(&other.path().join("wal"), &damage.directory.path().join("wal"));
    let tiles = damage.files("tile");
    let before: Vec<_> = tiles.iter().map(|path| fs::read(path).unwrap()).collect();
    let error = open(damage.directory.path()).err().unwrap().to_string();
    assert!(error.contains("another root"), "{error}");
    let after: Vec<_> = tiles.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(before == after, "tiles of the signed head were written over");
}
