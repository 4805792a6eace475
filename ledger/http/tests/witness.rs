//! A log, a witness and an auditor over real sockets.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use casemate_ledger::checkpoint::{Checkpoint, VerifierKey};
use casemate_ledger::cosignature::WitnessKey;
use casemate_ledger::merkle;
use casemate_ledger::witness::AddCheckpoint;
use casemate_ledger_http::{Answer, Prefix, add_checkpoint, serve_log, serve_witness};
use casemate_ledger_store::{Log, Options, StoreError, Witness};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn public(seed: u8) -> [u8; 32] {
    pair(seed).public_key().as_ref().try_into().unwrap()
}

fn log(directory: &Path) -> (Log, VerifierKey) {
    let (key, signer) = (VerifierKey::new("test/log1", public(1)).unwrap(), pair(1));
    let options = Options {
        directory: directory.to_owned(),
        key: key.clone(),
        sign: Box::new(move |message| signer.sign(message).as_ref().try_into().unwrap()),
        checkpoint_interval: Duration::from_secs(3600),
        segment_bytes: 1 << 20,
    };
    (Log::open(options, |_, _| Ok(())).unwrap(), key)
}

fn witness(directory: &Path, log: &VerifierKey) -> Result<Witness, StoreError> {
    let signer = pair(2);
    let sign = Box::new(move |message: &[u8]| signer.sign(message).as_ref().try_into().unwrap());
    let key = WitnessKey::new("w.example/w1", public(2)).unwrap();
    Witness::open(directory, key, sign, [log.clone()])
}

async fn serving(witness: Witness) -> Prefix {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_witness(listener, Arc::new(witness)));
    Prefix::parse(&format!("http://{address}/")).unwrap()
}

/// The request that takes a witness from `old` to the log's present head.
fn request(log: &Log, key: &VerifierKey, old: u64) -> AddCheckpoint {
    let note = log.checkpoint().unwrap();
    let head = Checkpoint::verify(&note, key).unwrap();
    AddCheckpoint { old, proof: log.consistency(old, head.size).unwrap(), note }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_cosigns_a_log_that_grows_and_never_two_heads() {
    let directory = tempfile::tempdir().unwrap();
    let (log, key) = log(&directory.path().join("log"));
    let memory = directory.path().join("witness");
    let prefix = serving(witness(&memory, &key).unwrap()).await;
    let known = WitnessKey::new("w.example/w1", public(2)).unwrap();
    let mut old = 0;
    for size in [1u64, 5, 300] {
        while log.size() < size {
            log.append_and_wait(log.size().to_be_bytes().to_vec()).unwrap();
        }
        let asked = request(&log, &key, old);
        let Answer::Cosigned(line) = add_checkpoint(&prefix, &asked).await.unwrap() else {
            panic!("size {size}")
        };
        let time = known.cosigned(&format!("{}{line}", asked.note));
        assert!(time.is_some_and(|time| time > 1_700_000_000), "{line}");
        old = size;
    }
    // From another size than it knows, it says which one it knows.
    let stale = request(&log, &key, 5);
    assert_eq!(add_checkpoint(&prefix, &stale).await.unwrap(), Answer::Size(300));
    // Another head of the same size, signed by the log itself: refused for good.
    let signer = pair(1);
    let fork = Checkpoint { origin: "test/log1".to_owned(), size: 300, root: [9; 32] };
    let note = fork.sign(&key, |message| signer.sign(message).as_ref().try_into().unwrap());
    let fork = AddCheckpoint { old: 300, proof: Vec::new(), note };
    let answer = add_checkpoint(&prefix, &fork).await.unwrap();
    assert!(matches!(answer, Answer::Refused(409, _)), "{answer:?}");
    // A second process on the same memory could cosign both.
    assert!(matches!(witness(&memory, &key), Err(StoreError::Locked { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_logs_that_race_leave_one_history() {
    let directory = tempfile::tempdir().unwrap();
    let (log, key) = log(&directory.path().join("log"));
    let memory = directory.path().join("witness");
    let mut asked = Vec::new();
    for size in 1..=8u64 {
        log.append_and_wait(size.to_be_bytes().to_vec()).unwrap();
        asked.push(request(&log, &key, 0));
    }
    let prefix = serving(witness(&memory, &key).unwrap()).await;
    let mut answers = tokio::task::JoinSet::new();
    for request in asked {
        let prefix = prefix.clone();
        answers.spawn(async move { add_checkpoint(&prefix, &request).await.unwrap() });
    }
    let answers = answers.join_all().await;
    let cosigned = answers.iter().filter(|one| matches!(one, Answer::Cosigned(_))).count();
    let conflicts = answers.iter().filter(|one| matches!(one, Answer::Size(_))).count();
    assert_eq!((cosigned, conflicts), (1, 7), "{answers:?}");
}

#[test]
fn a_witness_that_starts_again_knows_what_it_knew() {
    let directory = tempfile::tempdir().unwrap();
    let (log, key) = log(&directory.path().join("log"));
    log.append_and_wait(b"a".to_vec()).unwrap();
    let memory = directory.path().join("witness");
    let first = request(&log, &key, 0);
    witness(&memory, &key).unwrap().add_checkpoint(&first, 1).unwrap();
    let again = witness(&memory, &key).unwrap();
    let error = again.add_checkpoint(&first, 2).unwrap_err().to_string();
    assert!(error.contains("expected 1"), "{error}");
    drop(again);
    let file = std::fs::read_dir(&memory).unwrap().map(|entry| entry.unwrap().path());
    let file = file.filter(|path| path.extension().is_some_and(|kind| kind == "checkpoint"));
    for path in file {
        std::fs::write(path, "forgotten").unwrap();
    }
    assert!(matches!(witness(&memory, &key), Err(StoreError::Corrupt { .. })));
}

async fn get(address: &str, path: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(answer.get(..end).unwrap()).to_lowercase();
    (head, answer.get(end + 4..).unwrap().to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_served_as_tiles_and_nothing_else_of_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let (log, key) = log(directory.path());
    for at in 0..300u64 {
        let _ = log.append(at.to_be_bytes().to_vec(), |_| ()).unwrap();
    }
    log.append_and_wait(b"last".to_vec()).unwrap();
    let note = log.checkpoint().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = directory.path().to_owned();
    tokio::spawn(async move { serve_log(listener, &served).await });
    let (head, body) = get(&address, "/checkpoint").await;
    assert!(head.starts_with("http/1.1 200") && head.contains("no-store"), "{head}");
    assert_eq!(String::from_utf8(body).unwrap(), note);
    let head = Checkpoint::verify(&note, &key).unwrap();
    let (kind, tile) = get(&address, "/tile/0/000").await;
    assert!(kind.contains("application/octet-stream") && kind.contains("immutable"), "{kind}");
    let (_, part) = get(&address, &format!("/tile/0/001.p/{}", head.size % 256)).await;
    let mut tree = merkle::Frontier::default();
    tile.as_chunks::<32>().0.iter().chain(part.as_chunks::<32>().0).for_each(|h| tree.push(*h));
    assert_eq!((tree.size(), tree.root()), (301, head.root));
    for path in ["/wal/00000000000000000000.wal", "/lock", "/tile/../lock", "/", "/tile/0/999"] {
        assert!(get(&address, path).await.0.starts_with("http/1.1 404"), "{path}");
    }
}
