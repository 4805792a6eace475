//! The log as its users see it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use casemate_ledger::checkpoint::{Checkpoint, VerifierKey};
use casemate_ledger::leaf::MAX_LEAF_BYTES;
use casemate_ledger::merkle::{self, Hash};
use rustix::fs::FlockOperation;

use crate::error::StoreError;
use crate::publish::{Publisher, Sign, Snapshot};
use crate::tree::Tree;
use crate::wal::Wal;

/// Where a log is and who signs for it.
pub struct Options {
    /// The directory of the log; made if it is not there.
    pub directory: PathBuf,
    /// The log's public key; its name is the origin.
    pub key: VerifierKey,
    /// The private key's act.
    pub sign: Sign,
    /// How often a log that grew publishes a checkpoint.
    pub checkpoint_interval: Duration,
    /// The size at which a segment of the write-ahead log is followed by the next.
    pub segment_bytes: u64,
}

/// An open log. Leaves are durable when [`Log::append`] says so.
pub struct Log {
    shared: Arc<Shared>,
    queue: Mutex<Queue>,
    mended: Vec<PathBuf>,
    threads: Vec<JoinHandle<()>>,
    _lock: File,
}

/// That a leaf is in the log, for somebody who has only the log's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The leaf's index.
    pub index: u64,
    /// The leaf.
    pub leaf: Vec<u8>,
    /// The hashes from the leaf to the root.
    pub hashes: Vec<Hash>,
}

struct Queue {
    next: u64,
    entries: Option<Sender<Entry>>,
}

struct Entry {
    leaf: Vec<u8>,
    durable: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
}

struct Shared {
    tree: Mutex<Tree>,
    publisher: Mutex<Publisher>,
    failure: Mutex<Option<StoreError>>,
    closing: Mutex<bool>,
    closed: Condvar,
}

/// The most leaves that one `fdatasync` makes durable.
const MAX_BATCH: usize = 1024;

impl Log {
    /// Opens the log in its directory, or makes it. Each leaf that is already
    /// there goes to `each`, in order, so that its reader can build its state;
    /// what `each` refuses stops the start.
    pub fn open(
        options: Options,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), String>,
    ) -> Result<Self, StoreError> {
        let Options { directory, key, sign, checkpoint_interval, segment_bytes } = options;
        fs::create_dir_all(&directory)
            .map_err(|error| StoreError::io("creating", &directory, error))?;
        let lock = lock_directory(&directory)?;
        let publisher = Publisher::open(&directory, key, sign)?;
        let head = publisher.last().map(|(head, _)| head.clone());
        let mut tree = Tree::new(&directory);
        let covered = head.as_ref().map_or(0, |head| head.size);
        let wal = Wal::open(&directory.join("wal"), segment_bytes, covered, |index, leaf| {
            tree.push(leaf);
            tree.settle()?;
            check_root(&directory, &head, &tree)?;
            each(index, leaf).map_err(|reason| StoreError::Refused { index, reason })
        })?;
        check_length(&directory, &head, &tree)?;
        let mended = tree.mend()?;
        let (sender, receiver) = mpsc::channel();
        let queue = Mutex::new(Queue { next: wal.next(), entries: Some(sender) });
        let shared = Arc::new(Shared {
            tree: Mutex::new(tree),
            publisher: Mutex::new(publisher),
            failure: Mutex::new(None),
            closing: Mutex::new(false),
            closed: Condvar::new(),
        });
        let writer = spawn("log-writer", &shared, move |shared| write(&shared, wal, receiver))?;
        let publisher =
            spawn("log-publisher", &shared, move |shared| tick(&shared, checkpoint_interval))?;
        Ok(Self { shared, queue, mended, threads: vec![writer, publisher], _lock: lock })
    }

    /// Gives `leaf` its index and writes it. `durable` is called once, on the
    /// writer's thread, when the leaf is on disk or the log has stopped; it
    /// must not block. Leaves are in the log in the order of these calls.
    pub fn append(
        &self,
        leaf: Vec<u8>,
        durable: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) -> Result<u64, StoreError> {
        if leaf.len() > MAX_LEAF_BYTES {
            return Err(StoreError::LeafTooLong { limit: MAX_LEAF_BYTES, actual: leaf.len() });
        }
        self.check()?;
        let mut queue = locked(&self.queue);
        let entry = Entry { leaf, durable: Box::new(durable) };
        let sent = queue.entries.as_ref().map(|entries| entries.send(entry));
        if !matches!(sent, Some(Ok(()))) {
            return Err(self.check().err().unwrap_or(StoreError::Closed));
        }
        let index = queue.next;
        queue.next += 1;
        Ok(index)
    }

    /// Appends `leaf` and waits until it is on disk.
    pub fn append_and_wait(&self, leaf: Vec<u8>) -> Result<u64, StoreError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let index = self.append(leaf, move |result| {
            let _ = sender.send(result);
        })?;
        receiver.recv().unwrap_or(Err(StoreError::Closed))?;
        Ok(index)
    }

    /// Whether the log still takes leaves.
    pub fn check(&self) -> Result<(), StoreError> {
        locked(&self.shared.failure).as_ref().map_or(Ok(()), |failure| Err(failure.stopped()))
    }

    /// The tiles that were damaged on disk when the log was opened. They were
    /// made again from the leaves, whose root is that of the signed head.
    pub fn mended(&self) -> &[PathBuf] {
        &self.mended
    }

    /// The number of durable leaves.
    pub fn size(&self) -> u64 {
        locked(&self.shared.tree).size()
    }

    /// The leaf at `index`, checked against its hash in the tree.
    pub fn leaf(&self, index: u64) -> Result<Vec<u8>, StoreError> {
        locked(&self.shared.tree).leaf(index)
    }

    /// A checkpoint over every durable leaf, signed now if need be.
    pub fn checkpoint(&self) -> Result<String, StoreError> {
        self.check()?;
        self.shared.publish().map(|(_, note)| note)
    }

    /// A checkpoint, and the proofs that the leaves at `indices` are in it.
    /// They were checked against that checkpoint's root.
    pub fn prove(&self, indices: &[u64]) -> Result<(String, Vec<Proof>), StoreError> {
        self.check()?;
        let (head, note) = self.shared.publish()?;
        let tree = locked(&self.shared.tree);
        let proofs = indices
            .iter()
            .map(|&index| prove_one(&tree, &head, index))
            .collect::<Result<_, _>>()?;
        Ok((note, proofs))
    }

    /// The head that was published last.
    pub fn head(&self) -> Option<(Checkpoint, String)> {
        locked(&self.shared.publisher).last().cloned()
    }

    /// Proofs of the leaves at `indices` under `head`, which was published
    /// before: for a head that witnesses cosigned.
    pub fn prove_under(
        &self,
        head: &Checkpoint,
        indices: &[u64],
    ) -> Result<Vec<Proof>, StoreError> {
        let tree = locked(&self.shared.tree);
        indices.iter().map(|&index| prove_one(&tree, head, index)).collect()
    }

    /// A COSE receipt (RFC 9942) of the leaf at `index` under a published head.
    pub fn cose_receipt(&self, index: u64) -> Result<Vec<u8>, StoreError> {
        let (head, _) = self.shared.publish()?;
        let proof = prove_one(&locked(&self.shared.tree), &head, index)?;
        let publisher = locked(&self.shared.publisher);
        publisher.cose_receipt(&head, &proof.hashes, index).ok_or_else(|| {
            StoreError::corrupt(Path::new("tile"), "a proof that encodes", "another")
        })
    }

    /// Keeps a head that a quorum of witnesses cosigned, for readers of the files.
    pub fn keep_witnessed(&self, note: &str) -> Result<(), StoreError> {
        locked(&self.shared.publisher).keep_witnessed(note)
    }

    /// The last head that was kept so.
    pub fn witnessed(&self) -> Result<Option<String>, StoreError> {
        locked(&self.shared.publisher).witnessed()
    }

    /// The hashes that prove that the tree of `new` leaves continues that of `old`.
    pub fn consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, StoreError> {
        let tree = locked(&self.shared.tree);
        if new > tree.size() {
            return Err(StoreError::NoSuchLeaf { size: tree.size(), index: new });
        }
        merkle::consistency_proof(&*tree, old, new)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        locked(&self.queue).entries = None;
        *locked(&self.shared.closing) = true;
        self.shared.closed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        // A clean stop leaves a head over everything.
        if self.check().is_ok() {
            let _ = self.shared.publish();
        }
    }
}

impl Shared {
    /// Publishes the present tree unless it is the head already.
    fn publish(&self) -> Result<(Checkpoint, String), StoreError> {
        let mut publisher = locked(&self.publisher);
        let snapshot = {
            let tree = locked(&self.tree);
            if let Some((head, note)) = publisher.last()
                && head.size == tree.size()
                && head.root == tree.root()
            {
                return Ok((head.clone(), note.clone()));
            }
            let (full, partial) = tree.unwritten();
            Snapshot { size: tree.size(), root: tree.root(), full, partial }
        };
        let note = publisher.publish(&snapshot).inspect_err(|error| self.fail(error))?;
        locked(&self.tree).written(snapshot.full.iter().map(|(path, _)| path));
        let origin = publisher.last().map(|(head, _)| head.origin.clone()).unwrap_or_default();
        Ok((Checkpoint { origin, size: snapshot.size, root: snapshot.root }, note))
    }

    fn fail(&self, error: &StoreError) {
        locked(&self.failure).get_or_insert_with(|| error.clone());
    }
}

/// The writer's thread: whatever waits is one batch.
fn write(shared: &Shared, mut wal: Wal, queue: Receiver<Entry>) {
    while let Ok(first) = queue.recv() {
        let mut batch = vec![first];
        batch.extend(queue.try_iter().take(MAX_BATCH - 1));
        let failed = locked(&shared.failure).as_ref().map(StoreError::stopped);
        let written = match failed {
            Some(failure) => Err(failure),
            None => wal.commit(batch.iter().map(|entry| entry.leaf.as_slice())),
        };
        if let Err(error) = &written {
            shared.fail(error);
        } else {
            let mut tree = locked(&shared.tree);
            batch.iter().for_each(|entry| tree.push(&entry.leaf));
        }
        for entry in batch {
            (entry.durable)(written.clone());
        }
    }
}

/// The publisher's thread: a head each interval, if the log grew.
fn tick(shared: &Shared, interval: Duration) {
    let mut closing = locked(&shared.closing);
    while !*closing {
        let waited = shared.closed.wait_timeout(closing, interval);
        closing = waited.unwrap_or_else(PoisonError::into_inner).0;
        if *closing || locked(&shared.failure).is_some() {
            continue;
        }
        drop(closing);
        // An error stops the log; it is kept in `failure`.
        let _ = shared.publish();
        closing = locked(&shared.closing);
    }
}

fn prove_one(tree: &Tree, head: &Checkpoint, index: u64) -> Result<Proof, StoreError> {
    if index >= head.size {
        return Err(StoreError::NoSuchLeaf { size: head.size, index });
    }
    let leaf = tree.leaf(index)?;
    let hashes = merkle::inclusion_proof(tree, index, head.size)?;
    let hash = merkle::leaf_hash(&leaf);
    merkle::verify_inclusion(&hash, index, head.size, &hashes, &head.root).map_err(|error| {
        let tiles = Path::new("tile");
        StoreError::corrupt(tiles, format!("hashes that prove leaf {index}"), error.to_string())
    })?;
    Ok(Proof { index, leaf, hashes })
}

fn check_root(directory: &Path, head: &Option<Checkpoint>, tree: &Tree) -> Result<(), StoreError> {
    match head {
        Some(head) if head.size == tree.size() && head.root != tree.root() => {
            Err(StoreError::corrupt(
                &directory.join("wal"),
                format!("the {} leaves of the last checkpoint", head.size),
                "leaves with another root",
            ))
        }
        _ => Ok(()),
    }
}

fn check_length(
    directory: &Path,
    head: &Option<Checkpoint>,
    tree: &Tree,
) -> Result<(), StoreError> {
    match head {
        Some(head) if head.size > tree.size() => Err(StoreError::corrupt(
            &directory.join("wal"),
            format!("at least the {} leaves of the last checkpoint", head.size),
            format!("{} leaves", tree.size()),
        )),
        _ => Ok(()),
    }
}

pub(crate) fn lock_directory(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join("lock");
    let file = File::create(&path).map_err(|error| StoreError::io("creating", &path, error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked { path }),
        Err(errno) => Err(StoreError::io("locking", &path, errno.into())),
    }
}

fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    body: impl FnOnce(Arc<Shared>) + Send + 'static,
) -> Result<JoinHandle<()>, StoreError> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || body(shared))
        .map_err(|error| StoreError::io("starting a thread for", Path::new(name), error))
}

/// No thread panics while it holds one of these locks.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
