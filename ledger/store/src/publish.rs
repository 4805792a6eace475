//! Tiles and checkpoints on disk, and the rule that a log has one head.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use casemate_ledger::checkpoint::{Checkpoint, VerifierKey};
use casemate_ledger::merkle::Hash;
use casemate_ledger::proof;

use crate::error::StoreError;
use crate::files;
use crate::tree::TileFile;

/// The private key's act.
pub(crate) type Sign = Box<dyn Fn(&[u8]) -> [u8; 64] + Send + Sync>;

/// What was published last, and the means to publish more.
pub(crate) struct Publisher {
    directory: PathBuf,
    key: VerifierKey,
    sign: Sign,
    last: Option<(Checkpoint, String)>,
    // Partial tiles of the last two checkpoints; older ones are removed.
    partial: [Vec<String>; 2],
}

/// The state to be published: a size, its root, and the tiles that it needs.
pub(crate) struct Snapshot {
    pub(crate) size: u64,
    pub(crate) root: Hash,
    pub(crate) full: Vec<TileFile>,
    pub(crate) partial: Vec<TileFile>,
}

impl Publisher {
    /// Reads the last checkpoint, which must be signed by `key`.
    pub(crate) fn open(directory: &Path, key: VerifierKey, sign: Sign) -> Result<Self, StoreError> {
        let last = read_checkpoint(directory, &key)?;
        Ok(Self { directory: directory.to_owned(), key, sign, last, partial: Default::default() })
    }

    /// The last checkpoint and its note.
    pub(crate) fn last(&self) -> Option<&(Checkpoint, String)> {
        self.last.as_ref()
    }

    /// Makes `snapshot` the head of the log and returns its note.
    pub(crate) fn publish(&mut self, snapshot: &Snapshot) -> Result<String, StoreError> {
        self.check_head(snapshot)?;
        let tiles = snapshot.full.iter().chain(&snapshot.partial);
        let mut directories = BTreeSet::new();
        for (path, bytes) in tiles {
            let path = self.directory.join(path);
            files::write_whole(&path, bytes)?;
            directories.extend(path.ancestors().skip(1).take(4).map(Path::to_owned));
        }
        for directory in directories.iter().filter(|path| path.starts_with(&self.directory)) {
            files::sync_directory(directory)?;
        }
        crate::step!("head.tiles-durable");
        let checkpoint = Checkpoint {
            origin: self.key.name().to_owned(),
            size: snapshot.size,
            root: snapshot.root,
        };
        let note = checkpoint.sign(&self.key, &self.sign);
        crate::step!("head.signed");
        files::write_whole(&self.directory.join(CHECKPOINT), note.as_bytes())?;
        crate::step!("head.renamed");
        files::sync_directory(&self.directory)?;
        self.last = Some((checkpoint, note.clone()));
        self.remove_old_partials(snapshot);
        Ok(note)
    }

    /// A COSE receipt over the root of `head`, which this log published.
    pub(crate) fn cose_receipt(
        &self,
        head: &Checkpoint,
        hashes: &[Hash],
        index: u64,
    ) -> Option<Vec<u8>> {
        proof::cose_receipt(head, index, hashes, &self.key, &self.sign)
    }

    /// Keeps `note`, a head of this log that witnesses cosigned.
    pub(crate) fn keep_witnessed(&self, note: &str) -> Result<(), StoreError> {
        let path = self.directory.join(WITNESSED);
        Checkpoint::verify(note, &self.key)
            .map_err(|error| StoreError::corrupt(&path, "a head of this log", error.to_string()))?;
        files::write_whole(&path, note.as_bytes())?;
        files::sync_directory(&self.directory)
    }

    /// The note that was kept last.
    pub(crate) fn witnessed(&self) -> Result<Option<String>, StoreError> {
        let bytes = files::read_if_there(&self.directory.join(WITNESSED))?;
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()))
    }

    /// The head on disk must be the last one signed here, and `snapshot` must
    /// not be behind it. The tree only grows, so it then continues that head.
    fn check_head(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let path = self.directory.join(CHECKPOINT);
        let on_disk = read_checkpoint(&self.directory, &self.key)?.map(|(head, _)| head);
        let ours = self.last.as_ref().map(|(head, _)| head.clone());
        if on_disk != ours {
            return Err(StoreError::corrupt(&path, describe(&ours), describe(&on_disk)));
        }
        let behind = ours.as_ref().is_some_and(|head| {
            snapshot.size < head.size || (snapshot.size == head.size && snapshot.root != head.root)
        });
        if behind {
            let tree = format!("a tree of {} leaves", snapshot.size);
            return Err(StoreError::corrupt(&path, "a tree that continues its head", tree));
        }
        Ok(())
    }

    /// Removing is tidiness: what stays behind is harmless, so errors are too.
    fn remove_old_partials(&mut self, snapshot: &Snapshot) {
        let now: Vec<String> = snapshot.partial.iter().map(|(path, _)| path.clone()).collect();
        let [old, last] = &mut self.partial;
        let unused: Vec<String> =
            old.drain(..).filter(|path| !now.contains(path) && !last.contains(path)).collect();
        *old = std::mem::replace(last, now);
        for path in unused {
            let _ = fs::remove_file(self.directory.join(path));
        }
        for (path, _) in &snapshot.full {
            let _ = fs::remove_dir_all(self.directory.join(format!("{path}.p")));
        }
    }
}

const CHECKPOINT: &str = "checkpoint";
pub(crate) const WITNESSED: &str = "checkpoint.witnessed";

pub(crate) fn read_checkpoint(
    directory: &Path,
    key: &VerifierKey,
) -> Result<Option<(Checkpoint, String)>, StoreError> {
    read_note(&directory.join(CHECKPOINT), key)
}

/// The head of this log in the file at `path`, if there is one.
pub(crate) fn read_note(
    path: &Path,
    key: &VerifierKey,
) -> Result<Option<(Checkpoint, String)>, StoreError> {
    let Some(bytes) = files::read_if_there(path)? else { return Ok(None) };
    let expected = || format!("a checkpoint signed by {key}");
    let note = String::from_utf8(bytes)
        .map_err(|_| StoreError::corrupt(path, expected(), "bytes that are not text"))?;
    let checkpoint = Checkpoint::verify(&note, key)
        .map_err(|error| StoreError::corrupt(path, expected(), error.to_string()))?;
    Ok(Some((checkpoint, note)))
}

fn describe(head: &Option<Checkpoint>) -> String {
    match head {
        None => "no checkpoint".to_owned(),
        Some(head) => format!(
            "a checkpoint of {} leaves with root {}",
            head.size,
            casemate_ledger::text::hex(&head.root)
        ),
    }
}
