//! The log through its public face: restarts, damage, full disks, crashes.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use casemate_ledger::checkpoint::{Checkpoint, VerifierKey};
use casemate_ledger::merkle;
use casemate_ledger_store::{Log, Options, StoreError};

fn vkey() -> VerifierKey {
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    VerifierKey::new("test/log1", key.public_key().as_ref().try_into().unwrap()).unwrap()
}

fn options(directory: &Path) -> Options {
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    Options {
        directory: directory.to_owned(),
        key: vkey(),
        sign: Box::new(move |message| key.sign(message).as_ref().try_into().unwrap()),
        checkpoint_interval: Duration::from_secs(3600),
        segment_bytes: 1 << 16,
    }
}

fn open(directory: &Path) -> Result<(Log, Vec<Vec<u8>>), StoreError> {
    let mut leaves = Vec::new();
    let log = Log::open(options(directory), |index, leaf| {
        assert_eq!(index, u64::try_from(leaves.len()).unwrap());
        leaves.push(leaf.to_vec());
        Ok(())
    })?;
    Ok((log, leaves))
}

fn leaf(at: u64) -> Vec<u8> {
    format!("leaf {at} {}", "x".repeat(100)).into_bytes()
}

fn fill(directory: &Path, from: u64, to: u64) -> Log {
    let (log, before) = open(directory).unwrap();
    assert_eq!(u64::try_from(before.len()).unwrap(), from);
    let (sender, receiver) = std::sync::mpsc::channel();
    for at in from..to {
        let sender = sender.clone();
        let durable = move |result: Result<(), StoreError>| sender.send(result).unwrap();
        assert_eq!(log.append(leaf(at), durable).unwrap(), at);
    }
    for _ in from..to {
        receiver.recv().unwrap().unwrap();
    }
    log
}

#[test]
fn what_was_appended_is_there_after_a_restart_and_proved() {
    let directory = tempfile::tempdir().unwrap();
    let first = {
        let log = fill(directory.path(), 0, 700);
        Checkpoint::verify(&log.checkpoint().unwrap(), &vkey()).unwrap()
    };
    let log = fill(directory.path(), 700, 1500);
    let (note, proofs) = log.prove(&[0, 699, 1499]).unwrap();
    let head = Checkpoint::verify(&note, &vkey()).unwrap();
    assert_eq!(head.size, 1500);
    for proof in proofs {
        assert_eq!(proof.leaf, leaf(proof.index));
        let hash = merkle::leaf_hash(&proof.leaf);
        merkle::verify_inclusion(&hash, proof.index, head.size, &proof.hashes, &head.root).unwrap();
    }
    let hashes = log.consistency(first.size, head.size).unwrap();
    merkle::verify_consistency(first.size, &first.root, head.size, &head.root, &hashes).unwrap();
    assert!(matches!(log.prove(&[1500]), Err(StoreError::NoSuchLeaf { .. })));
    assert!(directory.path().join("tile/0/004").exists());
    assert!(directory.path().join("tile/entries/005.p/220").exists());
}

#[test]
fn the_clock_publishes_without_being_asked() {
    let directory = tempfile::tempdir().unwrap();
    let every_10_ms =
        Options { checkpoint_interval: Duration::from_millis(10), ..options(directory.path()) };
    let log = Log::open(every_10_ms, |_, _| Ok(())).unwrap();
    log.append_and_wait(leaf(0)).unwrap();
    let path = directory.path().join("checkpoint");
    let published = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        fs::read_to_string(&path).is_ok_and(|note| note.contains("\n1\n"))
    });
    assert!(published);
}

#[test]
fn only_one_process_has_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let _log = fill(directory.path(), 0, 1);
    assert!(matches!(open(directory.path()), Err(StoreError::Locked { .. })));
}

#[test]
fn a_head_that_is_not_ours_stops_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("checkpoint");
    let log = fill(directory.path(), 0, 10);
    let old = log.checkpoint().unwrap();
    log.append_and_wait(leaf(10)).unwrap();
    log.checkpoint().unwrap();
    // Somebody puts an older head in place, or none at all.
    fs::write(&path, &old).unwrap();
    log.append_and_wait(leaf(11)).unwrap();
    let error = log.checkpoint().unwrap_err();
    assert!(error.to_string().contains("expected a checkpoint of 11 leaves"), "{error}");
    assert!(matches!(log.append_and_wait(leaf(12)), Err(StoreError::Stopped { .. })));
}

#[test]
fn a_log_shorter_or_other_than_its_head_does_not_open() {
    let directory = tempfile::tempdir().unwrap();
    drop(fill(directory.path(), 0, 10));
    let segment = directory.path().join("wal/00000000000000000000.wal");
    let whole = fs::read(&segment).unwrap();
    // The end is gone, as if it had been torn: the head knows better. How many batches the leaves
    // came in depends on the clock: the cut falls between two, or into one that was whole.
    fs::write(&segment, &whole[..whole.len() - 200]).unwrap();
    let error = open(directory.path()).err().unwrap().to_string();
    let named = ["at least the 10 leaves", "a damaged record that was on disk once"];
    assert!(named.iter().any(|words| error.contains(words)), "{error}");
    fs::write(&segment, &whole).unwrap();
    let checkpoint = directory.path().join("checkpoint");
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let other = Checkpoint { origin: vkey().name().to_owned(), size: 10, root: [0; 32] };
    let note = other.sign(&vkey(), |message| key.sign(message).as_ref().try_into().unwrap());
    fs::write(&checkpoint, note).unwrap();
    let error = open(directory.path()).err().unwrap().to_string();
    assert!(error.contains("another root"), "{error}");
    fs::write(&checkpoint, "not a note").unwrap();
    assert!(matches!(open(directory.path()), Err(StoreError::Corrupt { .. })));
}

#[test]
fn a_flipped_bit_in_a_tile_is_seen_and_mended_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    for tile in ["tile/0/000", "tile/entries/000"] {
        let size = open(directory.path()).map(|(log, _)| log.size()).unwrap();
        let log = fill(directory.path(), size, size + 600);
        log.checkpoint().unwrap();
        let path = directory.path().join(tile);
        let mut bytes = fs::read(&path).unwrap();
        bytes[100] ^= 1;
        fs::write(&path, bytes).unwrap();
        let failed = (0..256).filter(|index| log.prove(&[*index]).is_err()).count();
        assert!(failed > 0, "{tile}");
        assert!(log.check().is_ok(), "reading damage does not stop the writing");
        drop(log);
        let (log, _) = open(directory.path()).unwrap();
        assert!((0..256).all(|index| log.prove(&[index]).is_ok()), "{tile}");
    }
}

#[test]
fn a_leaf_too_long_is_refused_and_the_log_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let log = fill(directory.path(), 0, 1);
    let error = log.append_and_wait(vec![0; 65_536]).unwrap_err();
    assert!(matches!(error, StoreError::LeafTooLong { .. }));
    assert_eq!(log.append_and_wait(vec![0; 65_535]).unwrap(), 1);
}

#[test]
fn a_refused_leaf_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    drop(fill(directory.path(), 0, 2));
    let result = Log::open(options(directory.path()), |index, _| match index {
        0 => Ok(()),
        _ => Err("not a record".to_owned()),
    });
    assert!(matches!(result, Err(StoreError::Refused { index: 1, .. })));
}

/// A small file system of its own, or nothing without the right to mount.
struct SmallDisk(PathBuf, #[expect(dead_code, reason = "removed on drop")] tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        fs::create_dir(&path).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
            .arg(&path)
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success()).then_some(Self(path, directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_stops_the_log_and_loses_nothing_acknowledged() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("not run: mounting a tmpfs needs root");
        return;
    };
    let mut acknowledged = 0;
    {
        let (log, _) = open(&disk.0).unwrap();
        let error = loop {
            match log.append_and_wait(leaf(acknowledged)) {
                Ok(_) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("No space left"), "{error}");
        assert!(matches!(log.append_and_wait(leaf(0)), Err(StoreError::Stopped { .. })));
        assert!(log.checkpoint().is_err());
    }
    assert!(acknowledged > 100);
    // Room again: everything that was acknowledged is there.
    let status = Command::new("mount").args(["-o", "remount,size=2m"]).arg(&disk.0).status();
    assert!(status.unwrap().success());
    let (log, leaves) = open(&disk.0).unwrap();
    assert!(u64::try_from(leaves.len()).unwrap() >= acknowledged);
    assert!(leaves.iter().zip(0..).all(|(found, at)| *found == leaf(at)));
    log.append_and_wait(b"goes on".to_vec()).unwrap();
}

/// Not a test of its own: the process that `kill_minus_9` kills.
#[test]
fn child_that_appends_forever() {
    let Some(directory) = std::env::var_os("CASEMATE_TEST_LOG") else { return };
    let (log, before) = open(Path::new(&directory)).unwrap();
    for at in u64::try_from(before.len()).unwrap().. {
        log.append_and_wait(leaf(at)).unwrap();
        println!("acknowledged {at}");
        if at % 50 == 0 {
            log.checkpoint().unwrap();
        }
    }
}

#[test]
fn kill_minus_9_loses_nothing_acknowledged_and_makes_no_second_head() {
    let directory = tempfile::tempdir().unwrap();
    let mut last_head: Option<Checkpoint> = None;
    for round in 0..8u64 {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_appends_forever", "--nocapture"])
            .env("CASEMATE_TEST_LOG", directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(150 + 37 * round));
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(9));
        let text = String::from_utf8(output.stdout).unwrap();
        let acknowledged: Option<u64> = text
            .lines()
            .filter(|line| text.ends_with('\n') || !text.ends_with(line))
            .filter_map(|line| line.rsplit_once("acknowledged ")?.1.parse().ok())
            .next_back();
        let (log, leaves) = open(directory.path()).unwrap();
        assert!(leaves.iter().zip(0..).all(|(found, at)| *found == leaf(at)));
        if let Some(last) = acknowledged {
            assert!(u64::try_from(leaves.len()).unwrap() > last, "round {round}");
        }
        let head = Checkpoint::verify(&log.checkpoint().unwrap(), &vkey()).unwrap();
        if let Some(old) = last_head {
            let hashes = log.consistency(old.size, head.size).unwrap();
            merkle::verify_consistency(old.size, &old.root, head.size, &head.root, &hashes)
                .unwrap();
        }
        last_head = Some(head);
    }
}
